"""The interface of a synthetic source: independent texts, their exact density, its entropy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np


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
