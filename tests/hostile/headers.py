"""Safetensors whose headers lie: about sizes, places, kinds and names of tensors that are otherwise the right ones."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hostile.harness import Case

Header = dict[str, Any]


def _first(header: Header) -> Header:
    """What the header says of its first tensor."""
    found: Header = header[next(name for name in header if name != "__metadata__")]
    return found


def _set(key: str, value: Any) -> Callable[[Header], None]:
    def change(header: Header) -> None:
        _first(header)[key] = value

    return change


def _overlapping(header: Header) -> None:
    for name, said in header.items():
        if name != "__metadata__":
            said["data_offsets"] = [0, said["data_offsets"][1] - said["data_offsets"][0]]


def _metadata(value: Any) -> Callable[[Header], None]:
    def change(header: Header) -> None:
        header["__metadata__"] = value

    return change


def _more(count: int, said: Header) -> Callable[[Header], None]:
    def change(header: Header) -> None:
        header.update({f"latent.z.{number:08d}": said for number in range(10, 10 + count)})

    return change


_EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
_LIES: dict[str, Callable[[Header], None]] = {
    "offsets that overlap": _overlapping,
    "offsets backwards": _set("data_offsets", [40, 0]),
    "offsets below zero": _set("data_offsets", [-4, 0]),
    "offsets without end": _set("data_offsets", [0, 2**63]),
    "offsets that are no numbers": _set("data_offsets", ["0", "4"]),
    "three offsets": _set("data_offsets", [0, 4, 8]),
    "a shape of too many": _set("shape", [2**20]),
    "a shape that overflows": _set("shape", [2**32, 2**32]),
    "a shape of 2^64": _set("shape", [2**64]),
    "a shape of fractions": _set("shape", [1.5]),
    "a shape of a thousand dimensions": _set("shape", [1] * 1000),
    "no shape": _set("shape", []),
    "whole numbers": _set("dtype", "I32"),
    "numbers without a sign": _set("dtype", "U32"),
    "an older kind": _set("dtype", "f32"),
    "a kind that is a list": _set("dtype", ["F32"]),
    "metadata of numbers": _metadata({"format": 5}),
    "metadata of lists": _metadata({"format": ["pt"], "names": []}),
    "metadata that is a list": _metadata([]),
    "metadata of control characters": _metadata({"format": "latentlm.latents.2", "names": '["\x1b[31m"]', "\x1b": "\x07"}),
    "metadata of another kind": _metadata({"format": "latentlm.latents.2", "granularity": "[]", "names": "{}"}),
    "names of latents that are none": _metadata({"format": "latentlm.latents.2", "names": '["z", "z", 5]'}),
    "metadata without end": _metadata({"format": "latentlm.latents.2", "names": "[" * 10**6}),
    "a hundred thousand tensors": _more(10**5, _EMPTY),
    "tensors of no dimensions": _more(1, {**_EMPTY, "shape": []}),
}


def _file(made: Path, source: Path, change: Callable[[Header], None] | None, twice: bool = False) -> None:
    content = source.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    if change is not None:
        change(header)
    text = json.dumps(header)
    if twice:
        name = next(name for name in header if name != "__metadata__")
        text = f"{text[:-1]}, {json.dumps(name)}: {json.dumps(header[name])}}}"
    made.write_bytes(struct.pack("<Q", len(text)) + text.encode() + content[8 + size :])


def cases() -> Iterator[Case]:
    """Of weights, of a Llama's weights and of latents."""
    weights = "from latentlm import zoo\nzoo.load('run', weights='bad.safetensors')\n"
    for what, change in {**_LIES, "a name twice": None}.items():

        def prepare(made: str, source: str, change: Callable[[Header], None] | None = change) -> Callable[[Path], object]:
            return lambda folder: _file(folder / made, folder / source, change, twice=change is None)

        either = None if what.startswith("metadata") or what in ("a name twice", "names of latents that are none") else False
        run = "run/model.safetensors"
        yield Case(f"lying weights: {what}", python=weights, prepare=prepare("bad.safetensors", run), good=either)
        llama = "llama/model.safetensors"
        yield Case(f"lying Llama: {what}", ("generate", "llama", "x"), prepare=prepare(llama, llama), good=either)
        load = ("generate", "run", "x", "--max-tokens", "2", "--load-latents", "bad.safetensors")
        either = None if what == "offsets that overlap" else either  # of the only tensor they do not
        yield Case(f"lying latents: {what}", load, prepare=prepare("bad.safetensors", "z.safetensors"), good=either)
