"""Windows and held-out documents out of a folder of shards. Files are mapped when they are first read from, a few at a time.

    shards = Shards(folder)
    shards.train.read(0, 17), shards.held_out[0].data
    damages(folder)                  everything that `latentlm data verify` looks at
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, overload

import numpy as np

from latentlm.config import DataConfig
from latentlm.errors import UserError, typed_path
from latentlm.tokenizer import Tokenizer, load_tokenizer
from latentlm.training.data.corpora import Document
from latentlm.training.data.packing import TokenStore
from latentlm.training.data.parting import Corpus, HeldOut
from latentlm.training.data.shards import format as layout
from latentlm.training.data.shards.format import BORDER, Ending, Index, Shard, hashed, opened, read_index, tokenizer_of

_MAPPED = 256  # files at a time: each costs the process a file descriptor
Item = TypeVar("Item")


def shards_at(path: str) -> Path | None:
    """The folder of shards that `data.path` names; None where it names anything else."""
    folder = typed_path(path)
    return folder if layout.shards_at(folder) else None


class Mapped:
    """The numbers of a file, (n,), read in slices."""

    def __init__(self, count: int, load: Callable[[], np.ndarray]) -> None:
        self._count, self._load = count, load

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, where: slice, /) -> np.ndarray:
        return self._load()[where]


class Lazy(Sequence[Item]):
    """A sequence whose items are made when they are asked for."""

    def __init__(self, count: int, make: Callable[[int], Item]) -> None:
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        chosen = range(self._count)[index]
        return self._make(chosen) if isinstance(chosen, int) else [self._make(place) for place in chosen]


class Shards:
    """A folder of shards, opened: index, tokenizer and the size of every file are checked, no hash of a shard is. Raises
    UserError."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.index = folder, read_index(folder)
        for name, file in self.index.files().items():
            opened(folder / name, size=file.size).close()
        self.tokenizer = tokenizer_of(self.index, folder)
        self._mapped = lru_cache(maxsize=_MAPPED)(self._map)
        tokens = np.dtype(self.index.dtype).newbyteorder("<")
        self.train = self._store(self.index.train, "tokens", tokens)
        self._held_out = self._store(self.index.held_out, "tokens", tokens)
        self._texts = self._store(self.index.held_out, "texts", np.dtype(np.uint8))

    def asked(self, config: DataConfig, kept: Tokenizer | None = None) -> Self:
        """These shards, where they are what a recipe asks for. `kept` is the tokenizer of a run that goes on. Raises
        UserError."""
        made = self.index.data
        for key in ("seed", "held_out", "max_documents"):
            asked, found = getattr(config, key), getattr(made, key)
            if asked != found and not (key == "max_documents" and asked is None):
                said = f"the documents in {self.folder} were parted with data.{key}={found}, and the recipe says {asked}"
                raise UserError(f"{said}. Set data.{key}={found}, or prepare them anew.")
        spec = self.index.tokenizer.spec
        same = config.tokenizer == spec
        if kept is not None or (not same and spec != "bytes" and config.tokenizer.endswith(".json")):
            same = (kept or load_tokenizer(config.tokenizer)).fingerprint == self.tokenizer.fingerprint
        if not same:
            own = "bytes" if not self.index.tokenizer.files else str(self.folder / layout.FILE)
            said = f"the shards in {self.folder} were made with the tokenizer {self.index.tokenizer.name} ({spec})"
            raise UserError(f"{said}, and the recipe says {config.tokenizer}. Set data.tokenizer={own}, or prepare them anew.")
        return self

    @property
    def held_out(self) -> Sequence[HeldOut]:
        """The documents held out, each read when it is asked for."""
        end = self.tokenizer.end_of_text
        return Lazy(len(self._held_out), lambda n: HeldOut(self._name(n), self._held_out.document(n), self._text(n), end))

    def corpus(self) -> Corpus:
        """The documents. Those of training have numbers for names, and are what their tokens spell."""
        return Corpus(
            train=Lazy(len(self.train), lambda n: Document(f"train:{n}", self._spelt(self.train.document(n)))),
            held_out=Lazy(len(self._held_out), lambda n: Document(self._name(n), self._text(n))),
            duplicates=self.index.duplicates,
            empty=self.index.empty,
            known=self.index.fingerprint(),
        )

    def _name(self, number: int) -> str:
        """Of a document held out."""
        return self._texts.document(2 * number).tobytes().decode("utf-8", errors="surrogateescape")

    def _text(self, number: int) -> bytes:
        return self._texts.document(2 * number + 1).tobytes()

    def _spelt(self, tokens: np.ndarray) -> bytes:
        return self.tokenizer.decode_bytes(tokens.tolist())

    def _store(self, shards: Sequence[Shard], ending: Literal["tokens", "texts"], kind: np.dtype[Any]) -> TokenStore:
        borders: Literal["borders", "text_borders"] = "borders" if ending == "tokens" else "text_borders"
        pieces = [(self._numbers(shard, ending, kind), self._numbers(shard, borders, BORDER)) for shard in shards]
        return TokenStore(pieces, vocabulary=self.tokenizer.vocabulary if ending == "tokens" else None)

    def _numbers(self, shard: Shard, ending: Ending, kind: np.dtype[Any]) -> Mapped:
        size, name = shard.files[ending].size, f"{shard.name}.{ending}"
        return Mapped(size // kind.itemsize, lambda: self._mapped(name, kind, size))

    def _map(self, name: str, kind: np.dtype[Any], size: int) -> np.ndarray:
        with opened(self.folder / name, size=size) as file:
            return np.frombuffer(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ), dtype=kind)


def damages(folder: Path) -> Iterator[tuple[str, str | None]]:
    """(name, what is wrong or None) of each file of a folder of shards, all of which are read. Raises UserError where the index
    or the tokenizer will not do."""
    index = read_index(folder)
    tokenizer_of(index, folder)
    for name, file in index.files().items():
        try:
            opened(folder / name, size=file.size).close()
            wrong = None if hashed(folder / name).sha256 == file.sha256 else f"the SHA-256 hash of {folder / name} differs"
        except UserError as error:
            wrong = str(error)
        yield name, wrong or _inside(folder, name, index)


def _inside(folder: Path, name: str, index: Index) -> str | None:
    """What is wrong with the content of a file whose hash is right."""
    ending = name.rpartition(".")[2]
    if ending not in ("tokens", "borders", "text_borders"):
        return None
    values = np.fromfile(folder / name, dtype=np.dtype(index.dtype).newbyteorder("<") if ending == "tokens" else BORDER)
    if ending == "tokens" and (most := int(values.max())) >= index.tokenizer.vocabulary:
        return f"{folder / name} holds token {most}, and the vocabulary ends at {index.tokenizer.vocabulary - 1}"
    if ending != "tokens" and (values[0] != 0 or (values[1:] <= values[:-1]).any()):
        return f"the borders in {folder / name} do not rise"
    return None
