"""The three standard streams as a command finds them: closed, full, gone, or in an encoding that lacks letters.

    prepare()                  once, before the command
    with delivered(stream):    around what writes to standard output
    finish()                   once, after the command

Standard output that takes nothing is one message of the command (`UserError`); what standard error does not take is not said.
A pipe that is full is waited for, whether whoever made it wanted that or not (`O_NONBLOCK`). A stream that is closed behaves as
one that takes nothing, instead of being absent, or of being the next file that a library opens.
"""

from __future__ import annotations

import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from latentlm.cli.text import any_terminal
from latentlm.errors import UserError

_replaced: list[TextIO | None] = []
"""Python's own streams: to collect them might close what they lead to."""


class _Output(io.FileIO):
    """Standard output."""

    def write(self, data: Any) -> int:
        """All or some of the bytes. Raises UserError, and BrokenPipeError where the reader went away."""
        while True:
            try:
                written = super().write(data)
            except BrokenPipeError:
                raise
            except OSError as error:
                remedy = "Let it lead to a terminal, a pipe, or a file with space."
                raise UserError(f"standard output cannot be written: {error.strerror}. {remedy}") from None
            if written is not None:
                return written
            select.select([], [self], [])


class _Errors(io.FileIO):
    """Standard error."""

    def write(self, data: Any) -> int:
        """All or some of the bytes; what cannot be written is taken for written, since there is nowhere to say so."""
        try:
            while (written := super().write(data)) is None:
                select.select([], [self], [])
        except OSError:
            return len(memoryview(data).cast("B"))
        return written


def prepare() -> None:
    """Standard streams that are there, and take any text."""
    for number, mode in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):  # empty; not to be written to; a hole
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, mode), True)  # the lowest number that is free is this one
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    for number, name, kind in ((1, "stdout", _Output), (2, "stderr", _Errors)):
        stream = getattr(sys, name)
        if stream is None or (stream is getattr(sys, f"__{name}__") and _leads_to(stream, number)):
            made = opened(kind(number, "w", closefd=False), stream)
            _replaced.append(stream)
            setattr(sys, name, made)
            setattr(sys, f"__{name}__", made)
    any_terminal()


def standard_input() -> bytes:
    """All of it, to its end. Raises UserError."""
    from latentlm.config.reading import MOST_WHOLE  # takes time, and streams are needed before

    try:
        data = sys.stdin.buffer.read(MOST_WHOLE + 1)
    except OSError as error:
        raise UserError(f"standard input cannot be read: {error.strerror}. Send it a text, or give a file.") from None
    if len(data) > MOST_WHOLE:
        raise UserError(f"standard input is longer than {MOST_WHOLE // 2**20} MiB, too long for a text. Send a shorter one.")
    return data


def opened(raw: io.FileIO, like: TextIO | None) -> TextIO:
    """A stream of text to a file, as another one is."""
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(like, "encoding", "utf-8"),
        errors=getattr(like, "errors", None),
        line_buffering=getattr(like, "line_buffering", False),
        write_through=getattr(like, "write_through", False),
    )


def another_output(stream: TextIO) -> TextIO:
    """A new stream to where a standard output leads. Raises OSError (io.UnsupportedOperation) where it has no file."""
    return opened(_Output(os.dup(stream.fileno()), "w"), stream)


@contextmanager
def delivered(stream: TextIO) -> Iterator[None]:
    """Within the block standard output is written to. A reader that went away (`| head`) is worth no message: SystemExit.
    Raises UserError where it takes nothing. What is then still in the buffer goes nowhere; else Python complains of it at its
    end."""
    try:
        yield
    except (BrokenPipeError, UserError) as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if isinstance(error, UserError):
            raise
        raise SystemExit(1) from None


def finish() -> None:
    """Write what is still in the buffer, once the command is over. Raises as `delivered`."""
    with delivered(sys.stdout):
        sys.stdout.flush()


def _leads_to(stream: Any, number: int) -> bool:
    try:
        return isinstance(stream, io.TextIOWrapper) and stream.fileno() == number
    except OSError:
        return False
