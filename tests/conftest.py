"""Fixtures that many tests share: small models and batches."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import pytest
import torch

from latentlm.composed import build
from latentlm.interface import Batch, LatentDecoder
from samples import pack, small_config

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _ctrl_c() -> Iterator[None]:
    """A command that ran in this process has left Ctrl-C as it is at a process's end (`latentlm.cli._interrupts`)."""
    before = signal.getsignal(signal.SIGINT)
    yield
    if signal.getsignal(signal.SIGINT) is not before:
        signal.signal(signal.SIGINT, before)


@pytest.fixture
def small() -> Callable[..., LatentDecoder]:
    """Builds a small decoder whose latents matter (weights of standard deviation 0.1)."""

    def make(decoder: str = "free", *, seed: int = 0, **settings: object) -> LatentDecoder:
        return build(small_config(decoder, **settings), seed=seed).eval()  # type: ignore[arg-type]

    return make


@pytest.fixture
def packed() -> Batch:
    """Two rows: three documents, and two documents with padding."""
    return pack([[[3, 1, 4, 1, 5, 9], [2, 6, 5], [3, 5, 8, 9, 7]], [[2, 7, 1, 8, 2, 8, 1], [8, 2, 8, 4]]])
