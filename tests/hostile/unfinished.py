"""A run that goes on: the card of its newest checkpoint, and weights in parts, damaged in every place."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from hostile.harness import Case

_WRITE = ("generate", "run", "a", "--max-tokens", "2")
_COMMANDS = (_WRITE, ("score", "run", "notes.txt", "--samples", "2"), ("zoo", "describe", "run"))
Change = Callable[[Path], None]

_TEXTS = {"empty": "", "no mapping": "[1, 2]", "no YAML": "a: [", "a mapping of others": "a: 1", "no text": "\x00\x01"}
_WEIGHTS: dict[str, object] = {
    "null": None, "a list": [1], "parts a text": {"parts": "x"}, "parts of numbers": {"parts": [5]},
    "parts that lead out": {"parts": ["../../notes.txt"]}, "parts elsewhere": {"parts": ["/etc/passwd"]},
    "parts twice": {"parts": ["one.safetensors", "one.safetensors"]}, "a pickle": {"parts": ["weights.bin"]},
    "parts that are not there": {"parts": ["three.safetensors"]}, "a part without a name": {"parts": [""]},
    "many parts": {"parts": [f"{number}.safetensors" for number in range(20_000)]}, "one part": {"parts": ["one.safetensors"]},
    "uri out": {"uri": "../logged"}, "uri a file": {"uri": "recipe.yaml"}, "no size": {"size": 0}, "another size": {"size": 7},
    "another hash": {"sha256": "0" * 64}, "a huge size": {"size": 2**62},
}  # fmt: skip
_PLACES: dict[str, object] = {
    "no JSON": "{", "a list": [1], "a number": 5, "null": None, "numbers for tensors": 5, "no list": {"saved_offsets": "x"},
    "negative": {"saved_offsets": [-1, 0]}, "huge": {"saved_offsets": [2**62, 0]}, "endless": {"saved_offsets": [1e400, 0]},
    "too many": {"saved_offsets": [0, 0, 0, 0]}, "too few": {"saved_offsets": []}, "null offsets": {"saved_offsets": None},
    "both first": {"saved_offsets": [0, 0]}, "a gap": {"saved_offsets": [1000, 0]}, "mappings": {"saved_offsets": [{}, []]},
}  # fmt: skip


def cases() -> Iterator[Case]:
    """Of the card, and of what the parts say of themselves."""
    for command in _COMMANDS:
        yield Case(f"unfinished: as it should be, {command[0]}", command, prepare=_goes_on, good=True)
        yield Case(f"parts: as they should be, {command[0]}", command, prepare=_in_parts(), good=True)
        for what, text in _TEXTS.items():
            yield Case(f"unfinished.yaml {what}: {command[0]}", command, prepare=_card_is(text))
    for kind, make in (("a pipe", os.mkfifo), ("a folder", os.mkdir), ("a loop", lambda path: os.symlink(path, path))):
        yield Case(f"unfinished.yaml {kind}", _WRITE, prepare=_instead(make))
    for what, change in _WEIGHTS.items():
        yield Case(f"parts: weights with {what}", _WRITE, prepare=_in_parts(weights=change))
    for what, place in _PLACES.items():
        yield Case(f"parts: places {what}", _WRITE, prepare=_in_parts(place=place))
    for what, change in (("gone", os.unlink), ("a pipe", _pipe), ("cut short", _cut), ("a bit flipped", _flip)):
        yield Case(f"parts: one {what}", _WRITE, prepare=_in_parts(after=change))


def _goes_on(folder: Path) -> None:
    """The finished run becomes one that goes on."""
    card = yaml.safe_load((folder / "run" / "card.yaml").read_text())
    card["training"] = {"steps": 1, "of_steps": 2}
    (folder / "run" / "card.yaml").unlink()
    (folder / "run" / "unfinished.yaml").write_text(yaml.safe_dump(card, sort_keys=False))


def _card_is(text: str) -> Change:
    def make(folder: Path) -> None:
        _goes_on(folder)
        (folder / "run" / "unfinished.yaml").write_text(text)

    return make


def _instead(make: Callable[[Path], object]) -> Change:
    def prepare(folder: Path) -> None:
        _goes_on(folder)
        (folder / "run" / "unfinished.yaml").unlink()
        make(folder / "run" / "unfinished.yaml")

    return prepare


def _in_parts(*, weights: object = "", place: object = "", after: Callable[[Path], object] | None = None) -> Change:
    """The same with the weights in two parts; `weights` changes what the card says of them, `place` what the second part says
    of where its pieces begin, `after` that file itself."""

    def make(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        _goes_on(folder)
        run = folder / "run"
        tensors = load_file(run / "model.safetensors")
        (run / "model.safetensors").unlink()
        (run / "parts").mkdir()
        halves: list[dict[str, Any]] = [{}, {}]
        places: dict[str, Any] = {}
        for name, tensor in tensors.items():
            middle = (len(tensor) + 1) // 2 if tensor.dim() else 0
            if 0 < middle < len(tensor):
                halves[0][name], halves[1][name] = tensor[:middle].contiguous(), tensor[middle:].contiguous()
                said = {"saved_offsets": [middle, *[0] * (tensor.dim() - 1)]}
                places[name] = said if place == "" else place if tensor.dim() == 2 else said
            else:
                halves[0][name] = tensor
        whole = place if isinstance(place, str | list | None) and place != "" else json.dumps(places)
        text = whole if isinstance(whole, str) else json.dumps(whole)
        files = [run / "parts" / f"{name}.safetensors" for name in ("one", "two")]
        save_file(halves[0], files[0])
        save_file(halves[1], files[1], metadata={"DCP_SHARDING_INFO": text})
        hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
        own: Any = {
            "uri": "parts",
            "sha256": hashlib.sha256("".join(hashes).encode()).hexdigest(),
            "size": sum(file.stat().st_size for file in files),
            "parts": [file.name for file in files],
        }
        card = yaml.safe_load((run / "unfinished.yaml").read_text())
        card["weights"] = own if weights == "" else {**own, **weights} if isinstance(weights, dict) else weights
        (run / "unfinished.yaml").write_text(yaml.safe_dump(card, sort_keys=False))
        if after is not None:
            after(files[1])

    return make


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
