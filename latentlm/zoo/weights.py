"""Weights from safetensors into a model, checked: size, hash, names, shapes, types. Nothing is ever unpickled.

    weights_of(model)                     what is saved of a model, by name
    verify(path, size=..., digest=...)    the file is the one that its card describes
    check(model, path)                    its tensors are the model's; `model` may be on the meta device
    load_into(model, path)                copied tensor by tensor from a mapped file: never a second copy of the model in memory

All checks come before anything is allocated. Tied tensors are stored once, under the first name (the embedding's).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentlm.config.tensor_files import TensorFile, finite, held
from latentlm.config.tensor_parts import TensorParts, Whole, held_parts
from latentlm.errors import CheckpointError, resolved

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_FLOATS = {"F64", "F32", "F16", "BF16"}


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, without second names of the same tensor."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor.detach()
    return found


def whole(tensor: Tensor) -> Tensor:
    """A tensor that is spread over processes (a DTensor, whose module takes time to import, and is not in every build of torch)
    in full: every one of them must ask. Any other one as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def fill(tensor: Tensor, values: Tensor) -> None:
    """Copy a whole tensor into one, or into this process's piece of one that is spread."""
    if not hasattr(tensor, "full_tensor"):
        tensor.copy_(values)
        return
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(tensor, DTensor)
    values = values.to(tensor.device, tensor.dtype)
    own = distribute_tensor(values, tensor.device_mesh, tensor.placements, src_data_rank=None)  # each takes of its own copy
    tensor.to_local().copy_(own.to_local())


def refuse_pickle(path: Path) -> None:
    """Raise CheckpointError for a file of a format that runs code when it is read."""
    if path.suffix in PICKLES:
        raise CheckpointError(
            f"{path} is a pickle, and reading one can run any code that was put into it. Convert it to safetensors "
            "where you trust it (safetensors.torch.save_file), and give that file."
        )


def refuse_bytes(path: Path) -> None:
    """Raise CheckpointError for a path that is no text in UTF-8, where the safetensors library reads and writes nothing."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        shown = str(path).encode("utf-8", errors="backslashreplace").decode()
        raise CheckpointError(
            f"{shown} is no text in UTF-8, and the safetensors library opens no such path. Rename it, or choose another."
        ) from None


def check_file(path: Path) -> None:
    """Raise CheckpointError for a pickle, for a file that is not there, and for a path that is no UTF-8."""
    refuse_pickle(path)
    refuse_bytes(path)
    if not path.is_file():
        raise CheckpointError(f"The weights {path} do not exist; give the path of a safetensors file.")


def sha256(path: Path) -> str:
    """Hash of a file, in hex, read in a stream. Raises CheckpointError."""
    with held(path) as file:
        return file.sha256()


def inside(folder: Path, name: str) -> Path:
    """`folder`/`name`, which must stay inside `folder`, links followed. Raises CheckpointError."""
    path = resolved(folder / name)
    if Path(name).is_absolute() or not path.is_relative_to(resolved(folder)):
        raise CheckpointError(f'"{name}" leads out of {folder}; a card may only name files beside it. Put the file there.')
    return path


@contextmanager
def hold_parts(folder: Path, names: Sequence[str]) -> Iterator[TensorParts]:
    """A card's weights that are files of a folder, as `hold`."""
    for name in names:
        _there(inside(folder, name))
    with held_parts(folder, names) as files:
        yield files


@contextmanager
def hold(path: Path) -> Iterator[TensorFile]:
    """A card's weights, open within the block. Raises CheckpointError where they are not there, or a pickle."""
    _there(path)
    with held(path) as file:
        yield file


def _there(path: Path) -> None:
    refuse_pickle(path)
    if not path.is_file():
        raise CheckpointError(f"The weights {path} are missing. Put them back or install again, or give weights=PATH.")


def verify(path: Path | TensorFile | TensorParts, *, size: int, digest: str) -> None:
    """Check a file against its card. Raises CheckpointError that says what is wrong with it."""
    if isinstance(path, Path):
        with hold(path) as file:
            verify(file, size=size, digest=digest)
        return
    actual = path.size
    if actual != size:  # first, since it costs nothing and tells more
        kind = "truncated" if actual < size else "not the file that its card describes"
        raise CheckpointError(f"The weights {path} are {kind}: {actual:,} bytes instead of {size:,}. Fetch or save them again.")
    if (found := path.sha256()) != digest:
        raise CheckpointError(
            f"The weights {path} do not match their card: SHA-256 {found[:12]}... instead of {digest[:12]}... "
            "The file is corrupt or was exchanged; fetch or save it again."
        )


def check(model: nn.Module, path: Path | TensorFile | TensorParts) -> None:
    """Compare a file's header with the model's parameters and persistent buffers; no tensor is read.

    Raises CheckpointError for another format, a damaged file, and missing, unknown, mis-shaped or quantised tensors.
    """
    wanted = weights_of(model)
    with _opened(path) as file:
        found = set(file.keys())
        for what, names in (("lacks", set(wanted) - found), ("has the unknown", found - set(wanted))):
            if names:
                listed = ", ".join(sorted(names)[:4]) + (", ..." if len(names) > 4 else "")
                raise CheckpointError(f"{path} {what} {len(names)} tensors ({listed}): the file belongs to another model.")
        for name in sorted(found):
            header = file.get_slice(name)
            if tuple(header.get_shape()) != tuple(wanted[name].shape):
                raise CheckpointError(
                    f"{path}: {name} has shape {tuple(header.get_shape())}, but the model wants {tuple(wanted[name].shape)}; "
                    "the file belongs to another model."
                )
            if wanted[name].is_floating_point() and header.get_dtype() not in _FLOATS:
                kind = header.get_dtype()
                raise CheckpointError(f"{path}: {name} holds {kind} numbers; quantised weights are not supported, save floats.")


@torch.no_grad()
def load_into(model: nn.Module, path: Path | TensorFile | TensorParts) -> None:
    """Copy every tensor of the file into the model's own memory, in the model's dtype. Raises CheckpointError as `check`."""
    check(model, path)
    wanted = weights_of(model)
    with _opened(path) as file:
        for name, tensor in wanted.items():
            pieces = file.get_pieces(name) if isinstance(file, Whole) else [(..., file.get_tensor(name))]
            for place, piece in pieces:
                tensor[place].copy_(finite(piece, name, path))


def check_finite(file: TensorFile) -> None:
    """Raise CheckpointError where a tensor holds what is no finite number."""
    with file.tensors() as opened:
        for name in opened.keys():  # noqa: SIM118 - not a mapping
            finite(opened.get_tensor(name), name, file)


@contextmanager
def _opened(path: Path | TensorFile | TensorParts) -> Iterator[Any]:
    """A safetensors file, mapped, or several. Raises CheckpointError where it is none."""
    if isinstance(path, TensorParts):
        with path.tensors() as opened:
            yield opened
        return
    if isinstance(path, Path):
        check_file(path)
    with held(path) as file, file.tensors() as opened:
        yield opened
