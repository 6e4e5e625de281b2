"""Texts with a binary attribute, and a judge of it for texts that a model wrote.

    synthetic:NAME[,key=value]    fresh draws of a source that decides first (`Decided`): its intents; judged by its own rule
    reviews                       the movie reviews of `latentlm reviews`: their ratings; judged by a lexicon
    FILE.jsonl[.gz]               objects with a text and a rating; judged by the words of its own texts
    FILE.txt, FILE.tsv            a rating, a tab, a text in each line; likewise

A rating above `threshold` is positive, one below negative, one equal to it is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentlm.config.reading import json_data
from latentlm.errors import UserError, did_you_mean, short, typed_path
from latentlm.tokenizer import as_bytes
from latentlm.training.data import numbered_lines
from latentlm.training.data.synthetic import PREFIX, SOURCES, Decided, source
from latentlm_evals.probe.fetching import cached

REVIEWS = "reviews"
HELD_OUT_SEED = 1_000_001
"""Of the texts of a synthetic source: no recipe trains with it."""
_WORDS = {"positive": 1.0, "pos": 1.0, "true": 1.0, "yes": 1.0, "negative": -1.0, "neg": -1.0, "false": -1.0, "no": -1.0}
FEWEST = 20
"""Texts of either kind that a probe takes."""


@dataclass(frozen=True)
class Attribute:
    """Texts and what is known of them."""

    name: str
    texts: list[bytes]
    ratings: NDArray[np.float64]
    """(N,)"""
    threshold: float
    source: Decided | None = None
    """Where the texts were drawn from, of synthetic ones."""
    left_out: int = 0
    """Texts on neither side."""

    @property
    def labels(self) -> NDArray[np.bool_]:
        """(N,) whether each is positive."""
        return self.ratings > self.threshold

    def only(self, rows: Iterable[int]) -> Attribute:
        """Some of the texts."""
        chosen = list(rows)
        texts = [self.texts[row] for row in chosen]
        return Attribute(self.name, texts, self.ratings[chosen], self.threshold, self.source, self.left_out)

    def chosen(self, count: int, *, seed: int) -> Attribute:
        """At most `count` texts in an order that the seed chooses, those of a synthetic source as they come."""
        order = range(len(self.texts)) if self.source else np.random.default_rng(seed).permutation(len(self.texts)).tolist()
        return self.only(order[:count])

    def check(self) -> None:
        """Raise UserError where there is too little to probe with."""
        positive = int(self.labels.sum())
        fewest = min(positive, len(self.texts) - positive)
        if fewest < FEWEST:
            raise UserError(
                f"--attribute {self.name}: {positive} texts above {self.threshold:g}, {len(self.texts) - positive} below it, "
                f"{self.left_out} equal to it; a probe needs {FEWEST} of either kind. Give more texts, or another --threshold."
            )


def read_attribute(
    spec: str, *, count: int, threshold: float | None = None, text_field: str = "text", rating_field: str = "rating"
) -> Attribute:
    """The attribute of a specification (see the module); `count`: texts to draw of a synthetic source. Raises UserError."""
    if spec.startswith(PREFIX):
        return _synthetic(spec, count, threshold)
    if spec == REVIEWS and not typed_path(spec).exists():
        found = cached()
        if not found.complete:
            raise UserError("The movie reviews are not fetched yet: run `latentlm reviews`, which takes half a minute.")
        return _rated(REVIEWS, _json_lines(found.texts, "text", "rating"), threshold)
    path = typed_path(spec)
    if not path.is_file():
        known = [REVIEWS, *(f"{PREFIX}{name}" for name in decided())]
        raise UserError(f'--attribute "{spec}" is no file and none of {", ".join(known)}.{did_you_mean(spec, known)}')
    if path.name.lower().endswith((".jsonl", ".jsonl.gz")):
        return _rated(path.name, _json_lines(path, text_field, rating_field), threshold)
    if path.suffix.lower() in (".txt", ".tsv"):
        return _rated(path.name, _tabbed(path), threshold)
    raise UserError(f"--attribute: {path.name} ends in none of .jsonl, .jsonl.gz, .txt, .tsv. Rename it to what it is.")


def decided() -> list[str]:
    """Names of the synthetic sources that have an intent."""
    return [name for name, cls in SOURCES.items() if issubclass(cls, Decided)]


def _synthetic(spec: str, count: int, threshold: float | None) -> Attribute:
    made = source(spec.removeprefix(PREFIX))
    if not isinstance(made, Decided):
        raise UserError(f"{spec} has no intent of two kinds; those that have: {', '.join(decided())}.")
    if threshold is not None:
        raise UserError(f"--threshold is about ratings, and {spec} has intents: leave it out.")
    ratings = np.where(made.intents(count, seed=HELD_OUT_SEED), 1.0, -1.0)
    return Attribute(spec, made.texts(count, seed=HELD_OUT_SEED), ratings, 0.0, made)


def _rated(name: str, rows: Iterable[tuple[str, float]], threshold: float | None) -> Attribute:
    """Of rated texts, blank ones and copies dropped. The default threshold is 0 where ratings lie on both sides of it, else the
    middle between the lowest and the highest."""
    found = {text.strip(): rating for text, rating in rows if text.strip()}
    ratings = np.array(list(found.values()))
    if not len(ratings):
        raise UserError(f"--attribute {name} holds no text.")
    low, high = float(ratings.min()), float(ratings.max())
    middle = threshold if threshold is not None else 0.0 if low < 0 < high else (low + high) / 2
    every = Attribute(name, [as_bytes(text) for text in found], ratings, middle)
    sided = every.only(np.flatnonzero(ratings != middle).tolist())
    return Attribute(name, sided.texts, sided.ratings, middle, None, len(ratings) - len(sided.texts))


def _json_lines(path: Path, text_field: str, rating_field: str) -> Iterator[tuple[str, float]]:
    for where, line in _lines(path):
        row = json_data(line, source=where, remedy="A .jsonl file holds one JSON object per line.")
        if not isinstance(row, dict):
            raise UserError(f'{where}: a {type(row).__name__} where an object such as {{"text": ..., "rating": ...}} belongs.')
        for field, option in ((text_field, "--text-field"), (rating_field, "--rating-field")):
            if field not in row:
                raise UserError(f'{where} has no "{field}".{did_you_mean(field, row)} It has: {", ".join(row)}. Set {option}.')
        if not isinstance(row[text_field], str):
            raise UserError(f'{where}: "{text_field}" holds {type(row[text_field]).__name__}, not text. Set --text-field.')
        yield row[text_field], _rating(row[rating_field], where)


def _tabbed(path: Path) -> Iterator[tuple[str, float]]:
    for where, line in _lines(path):
        rating, tab, text = line.partition("\t")
        if not tab:
            raise UserError(f"{where}: no tab. Each line is a rating, a tab, a text.")
        yield text, _rating(rating, where)


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """(where, line) of each line that is not blank."""
    for number, line in numbered_lines(path):
        try:
            yield f"{path.name}, line {number}", line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise UserError(f"{path}, line {number}: no text in UTF-8. Save the file as UTF-8.") from None


def _rating(value: Any, where: str) -> float:
    """A number, true or false, or positive or negative. Raises UserError."""
    if isinstance(value, bool):
        return 1.0 if value else -1.0
    if isinstance(value, str) and value.strip().lower() in _WORDS:
        return _WORDS[value.strip().lower()]
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{where}: {short(repr(value), 40)} is no rating: a number, true or false, positive or negative.")
    return number
