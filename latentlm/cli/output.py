"""What a program reads from us: with `--json`, standard output holds the JSON and nothing else, whatever a plugin prints.

    def command(as_json: AsJson = False) -> None:
        if as_json:
            emit(found)

From the moment that the option is read, everything written to standard output goes to standard error instead, by whatever way
(print, a library in C, a child process), and only `emit` reaches the stream itself. It is JSON as the standard has it.
"""

from __future__ import annotations

import io
import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Annotated, Any, TextIO

import typer

from latentlm.cli._streams import another_output, delivered

_reserved: list[TextIO] = []
"""The streams that `emit` writes to, of the commands under way; the last one counts."""


def emit(found: Any) -> None:
    """Write plain data for a program to read. A reader that went away ends the command with status 1."""
    text = as_json(found)
    stream = _reserved[-1] if _reserved else sys.stdout
    with delivered(stream):
        stream.write(text + "\n")
        stream.flush()


def as_json(found: Any) -> str:
    """Plain data as indented JSON, with null for a number that is not finite, which JSON lacks."""
    return json.dumps(_finite(found), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _reserve(ctx: typer.Context, wanted: bool) -> bool:
    """Called when the option is read."""
    if wanted and not ctx.resilient_parsing:
        ctx.with_resource(_reserved_for_us())
    return wanted


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else on standard output.", callback=_reserve)]


@contextmanager
def _reserved_for_us() -> Iterator[None]:
    """Standard output for `emit` alone. In a process of ours for good, since more may be printed when it ends; where standard
    output was exchanged (a notebook, a test), until the command ends."""
    stream = sys.stdout
    if stream is sys.__stdout__ and (own := _taken(stream)) is not None:
        _reserved.append(own)
        yield
        return
    _reserved.append(stream)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _reserved.remove(stream)


def _taken(stream: Any) -> TextIO | None:
    """A new stream to where `stream` leads, which itself leads to standard error from now on. None where it has no file."""
    try:
        stream.flush()
        own = another_output(stream)
        os.dup2(sys.stderr.fileno(), stream.fileno())
    except (OSError, AttributeError, io.UnsupportedOperation):
        return None
    return own
