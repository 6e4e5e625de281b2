"""Writing files so that a crash, a full disk or `kill -9` leaves the old content or the new, never half of either, and nothing
of anyone else's is lost.

    write_text(path, text)
    write_atomically(path, lambda temporary: ...)      one file, written by a function of the temporary path
    with atomic_folder(path, ours=is_mine, kind="mine") as temporary: ...      a folder of files
    with open_to_append(path) as file: ...             lines after those that are there

New content is made in a folder of its own beside its destination, with a name that nobody can foresee and that nobody else may
enter, is flushed to the disk, and takes the place of the old in one step. What stands at the destination gives way only where
it is a plain file (or a folder) and `ours` says that it is of the writer's kind; a link, a pipe or a device never does.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import glob
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from safetensors import SafetensorError

from latentlm.errors import CheckpointError

_PRIVATE = re.compile(r"\..+\.[a-z0-9_]{8}\.latentlm")
"""Names of the folders that new content is made in."""
_NEW, _OLD = "new", "old"
"""Within one: where new content lies, and what gave way to it where there is no way to exchange two folders in one step."""
Ours = Callable[[Path], bool]
"""Whether what is at a path is of the writer's kind, so that it may be replaced."""


def write_atomically(
    path: Path, write: Callable[[Path], object], *, ours: Ours | None = None, kind: str = "a file of this kind"
) -> None:
    """Call `write` with a temporary path and put the result at `path`. `ours`: what an older file there must be, `kind`, to
    give way; None: any plain file. Raises CheckpointError where the disk refuses, or what is there is something else."""
    with explained(path):
        check_replaceable(path, ours, kind=kind)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _private(path) as temporary:
            write(temporary)
            _flush(temporary)
            os.replace(temporary, path)
            _flush(path.parent)


def write_text(path: Path, text: str, *, ours: Ours | None = None, kind: str = "a file of this kind") -> None:
    """Put `text` (UTF-8) at `path`; as `write_atomically`."""
    write_atomically(path, lambda temporary: temporary.write_bytes(text.encode("utf-8")), ours=ours, kind=kind)


@contextmanager
def atomic_folder(path: Path, *, ours: Ours, kind: str) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends without an error, in the place of an older `path` that is
    `ours`: of a folder, whatever lies in it goes with it, so that the caller must say. Raises CheckpointError."""
    with explained(path):
        check_replaceable(path, ours, kind=kind, folder=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        _bring_back(path)
        with _private(path) as temporary:
            temporary.mkdir()
            yield temporary
            for file in temporary.iterdir():
                _flush(file)
            _flush(temporary)
            if not os.path.lexists(path):
                temporary.rename(path)
            elif not _exchange(temporary, path):
                aside = temporary.parent.with_name(_OLD)
                aside.mkdir()
                path.rename(aside / path.name)
                temporary.rename(path)
            _flush(path.parent)


def open_to_append(path: Path) -> TextIO:
    """A plain file (UTF-8) opened for appending, made where there is none: never through a link, and never waiting for whoever
    reads a pipe. Raises CheckpointError."""
    with explained(path):
        _check_kind(path, None, kind="")
        # Read as well, since a pipe that is opened for writing alone waits for its reader, or fails without a reason.
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        file = open(os.open(path, flags, 0o666), "a+", encoding="utf-8")  # noqa: SIM115
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # it was exchanged since it was looked at
            file.close()
            raise OSError(errno.EINVAL, "it is no plain file any more")
        return file


def acquired(handle: int) -> bool:
    """Take the lock of an open file without waiting; the system releases it when the process ends, however it ends. False where
    another process has it."""
    if os.name != "posix":
        return True
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def check_replaceable(path: Path, ours: Ours | None, *, kind: str, folder: bool = False) -> None:
    """Before long work: raise CheckpointError unless `path` can be written, as a file or a folder, without a loss."""
    _check_kind(path, ours, kind=kind, folder=folder)
    check_writable(path)


def check_writable(path: Path) -> None:
    """Raise CheckpointError unless a new file can be made beside `path`, or in the first folder above that is there."""
    with explained(path):
        folder = next(folder for folder in path.absolute().parents if folder.exists())
        if folder.is_dir():  # rights alone do not tell: /proc says to root that it can be written to
            with tempfile.TemporaryDirectory(prefix=".check.", suffix=".latentlm", dir=folder):
                pass


def _check_kind(path: Path, ours: Ours | None, *, kind: str, folder: bool = False) -> None:
    """Raise CheckpointError unless what stands at `path` may be written to, or replaced."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} could not be written: {_reason(error)}") from None
    if not (stat.S_ISDIR(mode) if folder else stat.S_ISREG(mode)):
        kinds = {stat.S_IFLNK: "a link, through which nothing is written", stat.S_IFDIR: "a folder", stat.S_IFREG: "a file"}
        found = kinds.get(stat.S_IFMT(mode), "a pipe, a device or a socket")
        raise CheckpointError(f"{path} is {found}, and stays as it is. Choose another path.")
    if ours is not None and not ours(path):
        raise CheckpointError(f"{path} is not {kind}, so it is not replaced. Choose another path, or remove it first.")


