"""Text of others on our terminal: names, docstrings and errors of plugins are shown, never obeyed.

    shown(text)      for plain output: control characters as escapes
    escaped(text)    the same for a rich table, markup taken literally
"""

from __future__ import annotations

import unicodedata


def shown(text: str) -> str:
    """The text with what would move the cursor, colour the screen or turn the line around spelt out; line breaks stay."""
    return "".join(char if char == "\n" or unicodedata.category(char) not in ("Cc", "Cf") else _spelt(char) for char in text)


def escaped(text: str) -> str:
    """`shown`, for rich."""
    from rich.markup import escape

    return escape(shown(text))


def _spelt(char: str) -> str:
    """A tab is a space; any other as Python spells it."""
    return " " if char == "\t" else char.encode("unicode_escape").decode("ascii")
