"""Mistakes as a new user makes them at the command line: a status, one message with its remedy, no traceback, nothing lost."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml

from latentlm import zoo
from latentlm.cli import main
from latentlm.composed import build, complete
from latentlm.config import BackboneConfig, ModelConfig, Recipe, memory
from latentlm.errors import UnknownNameError, UserError, resolved
from latentlm.training.record import write_model
from latentlm.zoo.weights import weights_of


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    status: int
    out: str
    err: str


Command = Callable[..., Outcome]
RECIPE = {
    "name": "mine",
    "model": {"decoder": "free", "event_dims": 4, "backbone": {"width": 16, "heads": 2, "blocks": 2, "context": 32}},
    "data": {"path": "data"},
    "train": {"steps": 2, "batch": 2},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: a model, damaged copies of it, recipes, texts."""
    folder = tmp_path_factory.mktemp("user")
    model = _model(folder / "model")
    for name in ("truncated", "flipped"):
        copy = _model(folder / name)
        (copy / "model.safetensors").write_bytes(_damaged((model / "model.safetensors").read_bytes(), name))
    _model(folder / "other-words", vocabulary=100)
    (folder / "unfinished").mkdir()
    (folder / "unfinished" / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    recipes = {
        "good": RECIPE,
        "key": {**RECIPE, "trian": {"steps": 3}},
        "encoder": {**RECIPE, "model": {**RECIPE["model"], "encoder": "fre"}},  # type: ignore[dict-item]
        "plugin": {**RECIPE, "plugins": ["fre"]},
    }
    for name, recipe in recipes.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    _model(folder / "shelved")
    (folder / "neither.yaml").write_text("colour: blue")
    (folder / "broken.yaml").write_text("model:\n  decoder: [free\ntrain: {}\n")
    (folder / "empty.yaml").write_text("")
    (folder / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for name in ("data", "nothing", "blank"):
        (folder / name).mkdir()
    for number in range(12):
        (folder / "data" / f"{number}.txt").write_text(f"text {number} " * 20)
    (folder / "blank" / "a.txt").write_text("")
    (folder / "empty.txt").write_text("")
    (folder / "text.txt").write_text("some text")
    (folder / "weights.bin").write_bytes(b"\x80\x04")
    return folder


def _model(folder: Path, *, vocabulary: int = 257) -> Path:
    """A run folder of a small model that reads bytes."""
    folder.mkdir()
    sizes = BackboneConfig(vocabulary=vocabulary, width=16, blocks=2, heads=2, context=32)
    config = complete(ModelConfig(decoder="free", event_dims=4, backbone=sizes))
    recipe = Recipe(name=folder.name, plugins=["free", "schedules"], model=config)
    weights = weights_of(build(config))
    write_model(
        folder, recipe=recipe, weights=weights, tensors=weights.items(), tokenizer="bytes", training={}, scores={}
    )
    return folder


def _damaged(data: bytes, how: str) -> bytes:
    return data[:-10] if how == "truncated" else data[:-1] + bytes([data[-1] ^ 1])


@pytest.fixture
def latentlm(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command, run in the user's folder; an exception that would print a traceback comes through and fails the test."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "300")

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["latentlm", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        return Outcome(int(stop.value.code or 0), *capsys.readouterr())

    return run


def check(outcome: Outcome, *words: str) -> None:
    """One message on standard error, with these words, and status 1."""
    assert outcome.status == 1
    assert outcome.err.startswith("error: "), outcome.err
    assert outcome.err.count("\n") == 1, "one line"
    assert "Traceback" not in outcome.err
    assert not outcome.out
    for word in words:
        assert word in outcome.err


def test_an_error_shows_what_it_repeats_at_a_bearable_length() -> None:
    error = UserError("no model a\0b\x1b[31m\u202e\udc80\nis here")
    assert str(error) == "no model a\\x00b\\x1b[31m\\u202e\\udc80\nis here"
    assert len(str(UserError("x" * 10**6))) < 1000
    with pytest.raises(UnknownNameError, match=r"a\\x00b"):
        zoo.load("a\0b")


# ------------------------------------------------------------------------------------------------------------ models


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("fre-tiny", ['Unknown model "fre-tiny". Did you mean "free-tiny"?', "free-8b"]),
        ("runs/mine", ["runs/mine does not exist", "latentlm zoo list"]),
        ("truncated", ["are truncated", "bytes instead of", "save them again"]),
        ("flipped", ["SHA-256", "corrupt", "save it again"]),
        ("other-words", ["vocabulary of 100", "257 symbols", "Use the tokenizer"]),
        ("unfinished", ["not finished", "--resume"]),
        ("nothing", ["holds no card.yaml"]),
        ("text.txt", ["is no model", "Give the folder"]),
        ("weights.bin", ["is a pickle", "safetensors"]),
        ("demo-free", ['"demo-free" is a recipe; train it with `latentlm train demo-free`', "the folder of the run"]),
        ("good.yaml", ['"good.yaml" is a recipe; train it with `latentlm train good.yaml`']),
        ("neither.yaml", ["neither.yaml is no card"]),
        ("broken.yaml", ["not readable as YAML", "line 3, column"]),
        ("empty.yaml", ["is empty"]),
        ("free-8b", ["has no tokenizer", "tokenizer.json"]),
    ],
)
def test_a_model_that_cannot_be_used(latentlm: Command, model: str, words: list[str]) -> None:
    check(latentlm("generate", model, "a", "--max-tokens", "3"), *words)
    check(latentlm("score", model, "text.txt"), *words)


@pytest.mark.parametrize("command", ["generate", "score"])
def test_not_enough_memory(latentlm: Command, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setattr(memory, "available", lambda device: 1000)
    check(latentlm(command, "model", "text.txt"), "GiB on cpu", "Choose a smaller model")


# ------------------------------------------------------------------------------------------------- generate and score


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["x" * 100, "--max-tokens", "3"], ["101 tokens", "context is 32", "--truncate"]),
        (["x"], ["max_tokens (64)", "context of 32 tokens", "lower it"]),
        (["x", "--max-tokens", "3", "--latents-from", "y" * 50], ["The text has 51 tokens", "Shorten it"]),
        (["x", "--temperature", "-1"], ["temperature must be a finite number at least 0"]),
        (["x", "--device", "gpu"], ['Unknown device "gpu"', '"cuda"']),
        (["x", "--load-latents", "text.txt"], ["text.txt is not readable as safetensors"]),
    ],
)
def test_a_generation_that_cannot_be(latentlm: Command, arguments: list[str], words: list[str]) -> None:
    check(latentlm("generate", "model", *arguments), *words)


