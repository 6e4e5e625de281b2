"""Tensors in parts: safetensors files of several processes, each with its piece of every tensor, as
torch.distributed.checkpoint writes them (a piece's place stands in the file's header), read a piece at a time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from latentlm.config.tensor_files import TensorFile, held
from latentlm.errors import CheckpointError

_PLACES = "DCP_SHARDING_INFO"


@dataclass(frozen=True)
class TensorParts:
    """Open files, in the order of their names; they are hashed and read like one `TensorFile`."""

    path: Path
    """Their folder."""
    files: tuple[TensorFile, ...]

    def __str__(self) -> str:
        return str(self.path)

    @property
    def size(self) -> int:
        """Bytes of all."""
        return sum(file.size for file in self.files)

    def sha256(self) -> str:
        """The hash of their hashes, in hex."""
        return hash_of_hashes([file.sha256() for file in self.files])

    @contextmanager
    def tensors(self) -> Iterator[Whole]:
        """As `TensorFile.tensors`. Raises CheckpointError where a file is none, or pieces are missing or overlap."""
        with ExitStack() as stack:
            yield Whole.of(self.path, [stack.enter_context(file.tensors()) for file in self.files])


def hash_of_hashes(hashes: Sequence[str]) -> str:
    """Of files in the order of their names, each hash in hex."""
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


@contextmanager
def held_parts(folder: Path, names: Sequence[str]) -> Iterator[TensorParts]:
    """Files of a folder, open within the block. Raises CheckpointError where one cannot be opened."""
    with ExitStack() as stack:
        yield TensorParts(folder, tuple(stack.enter_context(held(folder / name)) for name in sorted(names)))


@dataclass(frozen=True)
class _Piece:
    """A piece of a tensor: its file, where it begins, how large it is, and its type as safetensors spells it."""

    file: Any
    begin: tuple[int, ...]
    size: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class _Header:
    """What safetensors' slices say before they are read."""

    shape: list[int]
    dtype: str

    def get_shape(self) -> list[int]:
        """Of the whole tensor."""
        return self.shape

    def get_dtype(self) -> str:
        """As safetensors spells it."""
        return self.dtype


@dataclass(frozen=True)
class Whole:
    """Speaks of pieces as `safe_open` does of whole tensors, but that it reads them piece by piece."""

    pieces: dict[str, list[_Piece]]
    headers: dict[str, _Header]

    @classmethod
    def of(cls, folder: Path, files: Sequence[Any]) -> Whole:
        """From opened files. Raises CheckpointError where their pieces are not those of whole tensors."""
        pieces: dict[str, list[_Piece]] = {}
        headers = {}
        try:
            for file in files:
                places = json.loads((file.metadata() or {}).get(_PLACES, "{}"))
                for name in file.keys():  # noqa: SIM118 - not a mapping
                    size = tuple(file.get_slice(name).get_shape())
                    begin = tuple(places.get(name, {}).get("saved_offsets", [0] * len(size)))
                    pieces.setdefault(name, []).append(_Piece(file, begin, size, file.get_slice(name).get_dtype()))
            for name, own in pieces.items():
                headers[name] = _header(name, own)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            said = f"{folder} does not hold whole tensors ({error}): files are damaged or missing"
            raise CheckpointError(f"{said}. Take an earlier checkpoint, or save again.") from None
        return cls(pieces, headers)

    def keys(self) -> list[str]:
        """Names of the tensors."""
        return list(self.pieces)

    def get_slice(self, name: str) -> _Header:
        """Shape and type of a tensor."""
        return self.headers[name]

    def get_pieces(self, name: str) -> Iterator[tuple[tuple[slice, ...], Tensor]]:
        """Where each piece of a tensor lies in it, and the piece."""
        for piece in self.pieces[name]:
            place = tuple(slice(start, start + length) for start, length in zip(piece.begin, piece.size, strict=True))
            yield place, piece.file.get_tensor(name)


def _header(name: str, pieces: list[_Piece]) -> _Header:
    """Of the whole: its pieces follow one another along one dimension. Raises ValueError or TypeError where they do not."""
    starts = [piece.begin for piece in pieces]
    if any(type(start) is not int or start < 0 for begin in starts for start in begin):
        raise ValueError(f"{name} begins where nothing can")
    if len({piece.dtype for piece in pieces}) > 1:
        raise ValueError(f"{name} is of several types")
    along = [place for place, each in enumerate(zip(*starts, strict=True)) if any(each)]
    if len(along) > 1 or (not along and len(pieces) > 1):
        raise ValueError(f"{name} is not there in full")
    shape = list(pieces[0].size)
    if along:
        (dim,), shape[along[0]] = along, 0
        for piece in sorted(pieces, key=lambda piece: piece.begin):
            others = [*piece.size[:dim], *piece.size[dim + 1 :]]
            if piece.begin[dim] != shape[dim] or others != [*shape[:dim], *shape[dim + 1 :]] or len(piece.begin) != len(shape):
                raise ValueError(f"{name} is not there in full")
            shape[dim] += piece.size[dim]
    return _Header(shape, pieces[0].dtype)
