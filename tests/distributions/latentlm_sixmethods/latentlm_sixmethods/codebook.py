"""A codebook of vectors that follows what is coded with it, by moving averages (van den Oord et al. 2017, "Neural discrete
representation learning", appendix A.1; gamma is their decay).

    z_s = e_k, k = argmin_j |v_s - e_j|, v_s = W mean of the trunk over site s          a point mass, straight-through
    after each step:  N_j <- gamma N_j + (1 - gamma) n_j,  m_j <- gamma m_j + (1 - gamma) sum of the v_s with code j
                      e_j <- m_j / N_j

n_j and the sums run over all micro-batches of the step. They are gathered in `auxiliary`, which a training pass calls once, and
which holds the commitment loss too; `advance` moves the codebook.

    encoder   moving_codebook        prior   code_frequencies   p(code), learned

Legend: B rows, R latent rows, S sites, E dimensions, N codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from latentlm.config import Strict
from latentlm.errors import UserError
from latentlm.interface import Batch, Categorical, Context, Encoder, Latent, Objective, Parts, Point, Prior, Shape
from latentlm.plugins import hookimpl

latentlm_contract = 2


class MovingCodebookConfig(Strict):
    """The codebook and how it moves."""

    codes: int = Field(16, ge=2, description="vectors in the codebook")
    decay: float = Field(0.99, ge=0, lt=1, description="gamma, of the moving averages")
    commitment: float = Field(0.25, ge=0, description="weight of |v - sg(e)|^2, which keeps the encoder near its codes")


class MovingCodebook(Encoder):
    """The nearest vector of the codebook, for certain."""

    Config = MovingCodebookConfig
    config: MovingCodebookConfig
    family = "real"
    sees_future = True
    codebook: Tensor
    seen: Tensor
    total: Tensor
    new_seen: Tensor
    new_total: Tensor

    def __init__(self, config: MovingCodebookConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        self.taps = (shape.blocks // 2,)
        self.map = nn.Linear(shape.width, shape.latent.dims)
        self.register_buffer("codebook", torch.empty(config.codes, shape.latent.dims))  # (N, E)
        self.register_buffer("seen", torch.empty(config.codes))  # N_j
        self.register_buffer("total", torch.empty(config.codes, shape.latent.dims))  # m_j
        self.register_buffer("new_seen", torch.empty(config.codes), persistent=False)  # of the step under way
        self.register_buffer("new_total", torch.empty(config.codes, shape.latent.dims), persistent=False)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Random vectors, each as if seen once."""
        self.codebook.normal_(0.0, self.shape.backbone.init_std, generator=generator)
        self.seen.fill_(1.0)
        self.total.copy_(self.codebook)
        self.new_seen.zero_()
        self.new_total.zero_()

    def forward(self, context: Context, objective: Objective | None = None) -> Point:
        """(B, S, E)."""
        v = self.map(context.site_means(context.taps[self.taps[0]])).float()
        return Point(self.codebook[self._nearest(v)], through=v)

    def auxiliary(self, latent: Latent, context: Context, batch: Batch) -> tuple[Tensor, dict[str, Tensor]] | None:
        """The commitment loss, nats per target token; gathers what the codebook is to follow."""
        q, real = latent.distribution, context.site_mask
        assert isinstance(q, Point) and q.through is not None, "its own posterior"  # noqa: PT018
        v, code = q.through[real], q.value[real]  # (sites, E)
        chosen = F.one_hot(self._nearest(v), self.config.codes).to(v.dtype)  # (sites, N)
        self.new_seen += chosen.sum(0)
        self.new_total += chosen.T @ v.detach()
        loss = self.config.commitment * (v - code).square().sum() / batch.target_mask.sum().clamp(min=1)
        return loss, {"commitment": loss.detach(), "codes_used": (chosen.sum(0) > 0).sum()}

    @torch.no_grad()
    def advance(self, step: int) -> None:
        """Move the codebook; codes that nobody chose stay where they are, and what was gathered is forgotten."""
        self.seen.lerp_(self.new_seen, 1 - self.config.decay)
        self.total.lerp_(self.new_total, 1 - self.config.decay)
        alive = (self.seen > 1e-6)[:, None]  # else the quotient has lost its digits
        self.codebook.copy_(torch.where(alive, self.total / self.seen[:, None], self.codebook))
        self.new_seen.zero_()
        self.new_total.zero_()

    def _nearest(self, v: Tensor) -> Tensor:
        """Numbers (...) long of the codes nearest to (..., E)."""
        return (v.detach()[..., None, :] - self.codebook).square().sum(-1).argmin(-1)


class CodeFrequencies(Prior):
    """A learned probability for each code of the encoder's codebook, the same at every site."""

    Config = Strict
    family = "real"

    def bind(self, parts: Parts) -> None:
        """The encoder, which owns the codebook; in a tuple, so that it is no module of the prior's too."""
        if not isinstance(parts.encoder, MovingCodebook):
            raise UserError("code_frequencies needs the encoder moving_codebook, whose codes it counts.")
        self.encoder = (parts.encoder,)
        self.logits = nn.Parameter(torch.empty(parts.encoder.config.codes))

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Every code equally likely."""
        nn.init.zeros_(self.logits)

    def forward(self, context: Context, latent: Latent | None = None) -> Categorical:
        """(R, S, E)."""
        return self._codes(context.rows, context.sites)

    def step(
        self, state: Any, taps: Mapping[int, Tensor], previous: Tensor | None, starts: Tensor, above: Mapping[str, Tensor]
    ) -> tuple[Categorical, Any]:
        """(B, 1, E)."""
        return self._codes(len(starts), 1), state

    def _codes(self, rows: int, sites: int) -> Categorical:
        return Categorical(self.logits.expand(rows, sites, -1), self.encoder[0].codebook)


@hookimpl
def latentlm_parts() -> dict[str, dict[str, type]]:
    """The parts of this plugin."""
    return {"encoder": {"moving_codebook": MovingCodebook}, "prior": {"code_frequencies": CodeFrequencies}}