def remove_folder(path: Path) -> None:
    """Delete a folder; it loses its name first, so that a half-deleted one is never taken for whole."""
    with _private(path) as doomed:
        path.rename(doomed)


def is_leftover(path: Path) -> bool:
    """Whether an interrupted write of ours has left this."""
    return _PRIVATE.fullmatch(path.name) is not None and _is_own_folder(path)


def remove_leftovers(folder: Path) -> None:
    """Delete what interrupted writes of ours left in a folder."""
    with suppress(OSError):
        for path in folder.iterdir():
            if is_leftover(path):
                shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _private(path: Path) -> Iterator[Path]:
    """A path of the same name in a new folder beside, which is removed with what is in it when the block ends."""
    folder = Path(tempfile.mkdtemp(prefix=f".{_start(path.name)}.", suffix=".latentlm", dir=path.parent))
    try:
        (folder / _NEW).mkdir()
        yield folder / _NEW / path.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(name: str, most: int = 60) -> str:
    """So much of a name that another can begin with it: file systems count bytes, not letters."""
    while len(os.fsencode(name)) > most:
        name = name[:-1]
    return name


def _bring_back(path: Path) -> None:
    """Undo what a killed `atomic_folder` did between its two renames, where two folders cannot be exchanged in one."""
    pattern = f".{glob.escape(_start(path.name))}.*.latentlm"
    for folder in path.parent.glob(pattern) if not os.path.lexists(path) else ():
        old = folder / _OLD / path.name
        if is_leftover(folder) and old.is_dir():
            old.rename(path)


def _is_own_folder(path: Path) -> bool:
    """A folder, no link to one, that this user made."""
    found = path.lstat()
    return stat.S_ISDIR(found.st_mode) and (os.name != "posix" or found.st_uid == os.geteuid())


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two paths in one step (Linux renameat2); false where the system or the file system cannot."""
    rename = _renameat2()
    return rename is not None and rename(-100, os.fsencode(one), -100, os.fsencode(other), 2) == 0  # AT_FDCWD, RENAME_EXCHANGE


@functools.cache
def _renameat2() -> Callable[..., int] | None:
    try:
        found: Callable[..., int] = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError, TypeError):
        return None
    return found


def _flush(path: Path) -> None:
    """Make the kernel write a file, or a folder's names, to the disk. A file that a library kept private gets the permissions
    of any other new file."""
    if path.is_file() and stat.S_IMODE(path.stat().st_mode) == 0o600:
        path.chmod(_mode_of_new_files(path.parent))
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _mode_of_new_files(folder: Path) -> int:
    """What the user's umask leaves of rw-rw-rw-, seen from a new file: asking for it would change it for a moment."""
    probe = Path(tempfile.mktemp(dir=folder))  # a name that no file has; O_EXCL sees to it
    os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    return mode


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Say what to do about errors of the disk."""
    try:
        yield
    except CheckpointError:
        raise
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} could not be written: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What the error means and its remedy. The safetensors library tells a full disk in its message only."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
        return "the disk is full. Free some space; what was saved before is intact."
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "no permission to write there. Choose another folder."
    if number == errno.ENOENT:
        return "nothing can be made there. Choose another folder."
    if number in (errno.ENOTDIR, errno.EEXIST):
        return "a file stands where a folder is needed. Choose another folder."
    if number == errno.ENAMETOOLONG:
        return "the name is too long. Choose a shorter one."
    return f"{error}."
