"""Input of the wrong kind, or without end, is refused by one message before it costs anything."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from hostile.base import recipe
from hostile.lines import LINES
from latentlm.cli import commands
from latentlm.config import DataConfig
from latentlm.config.reading import read_yaml
from latentlm.errors import UserError
from latentlm.generation.latents import edited, from_codes
from latentlm.interface import Latent, LatentDecoder, Noise
from latentlm.plugins import provenance
from latentlm.plugins.discovery import Plugin, PluginWarning, load
from latentlm.training.data.corpora import read_corpus
from zoo_models import make_run

REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "codes of too many bits": (lambda: from_codes(torch.ones(1, 1, dtype=torch.long), event_dims=20_000), "at most 62"),
    "a mask for sites": (lambda: edited(Latent(torch.zeros(1, 2, 3)), value=1.0, sites=True), "a number or a slice"),
    "no keys": (lambda: Noise.keyed(0, None), "must be a list of keys"),  # type: ignore[arg-type]
    "no samples": (lambda: Noise.keyed(0, ["a"], samples=0), "at least 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_arguments(name: str) -> None:
    call, said = REFUSED[name]
    with pytest.raises(UserError, match=said):
        call()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LatentDecoder]:
    """A folder with a run and what could be trained, and the run's model."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "my.yaml").write_text(recipe(), encoding="utf-8")
    (folder / "texts").mkdir()
    for number in range(8):
        (folder / "texts" / f"{number}.txt").write_text("little is said\n" * 20, encoding="utf-8")
    return folder, make_run(folder / "run")


@pytest.mark.parametrize("line", LINES)
def test_lines_of_python(line: str, place: tuple[Path, LatentDecoder], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, model = place
    monkeypatch.chdir(folder)
    with pytest.raises(UserError):
        exec(line, {"torch": torch, "model": model})


TEXTS = {"text": pa.array(["a"]), "large": pa.array(["a"], pa.large_string()), "few": pa.array(["a"]).dictionary_encode()}
OTHERS = {
    "moments": pa.array([2**62], pa.timestamp("us")),
    "moments of nowhere": pa.array([1], pa.timestamp("s", tz="Not/AZone")),
    "days": pa.array([2**30], pa.int32()).cast(pa.date32()),
    "durations": pa.array([2**62], pa.duration("s")),
    "lists": pa.array([["a"]]),
}


@pytest.mark.parametrize("name", [*TEXTS, *OTHERS])
def test_columns_of_parquet(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"text": (TEXTS | OTHERS)[name]}), path)
    config = DataConfig(path=str(path))
    if name in TEXTS:
        assert [document.data for document in read_corpus(config)] == [b"a"]
    else:
        with pytest.raises(UserError, match=r'the column "text" holds .*, not text'):
            list(read_corpus(config))


@pytest.mark.parametrize(
    ("text", "said"),
    [("- a\n" * 250_000, "more than 100,000 values in line 100000"), ("a: " + "x " * 5_000_000, "larger than 1 MiB")],
)
def test_yaml_without_end_is_given_up_early(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "long.yaml"
    path.write_text(text, encoding="utf-8")
    started = time.process_time()
    with pytest.raises(UserError, match=said):
        read_yaml(path)
    assert time.process_time() - started < 20  # all of it: more than that


def test_what_no_import_reads_is_no_code_of_a_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "odd_package"
    package.mkdir()
    (package / "__init__.py").write_text("", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    before = provenance._code("odd_package")
    (package / ".#editor.py").symlink_to("nowhere")
    (package / "gone.py").symlink_to("nowhere")
    (package / "folder.py").mkdir()
    os.mkfifo(package / "pipe.py")
    assert provenance._code("odd_package") == before
    (package / "more.py").write_text("", encoding="utf-8")
    assert provenance._code("odd_package") != before


PLUGINS = {
    "interrupts": "raise KeyboardInterrupt",
    "an error without a text": "class E(Exception):\n    def __str__(self):\n        raise SystemExit(3)\nraise E",
}


@pytest.mark.parametrize("handler", [lambda *_: None, signal.SIG_IGN, signal.SIG_DFL], ids=["command", "ignored", "ends"])
@pytest.mark.parametrize("name", PLUGINS)
def test_plugins_that_end_in_odd_ways_are_named(
    name: str, handler: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where Ctrl-C raises nothing: under the command, in the background, or where it ends the process."""
    (tmp_path / "odd_plugin.py").write_text(PLUGINS[name], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "odd_plugin", raising=False)
    plugin = Plugin("odd", "odd-things", "1", "odd_plugin", entry=EntryPoint("odd", "odd_plugin", "latentlm"))
    before = signal.signal(signal.SIGINT, handler)
    try:
        with pytest.warns(PluginWarning, match='plugin "odd" of odd-things 1 failed to load'):
            load(plugin)
    finally:
        signal.signal(signal.SIGINT, before)
    assert plugin.status == "failed"


def test_ctrl_c_in_a_program_of_ones_own_is_not_the_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_plugin.py").write_text("raise KeyboardInterrupt", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    plugin = Plugin("slow", "slow-things", "1", "slow_plugin", entry=EntryPoint("slow", "slow_plugin", "latentlm"))
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may run where it is ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            load(plugin)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert plugin.status == "waiting"


def test_a_command_that_two_offer_is_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        def __init__(self, name: str) -> None:
            self.dist = type("Distribution", (), {"name": name})

    monkeypatch.setattr(commands, "entry_points", lambda **_: [Entry("b-things"), Entry("a-things")])
    with pytest.raises(UserError, match='"both" is offered by a-things and b-things'):
        commands._load("both")


def test_a_traceback_is_shown_and_not_obeyed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise ValueError("\x1b[31mred")

    monkeypatch.setattr(commands, "app", fail)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # which the command sets
    with pytest.raises(ValueError, match="red") as raised:
        commands.run()
    sys.excepthook(raised.type, raised.value, raised.tb)
    said = capsys.readouterr().err
    assert "\\x1b[31mred" in said
    assert "Traceback" in said
    assert "\x1b" not in said


@pytest.mark.parametrize(("raised", "also"), [("RuntimeError", b"Traceback"), ("SystemExit", b"")])
def test_what_a_command_ends_with_is_shown_and_not_obeyed(raised: str, also: bytes, tmp_path: Path) -> None:
    lines = f"import sys, latentlm.zoo\ndef fail(*_, **__): raise {raised}('\\x1b[31mred')\nlatentlm.zoo.list = fail\n"
    lines += "sys.argv = ['latentlm', 'zoo', 'list']\nfrom latentlm.cli import main\nmain()\n"
    done = subprocess.run([sys.executable, "-c", lines], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 1
    assert also in done.stderr
    assert b"\\x1b[31mred" in done.stderr
    assert b"\x1b[31m" not in done.stderr
