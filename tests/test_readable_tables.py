"""Tables in a terminal that is too narrow for them: names stay, and no digit is lost."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.box import SIMPLE_HEAD
from rich.console import Console

from latentlm.cli.tables import ReadableTable

NAMES = ("vanilla-tiny", "a_model_of_a_longer_name")
HUGE = f"{2.1e15:.4f} ± {7e14:.4f}"


def shown(table: ReadableTable, width: int) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width).print(table)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    return lines


def columns(lines: list[str]) -> list[str]:
    """What stands in each column, its lines put together again without blanks; of tables that a wide one was parted into the
    names once."""
    found: list[str] = []
    for lined in "\n".join(lines).split("┏"):
        rows = [re.split("[│┃]", line)[1:-1] for line in lined.splitlines() if line[:1] in ("│", "┃")]
        own = ["".join(cell.strip().replace(" ", "") for cell in cells) for cells in zip(*rows, strict=True)]
        found += own[1:] if found and own[:1] == found[:1] else own
    return found


def table(value: str, count: int, *, no_wrap: bool, **options: Any) -> ReadableTable:
    made = ReadableTable("model", **options)
    for number in range(count):
        made.add_column(f"bits/byte {number}", justify="right", no_wrap=no_wrap)
    for name in NAMES:
        made.add_row(name, *[value] * count)
    return made


@pytest.mark.parametrize("no_wrap", [True, False])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_huge_value_leaves_every_name_and_every_digit(count: int, no_wrap: bool) -> None:
    lines = shown(table(HUGE, count, no_wrap=no_wrap), 80)
    names, *values = columns(lines)
    assert names == "model" + "".join(NAMES)
    assert values == [f"bits/byte{number}" + HUGE.replace(" ", "") * 2 for number in range(count)]
    assert any("vanilla-tiny " in line for line in lines)


@pytest.mark.parametrize("no_wrap", [True, False])
@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_table_that_is_too_wide_is_parted_and_breaks_no_word(width: int, no_wrap: bool) -> None:
    lines = shown(table("+0.1234 [-0.0056, +0.3012]" if no_wrap else "0.1234 unknown, no", 9, no_wrap=no_wrap), width)
    words = {word.strip("│┃") for line in lines for word in line.split() if not set(line) & set("┏┡└")}
    cells = ["+0.1234", "[-0.0056,", "+0.3012]"] if no_wrap else ["0.1234", "unknown,", "no"]
    assert words <= {"model", *NAMES, "bits/byte", *map(str, range(9)), *cells, ""} or width == 40
    if no_wrap:
        assert sum(line.count("+0.1234 [-0.0056, +0.3012]") for line in lines) == 18 or width == 40
    assert "".join(columns(lines)).count("bits/byte") == 9
    assert columns(lines)[0] == "model" + "".join(NAMES)


def test_a_header_wraps_where_the_lines_below_are_to_stay_whole() -> None:
    made = ReadableTable("arm")
    for _ in range(3):
        made.add_column("a header of many words", justify="right", no_wrap=True)
    made.add_row("plain", *["1.23 ± 0.04"] * 3)
    lines = shown(made, 60)
    assert sum(line.count("1.23 ± 0.04") for line in lines) == 3
    assert sum("plain" in line for line in lines) == 1, "one table"


def test_a_title_is_not_wrapped_to_its_tables_width() -> None:
    title = "A title that is wider than its table"
    assert title in shown(table("1", 1, no_wrap=True, title=title, title_justify="left"), 80)


def test_where_there_is_room_nothing_folds() -> None:
    made = table("0.1234 ± 0.0056", 2, no_wrap=False)
    for _ in range(2):
        assert any(f"│ {NAMES[1]} │" in line for line in shown(made, 120)), "printing narrow before changes nothing"
        assert len(shown(made, 60)) > len(shown(made, 120))


def test_the_box_and_the_padding_are_counted() -> None:
    lines = shown(table(HUGE, 2, no_wrap=True, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title="A title"), 72)
    assert any("vanilla-tiny" in line for line in lines)


def test_every_table_of_a_command_is_such_a_one() -> None:
    root = Path(__file__).parents[1]
    modules = [path for part in ("latentlm", "evals", "plugins", "zoo") for path in (root / part).rglob("*.py")]
    made = re.compile(r"^ *from rich\.table import.*\bTable\b|rich\.table\.Table\(", re.MULTILINE)
    own = [path for path in modules if made.search(path.read_text(encoding="utf-8"))]
    assert own == [root / "latentlm" / "cli" / "tables.py"]
