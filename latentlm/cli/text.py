"""Text of others on our terminal: names, docstrings and errors of plugins are shown, never obeyed (`latentlm.errors.shown`).

    escaped(text)    the same for a rich table, markup taken literally
    any_terminal()   what a terminal's encoding lacks is drawn in plain letters or spelt out, instead of an error
"""

from __future__ import annotations

import codecs
import io
import sys

from latentlm.errors import shown

_PLAIN = {
    **dict.fromkeys("\u2500\u2501\u2550\u2574\u2576\u2013\u2014", "-"),
    **dict.fromkeys("\u2502\u2503\u2551\u2575\u2577", "|"),
    "\u25b2": "^", "\u25bc": "v", **dict.fromkeys("\u25b6\u25ba", ">"), **dict.fromkeys("\u25c0\u25c4", "<"),
    "\u2191": "^", "\u2193": "v", "\u2192": "->", "\u2190": "<-",
    "\u00b1": "+-", "\u00d7": "x", "\u00b7": ".", "\u2026": "...", "\u2264": "<=", "\u2265": ">=", "\u2212": "-",
}  # fmt: skip
"""What our own tables and drawings are made of, in ASCII; other lines' corners and crossings are "+"."""


def escaped(text: str) -> str:
    """`shown`, for rich."""
    from rich.markup import escape

    return escape(shown(text))


def any_terminal() -> None:
    """Let standard output and standard error take any text, whatever their encoding. UTF-8 ones lack lone surrogates alone.

    (Echoes name their stream: click takes one of its own in the place of an ASCII one, and writes UTF-8 to it.)"""
    codecs.register_error("latentlm.plain", _in_plain_letters)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="latentlm.plain")


def _in_plain_letters(error: UnicodeError) -> tuple[str, int]:
    """For `codecs`: the characters that could not be encoded, in ASCII."""
    assert isinstance(error, UnicodeEncodeError)
    return "".join(map(_plain, error.object[error.start : error.end])), error.end


def _plain(char: str) -> str:
    """One character in ASCII."""
    if char in _PLAIN:
        return _PLAIN[char]
    return "+" if "\u2500" <= char <= "\u257f" else char.encode("ascii", errors="backslashreplace").decode("ascii")
