"""What a decoder writes under a z: the attribute of its texts, as a judge reads it.

    swap      under z of a positive text, and under z of a negative one, from the same prompt with the same random numbers. A
              pair *flips* where the first is judged positive and the second negative. *The other way* round is what chance
              gives: as often as flips where z means nothing, and neither ever where z changes nothing at all. z of a token
              latent acts at the places where the text had it, and the prior goes on where it ends
    groups    five continuations under one z from the prior, all else drawn anew: how often two of them have one attribute,
              beside two of different groups

Of a decoder without latents: two texts from different random numbers, and groups that share nothing.

Legend: P pairs, G groups, M members of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from latentlm.generation import generate
from latentlm.interface import Generation, Latent, LatentDecoder, Latents, Wanted
from latentlm_evals.intervals import Interval, bootstrapped, share
from latentlm_evals.letter.groups import MEMBERS
from latentlm_evals.probe.judges import Judge

_ROWS = 64


@dataclass(frozen=True)
class Writing:
    """How texts are made."""

    prompt: str
    max_tokens: int
    seed: int
    wrote: Callable[[int], None] = lambda rows: None
    """Told how many texts there are more."""


@dataclass(frozen=True)
class Swap:
    """What exchanging z does, over pairs."""

    name: str
    """Of the latent that is exchanged, or "z" for all; or of a decoder without."""
    pairs: int
    flips: Interval
    other_way: Interval
    follows: Interval
    """Share of texts with the attribute of z's own text; over pairs."""
    undecided: float
    """Share of texts that the judge reads as neither."""


@dataclass(frozen=True)
class Pair:
    """Texts under z of a positive and of a negative text."""

    positive: str
    negative: str


@dataclass(frozen=True)
class Groups:
    """Agreement of the attribute, over groups; two texts that are neither agree in nothing."""

    groups: int
    within: Interval
    across: Interval
    more: Interval
    """Within less across."""
    undecided: float


def swapped(
    model: LatentDecoder, positive: Sequence[Latents], negative: Sequence[Latents], writing: Writing, *, only: str | None = None
) -> list[Pair]:
    """A pair for each two latents; `only`: the one that is given, the others being drawn from the prior."""
    given = [latents for both in zip(positive, negative, strict=True) for latents in both]
    wanted: Mapping[str, list[Latent]] | list[Latents] = given if only is None else {only: [own[only] for own in given]}
    keys = [("swap", number // 2) for number in range(len(given))]
    return _paired(_generated(model, writing, keys, wanted))


def unswapped(model: LatentDecoder, pairs: int, writing: Writing) -> list[Pair]:
    """Pairs of a decoder without latents, from different random numbers."""
    return _paired(_generated(model, writing, [("swap", number) for number in range(2 * pairs)], None))


def _paired(made: Sequence[Generation]) -> list[Pair]:
    texts = [one.text or "" for one in made]
    return [Pair(*both) for both in zip(texts[::2], texts[1::2], strict=True)]


def judged(name: str, pairs: Sequence[Pair], judge: Judge) -> Swap:
    """What the pairs say."""
    read = np.array([[judge(pair.positive), judge(pair.negative)] for pair in pairs])  # (P, 2)
    return Swap(
        name=name,
        pairs=len(pairs),
        flips=share((read[:, 0] > 0) & (read[:, 1] < 0)),
        other_way=share((read[:, 0] < 0) & (read[:, 1] > 0)),
        follows=share(0.5 * ((read[:, 0] > 0).astype(float) + (read[:, 1] < 0))),
        undecided=float((read == 0).mean()),
    )


def grouped(model: LatentDecoder, groups: int, writing: Writing, judge: Judge) -> Groups:
    """Groups under one z each, z being that of one more text; without latents they have nothing in common."""
    latents: list[Latents] | None = None
    if model.has_latents:
        firsts = _generated(model, writing, [("z", number) for number in range(groups)], None)
        latents = [one.latents for one in firsts if one.latents is not None]
    made = _generated(model, writing, [("group", number) for number in range(groups)], latents, samples=MEMBERS)
    return agreement(np.array([judge(one.text or "") for one in made]).reshape(groups, MEMBERS))


def agreement(read: np.ndarray) -> Groups:
    """Of judgements (G, M)."""
    signs = [read > 0, read < 0]
    counts = [sign.sum(1) for sign in signs]  # (G,) each
    groups, members = read.shape
    within = sum(count * (count - 1) for count in counts) / (members * (members - 1))
    across = sum(count * (count.sum() - count) for count in counts) / (members * members * (groups - 1))
    return Groups(
        groups=groups,
        within=bootstrapped(within),
        across=bootstrapped(across),
        more=bootstrapped(within - across),
        undecided=float((read == 0).mean()),
    )


def _generated(
    model: LatentDecoder,
    writing: Writing,
    keys: Sequence[tuple[str, int]],
    given: Mapping[str, list[Latent]] | list[Latents] | None,
    *,
    samples: int = 1,
) -> list[Generation]:
    """`samples` texts for each key, in pieces so that progress can be told; no text depends on the pieces."""
    found: list[Generation] = []
    size = max(1, _ROWS // samples)
    for first in range(0, len(keys), size):
        here = slice(first, first + size)
        latents: Mapping[str, Wanted] | list[Latents] | Literal["fresh"] = "fresh"
        if given is not None:
            latents = {name: own[here] for name, own in given.items()} if isinstance(given, Mapping) else given[here]
        made = generate(
            model, [writing.prompt] * len(keys[here]), max_tokens=writing.max_tokens, samples=samples, seed=writing.seed,
            keys=keys[here], latents=latents, prefill="prior", batch_size=_ROWS,
        )  # fmt: skip
        found += made
        writing.wrote(len(made))
    return found
