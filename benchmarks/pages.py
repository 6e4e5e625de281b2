"""Pages whose tables are made from kept measurements: each stands between `<!-- numbers: NAME -->` and
`<!-- end of numbers -->`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from latentlm.errors import unknown_name

_SPAN = re.compile(r"(<!-- numbers: ([\w-]+) -->\n).*?(<!-- end of numbers -->)", re.DOTALL)


def filled(page: str, blocks: Mapping[str, Callable[[], str]]) -> str:
    """The page with its tables made anew. Raises UserError for a table that nobody makes."""

    def block(found: re.Match[str]) -> str:
        if found[2] not in blocks:
            raise unknown_name("table", found[2], blocks)
        return found[1] + blocks[found[2]]() + "\n" + found[3]

    return _SPAN.sub(block, page)


def put(files: Iterable[tuple[Path, str]], *, check: bool) -> list[str]:
    """Write what has changed, or with `check` nothing; returns the names of what has."""
    stale = []
    for path, text in files:
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(f"{path.parent.name}/{path.name}")
            if not check:
                path.write_text(text, encoding="utf-8")
    return stale


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], *, words: int = 1) -> str:
    """A table whose first columns, `words` of them, are text and the others numbers."""
    rule = ["---"] * words + ["---:"] * (len(head) - words)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, rule, *rows])
