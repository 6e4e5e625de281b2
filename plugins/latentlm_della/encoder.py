"""DELLA's encoder: q(z_l | z_<l, x) from the states of layer l of a non-causal transformer (paper, section 4.1, equation 8).

    x^0 = embeddings;  x^l = block_l(x^{l-1}), every position of a document sees every other
    s^l = pool(norm_l(x^l)) of each site
    (mu_l, log sigma_l^2) = W_x^l s^l + b^l + W_z^l h_l,     h_l as in `chain`

The paper's encoder is its decoder: the same blocks run without z and without the causal mask (section 5.2, language modelling),
or a BART encoder of its own (summaries). Here it is a tower of its own on the decoder's embeddings. The norm ahead of the
pooling is ours. The paper says that z is read from the state of the first token; its code, and its count of parameters
(appendix A.1, see docs/della.md), have a learned attention over all states, which is the default. See `pooling`.

Posteriors see every token of the document, later ones too.

Legend: B rows, T tokens, S sites, D width, L latents, p dimensions of each, E = L p.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from latentlm.backbone import Block, Mask, rotation
from latentlm.backbone.init import normal_
from latentlm.interface import Context, Encoder, Objective, Shape
from latentlm_della.chain import Chain, Recursion, wide_linear
from latentlm_della.layers import LayersConfig, layout
from latentlm_della.pooling import attended_states, first_states, mean_states


class DellaEncoderConfig(LayersConfig):
    """What the paper leaves open."""

    pooling: Literal["attention", "first", "mean"] = Field(
        "attention", description="attention (the authors' code), first (the paper's text: the first token's state), mean"
    )
    feed_forward: int | None = Field(None, ge=1, description="SwiGLU width of the tower; default: the backbone's")


class DellaEncoder(Encoder):
    """A tower as high as the highest layer that has a latent, and one readout per latent."""

    Config = DellaEncoderConfig
    taps = (0,)  # every block may be injected: only the embedding is free of z
    sees_future = True
    family = "real"

    def __init__(self, config: DellaEncoderConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        self.layers, size = layout(config, shape)
        width = config.feed_forward or shape.backbone.feed_forward
        backbone, count = shape.backbone.model_copy(update={"feed_forward": width}), len(self.layers)
        self.tower = nn.ModuleList(Block(backbone) for _ in range(self.layers[-1] + 1))
        self.norms = nn.ModuleList(nn.RMSNorm(shape.width, eps=backbone.norm_eps) for _ in self.layers)
        attends = config.pooling == "attention" and shape.latent.granularity != "token"  # a single state needs no pooling
        self.queries = nn.Parameter(torch.empty(count, shape.width)) if attends else None
        self.readouts = nn.ModuleList(nn.Linear(shape.width, 2 * size) for _ in self.layers)
        self.recursion = Recursion(count, size, bias=False)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """The queries of the pooling like an embedding (the code's normal(0, 0.02))."""
        if self.queries is not None:
            normal_(self.queries, std=self.shape.backbone.init_std, generator=generator)

    def forward(self, context: Context, objective: Objective | None = None) -> Chain:
        """Posterior of every site, (B, S, E)."""
        mask = Mask(context.documents, context.documents, causal=False, plain=context.one_document_a_row())
        turn = rotation(self.shape.backbone, context.positions)
        x = context.taps[0]  # (B, T, D)
        offsets = []
        for index, block in enumerate(self.tower):
            x = block(x, mask=mask, rotation=turn)
            if index in self.layers:
                latent = self.layers.index(index)
                pooled = self._pooled(self.norms[latent](x), latent, context)
                offsets.append(wide_linear(pooled, self.readouts[latent]))
        return Chain(self.recursion, torch.stack(offsets, dim=2))

    def _pooled(self, x: Tensor, latent: int, context: Context) -> Tensor:
        """(B, T, D) -> (B, S, D), in float32 or wider."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        with torch.autocast(x.device.type, enabled=False):
            if self.queries is not None:
                return attended_states(wide, self.queries[latent], context)
            return first_states(wide, context) if self.config.pooling == "first" else mean_states(wide, context)
