"""The text that losses are compared on: a folder of made-up documents, the same on every machine and in every revision.

The standard library would do for training, but its text changes with the interpreter. Lengths differ on purpose: several short
documents share a row of a batch (so that document masks, sites and padding count) and long ones are cut into windows.
"""

from __future__ import annotations

import random
from pathlib import Path

_TEXT = (
    "def return self value while index if not none list for each key in table print class open close read write line "
    "the old river runs under a bridge of stone where nobody waits and every lamp is lit at four caffè naïve Straße 東京"
)
WORDS = _TEXT.split()
DOCUMENTS = 24
_LINES = (1, 2, 1, 4, 1, 12, 1, 3)
"""Of the documents, in turn."""


def make_texts(folder: Path, *, documents: int = DOCUMENTS) -> list[Path]:
    """Write the documents as text-00.txt and so on; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(documents):
        path = folder / f"text-{number:02}.txt"
        path.write_bytes(_document(number).encode())
        paths.append(path)
    return paths


def _document(number: int) -> str:
    """Lines of two to six words, indented like code."""
    source = random.Random(number)  # of which Python promises that `random()` stays what it is
    lines = []
    for _ in range(_LINES[number % len(_LINES)]):
        words = [WORDS[int(source.random() * len(WORDS))] for _ in range(2 + int(source.random() * 5))]
        lines.append("    " * int(source.random() * 3) + " ".join(words) + "\n")
    return "".join(lines)
