"""Several runs of one model on the command line: names or paths with commas between them, and a name for all of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path


def split_runs(text: str) -> list[str]:
    """The runs that an argument names. A path that exists is one run, whatever commas it has."""
    return [text] if Path(text).exists() else [run.strip() for run in text.split(",") if run.strip()]


def shared_name(models: Sequence[Sequence[str]]) -> list[str]:
    """A name for each model from the names of its runs: what "free-0" and "free-1" begin with is "free"."""
    names = [_beginning(runs) or "+".join(runs) for runs in models]
    return names if len(set(names)) == len(names) else ["+".join(runs) for runs in models]


def _beginning(names: Sequence[str]) -> str:
    """The parts between dashes, dots and underscores that all have in common, from the left."""
    if len(names) == 1:
        return names[0]
    parts = [re.split(r"([-_.])", name) for name in names]
    same = takewhile(lambda found: len(set(found)) == 1, zip(*parts, strict=False))
    return "".join(part for part, *_ in same).rstrip("-_.")
