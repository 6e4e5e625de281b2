"""What a command leaves in a folder: numbers as JSON, and pages and pictures beside them. Looked at before the long work.

    out = Outputs(folder, numbers="probe.json", keys={"model", "seen"}, beside=["probe.svg"])
    ...
    out.write("probe.json", text)

A folder takes the results of the same command again. Where something else has one of their names, nothing is written.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from latentlm.config import read_json
from latentlm.config.writing import check_replaceable, write_atomically
from latentlm.errors import UserError


class Outputs:
    """The files of a command in one folder."""

    def __init__(self, folder: Path, *, numbers: str, keys: Collection[str], beside: Collection[str] = ()) -> None:
        """Makes the folder. `keys` are among those of the numbers, or of each where they are a list. Raises UserError where it
        cannot be written to, or a file that would be replaced is not the command's own."""
        self.folder, self.names = made_folder(folder), (numbers, *beside)
        there = [name for name in self.names if os.path.lexists(folder / name)]
        if there and not has_keys(folder / numbers, keys):
            raise UserError(f"{folder / there[0]} is there and not of this command: choose another folder with --out.")
        for name in there:
            check_replaceable(folder / name, None, kind="")

    def write(self, name: str, content: str | Callable[[Path], object]) -> None:
        """A text, or what a function writes to a path. Raises UserError."""
        assert name in self.names
        if isinstance(content, str):
            data = content.encode("utf-8", errors="backslashreplace")
            write_atomically(self.folder / name, lambda path: path.write_bytes(data))
        else:
            write_atomically(self.folder / name, content)


def made_folder(folder: Path, *, remedy: str = "choose another folder with --out") -> Path:
    """A folder that can be written to, made where there is none. Raises UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"cannot write to {folder} ({reason}); {remedy}.") from None
    return folder


def is_picture(path: Path) -> bool:
    """Whether a file is the SVG or PNG that its ending says."""
    with path.open("rb") as file:
        start = file.read(1024)
    if path.suffix.lower() == ".png":
        return start.startswith(b"\x89PNG")
    return path.suffix.lower() == ".svg" and (b"<svg" in start or start.startswith(b"<?xml"))


def has_keys(path: Path, keys: Collection[str]) -> bool:
    """Whether a file is JSON, a mapping or a list of them, with these keys."""
    try:
        found: Any = read_json(path)
    except UserError:
        return False
    each = found if isinstance(found, list) and found else [found]
    return all(isinstance(one, dict) and set(keys) <= one.keys() for one in each)
