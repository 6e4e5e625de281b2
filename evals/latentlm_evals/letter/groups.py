"""The experiment of the Free Transformer's Figure 4 (Fleuret 2025, section 4.1), as numbers.

Groups of five continuations of one prompt: *independent*, with latents drawn for each continuation, and *shared*, all five
under the same latents. What the members of a shared group agree in, and those of an independent one do not, is what the
latents hold.

    near        share of pairs whose starts lie within three places: within shared groups, and across different ones
    spread      standard deviation of the start, within and across alike; a single stray one moves it
    masks       mean Jaccard index of the places of "!" in pairs of a group, where either has any
    valid       share of texts that the data could hold
    noise       share of "!" among all characters; 1/16 in the data

In the paper's figure latents are drawn from the prior at all positions, the prompt's too; `prefill` chooses.

Legend: G groups, M members of each.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from latentlm.generation import generate
from latentlm.interface import Generation, LatentDecoder, Latents
from latentlm.training.data.synthetic.letter import LENGTH, Reading, read

MEMBERS = 5
NEAR = 3
"""Places between two starts that count as near."""
Prefill = Literal["posterior", "prior"]


@dataclass(frozen=True)
class Group:
    """Continuations of one prompt."""

    letter: str
    texts: list[str]

    @property
    def printable(self) -> list[str]:
        """The texts for a terminal or a picture: a dot for what is no visible ASCII character."""
        return ["".join(c if "!" <= c <= "~" else "·" for c in text[:LENGTH]) for text in self.texts]

    @property
    def readings(self) -> list[Reading]:
        """What is seen of each."""
        return [read(self.letter, text) for text in self.texts]


@dataclass(frozen=True)
class Agreement:
    """What is measured of groups of one kind; see the module."""

    near_within: float
    near_across: float
    spread_within: float
    spread_across: float
    masks: float
    valid: float
    noise: float


def letters(groups: int) -> list[str]:
    """A letter for each group, every one as often as can be."""
    return [chr(ord("A") + number % 26) for number in range(groups)]


def independent(model: LatentDecoder, chosen: Sequence[str], *, prefill: Prefill, seed: int) -> list[Group]:
    """A group for each letter, latents drawn for each continuation."""
    return _grouped(chosen, _continued(model, chosen, seed=seed, prefill=prefill, samples=MEMBERS))


def shared(model: LatentDecoder, chosen: Sequence[str], *, prefill: Prefill, seed: int) -> list[Group]:
    """A group for each letter under latents of its own: those that one more continuation drew."""
    first = _continued(model, chosen, seed=seed + 1, prefill=prefill, samples=1)
    same = [one.latents for one in first if one.latents is not None]
    return _grouped(chosen, _continued(model, chosen, seed=seed, prefill=prefill, samples=MEMBERS, latents=same))


def _continued(
    model: LatentDecoder,
    chosen: Sequence[str],
    *,
    seed: int,
    prefill: Prefill,
    samples: int,
    latents: Literal["fresh"] | list[Latents] = "fresh",
) -> list[Generation]:
    """Continuations of "K>", letter by letter, all in one batch."""
    return generate(
        model, [f"{letter}>" for letter in chosen], max_tokens=LENGTH, samples=samples, latents=latents, prefill=prefill,
        seed=seed, keys=list(range(len(chosen))), batch_size=samples * len(chosen),
    )  # fmt: skip


def _grouped(chosen: Sequence[str], made: list[Generation]) -> list[Group]:
    texts = [one.text or "" for one in made]
    return [Group(letter, texts[number * MEMBERS : (number + 1) * MEMBERS]) for number, letter in enumerate(chosen)]


def agreement(groups: Sequence[Group]) -> Agreement:
    """The numbers of at least two groups."""
    readings = [group.readings for group in groups]
    starts = [[reading.start for reading in own] for own in readings]
    every = [start for own in starts for start in own]
    texts = [text for group in groups for text in group.texts]
    across = (pair for one, other in itertools.combinations(starts, 2) for pair in itertools.product(one, other))
    return Agreement(
        near_within=_near(pair for own in starts for pair in itertools.combinations(own, 2)),
        near_across=_near(across),
        spread_within=statistics.fmean(statistics.variance(own) for own in starts) ** 0.5,
        spread_across=statistics.stdev(every),
        masks=_overlap(pair for own in readings for pair in itertools.combinations(own, 2)),
        valid=statistics.fmean(reading.valid for own in readings for reading in own),
        noise=sum(text.count("!") for text in texts) / max(1, sum(map(len, texts))),
    )


def _near(pairs: Iterable[tuple[int, int]]) -> float:
    return statistics.fmean(abs(one - other) <= NEAR for one, other in pairs)


def _overlap(pairs: Iterable[tuple[Reading, Reading]]) -> float:
    """Mean Jaccard index; 0 where nothing is noisy anywhere."""
    kept = [(one.noise & other.noise, one.noise | other.noise) for one, other in pairs]
    return statistics.fmean([len(both) / len(either) for both, either in kept if either] or [0.0])
