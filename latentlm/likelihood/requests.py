"""What is to be scored, and how."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from latentlm.likelihood.paths import LastLatent, Target
from latentlm.likelihood.results import Method


@dataclass(frozen=True)
class Request:
    """A text, its given tokens, and where its continuation begins (the two differ for `joint`)."""

    tokens: list[int]
    given: int
    begins: int
    target: Target
    key: Hashable
    tolerance: float
    """Nats."""


@dataclass(frozen=True)
class How:
    """Settings of a call."""

    method: Method
    samples: int
    """Of the first round."""
    max_samples: int
    """Rounds double the samples while they stay within these."""
    seed: int
    batch_size: int | None
    last_latent: LastLatent | Mapping[str, LastLatent]
    defensive: float
    greedy: bool
    doubles: bool
    """`samples` is the first of rounds, not all that was asked for."""
    refine: int
    """Gradient steps on the proposal of a document's vector (`refining`)."""

    @property
    def most(self) -> int:
        """Samples of the last round."""
        return self.samples << (self.max_samples // self.samples).bit_length() - 1
