"""Files that a benchmark writes at its end, looked at before it begins: minutes of work should not end in a missing folder."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def writable(text: str) -> Path:
    """A path that can be written to, as the type of an argument. Raises argparse.ArgumentTypeError with the reason."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder: give a file.")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"the folder {path.parent} does not exist: make it, or give another.")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{path} cannot be written to: give another file.")
    return path
