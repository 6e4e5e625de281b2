"""The interface of a synthetic source: independent texts, their exact density, its entropy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np

from latentlm.config import memory

_BLOCK = 4096
"""Texts that are drawn at a time."""
_EACH = 256
"""Bytes that a text takes at least, with its name and its tokens."""


class Source(ABC):
    """A distribution over texts that can be drawn from and evaluated. Texts are bytes, all of one distribution, with nothing
    before and nothing after them (a model that reads end-of-text after each has one more target, which costs nothing)."""

    prompt: ClassVar[int] = 0
    """Bytes of a text that are its prompt: what stands before the part that a model is asked to write."""

    @property
    @abstractmethod
    def entropy(self) -> float:
        """Nats a text, on the mean."""

    @abstractmethod
    def texts(self, count: int, *, seed: int) -> list[bytes]:
        """Independent draws, the same for the same seed; the first ones do not depend on how many are drawn."""

    @abstractmethod
    def nats(self, texts: Sequence[bytes]) -> np.ndarray:
        """-log p of each text, (N,) float64; infinite for what the source never writes."""


class Decided(Source):
    """A source that decides first: each text has an intent, one of two and equally likely, drawn before its words, which show
    it. What a latent may hold of it is known."""

    @abstractmethod
    def intents(self, count: int, *, seed: int) -> np.ndarray:
        """(N,) bool: the intents of `texts` of the same count and seed."""

    @abstractmethod
    def read(self, text: str) -> int:
        """The likelier intent of any text, one that the source would never write too: 1, -1, or 0 where neither is."""

    @property
    @abstractmethod
    def information(self) -> float:
        """I(intent; text), nats: what a latent can hold of it, and all that it is worth."""


def uniform(count: int, width: int, *, seed: int) -> Iterator[np.ndarray]:
    """At least `count` rows of `width` uniform numbers in [0, 1), in blocks: a function of the seed alone. numpy promises the
    words of its counter-based generator, not what it makes of them. Raises UserError for more texts than memory holds."""
    memory.check_count("synthetic texts", count, each=_EACH)
    for block in range(-(-count // _BLOCK)):
        words = np.random.Philox(key=(seed << 64) + block).random_raw(_BLOCK * width).reshape(_BLOCK, width)
        yield (words >> np.uint64(11)) * 2.0**-53
