"""Ctrl-C and SIGTERM end a run between two steps, with a checkpoint. A second Ctrl-C ends it at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self


class InterruptedRun(KeyboardInterrupt):
    """The run was asked to stop, and saved; the message says how to go on."""


class StopRequest:
    """Within the block, a first SIGINT or SIGTERM sets `requested`; a second one raises KeyboardInterrupt.

    Signals belong to the main thread: in another one the block changes nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