def test_latents_that_cannot_be_written_are_refused_before_anything_is_generated(latentlm: Command) -> None:
    outcome = latentlm("generate", "model", "ab", "--max-tokens", "3", "--save-latents", "text.txt/z.safetensors")
    check(outcome, "could not be written to text.txt/z.safetensors", "Choose a folder that is there")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.txt"], ["missing.txt does not exist", "standard input"]),
        (["data"], ["data is a folder", "standard input"]),
        (["empty.txt"], ["empty.txt is empty"]),
        (["text.txt", "--method", "best"], ['Unknown scoring method "best"', "operational"]),
        (["text.txt", "--samples", "0"], ["samples=0", "from 1 on"]),
    ],
)
def test_a_score_that_cannot_be(latentlm: Command, arguments: list[str], words: list[str]) -> None:
    check(latentlm("score", "model", *arguments), *words)


# ------------------------------------------------------------------------------------------------------------- train


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fre-tiny"], ['Unknown recipe "fre-tiny". Did you mean "free-tiny"?']),
        (["vanilla-8b"], ['"vanilla-8b" is a model, not a recipe', "latentlm zoo describe vanilla-8b", "demo-free"]),
        (["model/card.yaml"], ["model/card.yaml is a card, that of a model, not a recipe"]),
        (["shelved"], ['"shelved" is a model, not a recipe']),
        (["god.yaml"], ["god.yaml does not exist", 'Did you mean "good"?']),
        (["key.yaml"], ['unknown key "trian". Did you mean "train"?']),
        (["encoder.yaml"], ['Unknown encoder "fre". Did you mean "free"?']),
        (["plugin.yaml"], ['The plugin "fre" is needed but not installed. Did you mean "free"?']),
        (["broken.yaml"], ["broken.yaml is not readable as YAML", "line 3, column"]),
        (["binary.yaml"], ["binary.yaml is not readable", "UTF-8"]),
        (["empty.yaml"], ["should hold a mapping", "is empty"]),
        (["good.yaml", "train.steps"], ['"train.steps" is not of the form key=value', "train.steps=500"]),
        (["good.yaml", "train.steps=[1"], ['the value in "train.steps=[1" is not readable as YAML', "Put quotes"]),
        (["good.yaml", "train.steps=soon"], ["train.steps: Input should be a valid integer"]),
        (["good.yaml", "train.stps=3"], ['unknown key "train.stps". Did you mean "steps"?']),
        (["good.yaml", "name=a/b"], ['"a/b" is no name']),
        (["good.yaml", "model.injection.tabel=full"], ['settings of injection "free"', 'Did you mean "table"?']),
        (["good.yaml", "model.decoder=composed", "model.encoder.tap=1"], ['"composed" has no default encoder', "name one"]),
        (["good.yaml", "model.event_dims=30"], ["the limit is 2^24", "Use fewer bits"]),
        (["good.yaml", "train.device=gpu"], ['train.device "gpu"', '"cpu"']),
        (["good.yaml", "data.path=nothing"], ["no file in nothing", "Set data.pattern"]),
        (["good.yaml", "data.path=blank"], ["holds no document with text", "Give a folder"]),
        (["good.yaml", "data.path=empty.txt"], ["holds no document with text"]),
        (["good.yaml", "model.backbone.vocabulary=100"], ["vocabulary of 100", "set model.backbone.vocabulary=257"]),
        (["good.yaml", "--out", "text.txt/run"], ["cannot write into text.txt/run", "--out"]),
        (["good.yaml", "--out", "text.txt"], ["a file of that name is there", "--out"]),
        (["good.yaml", "--out", "data"], ["data is not empty and no run", "--out"]),
        (["good.yaml", "--out", "model"], ["model holds a finished run", "--out"]),
    ],
)
def test_a_training_that_cannot_be(latentlm: Command, place: Path, arguments: list[str], words: list[str]) -> None:
    before = sorted(place.rglob("*"))
    check(latentlm("train", *arguments, *([] if "--out" in arguments else ["--dry-run"])), *words)
    left = {path for path in place.rglob("*") if path.name != ".lock"} - set(before)
    assert not left, "nothing is written"


