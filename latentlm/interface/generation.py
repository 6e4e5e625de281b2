"""What generation takes and gives back, for the signature of `LatentDecoder.generate`.

Legend: S sites, E event dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from torch import Tensor

from latentlm.interface.distributions import Latent
from latentlm.interface.latents import Latents
from latentlm.interface.noise import Noise

if TYPE_CHECKING:
    from latentlm.interface.decoder import State

Finish = Literal["stop", "length", "end_of_text"]
Given = Latent | Sequence[Latent]
"""Values of one latent: one for all rows, or several, one for each prompt or row."""
Wanted = Literal["fresh", "shared"] | Given
"""Where a latent of a generation comes from."""
Continued = Literal["fresh"] | Given
"""Likewise of the sites after the prompt."""
OnToken = Callable[[int, int, int], None]
"""Called with (prompt number, sample number, token) as each token is drawn; not for an end token."""


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
