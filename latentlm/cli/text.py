"""Text of others on our terminal: names, docstrings and errors of plugins are shown, never obeyed.

    shown(text)      for plain output: control characters as escapes
    told(text)       the same for a message: what it repeats of others is not repeated without end
    escaped(text)    the same for a rich table, markup taken literally
    any_terminal()   what a terminal's encoding lacks is drawn in plain letters or spelt out, instead of an error
"""

from __future__ import annotations

import codecs
import io
import re
import sys
import unicodedata

from latentlm.errors import short

_PLAIN = {
    **dict.fromkeys("\u2500\u2501\u2550\u2574\u2576\u2013\u2014", "-"),
    **dict.fromkeys("\u2502\u2503\u2551\u2575\u2577", "|"),
    "\u25b2": "^", "\u25bc": "v", **dict.fromkeys("\u25b6\u25ba", ">"), **dict.fromkeys("\u25c0\u25c4", "<"),
    "\u2191": "^", "\u2193": "v", "\u2192": "->", "\u2190": "<-",
    "\u00b1": "+-", "\u00d7": "x", "\u00b7": ".", "\u2026": "...", "\u2264": "<=", "\u2265": ">=", "\u2212": "-",
}  # fmt: skip
"""What our own tables and drawings are made of, in ASCII; other lines' corners and crossings are "+"."""


def shown(text: str) -> str:
    """The text with what would move the cursor, colour the screen or turn the line around spelt out; line breaks stay."""
    return "".join(char if char == "\n" or unicodedata.category(char) not in ("Cc", "Cf") else _spelt(char) for char in text)


def told(message: str) -> str:
    """`shown`, for errors and warnings, which repeat what was typed or read: long words and long messages lose their middle.
    What is wrong stands at the beginning, the remedy at the end."""
    message = shown(short(message, 10 * _LONG_MESSAGE))
    return short(re.sub(rf"\S{{{_LONG_WORD},}}", lambda word: short(word[0], _LONG_WORD), message), _LONG_MESSAGE)


_LONG_WORD, _LONG_MESSAGE = 400, 2_000


def escaped(text: str) -> str:
    """`shown`, for rich."""
    from rich.markup import escape

    return escape(shown(text))


def _spelt(char: str) -> str:
    """A tab is a space; any other as Python spells it."""
    return " " if char == "\t" else char.encode("unicode_escape").decode("ascii")


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