# ------------------------------------------------------------------------------------- zoo, plugins, eval, compare


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["zoo", "describe", "fre-8b"], ['Unknown model "fre-8b". Did you mean "free-8b"?']),
        (["zoo", "describe", "demo-free"], ['"demo-free" is a recipe; train it with `latentlm train demo-free`']),
        (["eval", "demo-free"], ['"demo-free" is a recipe; train it with `latentlm train demo-free`']),
        (["eval", "good.yaml"], ['"good.yaml" is a recipe']),
        (["parts", "describe", "uniform_bit"], ['Unknown part "uniform_bit". Did you mean "uniform_bits"?']),
        (["parts", "for", "demo-fre", "prior"], ['Unknown recipe "demo-fre". Did you mean "demo-free"?']),
        (["parts", "for", "demo-free", "priors"], ['Unknown socket "priors". Did you mean "prior"?']),
        (["parts", "--socket", "priors"], ['Unknown socket "priors". Did you mean "prior"?']),
        (["zoo", "add", "unfinished"], ["not finished", "--resume"]),
        (["zoo", "add", "truncated", "--to", "shelf"], ["are truncated"]),
        (["zoo", "add", "model", "--to", "text.txt/shelf"], ["cannot add model to text.txt/shelf", "Another shelf"]),
        (["zoo", "add", "model", "--to", "shelf", "--name", "../up"], ['"../up" is no name']),
        (["eval", "fre-tiny"], ['Unknown model "fre-tiny". Did you mean "free-tiny"?']),
        (["eval", "truncated"], ["are truncated"]),
        (["eval", "model", "--tasks", ","], ["--tasks"]),
        (["eval", "model", "--score", "best"], ['"best"', "operational"]),
        (["eval", "model", "--output", "text.txt/x.json"], ["--output text.txt/x.json", "existing folder"]),
        (["eval", "free-1.5b", "--tokenizer", "bytes"], ["without trained weights", "--allow-random"]),
        (["compare", "demo-fre"], ['Unknown model or recipe "demo-fre". Did you mean "demo-free"?']),
        (["compare", "good.yaml", "train.stps=3"], ['unknown key "train.stps". Did you mean "steps"?']),
        (["compare", "model", "train.steps=3"], ["only models were named"]),
        (["compare", "model", "--tasks", "none", "--out", "text.txt/x"], ["cannot write to text.txt/x", "--out"]),
    ],
)
def test_other_commands_that_cannot_be(latentlm: Command, arguments: list[str], words: list[str]) -> None:
    check(latentlm(*arguments), *words)


