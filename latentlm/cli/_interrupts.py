"""What Ctrl-C does to the process of a command.

    begin()   from now on it is KeyboardInterrupt, as in every Python program, but in the middle of an import the process ends
    end()     from now on the process ends, without a word: the work is done, and Python is taking itself apart

An exception would reach the user as a traceback from the middle of an import, or get lost there, and aborts torch's. Where
Ctrl-C is ignored, or means something else, it stays so.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

_IMPORTING = "<frozen importlib._bootstrap>"


def begin() -> None:
    """See above."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _stop)


def end() -> None:
    """See above."""
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _stop(number: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTING:
            os.write(2, b"stopped.\n")
            os._exit(130)
        frame = frame.f_back
    raise KeyboardInterrupt
