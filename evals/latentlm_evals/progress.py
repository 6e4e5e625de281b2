"""How commands say on standard error what they are doing: moving on a terminal, by lines elsewhere (a file, a pipe)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from latentlm.cli.text import escaped

SECONDS = 20.0
"""Between two lines on the same thing."""


@contextmanager
def status(console: Console, text: str) -> Iterator[Callable[[str], None]]:
    """Say what is done in the block; what it yields says what is done next."""
    if not console.is_terminal:
        say(console, text)
        yield lambda following: say(console, following)
        return
    with console.status(escaped(text)) as shown:
        yield lambda following: shown.update(escaped(following))


def say(console: Console, text: str) -> None:
    """A line, whole however long it is."""
    console.print(escaped(text), soft_wrap=True, highlight=False)


class Lines:
    """Lines on things that go on beside each other, of each at most one in `SECONDS`; none on a terminal, where bars move."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last: dict[str, tuple[float, str]] = {}

    def __call__(self, name: str, text: str, *, now: bool = False) -> None:
        """Say of `name` what is new, `now` at once."""
        if self._console.is_terminal:
            return
        time_of, before = self._last.get(name, (-SECONDS, ""))
        if text != before and (now or time.monotonic() - time_of >= SECONDS):
            self._last[name] = (time.monotonic(), text)
            say(self._console, f"{name}: {text}")
