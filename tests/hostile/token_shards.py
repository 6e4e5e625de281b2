"""Token shards: indices of others, damaged in every place, and folders of others where shards are to be written."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

from hostile.harness import Case
from hostile.json_files import TYPES

_TRAIN = ("train", "my.yaml", "-q", "--out", "new", "data.path=shards")
_PLACES = (
    "format", "version", "tokenizer", "tokenizer.files", "tokenizer.vocabulary", "tokenizer.spec", "dtype", "data", "data.path",
    "data.seed", "shard_bytes", "duplicates", "train", "train.0", "train.0.name", "train.0.tokens", "train.0.documents",
    "train.0.files", "train.0.files.tokens", "train.0.files.tokens.size", "train.0.files.tokens.sha256", "held_out",
)  # fmt: skip


def _shards(folder: Path) -> Path:
    """A whole folder of shards of the texts."""
    from latentlm.config import DataConfig
    from latentlm.training.data.shards.making import make

    make(DataConfig(path=str(folder / "texts")), out=folder / "shards")
    return folder / "shards"


def _begun(folder: Path) -> Path:
    """The work folder of shards that were broken off after the documents were read."""
    from latentlm.config import DataConfig
    from latentlm.training.data.shards import making

    def stop(*arguments: object, **options: object) -> None:
        raise InterruptedError

    whole, making._make_all = making._make_all, stop
    with contextlib.chdir(folder), contextlib.suppress(InterruptedError):
        making.make(DataConfig(path="texts"), out="begun")
    making._make_all = whole
    return folder / "begun" / ".prepare"


def _beside(folder: Path) -> None:
    """Whole shards, and a work folder of someone else's."""
    theirs = _shards(folder) / ".prepare" / "thesis.txt"
    theirs.parent.mkdir()
    theirs.write_text("mine")


def _changed(place: str, value: object) -> Callable[[Path], None]:
    """Shards whose index says something else in one place."""

    def change(folder: Path) -> None:
        path = _shards(folder) / "index.json"
        index = json.loads(path.read_text())
        node: Any = index
        *parents, last = [int(key) if key.isdigit() else key for key in place.split(".")]
        for key in parents:
            node = node[key]
        node[last] = value
        path.write_text(json.dumps(index))

    return change


def _pipe(folder: Path) -> None:
    os.mkfifo(_shards(folder) / "pipe")
    os.replace(folder / "shards" / "pipe", folder / "shards" / "train-00000.tokens")


def _over(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (_shards(folder) / name).write_bytes(content) and None  # type: ignore[func-returns-value]


def cases() -> Iterator[Case]:
    """Of readers and writers of shards."""
    yield Case("shards: whole", _TRAIN, prepare=_shards, good=True, may_change=("new/*", "new/**"))
    for place, (kind, value) in zip(_PLACES, cycle(TYPES.items()), strict=False):
        yield Case(f"shards: {place} is {kind}", _TRAIN, prepare=_changed(place, value))
    for place, value in (
        ("train.0.name", "../train-00000"),
        ("train.0.name", "/etc/train-00000"),
        ("train.0.documents", 2**62),
        ("train.0.tokens", 2**62),
        ("tokenizer.vocabulary", 2**40),
    ):
        yield Case(f"shards: {place} is {value}", _TRAIN, prepare=_changed(place, value))
    nested = b'{"format": "latentlm token shards", "a": ' + b"[" * 100_000
    for name, content in {"empty": b"", "nested": nested, "no text": b"latentlm token shards\xff\xfe"}.items():
        yield Case(f"shards: an index that is {name}", _TRAIN, prepare=_over("index.json", content))
    yield Case("shards: a pipe", _TRAIN, prepare=_pipe, says="no plain file")
    yield Case("shards: verify a pipe", ("data", "verify", "shards"), prepare=_pipe, says="no plain file")
    prepare = ("data", "prepare", "texts", "--out", "begun", "-q")
    yield Case("shards: begun", prepare, prepare=_begun, good=True, may_change=("begun/*", "begun/.prepare/*"))
    for name in ("00000.texts", "00000.text_borders", "read.json", "settings.json"):
        for what, content in {"empty": b"", "noise": b"\xff\x00\x1b[31m" * 99, "null": b"null", "a list": b"[1]"}.items():
            yield Case(
                f"shards: begun, {name} {what}",
                prepare,
                prepare=lambda folder, name=name, content=content: (_begun(folder) / name).write_bytes(content),
                says=r"give the command again|Choose another folder",
            )
    yield Case(
        "shards: a work folder of others",
        ("data", "prepare", "texts", "--out", "theirs", "-q"),
        files={"theirs/.prepare/thesis.txt": "mine"},
        says="none that this command has made",
    )
    yield Case(
        "shards: a work folder of others beside whole shards",
        ("data", "prepare", "texts", "--out", "shards", "-q"),
        prepare=_beside,
        says="none that this command has made",
    )
    into = ("data", "prepare", "texts", "--out", "theirs", "-q")
    yield Case("shards: a lock of others", into, files={"theirs/.lock": "4711"})
    for target in ("texts", "run", ".", "notes.txt", "llama"):
        yield Case(f"shards into {target}", ("data", "prepare", "texts", "--out", target))
