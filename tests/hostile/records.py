"""What the records of a run say: metrics, manifest and card, read by those who resume, compare and study it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from hostile.harness import Case

_COMPARE = ("compare", "run", "--tasks", "none", "--documents", "2", "--document-bytes", "16", "--samples", "2", "--out", "new")
_ODD: dict[str, object] = {"a text": "x", "a list": [1], "true": True, "a mapping": {"a": 1}, "huge": 10**400}
_KEYS = ("bits_per_byte", "tokens_per_second", "bound", "cross_entropy", "elapsed", "tokens", "standard_error",
         "kl_bits_per_token", "live_bits")  # fmt: skip


def cases() -> Iterator[Case]:
    """Of each record."""
    changes: dict[str, Callable[[dict[str, Any]], object]] = {"but the step gone": _only_step}
    changes |= {f"no {key}": lambda line, key=key: line.pop(key, None) for key in _KEYS}
    changes |= {f"{key} null": lambda line, key=key: line.update({key: None}) for key in _KEYS}
    for what, odd in _ODD.items():
        changes |= {f"{key} {what}": lambda line, key=key, odd=odd: line.update({key: odd}) for key in _KEYS}
    for number, (what, change) in enumerate(changes.items()):
        # Each change before one reader or another: all of them read by one function.
        command = (("train", "run", "-q", "--resume"), _COMPARE)[number % 2]
        yield Case(f"metrics with {what}: {command[0]}", command, prepare=_metrics(change), good=True)
    for command in (("train", "run", "-q", "--resume"), _COMPARE):
        yield Case(f"metrics with but the step gone, {command[0]}", command, prepare=_metrics(_only_step), good=True)
        yield Case(f"metrics gone: {command[0]}", command, prepare=_gone, good=True)
    plugins: dict[str, object] = {"a number": 5, "a list": [1], "null": None, "a text": "x"}
    for what, odd in plugins.items():
        said: dict[str, object] = {"plugins": {"free": odd}}
        yield Case(
            f"manifest whose plugin is {what}",
            ("train", "half", "-q", "--resume"),
            prepare=_half(said),
            good=True,
            may_change=("half/*", "half/checkpoints/*", "half/checkpoints/*/*"),
        )
    traced = ("train", "half", "-q", "--resume", "train.profile.start=1", "train.profile.steps=1")
    for what, make in {"a file": _taken, "a link": _linked}.items():
        yield Case(f"a trace where there is {what}", traced, prepare=make, says=r"train\.profile")
    for key in ("parameters", "steps", "tokens", "seconds"):
        for what, odd in {"gone": None, **_ODD}.items():
            if what == "huge":
                continue
            yield Case(
                f"card whose training.{key} is {what}",
                ("train", "run", "-q", "--resume"),
                prepare=lambda folder, key=key, odd=odd: _card(folder, {key: odd}),
                says=f"training.{key}|does not say how",
            )
    resume = ("train", "run", "-q", "--resume")
    yield Case("card without training", resume, prepare=lambda folder: _card(folder, None), says="does not say how")


def _gone(folder: Path) -> None:
    (folder / "run" / "metrics.jsonl").unlink()


def _only_step(line: dict[str, Any]) -> None:
    kept = {key: line[key] for key in ("split", "step")}
    line.clear()
    line.update(kept)


def _metrics(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        path = folder / "run" / "metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            change(line)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    return make


def _half(said: dict[str, object]) -> Callable[[Path], None]:
    """A run that was stopped at step 1 of 2, whose manifest says something more."""

    def make(folder: Path) -> None:
        half = folder / "half"
        shutil.copytree(folder / "run", half)
        for name in ("card.yaml", "model.safetensors"):
            (half / name).unlink()
        shutil.rmtree(sorted((half / "checkpoints").iterdir())[-1])
        manifest = json.loads((half / "manifest.json").read_text())
        (half / "manifest.json").write_text(json.dumps(manifest | said))

    return make


def _taken(folder: Path) -> None:
    _half({})(folder)
    (folder / "half" / "profile").mkdir()
    (folder / "half" / "profile" / "steps-1-1.json").write_text("mine")


def _linked(folder: Path) -> None:
    _taken(folder)
    (folder / "half" / "profile" / "steps-1-1.json").unlink()
    (folder / "half" / "profile" / "steps-1-1.json").symlink_to(folder / "notes.txt")


def _card(folder: Path, changes: dict[str, object] | None) -> None:
    path = folder / "run" / "card.yaml"
    card = yaml.safe_load(path.read_text())
    if changes is None:
        del card["training"]
    else:
        card["training"] = {key: value for key, value in (card["training"] | changes).items() if value is not None}
    path.write_text(yaml.safe_dump(card, sort_keys=False))
