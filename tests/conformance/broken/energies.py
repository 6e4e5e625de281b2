"""A prior that is right, and known up to a constant only.

Legend: B rows, T tokens, S sites, E bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from conformance.broken.right import LearnedBits
from latentlm.interface import Bits, Context, Distribution, Latent, Noise


class Energy(Distribution):
    """Bits of which only the log-odds are told: the log-probability of zeros is called zero."""

    parameters = ("logits",)
    normalised = False

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, S, E)."""
        rows, sites, events = self.logits.shape
        return rows, sites, events

    def sample(self, noise: Noise, *, differentiable: bool = False) -> Latent:
        """Those of bits."""
        drawn = Bits(self.logits).sample(noise, differentiable=differentiable)
        return Latent(drawn.value, self, noise) if differentiable else drawn

    def log_prob(self, latent: Latent) -> Tensor:
        """(B, S) nats, up to a constant of the site."""
        return (latent.value * self.logits).sum(-1)

    def tempered(self, temperature: float) -> Distribution:
        """Of the same kind."""
        return type(self)(self.logits / temperature)

    def support(self) -> Tensor | None:
        """Every value."""
        return Bits(self.logits).support()


class EnergyPrior(LearnedBits):
    """The learned bits, without their constant."""

    kind: ClassVar[type[Energy]] = Energy

    def forward(self, context: Context, latent: Latent | None = None) -> Distribution:
        p = super().forward(context, latent)
        assert isinstance(p, Bits)
        return self.kind(p.logits)

    def step(
        self, state: Any, taps: Mapping[int, Tensor], previous: Tensor | None, starts: Tensor, above: Mapping[str, Tensor]
    ) -> tuple[Distribution, Any]:
        p, state = super().step(state, taps, previous, starts, above)
        assert isinstance(p, Bits)
        return self.kind(p.logits), state


class SaysNormalised(Energy):
    """Does not say what is missing."""

    normalised = True


class SilentEnergyPrior(EnergyPrior):
    """The same family, with the wrong word."""

    kind = SaysNormalised
