"""The Free Transformer's encoder: q(z_t | x), H independent bits per token (paper, section 3.3 and figure 3).

    queries            one learned vector zeta, the same at every position; positions enter through the rotation
    keys and values    the trunk's output, x_1 .. x_T of the same document, not causal
    then               feed-forward, RMSNorm, Linear to H logits

The posterior of position t has seen token t+1, its target: cross-entropy under it is not a language-model loss.

Legend: B rows, T tokens, S sites, D width, H bits.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from latentlm.backbone import Block, Mask, rotation, wide_linear
from latentlm.backbone.init import normal_
from latentlm.config import Strict
from latentlm.interface import Bits, BlockCondition, Context, Encoder, Objective, Shape


class FreeEncoderConfig(Strict):
    """What the paper leaves open, with our reading as the default."""

    tap: int | None = Field(None, ge=0, description="block whose input is read; default: L//2, the injected block")
    rope: bool = Field(True, description="rotary positions in the block; without them every position has the same posterior")
    zeta_residual: bool = Field(True, description="the residual stream of the block starts from zeta (otherwise from zero)")
    feed_forward: int | None = Field(None, ge=1, description="SwiGLU width of the block; default: the backbone's")
    readout_bias: bool = Field(False, description="a bias on the bit logits")
    readout_std: float | None = Field(
        None, gt=0, description="standard deviation of the readout's start; default: the backbone's init_std"
    )
    dtype: Literal["float32", "model"] = Field("float32", description="precision of the readout and of all that follows it")


class FreeEncoder(Encoder):
    """One non-causal block that queries the trunk with a learned vector."""

    Config = FreeEncoderConfig
    sees_future = True
    family = "bits"

    def __init__(self, config: FreeEncoderConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        self.taps = (shape.blocks // 2 if config.tap is None else config.tap,)
        self.zeta = nn.Parameter(torch.empty(shape.width))
        width = config.feed_forward or shape.backbone.feed_forward
        self.block = Block(shape.backbone.model_copy(update={"feed_forward": width}))
        self.norm = nn.RMSNorm(shape.width, eps=shape.backbone.norm_eps)
        self.readout = nn.Linear(shape.width, shape.latent.dims, bias=config.readout_bias)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """zeta like an embedding."""
        normal_(self.zeta, std=self.shape.backbone.init_std, generator=generator)
        if self.config.readout_std is not None:
            normal_(self.readout.weight, std=self.config.readout_std, generator=generator)

    def forward(self, context: Context, objective: Objective | None = None) -> Bits:
        """Bit logits of every site, (B, S, H); a chunk's or a document's are averaged over its positions."""
        trunk = context.taps[self.taps[0]]  # (B, T, D)
        queries = self.zeta.expand_as(trunk)
        turn = rotation(self.shape.backbone, context.positions) if self.config.rope else None
        mask = Mask(context.documents, context.documents, causal=False, plain=context.one_document_a_row())
        unskipped = None if self.config.zeta_residual else BlockCondition(skip=-queries)
        x = self.block(queries, source=trunk, mask=mask, rotation=turn, condition=unskipped)
        normed = self.norm(x)
        if self.config.dtype == "float32":
            logits = wide_linear(normed, self.readout)
        else:
            logits = self.readout(normed)
        return Bits(logits if self.shape.latent.granularity == "token" else context.site_means(logits))