@pytest.mark.parametrize("command", ["eval", "compare"])
def test_a_task_that_does_not_exist(latentlm: Command, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    from lm_eval.tasks import TaskManager

    class Ours(TaskManager):
        """Without lm-eval's own thousands of tasks, which take seconds to index."""

        def __init__(self, include_path: list[str], include_defaults: bool = False) -> None:
            super().__init__(include_path=include_path, include_defaults=False)

    monkeypatch.setattr("latentlm_evals.evaluation.TaskManager", Ours)
    wrong = 'Unknown task "latentlm_cpy". Did you mean "latentlm_copy"?'
    check(latentlm(command, "model", "--tasks", "latentlm_cpy"), wrong, "latentlm_next_line")


def test_a_failed_plugin_is_one_line_and_all_else_works(latentlm: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from latentlm.plugins.discovery import PluginWarning

    def warned(pattern: str) -> list[object]:
        warnings.warn("p failed\n to load", PluginWarning, stacklevel=1)
        return []

    monkeypatch.setattr("latentlm.zoo.list", warned)
    outcome = latentlm("zoo", "list")
    assert outcome.status == 0
    assert outcome.err == "warning: p failed to load\n"


def test_random_weights_are_told_in_one_line(latentlm: Command, place: Path) -> None:
    card = yaml.safe_load((place / "model" / "card.yaml").read_text()) | {"status": "architecture", "weights": None}
    (place / "fresh.yaml").write_text(yaml.safe_dump(card))
    outcome = latentlm("generate", "fresh.yaml", "a", "--max-tokens", "2")
    assert outcome.status == 0
    assert outcome.err.startswith('warning: "model" is an architecture without trained weights')
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["genrate", "model"], 'No such command "genrate". Did you mean "generate"?'),
        (["generate"], "Missing argument"),
        (["generate", "model", "--max-tokens", "many"], "valid integer"),
        (["zoo", "lst"], "Did you mean 'list'?"),
        (["plugins", "--jsn"], "--json"),
    ],
)
def test_a_command_line_that_cannot_be_read(latentlm: Command, arguments: list[str], words: str) -> None:
    outcome = latentlm(*arguments)
    assert outcome.status == 2
    assert words in outcome.err
    assert not outcome.out


# -------------------------------------------------------------------------------------------------- system and signals


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "full", "z.bin"), "z.bin: No space left on device; free some space"),
        (PermissionError(errno.EACCES, "no", "z.bin"), "z.bin: Permission denied; choose a path that you may use"),
        (IsADirectoryError(errno.EISDIR, "no", "z"), "z: Is a directory; give a file"),
        (OSError(errno.EROFS, "no", "z"), "z: Read-only file system; choose a path"),
        (MemoryError(), "not enough memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "not enough memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "not enough memory"),
    ],
)
def test_the_system_refuses(latentlm: Command, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str) -> None:
    monkeypatch.setattr("latentlm.zoo.list", _raiser(error))
    check(latentlm("zoo", "list"), words)


def test_torch_says_that_memory_is_short_in_words_we_know() -> None:
    from latentlm.cli._errors import explain

    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert "not enough memory" in str(explain(caught.value))


def test_a_bug_keeps_its_traceback(latentlm: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentlm.zoo.list", _raiser(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        latentlm("zoo", "list")


@pytest.mark.parametrize("command", ["generate", "score"])
def test_ctrl_c_ends_with_a_word(latentlm: Command, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setattr("latentlm.zoo.load", _raiser(KeyboardInterrupt()))
    outcome = latentlm(command, "model", "text.txt")
    assert outcome.status == 130
    assert outcome.err == "stopped.\n"


def _raiser(error: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_a_reader_that_goes_away_is_no_traceback(place: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "latentlm.cli", "zoo", "list", "--json"]
    ended = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, cwd=place, check=False)
    os.close(write)
    assert ended.returncode == 1
    assert ended.stderr == ""


def test_an_error_reaches_the_shell(place: Path) -> None:
    command = [sys.executable, "-m", "latentlm.cli", "generate", "truncated", "a"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=place, check=False)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.startswith("error: The weights ")
    assert "Traceback" not in ended.stderr


def test_a_link_in_a_circle_stays_as_it_is_and_what_is_no_path_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert resolved(tmp_path / "loop").name == "loop"
    with pytest.raises(UserError, match="no path"):
        resolved(Path("a\0b"))
