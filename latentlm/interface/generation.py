"""What generation takes and gives back, for the signature of `LatentDecoder.generate`, and what it is while under way.

Legend: B rows, S sites, E event dimensions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from latentlm.interface.distributions import Latent
from latentlm.interface.latents import Latents, only
from latentlm.interface.noise import Noise

Finish = Literal["stop", "length", "end_of_text"]
Given = Latent | Sequence[Latent]
"""Values of one latent: one for all rows, or several, one for each prompt or row."""
Wanted = Literal["fresh", "shared"] | Given
"""Where a latent of a generation comes from."""
Continued = Literal["fresh"] | Given
"""Likewise of the sites after the prompt."""
OnToken = Callable[[int, int, int], None]
"""Called with (prompt number, sample number, token) as each token is drawn; not for an end token."""


@dataclass(frozen=True)
class Met:
    """The sites of one latent that a generation has met so far."""

    value: Tensor
    """(B, S, E); rows shorter than S are padded with zeros."""
    counts: Tensor
    """(B,) long: sites met so far in each row."""


@dataclass(frozen=True)
class State:
    """A generation in progress, B rows. Decoders extend it with their caches."""

    logits: Tensor
    """(B, V) float32: next-token logits."""
    lengths: Tensor
    """(B,) long: tokens fed so far."""
    met: Mapping[str, Met]
    """By latent, in the decoder's order."""

    @property
    def latents(self) -> Tensor | None:
        """(B, S, E) latents of the sites met so far, of a decoder with one latent; None without."""
        return only(self.met, 'state.met["{}"].value').value if self.met else None

    @property
    def site_counts(self) -> Tensor:
        """(B,) long: sites met so far in each row, of a decoder with one latent; zeros without."""
        return only(self.met, 'state.met["{}"].counts').counts if self.met else torch.zeros_like(self.lengths)


class CompiledSteps(Protocol):
    """A generation in progress whose steps are compiled."""

    def step(self, tokens: Tensor, *, noise: Mapping[str, Noise], prior_temperature: Mapping[str, float]) -> State:
        """Feed tokens (B,), one per row, with latents from the prior. The state holds until the next step."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One continuation."""

    text: str | None
    """What the tokens add to the text of the prompt, without the stop string; bytes that are no UTF-8 are replaced. None where
    the model has no tokenizer."""
    tokens: list[int]
    """Every token drawn but the end token (the stop string's included)."""
    prompt: list[int]
    """Tokens fed before them."""
    latents: Latents | None
    """(1, S, E) each: every site met, from the first of the prompt on. Give it back as `latents` to meet the same ones again.
    None without latents."""
    finish: Finish
    sample: int
    """Number of this sample among those of its prompt."""
