"""A plugin that works: a causal linear encoder, and a card that uses it."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from latentlm.config import Strict
from latentlm.interface import Bits, Context, Encoder, Objective, Shape
from latentlm.plugins import hookimpl

latentlm_contract = 2


class LinearConfig(Strict):
    """Settings of the encoder."""

    bias: bool = True


class LinearEncoder(Encoder):
    """Bits of each token, read off the trunk by one linear layer."""

    Config = LinearConfig
    sees_future = False

    def __init__(self, config: LinearConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        self.taps = (shape.blocks // 2,)
        self.readout = nn.Linear(shape.width, shape.latent.dims, bias=config.bias)

    def forward(self, context: Context, objective: Objective | None = None) -> Bits:
        """(B, S, E): one site per token."""
        return Bits(self.readout(context.taps[self.taps[0]]))


@hookimpl
def latentlm_parts() -> dict[str, dict[str, type]]:
    """One encoder."""
    return {"encoder": {"good_linear": LinearEncoder}}


@hookimpl
def latentlm_cards() -> list[Path]:
    """One card."""
    return [Path(__file__).with_name("latentlm_good.yaml")]
