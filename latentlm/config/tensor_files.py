"""Safetensors files, opened once: what is checked is what is read, whatever takes the name of the file in the meantime.

    with held(path) as file:
        file.size, file.sha256()
        with file.tensors() as opened:
            finite(opened.get_tensor(name), name, file)

(Who writes into the open file itself changes what is read: that is out of reach.)
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from latentlm.config.reading import open_plain, why_not
from latentlm.errors import CheckpointError


@dataclass(frozen=True)
class TensorFile:
    """An open file."""

    path: Path
    """What it was opened by, for messages."""
    file: BufferedReader

    def __str__(self) -> str:
        return str(self.path)

    @property
    def size(self) -> int:
        """Bytes."""
        return os.fstat(self.file.fileno()).st_size

    def sha256(self) -> str:
        """Hash, in hex, read in a stream."""
        self.file.seek(0)
        return hashlib.file_digest(self.file, "sha256").hexdigest()

    def copy_to(self, path: Path) -> None:
        """The same bytes in a new file."""
        self.file.seek(0)
        with path.open("xb") as copy:
            shutil.copyfileobj(self.file, copy, 2**24)

    @property
    def name(self) -> Path:
        """One of the open file, for libraries that open names alone; the path where the system has none."""
        own = Path(f"/proc/self/fd/{self.file.fileno()}")
        return own if own.exists() else self.path.absolute()

    @contextmanager
    def tensors(self) -> Iterator[Any]:
        """What safetensors' `safe_open` gives, mapped. Raises CheckpointError where the file is none."""
        try:
            with safe_open(self.name, framework="pt") as opened:
                yield opened
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self} is no readable safetensors file ({error}): damaged, or of another kind.") from None


@contextmanager
def held(path: Path | TensorFile) -> Iterator[TensorFile]:
    """The file, open within the block. Raises CheckpointError where it cannot be opened."""
    if isinstance(path, TensorFile):
        yield path
        return
    opened = open_file(path)
    with opened.file:
        yield opened


def open_file(path: Path) -> TensorFile:
    """The file, open until its `file` is closed. Raises CheckpointError where it cannot be opened."""
    try:
        return TensorFile(path, open_plain(path))
    except (OSError, ValueError) as error:
        raise CheckpointError(why_not(path, error)) from None


def save_one_by_one(path: Path, like: Mapping[str, Tensor], tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write the file that `save_file` writes, byte for byte, with one tensor at a time in memory. `like`: their shapes and
    types, by name; `tensors`: all of them, in any order."""
    # The library lays the file out, from memory that is never touched and so takes none; then each has its place.
    save_file({name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in like.items()}, path)
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        for name, tensor in tensors:
            file.seek(8 + size + header[name]["data_offsets"][0])
            file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def finite(tensor: Tensor, name: str, source: object) -> Tensor:
    """The tensor, if all its values are finite numbers. Raises CheckpointError."""
    if tensor.is_complex() or (tensor.numel() and not all(bool(end.isfinite()) for end in torch.aminmax(tensor))):
        raise CheckpointError(f"{source}: {name} holds values that are no finite numbers. Save weights that have not diverged.")
    return tensor
