"""Code of others, when it is imported: its own interrupt is told from the user's, and any error of it is put into words."""

from __future__ import annotations

import signal

from latentlm.errors import short


def is_users(error: BaseException) -> bool:
    """Whether an error is the user's Ctrl-C, as far as one can tell: the command's own handler does not raise within an import,
    and where Ctrl-C is ignored (in the background) or ends the process nothing raises, so that a KeyboardInterrupt is the
    code's."""
    handler = signal.getsignal(signal.SIGINT)
    return isinstance(error, KeyboardInterrupt) and (handler is None or handler is signal.default_int_handler)


def told_error(error: BaseException) -> str:
    """An error in words, not without end; its own text may raise, whatever it likes."""
    try:
        text = " ".join(str(error).split())
    except BaseException:
        text = "(an error whose text cannot be had)"
    return short(f"{type(error).__name__}: {text}", 1500)
