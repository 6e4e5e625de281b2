"""Writing files so that a crash, a full disk or `kill -9` leaves the old content or the new, never half of either.

    write_text_atomically(path, text)
    write_atomically(path, lambda temporary: ...)      one file, written by a function of the temporary path
    with atomic_folder(path) as temporary: ...         a folder of files

New content goes beside its destination under a hidden name, is flushed to the disk, and is renamed into place.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from latentlm.errors import CheckpointError

PART = ".part"
"""Ending of the hidden names under which new content is written."""


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` with a temporary path and put the result at `path`. Raises CheckpointError where the disk refuses."""
    temporary = path.with_name(f".{path.name}{PART}")
    with _explained(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)


def write_text_atomically(path: Path, text: str) -> None:
    """Put `text` (UTF-8) at `path`. Raises CheckpointError where the disk refuses."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomically(path, write)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends without an error, in the place of an older `path`."""
    temporary = path.with_name(f".{path.name}{PART}")
    old = path.with_name(f".{path.name}.old{PART}")
    with _explained(path, temporary):
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.iterdir():
            _flush(file)
        _flush(temporary)
        if path.exists():
            path.rename(old)
        temporary.rename(path)
        _flush(path.parent)
        shutil.rmtree(old, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Delete a folder; it loses its name first, so that a half-deleted one is never taken for whole."""
    doomed = path.with_name(f".{path.name}.old{PART}")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Delete what interrupted writes left in a folder."""
    for path in folder.glob(f".*{PART}"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Make the kernel write a file, or a folder's names, to the disk; let others read a file that a library kept private."""
    if path.is_file():
        path.chmod(0o644)
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _explained(path: Path, temporary: Path) -> Iterator[None]:
    """Remove `temporary` on any error, and say what to do about those of the disk."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        _discard(temporary)
        raise CheckpointError(f"{path} could not be written: {_reason(error)}") from error
    except BaseException:
        _discard(temporary)
        raise


def _discard(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    if path.is_file():
        path.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    """What the error means and its remedy. The safetensors library tells a full disk in its message only."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
        return "the disk is full. Free some space; what was saved before is intact."
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "no permission to write there. Choose another folder."
    if number in (errno.ENOTDIR, errno.EEXIST):
        return "a file stands where a folder is needed. Choose another folder."
    return f"{error}."
