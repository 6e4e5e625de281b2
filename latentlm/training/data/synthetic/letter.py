"""The synthetic task of the Free Transformer's paper (Fleuret 2025, arXiv 2510.17558, section 4.1).

    K>_____!_______KKKKK!KK________________________!________________

A prompt, one of 26 letters and ">". Then 64 underscores, over which 8 copies of the letter are written at a uniform place (57
starts); last, each of the 64 characters becomes "!" with probability 1/16. The letter is worth log2(26) = 4.70 bits, the start
log2(57) = 5.83, the noise 64 x 0.337 = 21.6; as noise hides some starts, the text after the prompt has 27.4118.

A text is read back from what can be seen: its start is that of the window of eight with most copies of the letter, and it is
valid if nothing but the letter or "!" stands inside that window, and nothing but "_" or "!" outside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from latentlm.training.data.synthetic.source import Source, uniform

LETTERS, LENGTH, COPIES, FLIP = 26, 64, 8, 1 / 16
STARTS = LENGTH - COPIES + 1
SPACE, NOISE, PROMPT = ord("_"), ord("!"), ord(">")
_WINDOWS = np.arange(LENGTH) - np.arange(STARTS)[:, None]
_INSIDE = (_WINDOWS >= 0) & (_WINDOWS < COPIES)  # (57, 64): the places of the copies by start
_BLOCK = 4096
"""Texts that are evaluated at a time."""


@dataclass(frozen=True)
class Reading:
    """What is seen of a text that continues a prompt."""

    start: int
    """Of the window with most copies of the letter, from 0."""
    noise: frozenset[int]
    """Places of "!"."""
    valid: bool


class Letter(Source):
    """Fleuret 2025, section 4.1."""

    prompt: ClassVar[int] = 2

    @cached_property
    def entropy(self) -> float:
        """Letter, start and noise, less what of the start cannot be seen. All starts that a text is compatible with are equally
        likely given it. Start s is hidden behind s + d where the d places left by the window and the d that it takes are noise,
        so by d with probability FLIP^(2 d), on either side (shifts of eight and more, below 1e-19, are left out)."""
        hidden = 0.0
        for start in range(STARTS):
            right, left = (self._run(min(room, COPIES - 1)) for room in (STARTS - 1 - start, start))
            both = np.outer(right, left)
            shifts = np.add.outer(np.arange(len(right)), np.arange(len(left)))
            hidden += float((both * np.log1p(shifts)).sum()) / STARTS
        noise = -FLIP * math.log(FLIP) - (1 - FLIP) * math.log(1 - FLIP)
        return math.log(LETTERS) + math.log(STARTS) + LENGTH * noise - hidden

    @staticmethod
    def _run(most: int) -> np.ndarray:
        """Probability of just 0, 1, ..., `most` further starts on one side."""
        at_least = FLIP ** (2.0 * np.arange(most + 2))
        at_least[-1] = 0.0
        return at_least[:-1] - at_least[1:]

    def texts(self, count: int, *, seed: int) -> list[bytes]:
        """66 bytes each."""
        found: list[bytes] = []
        for drawn in uniform(count, LENGTH + 2, seed=seed):
            letter = (ord("A") + np.floor(drawn[:, 0] * LETTERS)).astype(np.uint8)
            inside = _INSIDE[np.floor(drawn[:, 1] * STARTS).astype(int)]
            filled = np.where(inside, letter[:, None], np.uint8(SPACE))
            written = np.where(drawn[:, 2:] < FLIP, np.uint8(NOISE), filled)
            prompt = np.full((len(drawn), 1), PROMPT, dtype=np.uint8)
            found += [row.tobytes() for row in np.concatenate((letter[:, None], prompt, written), axis=1)]
        return found[:count]

    def nats(self, texts: Sequence[bytes]) -> np.ndarray:
        """A mean over the starts that the text is compatible with."""
        blocks = [self._nats(texts[first : first + _BLOCK]) for first in range(0, len(texts), _BLOCK)]
        return np.concatenate(blocks or [np.empty(0)])

    def _nats(self, texts: Sequence[bytes]) -> np.ndarray:
        fitting = np.array([len(text) == LENGTH + 2 and text[:1].isalpha() and text[:1].isupper() and text[1] == PROMPT
                            for text in texts])  # fmt: skip
        nats = np.full(len(texts), np.inf)
        if not fitting.any():
            return nats
        rows = np.array([list(text) for text, fits in zip(texts, fitting, strict=True) if fits], dtype=np.uint8)
        written, noise = rows[:, 2:], rows[:, 2:] == NOISE
        fits_inside, fits_outside = noise | (written == rows[:, :1]), noise | (written == SPACE)  # (N, 64)
        misfits = (~fits_inside).astype(int) @ _INSIDE.T + (~fits_outside).astype(int) @ (~_INSIDE).T  # (N, 57)
        noisy = noise.sum(1)
        with np.errstate(divide="ignore"):
            starts = np.log((misfits == 0).sum(1) / STARTS)
        nats[fitting] = math.log(LETTERS) - starts - noisy * math.log(FLIP) - (LENGTH - noisy) * math.log(1 - FLIP)
        return nats


def read(letter: str, text: str) -> Reading:
    """What is seen of a continuation of "`letter`>". Of several windows with most copies, a valid one."""
    copies = [text[start : start + COPIES].count(letter) for start in range(STARTS)]
    best = [start for start, count in enumerate(copies) if count == max(copies)]
    valid = [start for start in best if _is_valid(letter, text, start)]
    noise = frozenset(place for place, character in enumerate(text) if character == chr(NOISE))
    return Reading((valid or best)[0], noise, bool(valid))


def _is_valid(letter: str, text: str, start: int) -> bool:
    inside, outside = text[start : start + COPIES], text[:start] + text[start + COPIES :]
    return len(text) == LENGTH and set(inside) <= {letter, chr(NOISE)} and set(outside) <= {chr(SPACE), chr(NOISE)}
