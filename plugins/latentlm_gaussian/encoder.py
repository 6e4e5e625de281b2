"""The encoder: q(z | x) = N(mean, diag std^2) for each document, by a tower of its own on the document's tokens.

    Optimus (arXiv 2004.04092, section 3)   BERT, as deep as the decoder; z from the output at [CLS], the first position
    Bowman (arXiv 1511.06349, section 3)    an LSTM, left to right; z from its last state: `causal: true, pooling: last`

Defaults are Optimus's: as many blocks as the decoder, both directions, an embedding of its own, the first position (here
end-of-text, with which every document begins, stands for [CLS]), BERT's pooler, a linear head without bias, no bound on the
log-variance. Ours: the mean as a third way of pooling, the decoder's embedding as an alternative, this project's blocks in
place of BERT's or an LSTM.

z conditions every position of its document and has seen all of it: cross-entropy under it is not a language-model loss.

Legend: B rows, T tokens, S sites (documents), D width, E dimensions.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from latentlm.config import Strict
from latentlm.interface import Context, Encoder, Gaussian, Objective, Shape
from latentlm_gaussian.tower import GaussianHead, Pooling, Tower, pooled


class GaussianTowerConfig(Strict):
    """Optimus's encoder by default."""

    blocks: int | None = Field(None, ge=1, description="blocks of the tower; default: as many as the decoder has")
    causal: bool = Field(False, description="read left to right only (Bowman's LSTM), not both ways (Optimus)")
    pooling: Pooling = Field("first", description="first (Optimus's [CLS]), last (Bowman's last state), or mean")
    pooler: bool = Field(True, description="a dense layer and tanh on the pooled vector, as BERT has (Optimus)")
    bias: bool = Field(False, description="a bias in the head; Optimus has none")
    embedding: Literal["own", "decoder"] = Field("own", description="the tower's token embedding, or the decoder's (tap 0)")

    @model_validator(mode="after")
    def _first_sees_something(self) -> Self:
        if self.causal and self.pooling == "first":
            raise ValueError(
                'a causal tower\'s first position has seen one token only: set pooling to "last" or "mean", or causal to false.'
            )
        return self


class GaussianTower(Encoder):
    """Tower, pooling, head."""

    Config = GaussianTowerConfig
    sees_future = True
    family = "real"
    granularities = ("document",)

    def __init__(self, config: GaussianTowerConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        vocabulary, width = shape.backbone.vocabulary, shape.width
        own = config.embedding == "own"
        self.taps = () if own else (0,)
        self.embedding = nn.Embedding(vocabulary, width, _weight=torch.empty(vocabulary, width)) if own else None
        self.tower = Tower(shape.backbone, blocks=config.blocks or shape.blocks, causal=config.causal)
        self.head = GaussianHead(width, shape.latent.dims, pooler=config.pooler, bias=config.bias)

    def forward(self, context: Context, objective: Objective | None = None) -> Gaussian:
        """(B, S, E)."""
        return self.read(context.taps[0] if self.embedding is None else self.embedding(context.tokens), context)

    def read(self, stream: Tensor, context: Context) -> Gaussian:
        """The posterior for token embeddings `stream` (B, T, D) in the place of the context's own: (B, S, E)."""
        single = context.one_document_a_row()
        x = self.tower(stream, documents=context.documents, positions=context.positions, single=single)
        visible = context.documents >= 0
        vector = pooled(x, visible=visible, site_of=context.site_of, sites=context.sites, how=self.config.pooling)
        gaussian: Gaussian = self.head(vector)
        return gaussian
