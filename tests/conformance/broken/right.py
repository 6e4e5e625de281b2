"""The decoder that the bugs are put into: one linear layer reads bits off the trunk through a small window of later tokens, one
adds them to block L//2. It passes every check as it is.

Legend: B rows, R latent rows, T tokens, S sites, E bits, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from latentlm.backbone import Block, Mask, rotation
from latentlm.composed import ComposedDecoder
from latentlm.config import ModelConfig, PartSpec, Strict
from latentlm.interface import (
    Bits,
    BlockCondition,
    Condition,
    Context,
    Distribution,
    Encoder,
    Injection,
    Latent,
    Objective,
    Prior,
    Shape,
)


class Settings(Strict):
    """None."""


class WindowBits(Encoder):
    """A non-causal block over the trunk, then a linear readout."""

    Config = Settings
    sees_future = True
    family = "bits"
    granularities = ("token",)

    def __init__(self, config: Settings, shape: Shape) -> None:
        super().__init__(config, shape)
        self.taps = (shape.blocks // 2,)
        self.block = Block(shape.backbone)
        self.readout = nn.Linear(shape.width, shape.latent.dims)

    def mask(self, context: Context) -> Mask:
        """Who sees whom."""
        return Mask(context.documents, context.documents, causal=False)

    def forward(self, context: Context, objective: Objective | None = None) -> Distribution:
        """(B, S, E)."""
        turn = rotation(self.shape.backbone, context.positions)
        stream = self.block(context.taps[self.taps[0]], mask=self.mask(context), rotation=turn)
        return self.distribution(self.readout(stream))

    def distribution(self, logits: Tensor) -> Distribution:
        """Of bit logits."""
        return Bits(logits)


class LearnedBits(Prior):
    """Bits read off the stream at the site's own token."""

    Config = Settings
    family = "bits"
    granularities = ("token",)

    def __init__(self, config: Settings, shape: Shape) -> None:
        super().__init__(config, shape)
        self.taps = (shape.blocks // 2,)
        self.readout = nn.Linear(shape.width, shape.latent.dims)

    def forward(self, context: Context, latent: Latent | None = None) -> Distribution:
        """(R, S, E)."""
        index = torch.arange(context.tokens.shape[1], device=context.tokens.device)[None]
        seen = index.maximum(context.given[:, None] - 1)[..., None].expand(-1, -1, self.shape.width)
        return Bits(self.readout(context.taps[self.taps[0]].gather(1, seen)))

    def start(self, context: Context, latent: Latent | None) -> Any:
        """Before the first token: the stream at the prompt's last, and how far it is; after the prompt it is never used."""
        last = (context.given - 1).clamp(min=0)[:, None, None].expand(-1, 1, self.shape.width)
        return ((context.documents >= 0).sum(-1), context.given, context.taps[self.taps[0]].gather(1, last)[:, 0])

    def step(
        self, state: Any, taps: Mapping[int, Tensor], previous: Tensor | None, starts: Tensor, above: Mapping[str, Tensor]
    ) -> tuple[Distribution, Any]:
        """(B, 1, E)."""
        fed, given, last = state
        stream = torch.where((fed < given)[:, None], last, taps[self.taps[0]])
        return Bits(self.readout(stream)[:, None]), (fed + 1, given, last)


class LinearBits(Injection):
    """A linear map of the bits, straight through, added to the residual stream of block L//2."""

    Config = Settings
    slots = ("residual",)
    family = "bits"
    granularities = ("token",)

    def __init__(self, config: Settings, shape: Shape) -> None:
        super().__init__(config, shape)
        self.blocks = (shape.blocks // 2,)
        self.map = nn.Linear(shape.latent.dims, shape.width)

    def forward(self, latent: Latent, context: Context) -> Condition:
        """(R, T, D)."""
        code = latent.value
        if isinstance(latent.distribution, Bits):
            soft = latent.distribution.probabilities
            code = code + soft - soft.detach()
        return Condition({self.blocks[0]: BlockCondition(residual=self.rows(self.map(code.to(self.map.weight))))})

    def rows(self, rows: Tensor) -> Tensor:
        """What enters, (R, T, D)."""
        return rows


class Linear(ComposedDecoder):
    """The parts above in the open sockets."""

    defaults: ClassVar[dict[str, PartSpec]] = {
        "encoder": PartSpec(name="right_encoder"),
        "prior": PartSpec(name="right_prior"),
        "injection": PartSpec(name="right_injection"),
        "kl_schedule": PartSpec(name="constant"),
    }

    @classmethod
    def complete(cls, config: ModelConfig) -> ModelConfig:
        """Fill the open sockets."""
        filled = {socket: getattr(config, socket) or spec for socket, spec in cls.defaults.items()}
        return config.model_copy(update=filled)
