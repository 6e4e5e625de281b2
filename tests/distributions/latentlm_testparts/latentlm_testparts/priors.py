"""Priors over a chunk's bits that are learned from the trunk. A site's prior reads the stream at the latest position it may
see: the chunk's first token, or the prompt's last where the chunk lies in the prompt.

    first_token_bits   p(z_s | x up to there)
    recurrent_bits     p(z_s | x up to there, z_1 .. z_{s-1} of the same document), through a GRU over the codes

Legend: B rows, R latent rows, T tokens, S sites, E bits, D width, G memory of the GRU.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from latentlm.config import Strict
from latentlm.interface import Bits, Context, Latent, Prior, Shape
from latentlm_testparts.positions import at_first_token


class Reading(NamedTuple):
    """What a step needs to know about the prompt, rows first."""

    fed: Tensor
    """(B,) tokens fed."""
    given: Tensor
    """(B,) tokens of the prompt."""
    last_given: Tensor
    """(B, D) stream at the prompt's last token."""

    @classmethod
    def of(cls, context: Context, tap: Tensor) -> Reading:
        """After the tokens of `context`, whose stream is tap (B, T, D)."""
        last = (context.given - 1).clamp(min=0)[:, None, None].expand(-1, 1, tap.shape[-1])
        return cls((context.documents >= 0).sum(-1), context.given, tap.gather(1, last)[:, 0])

    def at(self, tap: Tensor) -> Tensor:
        """The stream that the prior may see at a token whose own is tap (B, D)."""
        return torch.where((self.fed < self.given)[:, None], self.last_given, tap)

    def moved(self) -> Reading:
        """One token later."""
        return self._replace(fed=self.fed + 1)


class FirstTokenBits(Prior):
    """Linear readout of the stream."""

    Config = Strict

    def __init__(self, config: Strict, shape: Shape) -> None:
        super().__init__(config, shape)
        self.taps = (shape.blocks // 2,)
        self.readout = nn.Linear(shape.width, shape.latent.dims)

    def forward(self, context: Context, latent: Latent | None = None) -> Bits:
        """(R, S, E)."""
        return Bits(self.readout(at_first_token(context.taps[self.taps[0]], context)))

    def start(self, context: Context, latent: Latent | None) -> Reading:
        """Where the prompt ends."""
        return Reading.of(context, context.taps[self.taps[0]])

    def step(
        self, state: Reading, taps: Mapping[int, Tensor], previous: Tensor | None, starts: Tensor, above: Mapping[str, Tensor]
    ) -> tuple[Bits, Reading]:
        """(B, 1, E)."""
        return Bits(self.readout(state.at(taps[self.taps[0]]))[:, None]), state.moved()


class RecurrentConfig(Strict):
    """Size."""

    memory: int = Field(16, ge=1, description="width of the GRU")


class Remembered(NamedTuple):
    """State of a step."""

    reading: Reading
    memory: Tensor
    """(B, G) of the latents before the newest site's."""
    begun: Tensor
    """(B,) bool: there is a newest site."""


class RecurrentBits(Prior):
    """The stream beside a GRU's memory of the codes before."""

    Config = RecurrentConfig
    autoregressive = True

    def __init__(self, config: RecurrentConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        self.taps = (shape.blocks // 2,)
        self.cell = nn.GRUCell(shape.latent.dims, config.memory)
        self.readout = nn.Linear(shape.width + config.memory, shape.latent.dims)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """The GRU's parameters: the frame knows Linear, Embedding and norms only."""
        for parameter in self.cell.parameters():
            parameter.data.normal_(0.0, 0.3, generator=generator)

    def forward(self, context: Context, latent: Latent | None = None) -> Bits:
        """(R, S, E), teacher-forced."""
        assert latent is not None, "an autoregressive prior needs the latents before"
        memories, _ = self._memories(context, latent.value)
        stream = at_first_token(context.taps[self.taps[0]], context)
        return Bits(self.readout(torch.cat((stream, memories.to(stream)), dim=-1)))

    def _memories(self, context: Context, value: Tensor) -> tuple[Tensor, Tensor]:
        """Memory with which each site is predicted (R, S, G), and number of real sites (R,). Documents start afresh."""
        first = context.first_positions().clamp(max=context.tokens.shape[1] - 1)
        afresh = context.positions.gather(1, first) == 0  # (R, S)
        memory = value.new_zeros(value.shape[0], self.config.memory).to(self.cell.weight_hh)
        memories = []
        for site in range(context.sites):
            if site > 0:
                memory = self.cell(value[:, site - 1].to(memory), memory)
            memory = torch.where(afresh[:, site, None], 0.0, memory)
            memories.append(memory)
        return torch.stack(memories, dim=1), context.site_mask.sum(-1)

    def start(self, context: Context, latent: Latent | None) -> Remembered:
        """After the tokens of `context` and their latents."""
        reading = Reading.of(context, context.taps[self.taps[0]])
        if latent is None:
            memory = reading.last_given.new_zeros(context.rows, self.config.memory)
            return Remembered(reading, memory, reading.fed > 0)
        memories, sites = self._memories(context, latent.value)
        newest = (sites - 1)[:, None, None].expand(-1, 1, memories.shape[-1])
        return Remembered(reading, memories.gather(1, newest)[:, 0], reading.fed > 0)

    def step(
        self,
        state: Remembered,
        taps: Mapping[int, Tensor],
        previous: Tensor | None,
        starts: Tensor,
        above: Mapping[str, Tensor],
    ) -> tuple[Bits, Remembered]:
        """(B, 1, E). The memory takes in the latent before when the next site begins."""
        memory = state.memory
        if previous is not None:
            moved = self.cell(previous.to(memory), memory)
            memory = torch.where((starts & state.begun)[:, None], moved, memory)
        stream = state.reading.at(taps[self.taps[0]])
        p = Bits(self.readout(torch.cat((stream, memory.to(stream)), dim=-1))[:, None])
        return p, Remembered(state.reading.moved(), memory, state.begun | starts)
