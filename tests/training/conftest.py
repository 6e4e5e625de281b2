"""A text of a few kilobytes and recipes small enough to train in a second."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from latentlm.config import Recipe, apply_overrides, parse

_WORDS = ("the", "a", "red", "blue", "cat", "dog", "bird", "tree", "sees", "finds", "likes", "under", "over", "near", "then")


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 documents of random words, 100 to 400 bytes each."""
    folder = tmp_path_factory.mktemp("texts")
    draw = random.Random(0)
    for number in range(24):
        words = draw.choices(_WORDS, k=draw.randint(20, 80))
        (folder / f"{number:02d}.txt").write_text(" ".join(words) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def recipe(texts: Path) -> Callable[..., Recipe]:
    """Makes a tiny recipe ("free", or "vanilla"), with overrides as on the command line."""

    def make(*overrides: str, decoder: str = "free") -> Recipe:
        backbone = {"width": 16, "blocks": 2, "heads": 2, "context": 32}
        data: dict[str, Any] = {
            "name": "tiny",
            "model": {"decoder": decoder, "backbone": backbone, "event_dims": 4 if decoder == "free" else 0},
            "data": {"path": str(texts), "held_out": 0.25},
            "train": {
                "steps": 12, "batch": 2, "accumulate": 2, "warmup": 3, "learning_rate": 0.01, "log_every": 2,
                "eval_every": 6, "save_every": 4, "eval_documents": 4, "device": "cpu", "threads": 1,
            },
        }  # fmt: skip
        return parse(Recipe, apply_overrides(data, list(overrides)), source="tiny recipe")

    return make


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Python's own answer to SIGINT and SIGHUP, here and in processes started from here, also where the suite was started
    with these ignored (in the background, or by nohup)."""
    wanted = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
