"""What generation shows of one model of the synthetic task: groups of continuations (groups.py), made live, in seconds."""

from __future__ import annotations

from dataclasses import dataclass

from latentlm.interface import LatentDecoder
from latentlm_evals.letter.groups import Agreement, Group, Prefill, agreement, independent, letters, shared

GROUPS = 26
"""One for each letter."""
PREFILLS: tuple[Prefill, ...] = ("prior", "posterior")


@dataclass(frozen=True)
class Generated:
    """Groups of a model and what they agree in, by how the prompt's latents were drawn."""

    independent: dict[Prefill, Agreement]
    shared: dict[Prefill, Agreement]
    """Empty without latents."""


@dataclass(frozen=True)
class Made:
    """The groups themselves, by how the prompt's latents were drawn."""

    independent: dict[Prefill, list[Group]]
    shared: dict[Prefill, list[Group]]
    """Empty without latents."""

    @property
    def agreements(self) -> Generated:
        """What they agree in."""
        return Generated(
            {prefill: agreement(own) for prefill, own in self.independent.items()},
            {prefill: agreement(own) for prefill, own in self.shared.items()},
        )


def made(model: LatentDecoder, *, groups: int, seed: int) -> Made:
    """Groups of every kind."""
    prefills = PREFILLS if model.has_latents else PREFILLS[:1]
    own = {prefill: independent(model, letters(groups), prefill=prefill, seed=seed) for prefill in prefills}
    if not model.has_latents:
        return Made(own, {})
    return Made(own, {prefill: shared(model, letters(groups), prefill=prefill, seed=seed) for prefill in prefills})


def generated(model: LatentDecoder, *, groups: int, seed: int) -> Generated:
    """What groups of every kind agree in."""
    return made(model, groups=groups, seed=seed).agreements


def pictured(model: LatentDecoder, letter: str, *, prefill: Prefill, seed: int) -> dict[str, list[Group]]:
    """The groups of the figure: an independent one and two shared ones of one letter."""
    found = {"z drawn for each": independent(model, [letter], prefill=prefill, seed=seed)}
    if model.has_latents:
        found["one z for all five"] = shared(model, [letter, letter], prefill=prefill, seed=seed)
    return found
