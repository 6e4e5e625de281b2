"""Fixtures that many tests share: small models and batches."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from latentlm.composed import build
from latentlm.interface import Batch, LatentDecoder
from samples import pack, small_config

torch.set_num_threads(1)


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
