"""Tensors in parts: safetensors files of several processes, each with its piece of every tensor, as
torch.distributed.checkpoint writes them (a piece's place stands in the file's header), put together one tensor at a time.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentlm.config.tensor_files import TensorFile, held
from latentlm.errors import CheckpointError

_PLACES = "DCP_SHARDING_INFO"


@dataclass(frozen=True)
class TensorParts:
    """Open files, in the order of their names. What can be done with one `TensorFile` can be done with them."""

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
    """A piece of a tensor: its file, where it begins, and how large it is."""

    file: Any
    begin: tuple[int, ...]
    size: tuple[int, ...]


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
    """Speaks of pieces as `safe_open` does of whole tensors."""

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
                    begin = tuple(int(start) for start in places.get(name, {}).get("saved_offsets", [0] * len(size)))
                    pieces.setdefault(name, []).append(_Piece(file, begin, size))
            for name, own in pieces.items():
                ends = zip(*[[start + length for start, length in zip(p.begin, p.size, strict=True)] for p in own], strict=True)
                shape = [max(each) for each in ends]
                headers[name] = _Header(shape, own[0].file.get_slice(name).get_dtype())
                places_taken = {piece.begin for piece in own}
                if len(places_taken) != len(own) or sum(math.prod(p.size) for p in own) != math.prod(shape):
                    raise ValueError(f"{name} is not there in full")
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise CheckpointError(f"{folder} does not hold whole tensors ({error}): files are damaged, or missing.") from None
        return cls(pieces, headers)

    def keys(self) -> list[str]:
        """Names of the tensors."""
        return list(self.pieces)

    def get_slice(self, name: str) -> _Header:
        """Shape and type of a tensor."""
        return self.headers[name]

    def get_tensor(self, name: str) -> Tensor:
        """A tensor, put together."""
        own = self.pieces[name]
        read = [piece.file.get_tensor(name) for piece in own]
        unset = float("nan") if read[0].is_floating_point() else 0  # no number where pieces overlap and leave a gap
        whole = torch.full(self.headers[name].shape, unset, dtype=read[0].dtype)
        for piece, part in zip(own, read, strict=True):
            whole[tuple(slice(start, start + length) for start, length in zip(piece.begin, piece.size, strict=True))] = part
        return whole
