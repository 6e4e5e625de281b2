"""A run that goes on: what its newest checkpoint says of its weights, and weights in parts, damaged in every place."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hostile.harness import Case

_WRITE = ("generate", "run", "a", "--max-tokens", "2")
_COMMANDS = (_WRITE, ("score", "run", "notes.txt", "--samples", "2"), ("zoo", "describe", "run"))
_CHECKPOINT = "run/checkpoints/step-00000002"
_ONE, _TWO = (f"shard-0000{number}-model-00001-of-00002.safetensors" for number in (1, 2))
Change = Callable[[Path], None]

_STATES = {
    "empty": "", "no mapping": "[1, 2]", "no JSON": "{", "of others": '{"a": 1}', "no text": "\x00\x01", "null": "null",
    "deep": "[" * 100_000, "with files a list": '{"step": 2, "files": [1]}', "with files a text": '{"step": 2, "files": "x"}',
    "without files": '{"step": 2, "files": {}}', "with a file of 5": '{"step": 2, "files": {"model.safetensors": 5}}',
    "with parts of 5": '{"step": 2, "files": {"shard-1-model-00001-of-2": 5}}',
}  # fmt: skip
_FACTS: dict[str, object] = {
    "another hash": {"sha256": "0" * 64}, "no hash": {"sha256": 5}, "another size": {"size": 7}, "no number": {"size": "x"},
    "a huge size": {"size": 2**62}, "no size": {"size": 0}, "more": {"uri": "/etc/passwd"}, "null": None,
}  # fmt: skip
_NAMES = {
    "that lead out": f"../../../{_ONE}", "elsewhere": f"/etc/{_ONE}", "that are not there": _ONE.replace("shard", "other"),
    "that are pickles": _ONE.replace("safetensors", "bin"), "of no text": f"{_ONE}\x00",
}  # fmt: skip
_PLACES: dict[str, object] = {
    "no JSON": "{", "a list": [1], "null": None, "numbers for tensors": 5, "no list": {"saved_offsets": "x"},
    "negative": {"saved_offsets": [-1, 0]}, "huge": {"saved_offsets": [2**62, 0]}, "endless": {"saved_offsets": [1e400, 0]},
    "too many": {"saved_offsets": [0, 0, 0, 0]}, "too few": {"saved_offsets": []}, "null offsets": {"saved_offsets": None},
    "both first": {"saved_offsets": [0, 0]}, "a gap": {"saved_offsets": [1000, 0]}, "mappings": {"saved_offsets": [{}, []]},
    "yes and no": {"saved_offsets": [True, False]}, "in both directions": {"saved_offsets": [1, 1]},
}  # fmt: skip


def cases() -> Iterator[Case]:
    """Of the state, of the recipe, and of what the parts say of themselves."""
    for command in _COMMANDS:
        yield Case(f"unfinished: as it should be, {command[0]}", command, prepare=_goes_on, good=True)
        yield Case(f"parts: as they should be, {command[0]}", command, prepare=_in_parts(), good=True)
        for what, text in _STATES.items():
            yield Case(f"unfinished, its state {what}: {command[0]}", command, prepare=_with("state.json", text))
        yield Case(f"unfinished, its recipe no YAML: {command[0]}", command, prepare=_with("../../recipe.yaml", "a: ["))
    for kind, make in (("a pipe", os.mkfifo), ("a folder", os.mkdir), ("a loop", lambda path: os.symlink(path, path))):
        yield Case(f"unfinished, its state {kind}", _WRITE, prepare=_instead("state.json", make))
        yield Case(f"unfinished, its weights {kind}", _WRITE, prepare=_instead("model.safetensors", make))
    for what, facts in _FACTS.items():
        yield Case(f"unfinished: weights with {what}", _WRITE, prepare=_in_parts(facts=facts, alone=True))
        yield Case(f"parts: one with {what}", _WRITE, prepare=_in_parts(facts=facts))
    for what, name in _NAMES.items():
        yield Case(f"parts: names {what}", _WRITE, prepare=_in_parts(name=name))
    for what, place in _PLACES.items():
        yield Case(f"parts: places {what}", _WRITE, prepare=_in_parts(place=place))
    for what, kind in (("whole numbers", "int64"), ("half precision", "float16"), ("complex numbers", "complex64")):
        yield Case(f"parts: one of {what}", _WRITE, prepare=_in_parts(kind=kind))
    yield Case("parts: one alone", _WRITE, prepare=_in_parts(name=""))
    for what, change in (("gone", os.unlink), ("a pipe", _pipe), ("cut short", _cut), ("a bit flipped", _flip)):
        yield Case(f"parts: one {what}", _WRITE, prepare=_in_parts(after=change))


def _goes_on(folder: Path) -> None:
    """The finished run becomes one that goes on."""
    for name in ("card.yaml", "model.safetensors"):
        (folder / "run" / name).unlink()


def _with(name: str, text: str) -> Change:
    def make(folder: Path) -> None:
        _goes_on(folder)
        (folder / _CHECKPOINT / name).write_text(text)

    return make


def _instead(name: str, make: Callable[[Path], object]) -> Change:
    def prepare(folder: Path) -> None:
        _goes_on(folder)
        (folder / _CHECKPOINT / name).unlink()
        make(folder / _CHECKPOINT / name)

    return prepare


def _in_parts(
    *,
    facts: object = "",
    alone: bool = False,
    name: str = _TWO,
    place: object = "",
    kind: str = "",
    after: Callable[[Path], object] | None = None,
) -> Change:
    """The same with the weights in two parts. What is said of the second: `facts` by the state (of weights in one file where
    `alone`), its `name` (none: nothing is), the `place` of its pieces by itself; their type is `kind`; `after` changes its
    file."""

    def make(folder: Path) -> None:
        import torch
        from safetensors.torch import load_file, save_file

        from latentlm.config.hashed import with_hash

        _goes_on(folder)
        checkpoint = folder / _CHECKPOINT
        state = json.loads((checkpoint / "state.json").read_text())
        if not alone:
            tensors = load_file(checkpoint / "model.safetensors")
            (checkpoint / "model.safetensors").unlink()
            del state["files"]["model.safetensors"]
            halves: list[dict[str, Any]] = [{}, {}]
            places: dict[str, object] = {}
            for key, tensor in tensors.items():
                middle = (len(tensor) + 1) // 2 if tensor.dim() else 0
                if 0 < middle < len(tensor):
                    second = tensor[middle:].contiguous()
                    halves[0][key] = tensor[:middle].contiguous()
                    halves[1][key] = second.to(getattr(torch, kind)) if kind else second
                    said = {"saved_offsets": [middle, *[0] * (tensor.dim() - 1)]}
                    places[key] = said if place == "" or tensor.dim() != 2 else place
                else:
                    halves[0][key] = tensor
            of_all = place != "" and not isinstance(place, dict | int)
            text = place if isinstance(place, str) and place else json.dumps(place if of_all else places)
            save_file(halves[0], checkpoint / _ONE)
            save_file(halves[1], checkpoint / _TWO, metadata={"DCP_SHARDING_INFO": text})
            for file, called in ((_ONE, _ONE), (_TWO, name)):
                content = (checkpoint / file).read_bytes()
                if called:
                    state["files"][called] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        last = "model.safetensors" if alone else name
        if facts != "":
            state["files"][last] = {**state["files"][last], **facts} if isinstance(facts, dict) else facts
        del state["sha256"]
        (checkpoint / "state.json").write_text(with_hash(state))
        if after is not None:
            after(checkpoint / _TWO)

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
