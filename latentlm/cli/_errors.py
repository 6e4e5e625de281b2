"""What the command line says when something goes wrong: one message with its remedy. Only a bug of ours keeps a traceback.

Besides `UserError`, whose message is ready, these are the user's to mend: a path that cannot be read or written, a full disk,
no memory left. Warnings meant for users are one line each, without the line of code that gave them.
"""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import typer

from latentlm.errors import UserError, told

_REMEDIES = {
    errno.ENOSPC: "free some space, or write to another disk",
    errno.EDQUOT: "free some space, or write to another disk",
    errno.EACCES: "choose a path that you may use, or change its permissions",
    errno.EPERM: "choose a path that you may use, or change its permissions",
    errno.EROFS: "choose a path that can be written to",
    errno.EISDIR: "give a file, not a folder",
    errno.ENOTDIR: "a file stands where a folder is needed; choose another path",
    errno.EEXIST: "choose another path, or remove what is there",
    errno.ENOENT: "check the spelling",
    errno.ENAMETOOLONG: "choose a shorter path",
}
_OUT_OF_MEMORY = "not enough memory for this. Choose a smaller batch, fewer samples, a smaller model, or a machine with more."
_ALLOCATION = ("DefaultCPUAllocator", "CUDA out of memory", "Cannot allocate memory")


def explain(error: Exception) -> str | None:
    """The message for an error that the user can mend; None for a bug."""
    if isinstance(error, UserError):
        return str(error)
    if _is_out_of_memory(error):
        return _OUT_OF_MEMORY
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{os.strerror(error.errno)}; {_REMEDIES[error.errno]}."
    return None


def _is_out_of_memory(error: Exception) -> bool:
    """Of Python, of the system, or of torch, whose CPU allocator raises a bare RuntimeError, told by its text."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _ALLOCATION)


def _another_speaks() -> bool:
    """Whether this is one of several processes, and not the first, which sees what they see."""
    if "RANK" not in os.environ:
        return False
    from latentlm.interface.ranks import place  # and torch, which takes a second

    try:
        return place()[0] > 0
    except UserError:
        return False


@contextmanager
def tidy_warnings() -> Iterator[None]:
    """Within the block, a UserWarning is one line on standard error, and of several processes the first one's; the others
    (deprecations) are shown as ever."""
    with warnings.catch_warnings():
        as_ever = warnings.showwarning

        def show(
            message: Warning | str, category: type[Warning], filename: str, lineno: int,
            file: TextIO | None = None, line: str | None = None,
        ) -> None:  # fmt: skip
            if not issubclass(category, UserWarning):
                as_ever(message, category, filename, lineno, file, line)
                return
            if _another_speaks():
                return
            typer.secho(f"warning: {told(' '.join(str(message).split()))}", fg=typer.colors.YELLOW, file=sys.stderr)

        warnings.showwarning = show
        yield
