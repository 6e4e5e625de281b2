"""What is measured of one model of the synthetic task.

    generation    groups of continuations (groups.py), in seconds; made live
    likelihood    -log p of held-out texts less the exact -log p of the same texts: 0 for the perfect model. Minutes for a model
                  with much KL, so it is measured when the model is trained and kept in its card

Texts are drawn with a seed of their own, so no model was trained on them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from latentlm.interface import LatentDecoder
from latentlm.likelihood import bits_per_byte, score_texts
from latentlm.likelihood.diagnostics import diagnose
from latentlm.training.data.synthetic import Letter
from latentlm_evals.letter.groups import Agreement, Group, Prefill, agreement, independent, letters, shared

GROUPS = 26
"""One for each letter."""
TEXTS = 500
HELD_OUT_SEED = 1_000_000
TOLERANCE = 0.003
"""Bits per byte that a likelihood is to be good to: what is looked for is that small."""
PREFILLS: tuple[Prefill, ...] = ("prior", "posterior")


@dataclass(frozen=True)
class Generated:
    """Groups of a model and what they agree in, by how the prompt's latents were drawn."""

    independent: dict[Prefill, Agreement]
    shared: dict[Prefill, Agreement]
    """Empty without latents."""


@dataclass(frozen=True)
class Likelihood:
    """Held-out numbers; nats per character and end-of-text (67 targets a text) unless they say bits."""

    excess_nats: float
    """Honest -log p of the model less the source's, paired by text."""
    standard_error: float
    """Of the mean over texts."""
    good_to: float
    """What the estimates may be off by."""
    converged: bool
    method: str
    samples: int
    """The most that a text took."""
    texts: int
    kl_bits: float
    information_bits: float
    """Per site: of a latent with its text."""
    cross_entropy: dict[str, float]
    """Under latents from elsewhere, nats."""


def generated(model: LatentDecoder, *, groups: int, seed: int) -> Generated:
    """Groups of every kind."""
    prefills = PREFILLS if model.has_latents else PREFILLS[:1]
    own = {prefill: agreement(independent(model, letters(groups), prefill=prefill, seed=seed)) for prefill in prefills}
    if not model.has_latents:
        return Generated(own, {})
    return Generated(
        own, {prefill: agreement(shared(model, letters(groups), prefill=prefill, seed=seed)) for prefill in prefills}
    )


def pictured(model: LatentDecoder, letter: str, *, prefill: Prefill, seed: int) -> dict[str, list[Group]]:
    """The groups of the figure: an independent one and two shared ones of one letter."""
    found = {"z drawn for each": independent(model, [letter], prefill=prefill, seed=seed)}
    if model.has_latents:
        found["one z for all five"] = shared(model, [letter, letter], prefill=prefill, seed=seed)
    return found


def likelihood(
    model: LatentDecoder,
    *,
    texts: int,
    max_samples: int = 1024,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Likelihood:
    """Of fresh texts, against the density that they were drawn from."""
    source = Letter()
    drawn = source.texts(texts, seed=HELD_OUT_SEED)
    assert model.tokenizer is not None, "the cards have bytes"
    end = model.tokenizer.end_of_text
    tokens = [[end, *model.tokenizer.encode(text), end] for text in drawn]
    sizes = [len(text) for text in drawn]
    scores = score_texts(
        model, tokens, method="iwae", samples="auto", tolerance=TOLERANCE, max_samples=max_samples, seed=seed,
        progress=progress,
    )  # fmt: skip
    targets = len(tokens[0]) - 1
    excess = [(-score.value - exact) / targets for score, exact in zip(scores, source.nats(drawn), strict=True)]
    found = bits_per_byte(scores, sizes)
    diagnosed = diagnose(model, tokens, batch_size=64)
    return Likelihood(
        excess_nats=statistics.fmean(excess),
        standard_error=statistics.stdev(excess) / math.sqrt(texts),
        good_to=found.uncertainty * math.log(2) * sizes[0] / targets,
        converged=found.converged(TOLERANCE),
        method="iwae" if model.has_latents else "exact",
        samples=max(score.samples for score in scores),
        texts=texts,
        kl_bits=diagnosed.kl_bits_per_token,
        information_bits=diagnosed.mutual_information_bits or 0.0,
        cross_entropy=diagnosed.cross_entropy,
    )
