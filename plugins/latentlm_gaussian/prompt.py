"""A prior learned from the prompt: p(z | x_1..x_m) = N(mean, diag std^2), m = max(1, given).

It is ours, after conditional VAEs (Sohn et al. 2015; for dialogue Zhao et al. 2017): a small tower reads the embeddings (tap 0)
of the prompt both ways, and a head makes mean and log-variance of their mean. Without a prompt it sees a document's first
token, end-of-text, and is a learned constant.

It learns what a prompt says only where training has prompts: `train.prompts` (with `data.packing: false`).

`given` counts positions of the row: a document shows the tokens of its own that lie below it, and its first token in any case.

Legend: B rows, R latent rows, T tokens, S sites (documents), D width, E dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from latentlm.config import Strict
from latentlm.interface import PADDING, Context, Gaussian, Latent, Prior, Shape
from latentlm_gaussian.standard import standard_normal
from latentlm_gaussian.tower import GaussianHead, Tower, pooled


class PromptNormalConfig(Strict):
    """Size of the network."""

    blocks: int = Field(1, ge=1, description="blocks of the tower")
    pooling: Literal["mean", "last"] = Field("mean", description="mean over the prompt, or its last token")
    pooler: bool = Field(False, description="a dense layer and tanh on the pooled vector")
    bias: bool = Field(True, description="a bias in the head")


class Prompted(NamedTuple):
    """State before a document's first token."""

    given: Tensor
    """(B,) tokens of the prompt."""
    mean: Tensor
    """(B, E), from the prompt; meaningless where there is none."""
    log_std: Tensor
    """(B, E)."""


class PromptNormal(Prior):
    """A Gaussian made from the prompt's tokens."""

    Config = PromptNormalConfig
    family = "real"
    granularities = ("document",)
    taps = (0,)

    def __init__(self, config: PromptNormalConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        self.tower = Tower(shape.backbone, blocks=config.blocks, causal=False)
        self.head = GaussianHead(shape.width, shape.latent.dims, pooler=config.pooler, bias=config.bias)

    def forward(self, context: Context, latent: Latent | None = None) -> Gaussian:
        """(R, S, E)."""
        index = torch.arange(context.tokens.shape[1], device=context.tokens.device)
        visible = (context.documents >= 0) & ((index < context.given[:, None]) | (context.positions == 0))
        documents = context.documents.masked_fill(~visible, PADDING)
        return self._of(context.taps[0], documents, context.positions, context.site_of, context.sites)

    def _of(self, stream: Tensor, documents: Tensor, positions: Tensor, site_of: Tensor, sites: int) -> Gaussian:
        """From the visible tokens, those with documents >= 0."""
        x = self.tower(stream, documents=documents, positions=positions)
        vector = pooled(x, visible=documents >= 0, site_of=site_of, sites=sites, how=self.config.pooling)
        gaussian: Gaussian = self.head(vector)
        return gaussian

    def start(self, context: Context, latent: Latent | None) -> Prompted | None:
        """Before the first token: the prior from the prompt. After it: nothing, since a document has one site."""
        if latent is not None:
            return None
        tap = context.taps[0]
        index = torch.arange(tap.shape[1], device=tap.device).expand(tap.shape[:2])
        documents = torch.where(index < context.given[:, None], 0, PADDING)
        p = self._of(tap, documents, index, torch.zeros_like(index), 1)
        return Prompted(context.given, p.mean[:, 0], p.log_std[:, 0])

    def step(
        self,
        state: Prompted | None,
        taps: Mapping[int, Tensor],
        previous: Tensor | None,
        starts: Tensor,
        above: Mapping[str, Tensor],
    ) -> tuple[Gaussian, Prompted | None]:
        """(B, 1, E)."""
        if state is None or not bool(starts.any()):
            return standard_normal(len(starts), 1, self.shape.latent.dims, starts.device), state
        zeros = torch.zeros_like(starts, dtype=torch.long)[:, None]
        alone = self._of(taps[0][:, None], zeros, zeros, zeros, 1)  # the first token by itself
        prompted = (state.given > 0)[:, None, None]
        mean = torch.where(prompted, state.mean[:, None], alone.mean)
        return Gaussian(mean, torch.where(prompted, state.log_std[:, None], alone.log_std)), state
