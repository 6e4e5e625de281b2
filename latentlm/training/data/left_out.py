"""What a folder of texts holds beyond the files that are read, told to the user: it may have been meant to be read too."""

from __future__ import annotations

import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

ROW_FILES = (".jsonl", ".jsonl.gz", ".parquet")
"""Files of which each row is a document."""
_LOOKED_AT = 3  # files of each ending: enough to know what the ending means
_HEAD = 1024  # bytes
_IN_TEXT = bytes([*b"\t\n\f\r\x1b", *range(0x20, 0x7F), *range(0x80, 0x100)])
"""Bytes of a text. Other control characters, which every format of programs has among its first bytes, are in none."""
_LISTED = 8


class LeftOutWarning(UserWarning):
    """A folder of data has readable files that no pattern matches, or links to folders, which are not followed."""


def say_what_is_left_out(root: Path, left: Iterable[Path], *, pattern: str) -> None:
    """Warn of the files of `left` that could be read, counted by ending, and of links to folders under `root`."""
    by_ending: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(left):
        by_ending[path.suffix].append(path)
    counts = Counter(
        {ending: len(paths) for ending, paths in by_ending.items() if any(map(_is_readable, paths[:_LOOKED_AT]))}
    )
    said = []
    if total := counts.total():
        listed = ", ".join(f"{count} {ending or 'without an ending'}" for ending, count in counts.most_common(_LISTED))
        more = ", ..." if len(counts) > _LISTED else ""
        wanted = ",".join([pattern, *(f"*{ending}" if ending else "*" for ending, _ in counts.most_common(_LISTED))])
        said.append(
            f'{total} readable {"file is" if total == 1 else "files are"} left out ({listed}{more}), since data.pattern is '
            f'"{pattern}"; to read {"it" if total == 1 else "them"} too: data.pattern="{wanted}"'
        )
    if links := _linked_folders(root):
        said.append(f"links to folders are not followed ({', '.join(links[:_LISTED])}); give data.path the folder itself")
    if said:
        warnings.warn(f"data.path {root}: {'. Also, '.join(said)}.", LeftOutWarning, stacklevel=2)


def _is_readable(path: Path) -> bool:
    """Whether a file is one of rows, or begins as text: UTF-8, or letters of one byte, which are read byte for byte too."""
    if path.name.lower().endswith(ROW_FILES):
        return True
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    return bool(head.strip()) and not head.translate(None, _IN_TEXT)


def _linked_folders(root: Path) -> list[str]:
    """Links to folders anywhere under `root`, hidden ones aside, relative to it."""
    found = []
    for folder, folders, _ in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(folder, name).relative_to(root).as_posix() for name in folders if Path(folder, name).is_symlink()]
    return sorted(found)
