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
    """What stands in each column, its lines put together again without blanks."""
    rows = [re.split("[│┃]", line)[1:-1] for line in lines if line[0] in "│┃"]
    return ["".join(cell.strip().replace(" ", "") for cell in cells) for cells in zip(*rows, strict=True)]


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
    assert any("vanilla-tiny " in line for line in lines) or count == 4


def test_names_fold_before_the_lines_of_numbers_that_are_to_stay_whole() -> None:
    lines = shown(table("0.1234 ± 0.0056", 2, no_wrap=True), 60)
    assert sum(line.count("0.1234 ± 0.0056") for line in lines) == 4
    assert columns(lines)[0] == "model" + "".join(NAMES)


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
