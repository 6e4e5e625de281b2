"""Small parts that the likelihood tests build decoders from: latents that are not the Free Transformer's."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from latentlm.composed import ComposedDecoder
from latentlm.composed.completing import granularity_of
from latentlm.composed.sockets import Filled
from latentlm.config import BackboneConfig, LatentConfig, ModelConfig
from latentlm.interface import (
    Bits,
    BlockCondition,
    Condition,
    Context,
    Distribution,
    Gaussian,
    Injection,
    Latent,
    LatentShape,
    Noise,
    Prior,
    Shape,
)
from latentlm.testing import plant


class LinearInjection(Injection):
    """A linear map of the site's latent, added to the residual stream of block 1."""

    Config = BaseModel
    blocks = (1,)
    slots = ("residual",)

    def __init__(self, config: Any, shape: Shape) -> None:
        super().__init__(config, shape)
        self.map = nn.Linear(shape.latent.dims, shape.width)

    def forward(self, latent: Latent, context: Context) -> Condition:
        index = context.site_of[..., None].expand(-1, -1, self.shape.width)
        return Condition({1: BlockCondition(residual=self.map(latent.value.float()).gather(1, index))})


class FairBits(Prior):
    """Uniform bits."""

    Config = BaseModel

    def forward(self, context: Context, latent: Latent | None = None) -> Distribution:
        rows = context.rows if latent is None else latent.value.shape[0]
        return Bits(torch.zeros(rows, context.sites, self.shape.latent.dims))

    def step(
        self, state: Any, taps: Mapping[int, Tensor], previous: Tensor | None, starts: Tensor, above: Mapping[str, Tensor]
    ) -> tuple[Distribution, Any]:
        return Bits(torch.zeros(len(starts), 1, self.shape.latent.dims)), state


class StandardNormal(Prior):
    """One normal vector per site."""

    Config = BaseModel

    def forward(self, context: Context, latent: Latent | None = None) -> Distribution:
        rows = context.rows if latent is None else latent.value.shape[0]
        zeros = torch.zeros(rows, context.sites, self.shape.latent.dims)
        return Gaussian(zeros, zeros)

    def step(
        self, state: Any, taps: Mapping[int, Tensor], previous: Tensor | None, starts: Tensor, above: Mapping[str, Tensor]
    ) -> tuple[Distribution, Any]:
        zeros = torch.zeros(len(starts), 1, self.shape.latent.dims)
        return Gaussian(zeros, zeros), state


class StickyBits(Prior):
    """Bits that tend to repeat the site before, and lean on the token at which the site begins: autoregressive, causal."""

    Config = BaseModel
    taps = (0,)
    autoregressive = True
    stickiness: ClassVar[float] = 1.5

    def _logits(self, embedding: Tensor, previous: Tensor) -> Tensor:
        lean = embedding[..., : self.shape.latent.dims].tanh()
        return lean + self.stickiness * (2 * previous - 1)

    def forward(self, context: Context, latent: Latent | None = None) -> Distribution:
        assert latent is not None
        first = context.first_positions().clamp(max=context.tokens.shape[1] - 1)
        embedding = context.taps[0].gather(1, first[..., None].expand(-1, -1, self.shape.width))  # (R, S, D)
        previous = torch.cat((torch.full_like(latent.value[:, :1], 0.5), latent.value[:, :-1]), dim=1)
        return Bits(self._logits(embedding, previous))

    def step(
        self, state: Any, taps: Mapping[int, Tensor], previous: Tensor | None, starts: Tensor, above: Mapping[str, Tensor]
    ) -> tuple[Distribution, Any]:
        if previous is None:
            previous = torch.full((len(starts), self.shape.latent.dims), 0.5)
        return Bits(self._logits(taps[0], previous)[:, None]), state


class PointBits(Bits):
    """A quantiser's posterior: the likelier value of each bit, for certain."""

    deterministic = True

    def sample(self, noise: Noise, *, differentiable: bool = False) -> Latent:
        return Latent((self.logits > 0).float())

    def log_prob(self, latent: Latent) -> Tensor:
        raise AssertionError("a point mass has no density")


def tiny(
    granularity: str = "token",
    *,
    prior: type[Prior] = FairBits,
    vocabulary: int = 3,
    events: int = 2,
    steps: int = 120,
    encoder: bool = True,
) -> ComposedDecoder:
    """A planted decoder of width 16 with 2 blocks; each kind is trained once for all tests."""
    model = copy.deepcopy(_tiny(granularity, prior, vocabulary, events, steps))
    if not encoder:
        model.encoder = None
    return model


@cache
def _tiny(granularity: str, prior: type[Prior], vocabulary: int, events: int, steps: int) -> ComposedDecoder:
    config = ModelConfig(
        decoder="composed",
        granularity=granularity,
        event_dims=events,
        backbone=BackboneConfig(vocabulary=vocabulary, width=16, blocks=2, heads=2, context=16, init_std=0.1),
    )
    scale, sites = granularity_of(granularity, None)
    latent = LatentShape("z", events, scale, sites.length)
    shape = Shape(config.backbone, latent)
    parts = {"encoder": None, "prior": prior(None, shape), "injection": LinearInjection(None, shape), "kl_schedule": None}
    model = ComposedDecoder(config, [Filled(LatentConfig(dims=events, granularity=granularity), latent, sites, **parts)])
    model.init_weights(torch.Generator().manual_seed(0))
    return plant(model, steps=steps)
