"""The probe from end to end: what z knows of an attribute, and what the decoder does with it.

    found = probe(load_model("runs/mine"), read_attribute("synthetic:reviews", count=400), Settings())
    found.known["z"].information        # bits, at least
    found.swaps[0].flips                # share of pairs

Legend: N texts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from latentlm.errors import UserError
from latentlm.interface import LatentDecoder
from latentlm.tokenizer import as_bytes
from latentlm_evals.intervals import Interval, share
from latentlm_evals.letter.groups import MEMBERS
from latentlm_evals.probe import judges
from latentlm_evals.probe.attributes import Attribute
from latentlm_evals.probe.classify import Answers, Features, out_of_fold, shuffled
from latentlm_evals.probe.features import Encoded, Vocabulary, encoded, states, tokens_of
from latentlm_evals.probe.generated import Groups, Pair, Swap, Writing, grouped, judged, swapped, unswapped

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""
ALL = "z"
"""All latents together, and the one of a model of one."""


@dataclass(frozen=True)
class Settings:
    """What is measured, and on how much."""

    pairs: int = 100
    groups: int = 40
    prompt: str = ""
    max_tokens: int | None = None
    """Of a generated text; default: as many as the longest text has."""
    seed: int = 0
    judge: str | None = None

    def check(self, model: LatentDecoder, attribute: Attribute) -> None:
        """Refuse what cannot be served, before any work. Raises UserError."""
        if not model.has_latents:
            raise UserError("This model has no latents to probe. Give one that has, and this one as --baseline.")
        attribute.check()
        judges.judge_name(self.judge, attribute)
        room = model.config.backbone.context - len(tokens_of(model, [as_bytes(self.prompt)])[0])
        if room < 1 or (self.max_tokens is not None and self.max_tokens > room):
            raise UserError(
                f"the prompt leaves room for {max(0, room)} tokens in the model's context of {model.config.backbone.context}: "
                "shorten it, or lower --max-tokens."
            )

    def length(self, model: LatentDecoder, attribute: Attribute) -> int:
        """Tokens of a generated text, at most."""
        room = model.config.backbone.context - len(tokens_of(model, [as_bytes(self.prompt)])[0])
        return self.max_tokens or min(room, max(map(len, tokens_of(model, attribute.texts))))


@dataclass(frozen=True)
class Known:
    """What features say of the attribute; see classify.py."""

    features: int
    information: Interval
    """Bits, at least."""
    shuffled: Interval
    """The same with labels that mean nothing."""
    accuracy: Interval


@dataclass(frozen=True)
class Written:
    """What a model writes."""

    swaps: list[Swap]
    groups: Groups


@dataclass(frozen=True)
class Example:
    """A pair whose z were exchanged: of the positive text, then of the negative one."""

    texts: tuple[str, str]
    """Whose z."""
    written: tuple[str, str]
    read: tuple[int, int]
    """By the judge."""


@dataclass(frozen=True)
class Probed:
    """Everything that the probe found."""

    attribute: str
    texts: int
    positive: float
    """Share."""
    ceiling: float | None
    """Bits of the intent that a text shows; None where that is not known."""
    judge: str
    judge_accuracy: Interval
    """On the rated texts, out of fold where it was fitted on them; what it reads as neither is wrong."""
    judge_undecided: float
    """Share of the rated texts."""
    known: dict[str, Known]
    """By what is asked: the latents together ("z"), each of several, "words", "baseline states"."""
    written: Written
    baseline: Written | None
    scores: list[float] = field(default_factory=list)
    """Log odds of each text by z, from the texts of the other folds."""
    ratings: list[float] = field(default_factory=list)
    threshold: float = 0.0
    examples: list[Example] = field(default_factory=list)

    @property
    def majority(self) -> float:
        """Accuracy of always saying what is commoner."""
        return max(self.positive, 1 - self.positive)


def probe(
    model: LatentDecoder,
    attribute: Attribute,
    settings: Settings,
    *,
    baseline: LatentDecoder | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Probed:
    """Probe a model with latents, beside a plain decoder. Both have tokenizers. Raises UserError before any work."""
    settings.check(model, attribute)
    if baseline is not None and baseline.has_latents:
        raise UserError("The baseline has latents; it is there to show what a model without any does: give a vanilla decoder.")
    name = judges.judge_name(settings.judge, attribute)
    judge = judges.make_judge(name, attribute)
    read = np.array([judge(text.decode(errors="replace")) for text in attribute.texts])
    labels, texts = attribute.labels, attribute.texts
    z = encoded(model, texts, seed=settings.seed, progress=_of(progress, "reading z"))
    answers = out_of_fold(z.joined, labels, seed=settings.seed)
    of_words = Vocabulary.of(texts).counts(texts)
    asked = {ALL: z.joined, **(z.pooled if len(z.pooled) > 1 else {}), "words": of_words}
    if baseline is not None:
        asked["baseline states"] = states(baseline, texts, progress=_of(progress, "reading the baseline's states"))
    known = {}
    for number, (what, features) in enumerate(asked.items()):
        progress("fitting classifiers", number, len(asked))
        known[what] = _known(features, labels, answers if what == ALL else None, settings.seed)
    positive, negative = _sides(labels, settings.pairs)
    pairs, written = _of_latents(model, z, positive, negative, settings, attribute, judge, progress)
    return Probed(
        attribute=attribute.name,
        texts=len(texts),
        positive=float(labels.mean()),
        ceiling=None if attribute.source is None else float(attribute.source.information / np.log(2)),
        judge=name,
        judge_accuracy=known["words"].accuracy if name == "words" else share(np.where(labels, read > 0, read < 0)),
        judge_undecided=float((read == 0).mean()),
        known=known,
        written=written,
        baseline=None if baseline is None else _of_baseline(baseline, len(positive), settings, attribute, judge, progress),
        scores=answers.logits.tolist(),
        ratings=attribute.ratings.tolist(),
        threshold=attribute.threshold,
        examples=[_example(texts[one], texts[other], pair, judge)
                  for one, other, pair in zip(positive, negative, pairs, strict=True)],
    )  # fmt: skip


def _example(positive: bytes, negative: bytes, pair: Pair, judge: judges.Judge) -> Example:
    return Example(
        texts=(positive.decode(errors="replace"), negative.decode(errors="replace")),
        written=(pair.positive, pair.negative),
        read=(judge(pair.positive), judge(pair.negative)),
    )


def _known(features: Features, labels: np.ndarray, answers: Answers | None, seed: int) -> Known:
    """Of some features, by answers where they are at hand."""
    answers = answers or out_of_fold(features, labels, seed=seed)
    return Known(
        features=features.shape[1],
        information=answers.information,
        shuffled=shuffled(features, labels, seed=seed).information,
        accuracy=answers.accuracy,
    )


def _sides(labels: np.ndarray, most: int) -> tuple[list[int], list[int]]:
    """Rows of positive and of negative texts, as many of either, the first ones."""
    positive, negative = np.flatnonzero(labels).tolist(), np.flatnonzero(~labels).tolist()
    count = min(most, len(positive), len(negative))
    return positive[:count], negative[:count]


def _of_latents(
    model: LatentDecoder, z: Encoded, positive: list[int], negative: list[int], settings: Settings, attribute: Attribute,
    judge: judges.Judge, progress: Progress,
) -> tuple[list[Pair], Written]:  # fmt: skip
    """Pairs under all latents exchanged; and what these, each latent exchanged alone, and groups say."""
    alone = list(model.latents) if len(model.latents) > 1 else []
    total = 2 * len(positive) * (1 + len(alone)) + (1 + MEMBERS) * settings.groups
    writing = _writing(model, settings, attribute, progress, "writing under z", total)
    first, second = ([z.latents[row] for row in rows] for rows in (positive, negative))
    pairs = swapped(model, first, second, writing)
    swaps = [judged(ALL, pairs, judge)]
    swaps += [judged(name, swapped(model, first, second, writing, only=name), judge) for name in alone]
    return pairs, Written(swaps, grouped(model, settings.groups, writing, judge))


def _of_baseline(
    model: LatentDecoder, pairs: int, settings: Settings, attribute: Attribute, judge: judges.Judge, progress: Progress
) -> Written:
    writing = _writing(model, settings, attribute, progress, "writing with the baseline", 2 * pairs + MEMBERS * settings.groups)
    return Written([judged("none", unswapped(model, pairs, writing), judge)], grouped(model, settings.groups, writing, judge))


def _writing(
    model: LatentDecoder, settings: Settings, attribute: Attribute, progress: Progress, what: str, total: int
) -> Writing:
    done = 0

    def wrote(rows: int) -> None:
        nonlocal done
        done += rows
        progress(what, done, total)

    return Writing(settings.prompt, settings.length(model, attribute), settings.seed, wrote)


def _of(progress: Progress, what: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(what, done, total)
