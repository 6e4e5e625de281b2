"""What the commands write: JSON alone where JSON was asked for, and something readable on any terminal."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from latentlm import cli
from latentlm.cli import commands, text
from latentlm.cli.commands import app
from latentlm.cli.output import emit
from zoo_models import make_run

NOISY = """
latentlm_contract = 2
import atexit, ctypes, os, subprocess, sys
def noise(where):
    print("print", where)
    sys.stdout.write("write " + where + "\\n")
    os.write(1, b"os.write\\n")
    subprocess.run(["echo", "a child"])
    ctypes.CDLL(None).puts(b"C")  # stays in C's own buffer until the process ends
noise("import")
atexit.register(noise, "end")
from latentlm.plugins import hookimpl
@hookimpl
def latentlm_parts():
    noise("parts")
    return {}
@hookimpl
def latentlm_cards():
    noise("cards")
    return []
"""
RECIPE = """
model: {decoder: vanilla, backbone: {width: 16, blocks: 1, heads: 2, context: 32}}
data: {path: data}
train: {steps: 1, batch: 2, device: cpu, threads: 1}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with a model, a recipe and texts, and a noisy plugin on the path."""
    folder = tmp_path_factory.mktemp("user")
    make_run(folder / "run")
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "data").mkdir()
    for number in range(3):
        (folder / "data" / f"{number}.txt").write_text(f"some text, number {number}")
    (folder / "site" / "noisy-1.0.dist-info").mkdir(parents=True)
    (folder / "site" / "noisy.py").write_text(NOISY)
    (folder / "site" / "noisy-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: noisy\nVersion: 1.0\n")
    (folder / "site" / "noisy-1.0.dist-info" / "entry_points.txt").write_text("[latentlm]\nnoisy = noisy\n")
    return folder


def command(place: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    paths = [str(place / "site"), *filter(None, sys.path)]
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(paths), "XDG_DATA_HOME": str(place / "shelves"), "OMP_NUM_THREADS": "1",
        "COLUMNS": "100", **variables,
    }  # fmt: skip
    line = [sys.executable, "-m", "latentlm.cli", *arguments]
    return subprocess.run(line, capture_output=True, cwd=place, env=environment, timeout=300, check=False)


@pytest.mark.parametrize(
    "arguments",
    [
        ["zoo", "list"],
        ["parts", "describe", "free"],
        ["generate", "run", "a", "--max-tokens", "2"],
        ["train", "recipe.yaml", "--out", "trained"],
        ["eval", "run", "--tasks", "latentlm_next_line", "--limit", "1", "--samples", "1"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_json_is_alone_on_its_stream_whatever_a_plugin_prints(place: Path, arguments: list[str]) -> None:
    ended = command(place, *arguments, "--json")
    assert ended.returncode == 0, ended.stderr.decode()
    json.loads(ended.stdout)
    assert ended.stdout.startswith((b"{", b"["))


def options(command: Any, *path: str) -> Iterator[tuple[str, Any]]:
    """Every --json of a command and of those below it, with the words that call it."""
    for name in command.list_commands(None) if hasattr(command, "list_commands") else []:
        inner = typer.main.get_command(commands._load(name)) if not path else command.get_command(None, name)
        yield from options(inner, *path, name)
    yield from ((" ".join(path), option) for option in command.params if "--json" in option.opts)


def test_every_json_of_ours_is_of_that_kind() -> None:
    found = dict(options(typer.main.get_command(app)))
    assert len(found) >= 14
    assert [name for name, option in found.items() if option.callback is None] == []
    assert {option.help for option in found.values()} == {"Print JSON, and nothing else on standard output."}


def test_what_is_emitted_is_json_by_the_standard(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"found": [float("nan"), (1.5, float("-inf"))], "none": None})
    assert "".join(capsys.readouterr().out.split()) == '{"found":[null,[1.5,null]],"none":null}'


def test_json_for_a_program_is_written_by_emit() -> None:
    root = Path(cli.__file__).parent.parent.parent
    written = re.compile(r"(print|echo)\(\w*_?(json\.dumps|\w+\.to_json|as_json)\(")
    sources = [path for folder in ("latentlm", "evals") for path in (root / folder).rglob("*.py")]
    assert [str(path) for path in sources if written.search(path.read_text(encoding="utf-8"))] == []


def test_what_a_plugin_prints_is_not_lost(place: Path) -> None:
    ended = command(place, "plugins", "--json")
    said = ended.stderr.decode()
    assert all(word in said for word in ("print import", "write parts", "os.write", "a child", "print end", "C\n"))
    assert b"print import" in command(place, "plugins").stdout  # without --json, as ever


def test_an_option_of_that_name_of_someone_elses_command_is_theirs(place: Path) -> None:
    (place / "site" / "theirs.py").write_text(
        "print('while it is imported')\nimport typer\napp = typer.Typer()\n@app.command()\n"
        "def theirs(json: bool = False):\n    print('[1]')\n"
    )
    entry = "[latentlm]\nnoisy = noisy\n[latentlm.commands]\ntheirs = theirs:app\n"
    (place / "site" / "noisy-1.0.dist-info" / "entry_points.txt").write_text(entry)
    assert command(place, "theirs", "--json").stdout == b"[1]\n"


def test_in_a_process_of_others_the_stream_is_theirs_again_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["latentlm", "plugins", "--json"])
    before = sys.stdout
    for _ in range(2):
        ended = CliRunner().invoke(app, ["plugins", "--json"])
        assert ended.exit_code == 0
        assert json.loads(ended.stdout)["plugins"]
    assert sys.stdout is before


# ------------------------------------------------------------------------------------------------------- terminals


ENCODINGS = ["ascii", "latin-1", "cp1252", "cp437", "shift_jis", "utf-8", "utf-16"]


@pytest.fixture
def shown(place: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, str]]:
    """What a command writes to a terminal of some encoding: standard output, standard error."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "100")

    def run(encoding: str, *arguments: str) -> tuple[str, str]:
        streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
        monkeypatch.setattr(sys, "argv", ["latentlm", *arguments])
        monkeypatch.setattr(sys, "stdout", streams[0])
        monkeypatch.setattr(sys, "stderr", streams[1])
        with pytest.raises(SystemExit):
            cli.main()
        for stream in streams:
            stream.flush()
        monkeypatch.undo()
        out, err = (stream.buffer.getvalue().decode(encoding) for stream in streams)  # type: ignore[attr-defined]
        return out, err

    return run


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    "arguments",
    [["zoo", "list"], ["zoo", "describe", "free-tiny"], ["parts", "describe", "free"], ["schedules", "list"]],
    ids=" ".join,
)
def test_tables_and_drawings_are_readable_in_any_encoding(
    shown: Callable[..., tuple[str, str]], arguments: list[str], encoding: str
) -> None:
    text, _ = shown(encoding, *arguments)
    assert "free" in text
    assert "\\u2" not in text  # lines are drawn in plain letters, not spelt out


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_text_that_the_terminal_lacks_is_spelt_out(shown: Callable[..., tuple[str, str]], encoding: str) -> None:
    prompt = "a\u65e5\U0001f600"
    text, _ = shown(encoding, "generate", "run", prompt, "--max-tokens", "1")
    assert text.startswith(prompt if encoding.startswith("utf") else "a")
    assert ("\\U0001f600" in text) != encoding.startswith("utf")


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_bytes_that_are_no_text_are_shown_in_a_message(shown: Callable[..., tuple[str, str]], encoding: str) -> None:
    _, said = shown(encoding, "generate", os.fsdecode(b"no\xff"), "a")
    assert said.startswith('error: Unknown model "no\\udcff"')


def test_training_speaks_in_any_encoding(place: Path) -> None:
    ended = command(place, "train", "recipe.yaml", "--out", "ascii", PYTHONIOENCODING="ascii", LATENTLM_PLUGINS="vanilla")
    assert ended.returncode == 0, ended.stderr.decode()
    assert b"held out: bound" in ended.stdout


def test_what_stands_for_a_sign_is_as_wide() -> None:
    lines = "\u2500\u2502\u251c\u2514\u253c\u2550\u25ba\u25c4\u2191"
    assert "".join(map(text._plain, lines)) == "-|+++-><^"
