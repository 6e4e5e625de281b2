"""Code of others, when it is imported: its own interrupt is told from the user's, and any error of it is put into words."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from latentlm.errors import short


@contextmanager
def users_interrupt() -> Iterator[Callable[[], bool]]:
    """Within the block, a function that says whether the user has pressed Ctrl-C: a KeyboardInterrupt can be raised by anyone.
    Signals go to the main thread and to Python's handlers; elsewhere it is nobody's."""
    before = signal.getsignal(signal.SIGINT)
    seen: list[int] = []
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(number: int, frame: FrameType | None) -> object:
        seen.append(number)
        return before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(seen)
    finally:
        if signal.getsignal(signal.SIGINT) is note:  # else the code has put one of its own there
            signal.signal(signal.SIGINT, before)


def told_error(error: BaseException) -> str:
    """An error in words, not without end; its own text may raise, whatever it likes."""
    try:
        text = " ".join(str(error).split())
    except BaseException:
        text = "(an error whose text cannot be had)"
    return short(f"{type(error).__name__}: {text}", 1500)
