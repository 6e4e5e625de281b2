"""Short reviews with a known intent: positive or negative is decided first, then written.

    the script was superb. what a tender ending! a messy cast.

The intent is a fair coin. Each of `sentences` sentences has one opinion word, of the intent's own list but with probability
`flip`, in which case it is of the other list: the words are the tosses of a coin that a liar shows (coin.py). All else is
neutral and uniform: one of five templates, one of eight nouns, one of four verbs where the template has one, and which of the
eight words of the list. So

    p(text) = p(tosses of the coin) * prod over sentences of 1 / (templates * ways to fill the template)

and a text is read back sentence by sentence. Opinion words come in pairs that begin alike, so that the intent shows in the
word, not in its first letter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from latentlm.errors import UserError
from latentlm.training.data.synthetic.coin import Coin
from latentlm.training.data.synthetic.source import Decided, uniform

POSITIVE = ("superb", "bright", "clever", "warm", "tender", "fresh", "moving", "lovely")
NEGATIVE = ("stale", "bland", "clumsy", "weak", "tedious", "flat", "messy", "lame")
NOUNS = ("plot", "cast", "score", "pace", "script", "camera", "ending", "dialogue")
VERBS = ("is", "was", "felt", "seems")
TEMPLATES = (
    "the {noun} {verb} {word}.", "i call the {noun} {word}.", "a {word} {noun}.", "what a {word} {noun}!",
    "so {word}, that {noun}.",
)  # fmt: skip
_SLOTS = 4
"""Uniform numbers of a sentence: template, noun, verb, word."""
_BETWEEN = re.compile(r"(?<=[.!]) ")


@dataclass(frozen=True)
class Reviews(Decided):
    """See the module."""

    sentences: int = 3
    flip: float = 0.1

    def __post_init__(self) -> None:
        if not 1 <= self.sentences <= 64 or not 0 < self.flip < 0.5:
            raise UserError(
                f"synthetic reviews: sentences={self.sentences}, flip={self.flip}: 1 to 64 sentences, and 0 < flip < 0.5."
            )

    @property
    def coin(self) -> Coin:
        """The opinions: heads for a positive word."""
        return Coin(self.sentences, self.flip)

    @property
    def entropy(self) -> float:
        """Of the opinions, and of what is neutral."""
        ways = [_ways(template) for template in TEMPLATES]
        sentence = math.log(len(TEMPLATES)) + sum(map(math.log, ways)) / len(ways)
        return self.coin.entropy + self.sentences * sentence

    @property
    def information(self) -> float:
        """As Decided has it: the opinions say all that the text says."""
        return self.coin.information

    def texts(self, count: int, *, seed: int) -> list[bytes]:
        """As Source has it."""
        return [text for drawn in self._drawn(count, seed) for text in self._texts(drawn)][:count]

    def intents(self, count: int, *, seed: int) -> np.ndarray:
        """As Decided has it: whether positive was decided."""
        return np.concatenate([Coin.sides(drawn)[:, 0] for drawn in self._drawn(count, seed)])[:count]

    def _drawn(self, count: int, seed: int) -> Iterator[np.ndarray]:
        """Uniform numbers, a row for each text: those of the coin, then those of each sentence."""
        return uniform(count, 1 + self.sentences * (1 + _SLOTS), seed=seed)

    def _texts(self, drawn: np.ndarray) -> list[bytes]:
        opinions = self.coin.tosses(drawn[:, : self.sentences + 1])
        choices = [np.floor(drawn[:, self.sentences + 1 + slot :: _SLOTS] * len(options)).astype(int).tolist()
                   for slot, options in enumerate((TEMPLATES, NOUNS, VERBS, POSITIVE))]  # fmt: skip
        return [" ".join(map(_sentence, *row)).encode() for row in zip(opinions.tolist(), *choices, strict=True)]

    def nats(self, texts: Sequence[bytes]) -> np.ndarray:
        """As Source has it."""
        return np.array([self._nats(text) for text in texts])

    def _nats(self, text: bytes) -> float:
        read = [self._known.get(sentence) for sentence in _BETWEEN.split(text.decode("latin-1"))]
        known = [one for one in read if one is not None]
        if len(known) != len(read) or len(read) != self.sentences:
            return math.inf
        tosses = b"".join(b"H" if good else b"T" for good, _ in known)
        return float(self.coin.nats([tosses])[0]) + sum(nats for _, nats in known)

    @cached_property
    def _known(self) -> dict[str, tuple[bool, float]]:
        """Whether each possible sentence is positive, and its nats given that."""
        found = {}
        for template in TEMPLATES:
            nats = math.log(len(TEMPLATES)) + math.log(_ways(template))
            for good in (True, False):
                for sentence in _filled(template, good):
                    assert sentence not in found, "a sentence is read in one way"
                    found[sentence] = (good, nats)
        return found

    def read(self, text: str) -> int:
        """As Decided has it: whether it has more positive opinion words, or more negative ones."""
        words = re.findall(r"[a-z]+", text)
        return int(np.sign(sum((word in POSITIVE) - (word in NEGATIVE) for word in words)))


def _sentence(good: bool, template: int, noun: int, verb: int, word: int) -> str:
    """By the numbers of its choices."""
    return TEMPLATES[template].format(noun=NOUNS[noun], verb=VERBS[verb], word=(POSITIVE if good else NEGATIVE)[word])


def _verbs(template: str) -> tuple[str, ...]:
    """Those that tell sentences of a template apart."""
    return VERBS if "{verb}" in template else VERBS[:1]


def _ways(template: str) -> int:
    """To fill a template, given the opinion."""
    return len(NOUNS) * len(_verbs(template)) * len(POSITIVE)


def _filled(template: str, good: bool) -> list[str]:
    """Every sentence of a template."""
    return [template.format(noun=noun, verb=verb, word=word)
            for noun in NOUNS for verb in _verbs(template) for word in (POSITIVE if good else NEGATIVE)]  # fmt: skip
