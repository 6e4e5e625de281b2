"""Reads the task data beside this file; lm-eval imports it by its place, not as a module of a package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets


def _load(name: str) -> dict[str, datasets.Dataset]:
    """The items of NAME.jsonl as a test split, through no cache and no network."""
    text = (Path(__file__).parent / f"{name}.jsonl").read_text(encoding="utf-8")
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in text.splitlines()])}


# lm-eval passes a task's metadata and all of `--model_args` to these; they need none of it.


def next_line(**_: Any) -> dict[str, datasets.Dataset]:
    """Items of latentlm_next_line."""
    return _load("next_line")


def heldout(**_: Any) -> dict[str, datasets.Dataset]:
    """Items of latentlm_heldout."""
    return _load("heldout")


def copy(**_: Any) -> dict[str, datasets.Dataset]:
    """Items of latentlm_copy."""
    return _load("copy")


def brackets(**_: Any) -> dict[str, datasets.Dataset]:
    """Items of latentlm_brackets."""
    return _load("brackets")
