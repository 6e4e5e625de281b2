"""Encoders with one bug each; everything else about them is right.

Legend: B rows, R latent rows, T tokens, S sites, E bits, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import model_validator
from torch import Tensor, nn

from conformance.broken.right import Settings, WindowBits
from latentlm.backbone import Mask
from latentlm.config import Strict
from latentlm.interface import (
    Bits,
    Context,
    Distribution,
    Encoder,
    Latent,
    Noise,
    Objective,
    Shape,
)


class NoPositions(WindowBits):
    """Queries with one vector everywhere and without rotation: every site has the same posterior."""

    def __init__(self, config: Settings, shape: Shape) -> None:
        super().__init__(config, shape)
        self.query = nn.Linear(1, shape.width)

    def forward(self, context: Context, objective: Objective | None = None) -> Distribution:
        trunk = context.taps[self.taps[0]]
        queries = self.query(trunk.new_ones(*trunk.shape[:2], 1))
        stream = self.block(queries, source=trunk, mask=self.mask(context), rotation=None)
        return self.distribution(self.readout(stream))


class IgnoresDocuments(WindowBits):
    """Looks across documents that share a row, though not into padding."""

    def mask(self, context: Context) -> Mask:
        real = context.documents.clamp(max=0)
        return Mask(real, real, causal=False)


class IgnoresPadding(WindowBits):
    """Looks into padding, and at what `before` hides."""

    def mask(self, context: Context) -> Mask:
        filled = torch.where(context.documents < 0, 0, context.documents)
        return Mask(filled, filled, causal=False)


class SaysCausal(WindowBits):
    """Sees the future and says that it does not."""

    sees_future = False


class CutsGradient(WindowBits):
    """Detaches what it read."""

    def forward(self, context: Context, objective: Objective | None = None) -> Distribution:
        q = super().forward(context, objective)
        assert isinstance(q, Bits)
        return Bits(q.logits.detach())


class LeavesUnset(WindowBits):
    """A parameter of its own that no one sets."""

    def __init__(self, config: Settings, shape: Shape) -> None:
        super().__init__(config, shape)
        self.shift = nn.Parameter(torch.zeros(shape.latent.dims))

    def distribution(self, logits: Tensor) -> Distribution:
        return Bits(logits + self.shift)


class TakesAnything(WindowBits):
    """Its Config drops settings that it does not have, so that a typing error goes unseen."""

    class Config(Strict):
        """Loose."""

        @model_validator(mode="before")
        @classmethod
        def _drop(cls, data: Any) -> Any:
            return {key: value for key, value in data.items() if key in cls.model_fields}


class SummedOverSites(Bits):
    """KL summed over the sites of a row."""

    def kl(self, prior: Distribution, latent: Latent) -> Tensor:
        return super().kl(prior, latent).sum((1, 2), keepdim=True)


class BatchMeanKL(Bits):
    """KL of the right shape, averaged over the batch too early."""

    def kl(self, prior: Distribution, latent: Latent) -> Tensor:
        return super().kl(prior, latent).sum(-1, keepdim=True) / self.shape[0]


class GlobalDraws(Bits):
    """Draws from torch's global state."""

    def sample(self, noise: Noise, *, differentiable: bool = False) -> Latent:
        bits = (torch.rand_like(self.logits) < self.probabilities.detach()).to(self.logits.dtype)
        return Latent(bits, self, noise) if differentiable else Latent(bits)


class WrongDensity(Bits):
    """A log-probability that is half of what it should be: it belongs to other samples."""

    def log_prob(self, latent: Latent) -> Tensor:
        return 0.5 * super().log_prob(latent)


class NegativeKL(Bits):
    """A constant too little."""

    def kl(self, prior: Distribution, latent: Latent) -> Tensor:
        return super().kl(prior, latent) - 1.0


class PricedKL(Bits):
    """A constant too much, against whatever it is compared with."""

    def kl(self, prior: Distribution, latent: Latent) -> Tensor:
        return super().kl(prior, latent) + 0.1


class RealBuffer(WindowBits):
    """A table that takes memory wherever the model is built."""

    table: Tensor

    def __init__(self, config: Settings, shape: Shape) -> None:
        super().__init__(config, shape)
        self.register_buffer("table", torch.zeros(4, device="cpu"))

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        self.table.zero_()


class FitsNothing(Encoder):
    """Wants the objective, and answers the same whatever it says."""

    Config = Settings
    taps = ()
    sees_future = False
    needs_objective = True
    family = "bits"

    def forward(self, context: Context, objective: Objective | None = None) -> Distribution:
        return Bits(torch.full((context.rows, context.sites, self.shape.latent.dims), 4.0))


class DeafEncoder(WindowBits):
    """Takes `above` and does not read it."""

    reads_above = True


def with_family(family: type[Bits]) -> type[WindowBits]:
    """An encoder whose posterior is of another family of bits."""

    class Encoder(WindowBits):
        def distribution(self, logits: Tensor) -> Distribution:
            return family(logits)

    return Encoder
