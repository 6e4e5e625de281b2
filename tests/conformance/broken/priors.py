"""Priors and injections with one bug each; everything else about them is right.

Legend: B rows, R latent rows, T tokens, S sites, E bits, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from conformance.broken.encoders import PricedKL
from conformance.broken.right import LearnedBits, LinearBits, Settings
from latentlm.interface import (
    Bits,
    Condition,
    Context,
    Distribution,
    Latent,
    Noise,
    Shape,
)


class PeekingPrior(LearnedBits):
    """Reads the token after its site's, where there is one."""

    def forward(self, context: Context, latent: Latent | None = None) -> Distribution:
        stream = context.taps[self.taps[0]]
        return Bits(self.readout(torch.cat((stream[:, 1:], stream[:, -1:]), dim=1)))


class OtherStep(LearnedBits):
    """Its step says something else than its forward."""

    def step(
        self, state: Any, taps: Mapping[int, Tensor], previous: Tensor | None, starts: Tensor, above: Mapping[str, Tensor]
    ) -> tuple[Distribution, Any]:
        p, state = super().step(state, taps, previous, starts, above)
        assert isinstance(p, Bits)
        return Bits(p.logits + 0.5), state


class HiddenMemory(LearnedBits):
    """Depends on the latent before, without saying that it is autoregressive."""

    def forward(self, context: Context, latent: Latent | None = None) -> Distribution:
        p = super().forward(context, latent)
        assert isinstance(p, Bits)
        if latent is None:
            return p
        before = torch.cat((torch.zeros_like(latent.value[:, :1]), latent.value[:, :-1]), dim=1)
        return Bits(p.logits + before)


class UnseededPrior(LearnedBits):
    """Initialises from torch's global state."""

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        nn.init.normal_(self.readout.weight, std=0.1)


class PricedPrior(LearnedBits):
    """A family whose KL to itself is not zero."""

    def forward(self, context: Context, latent: Latent | None = None) -> Distribution:
        p = super().forward(context, latent)
        assert isinstance(p, Bits)
        return PricedKL(p.logits)


class DetachedInjection(LinearBits):
    """No gradient through the bits."""

    def forward(self, latent: Latent, context: Context) -> Condition:
        return super().forward(Latent(latent.value), context)


class EarlySite(LinearBits):
    """Off by one: each position takes the latent of the position after it."""

    def rows(self, rows: Tensor) -> Tensor:
        return torch.cat((rows[:, 1:], rows[:, -1:]), dim=1)


class LateSite(LinearBits):
    """Off by one the other way, in the whole text only: generation feeds one position at a time."""

    def rows(self, rows: Tensor) -> Tensor:
        return torch.cat((torch.zeros_like(rows[:, :1]), rows[:, :-1]), dim=1) if rows.shape[1] > 1 else rows


class UnusedWeight(LinearBits):
    """A parameter that nothing reads."""

    def __init__(self, config: Settings, shape: Shape) -> None:
        super().__init__(config, shape)
        self.spare = nn.Linear(shape.width, shape.width)


class OtherCompiled(LinearBits):
    """Another computation where it is compiled."""

    def rows(self, rows: Tensor) -> Tensor:
        return 2.0 * rows if torch.compiler.is_compiling() else rows


class Offset(LinearBits):
    """Adds a constant, which is not nothing when its parameters are."""

    def rows(self, rows: Tensor) -> Tensor:
        return rows + 0.1


class PeeksAbove(LearnedBits):
    """Reads, of the latents above, what is open at the text's last position instead of its own."""

    reads_above = True

    def __init__(self, config: Settings, shape: Shape) -> None:
        super().__init__(config, shape)
        self.from_above = nn.Linear(sum(latent.dims for latent in shape.latent.above.values()), shape.latent.dims)

    def forward(self, context: Context, latent: Latent | None = None) -> Distribution:
        p = super().forward(context, latent)
        assert isinstance(p, Bits)
        return Bits(p.logits + self.from_above(self.read(torch.cat(list(context.above.values()), dim=-1), context)))

    def read(self, above: Tensor, context: Context) -> Tensor:
        """(R, T, E) -> (R, S, E)."""
        return above[:, -1:].expand_as(above)

    def step(
        self, state: Any, taps: Mapping[int, Tensor], previous: Tensor | None, starts: Tensor, above: Mapping[str, Tensor]
    ) -> tuple[Distribution, Any]:
        p, state = super().step(state, taps, previous, starts, above)
        assert isinstance(p, Bits)
        return Bits(p.logits + self.from_above(torch.cat(list(above.values()), dim=-1))[:, None]), state


class ReadsAbove(PeeksAbove):
    """The same without the bug."""

    def read(self, above: Tensor, context: Context) -> Tensor:
        return context.at_first_positions(above)


class DeafToAbove(LearnedBits):
    """Takes `above` and does not read it."""

    reads_above = True


class UndeclaredTap(LearnedBits):
    """Reads the embedding too, and does not say so."""

    def forward(self, context: Context, latent: Latent | None = None) -> Distribution:
        p = super().forward(context, latent)
        assert isinstance(p, Bits)
        return Bits(p.logits + 0.0 * context.taps[0].mean())


class UndeclaredSlot(LinearBits):
    """Scales the feed-forward's input too, and does not say so."""

    def forward(self, latent: Latent, context: Context) -> Condition:
        condition = super().forward(latent, context)
        block = self.blocks[0]
        code = latent.value.mean(-1, keepdim=True).expand(-1, -1, self.shape.width)
        return Condition({block: replace(condition.blocks[block], film_shift=0.1 * code)})


class UndeclaredBlock(LinearBits):
    """Adds to the block above as well."""

    def forward(self, latent: Latent, context: Context) -> Condition:
        condition = super().forward(latent, context)
        block = self.blocks[0]
        return Condition({block: condition.blocks[block], block + 1: condition.blocks[block]})


class IgnoresSites(LinearBits):
    """Gives each position the site of its own number, whatever the granularity."""

    granularities = ("token", "chunk")

    def forward(self, latent: Latent, context: Context) -> Condition:
        place = torch.arange(context.tokens.shape[1]).clamp(max=latent.value.shape[1] - 1)
        drawn_from = None if latent.distribution is None else latent.distribution.mapped(lambda each: each[:, place])
        return super().forward(Latent(latent.value[:, place], drawn_from), context)


class NoBits(LearnedBits):
    """Draws -1 and 1 and calls them bits."""

    def forward(self, context: Context, latent: Latent | None = None) -> Distribution:
        p = super().forward(context, latent)
        assert isinstance(p, Bits)
        return Signs(p.logits)

    def step(
        self, state: Any, taps: Mapping[int, Tensor], previous: Tensor | None, starts: Tensor, above: Mapping[str, Tensor]
    ) -> tuple[Distribution, Any]:
        p, state = super().step(state, taps, previous, starts, above)
        assert isinstance(p, Bits)
        return Signs(p.logits), state


class Signs(Bits):
    """Minus one and one."""

    def sample(self, noise: Noise, *, differentiable: bool = False) -> Latent:
        return Latent(2.0 * super().sample(noise).value - 1.0)

    def log_prob(self, latent: Latent) -> Tensor:
        return super().log_prob(Latent((latent.value + 1.0) / 2.0))

    def kl(self, prior: Distribution, latent: Latent) -> Tensor:
        return super().kl(prior, Latent((latent.value + 1.0) / 2.0))
