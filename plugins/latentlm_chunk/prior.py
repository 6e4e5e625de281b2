"""Priors over a chunk's code that are learned from the text and the codes before it (ours):

    u_s = [norm(tap at the chunk's first token), e(z_{s-1})]                   e: an embedding; one of its own before a document
    a_s = sigmoid(gate u_s),   h_s = a_s h_{s-1} + (1 - a_s) candidate u_s     h = 0 before a document
    p(z_s | x up to the chunk's first token, z_<s) = readout(silu(hidden [u_s, h_s]))

    causal_codes    categorical over 2^H codes;          e: a row for each code
    causal_levels   a categorical for each dimension, or one over all prod L_e codes;       e: linear in the values

The recurrence is a minGRU (Feng et al. 2024, arXiv 2410.01201): its gates do not look at h, so that all sites are computed at
once by a scan of log2(S) passes, and a step costs the same however long the text is. All of it is computed in float32, under
autocast too.

Inside a prompt a site reads its own first token too, as in training, though the contract would let it see the whole prompt.

How it learns. A schedule's penalty is a function of the KL, whose gradient reaches prior and encoder alike or neither: free
bits below their budget teach the prior nothing. With `learns: always` the prior gets the gradient of KL(stop_gradient(q) || p)
at weight 1 (maximum likelihood on the codes), and the penalty moves the encoder alone; with `penalty`, only the schedule's.
Under `constant` with weight 1 both are the ELBO's gradient, but that of an encoder of levels through the priors of later sites,
which read its codes: `always` leaves that out.

Legend: R latent rows, S sites, H bits, E dimensions, D width, G memory.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from latentlm.backbone import wide_linear
from latentlm.composed.recurrence import scan, spread_memories
from latentlm.config import Strict
from latentlm.errors import UserError
from latentlm.interface import Batch, Bits, Codes, Context, Distribution, Encoder, Latent, Parts, Prior, Shape
from latentlm_chunk.encoder import FsqEncoder, check_bits
from latentlm_chunk.grid import Grid, LevelCounts, grid_of
from latentlm_chunk.levels import CategoricalOnGrid, JointLevels, Levels


class CausalConfig(Strict):
    """Settings of both learned priors."""

    tap: int | None = Field(None, ge=0, description="block whose input is read; default: L//2, the injected block")
    memory: int | None = Field(None, ge=1, description="width G of the memory, and of e(z); default: the backbone's width")
    hidden: int | None = Field(None, ge=1, description="width of the hidden layer; default: the backbone's width")
    learns: Literal["always", "penalty"] = Field("always", description="from the codes, or from the schedule's penalty alone")


class CausalPrior(Prior):
    """The recurrence; what a latent is, subclasses say."""

    config: CausalConfig
    autoregressive = True
    granularities = ("token", "chunk")

    def __init__(self, config: CausalConfig, shape: Shape, *, outputs: int) -> None:
        super().__init__(config, shape)
        self.taps = (shape.blocks // 2 if config.tap is None else config.tap,)
        self.memory = config.memory or shape.width
        features, hidden = shape.width + self.memory, config.hidden or shape.width
        self.norm = nn.RMSNorm(shape.width, eps=shape.backbone.norm_eps)
        self.gate = nn.Linear(features, self.memory)
        self.candidate = nn.Linear(features, self.memory)
        self.hidden = nn.Linear(features + self.memory, hidden)
        self.readout = nn.Linear(hidden, outputs)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Memories of 1 to 32 sites."""
        spread_memories(self.gate.bias)

    @abstractmethod
    def embed(self, value: Tensor, begins: Tensor) -> Tensor:
        """e of the latents before, (..., E) -> (..., G); of its own where `begins` (...) is true."""

    @abstractmethod
    def distribution(self, logits: Tensor) -> Codes | CategoricalOnGrid:
        """From the readout's (R, S, outputs)."""

    def forward(self, context: Context, latent: Latent | None = None) -> Distribution:
        """(R, S, E), teacher-forced. Without gradient in training where `auxiliary` brings it."""
        assert latent is not None, "an autoregressive prior needs the latents before"
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._learns_apart(latent)):
            return self._prior(context, latent)

    def auxiliary(self, latent: Latent, context: Context, batch: Batch) -> tuple[Tensor, dict[str, Tensor]] | None:
        """The gradient of KL(stop_gradient(q) || p), nats per target token, on a value of zero: the loss stays cross-entropy
        plus penalty. Logs that KL as `prior_gap_nats`."""
        if not self._learns_apart(latent):
            return None
        p, q = self._prior(context, Latent(latent.value.detach())), latent.distribution
        # Of a point mass, and of a kind without a closed form, the one sample at hand has the gradient.
        gap = _detached(q).kl(p, latent).sum(-1) if isinstance(q, Codes | Bits) else -p.log_prob(latent)  # (B, S)
        nats = gap.masked_fill(~context.site_mask, 0.0).sum() / batch.target_mask.sum().clamp(min=1)
        return nats - nats.detach(), {"prior_gap_nats": nats.detach()}

    def start(self, context: Context, latent: Latent | None) -> Tensor:
        """h of the newest site, (B, G)."""
        if latent is None:
            return torch.zeros(context.rows, self.memory, device=context.tokens.device)
        newest = (context.site_mask.sum(-1) - 1)[:, None, None].expand(-1, 1, self.memory)
        return self._remember(context, latent.value)[1].gather(1, newest)[:, 0]

    def step(
        self, state: Tensor, taps: Mapping[int, Tensor], previous: Tensor | None, starts: Tensor, above: Mapping[str, Tensor]
    ) -> tuple[Distribution, Tensor]:
        """(B, 1, E). The memory moves where a site begins."""
        begins = torch.full_like(starts, previous is None)
        if previous is None:
            previous = torch.zeros(len(starts), self.shape.latent.dims, device=starts.device)
        features = self._features(taps[self.taps[0]], previous, begins)
        keep, add = self._gates(features)
        memory = torch.where(starts[:, None], keep * state + add, state)
        return self._read(features[:, None], memory[:, None]), memory

    def _learns_apart(self, latent: Latent) -> bool:
        """Whether this is a training pass on an encoder's latents, and `learns` is "always"."""
        return self.training and self.config.learns == "always" and latent.distribution is not None

    def _prior(self, context: Context, latent: Latent) -> Codes | CategoricalOnGrid:
        """(R, S, E), with gradient."""
        return self._read(*self._remember(context, latent.value))

    def _remember(self, context: Context, value: Tensor) -> tuple[Tensor, Tensor]:
        """u (R, S, D + G) and h (R, S, G) of every site."""
        begins = context.begins_document()
        before = F.pad(value, (0, 0, 1, 0))[:, :-1]
        features = self._features(context.at_first_positions(context.taps[self.taps[0]]), before, begins)
        keep, add = self._gates(features)
        return features, scan(keep.masked_fill(begins[..., None], 0.0), add)

    def _features(self, tap: Tensor, before: Tensor, begins: Tensor) -> Tensor:
        """u (..., D + G), float32 or wider."""
        stream = self.norm(tap)
        stream = stream.to(torch.promote_types(stream.dtype, torch.float32))
        return torch.cat((stream, self.embed(before, begins).to(stream)), dim=-1)

    def _gates(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """a and (1 - a) * candidate, (..., G)."""
        logits = wide_linear(features, self.gate)
        return torch.sigmoid(logits), torch.sigmoid(-logits) * wide_linear(features, self.candidate)

    def _read(self, features: Tensor, memory: Tensor) -> Codes | CategoricalOnGrid:
        """From u (R, S, D + G) and h (R, S, G)."""
        both = torch.cat((features, memory.to(features)), dim=-1)
        return self.distribution(wide_linear(F.silu(wide_linear(both, self.hidden)), self.readout))


class CausalCodes(CausalPrior):
    """One categorical over the codes."""

    Config = CausalConfig
    family = "bits"

    def __init__(self, config: CausalConfig, shape: Shape) -> None:
        check_bits(shape.latent.dims, "causal_codes")
        super().__init__(config, shape, outputs=2**shape.latent.dims)
        self.embedding = nn.Embedding(2**shape.latent.dims + 1, self.memory)  # the last row: no code before

    def embed(self, value: Tensor, begins: Tensor) -> Tensor:
        """A row for each code."""
        weights = 2 ** torch.arange(value.shape[-1], device=value.device)
        code = torch.where(value > 0.5, weights, 0).sum(-1)
        out: Tensor = self.embedding(code.masked_fill(begins, self.embedding.num_embeddings - 1))
        return out

    def distribution(self, logits: Tensor) -> Codes:
        """Over 2^H codes."""
        return Codes(logits)


class LevelsConfig(Strict):
    """The grid."""

    levels: LevelCounts | None = Field(None, description="as the encoder's, from which the decoder `chunk` takes them")


class CausalLevelsConfig(CausalConfig, LevelsConfig):
    """Settings of `causal_levels`."""

    within: Literal["independent", "joint"] = Field(
        "independent", description="dimensions independent given the past, or one categorical over all codes"
    )


class CausalLevels(CausalPrior):
    """The grid's dimensions, independent given the past or not."""

    Config = CausalLevelsConfig
    config: CausalLevelsConfig
    family = "levels"

    def __init__(self, config: CausalLevelsConfig, shape: Shape) -> None:
        grid = grid_of(config.levels, shape.latent.dims, "The prior causal_levels")
        joint = config.within == "joint"
        if joint:
            grid.check_size("The prior causal_levels", 'take fewer levels, or within: "independent"')
        super().__init__(config, shape, outputs=grid.size if joint else sum(grid.levels))
        self.grid = grid
        self.embedding = nn.Linear(shape.latent.dims + 1, self.memory)

    def bind(self, parts: Parts) -> None:
        """The encoder must have the same grid."""
        _same_grid(self.grid, parts.encoder)

    def embed(self, value: Tensor, begins: Tensor) -> Tensor:
        """Linear in the values; 0 and a mark where there are none."""
        value = value.masked_fill(begins[..., None], 0.0)
        return wide_linear(torch.cat((value, begins[..., None].to(value)), dim=-1), self.embedding)

    def distribution(self, logits: Tensor) -> CategoricalOnGrid:
        """Over levels or codes."""
        return JointLevels(logits, self.grid) if self.config.within == "joint" else Levels(logits, self.grid)


class UniformLevels(Prior):
    """Every code equally likely, whatever the text: KL(q || p) = log prod L_e for a point mass."""

    Config = LevelsConfig
    family = "levels"

    def __init__(self, config: LevelsConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        self.grid = grid_of(config.levels, shape.latent.dims, "The prior uniform_levels")

    def bind(self, parts: Parts) -> None:
        """The encoder must have the same grid."""
        _same_grid(self.grid, parts.encoder)

    def forward(self, context: Context, latent: Latent | None = None) -> Levels:
        """(R, S, E)."""
        return self._even(context.rows, context.sites, context.tokens.device)

    def step(
        self, state: Any, taps: Mapping[int, Tensor], previous: Tensor | None, starts: Tensor, above: Mapping[str, Tensor]
    ) -> tuple[Levels, Any]:
        """(B, 1, E)."""
        return self._even(len(starts), 1, starts.device), state

    def _even(self, rows: int, sites: int, device: torch.device) -> Levels:
        return Levels(torch.zeros(rows, sites, sum(self.grid.levels), device=device), self.grid)


def _same_grid(grid: Grid, encoder: Encoder | None) -> None:
    """Raises UserError where the encoder's grid is another."""
    if isinstance(encoder, FsqEncoder) and encoder.grid != grid:
        raise UserError(
            f"The encoder has levels {list(encoder.grid.levels)}, but the prior {list(grid.levels)}: give both the same, "
            'or name them in the encoder alone, from which the decoder "chunk" takes them.'
        )


def _detached(distribution: Codes | Bits) -> Codes | Bits:
    """The same distribution, out of the graph."""
    return Bits(distribution.logits.detach()) if isinstance(distribution, Bits) else Codes(distribution.log_probs.detach())
