"""The coin of the Free Transformer's paper (Fleuret 2025, section 2): a hidden fair coin, shown `length` times by a liar.

    Z fair, X_1 .. X_T independent given Z, each equal to it but with probability `flip`

A decoder without latents has to weigh all that it has seen; one that is told Z needs nothing else. Written as H and T.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from latentlm.errors import UserError
from latentlm.training.data.synthetic.source import Decided, uniform


@dataclass(frozen=True)
class Coin(Decided):
    """Fleuret 2025, section 2."""

    length: int = 32
    flip: float = 0.25

    def __post_init__(self) -> None:
        if self.length < 1 or not 0 < self.flip < 1:
            raise UserError(f"synthetic coin: length={self.length}, flip={self.flip}: at least one toss, and 0 < flip < 1.")

    @cached_property
    def entropy(self) -> float:
        """By the number of heads, on which alone the density depends."""
        heads = np.arange(self.length + 1)
        ways = np.array([math.comb(self.length, int(k)) for k in heads], dtype=float)
        density = self._density(heads)
        return float(-(ways * density * np.log(density)).sum())

    @cached_property
    def information(self) -> float:
        """As Decided has it: I(Z; X)."""
        return self.entropy + self.length * (self.flip * math.log(self.flip) + (1 - self.flip) * math.log(1 - self.flip))

    def texts(self, count: int, *, seed: int) -> list[bytes]:
        """As Source has it."""
        found: list[bytes] = []
        for drawn in uniform(count, self.length + 1, seed=seed):
            found += [row.tobytes() for row in np.where(self.tosses(drawn), np.uint8(ord("H")), np.uint8(ord("T")))]
        return found[:count]

    def tosses(self, drawn: np.ndarray) -> np.ndarray:
        """(N, length) bool, heads, from uniform numbers (N, length + 1): the first decides Z, the others who lies."""
        return self.sides(drawn) ^ (drawn[:, 1:] < self.flip)

    @staticmethod
    def sides(drawn: np.ndarray) -> np.ndarray:
        """(N, 1) bool: Z, from the same numbers."""
        heads: np.ndarray = drawn[:, :1] < 0.5
        return heads

    def intents(self, count: int, *, seed: int) -> np.ndarray:
        """As Decided has it: Z."""
        drawn = uniform(count, self.length + 1, seed=seed)
        return np.concatenate([self.sides(block)[:, 0] for block in drawn])[:count]

    def read(self, text: str) -> int:
        """As Decided has it: the side that more tosses show, or fewer where the liar lies more often than not."""
        more = int(np.sign(text.count("H") - text.count("T")))
        return more if self.flip < 0.5 else -more if self.flip > 0.5 else 0

    def nats(self, texts: Sequence[bytes]) -> np.ndarray:
        """As Source has it."""
        fits = np.array([len(text) == self.length and not set(text) - set(b"HT") for text in texts], dtype=bool)
        heads = np.array([text.count(b"H") for text in texts])
        return np.where(fits, -np.log(self._density(np.minimum(heads, self.length))), np.inf)

    def _density(self, heads: np.ndarray) -> np.ndarray:
        tails = self.length - heads
        one = (1 - self.flip) ** heads * self.flip**tails
        other = self.flip**heads * (1 - self.flip) ** tails
        return 0.5 * (one + other)
