"""Where a chunk's code enters: a vector R_s for each site, at every position of the chunk (ours).

    chunk_codes   R_s = W[code]          gradient of the posterior G: that of sum_d G_d W_d over all codes
    fsq           R_s = A z_s + a        gradient through z_s, straight through the rounding

    slot          what R is added to                                                       its size
    residual      the stream entering each of `blocks`                                     D per block
    kv            the stream that keys and values are made of, there                       D per block
    film          scale and shift of the feed-forward's normed input, there                2 D per block
    logit_bias    the stream before the readout: a bias of readout @ R on the logits       D

The chunk's first position has the code too, and predicts the chunk's second token with it.

Legend: R latent rows, T tokens, S sites, D width, H bits, E dimensions, W numbers that a site is given.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Literal, Self

import torch
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor, nn

from latentlm.config import Strict
from latentlm.interface import Bits, BlockCondition, Codes, Condition, Context, Injection, Latent, Operations, Shape
from latentlm_chunk.encoder import check_bits
from latentlm_chunk.levels import OnGrid

Slot = Literal["residual", "kv", "film", "logit_bias"]


class SlotConfig(Strict):
    """Where."""

    slot: Slot = Field("residual", description="what the vector is added to")
    blocks: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, min_length=1, description="injected blocks, each with a vector of its own; default: L//2"
    )

    @model_validator(mode="after")
    def _no_block_at_the_readout(self) -> Self:
        if self.slot == "logit_bias" and self.blocks is not None:
            raise ValueError('slot "logit_bias" lies above all blocks: drop blocks, or choose residual, kv or film.')
        return self


class SlotInjection(Injection):
    """Puts a site's numbers into a slot."""

    config: SlotConfig

    def __init__(self, config: SlotConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        if config.slot == "logit_bias":
            self.blocks: tuple[int, ...] = (shape.blocks - 1,)  # the trunk ends below the last block, which has no condition
        else:
            self.blocks = tuple(sorted(set(config.blocks or (shape.blocks // 2,))))
        self.slots = ("film_scale", "film_shift") if config.slot == "film" else (config.slot,)
        self.size = shape.width * len(self.blocks) * len(self.slots)

    @abstractmethod
    def vectors(self, latent: Latent) -> Tensor:
        """(R, S, W), W = `size`."""

    def forward(self, latent: Latent, context: Context) -> Condition:
        """Each position has its own site's."""
        rows = self.vectors(latent)
        if self.shape.latent.granularity != "token":
            rows = context.at_positions(rows)  # (R, T, W)
        if self.config.slot == "logit_bias":
            return Condition(logit_bias=rows)
        parts = rearrange(rows, "r t (block slot d) -> block slot r t d", block=len(self.blocks), slot=len(self.slots))
        return Condition({site: self._condition(part) for site, part in zip(self.blocks, parts, strict=True)})

    def _condition(self, part: Tensor) -> BlockCondition:
        """One block's, from (slots, R, T, D)."""
        if self.config.slot == "residual":
            return BlockCondition(residual=part[0])
        if self.config.slot == "kv":
            return BlockCondition(kv=part[0])
        return BlockCondition(film_scale=part[0], film_shift=part[1])


class CodeInjection(SlotInjection):
    """A row of a table for each code."""

    Config = SlotConfig
    family = "bits"

    def __init__(self, config: SlotConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        check_bits(shape.latent.dims, "chunk_codes")
        self.table = nn.Embedding(2**shape.latent.dims, self.size)

    def operations(self) -> Operations:
        """The mean row and, backward, the score of each row, 2 for each entry; the table itself is detached there."""
        return Operations(training_per_site=4.0 * self.table.weight.numel())

    def vectors(self, latent: Latent) -> Tensor:
        """(R, S, W). The table's gradient is that of the drawn rows."""
        weights = 2 ** torch.arange(self.shape.latent.dims, device=latent.value.device)
        rows: Tensor = self.table(torch.where(latent.value > 0.5, weights, 0).sum(-1))
        q = latent.distribution
        if not (torch.is_grad_enabled() and isinstance(q, Codes | Bits)):
            return rows
        codes = Codes.of(q) if isinstance(q, Bits) else q
        table = self.table.weight.detach()
        mean = codes.log_probs.exp().to(table.dtype) @ table  # (R, S, W)
        return rows + (mean - mean.detach())  # added last: the value is the table's, exactly


class LevelsInjection(SlotInjection):
    """A linear map of the quantised vector."""

    Config = SlotConfig
    family = "levels"

    def __init__(self, config: SlotConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        self.map = nn.Linear(shape.latent.dims, self.size)

    def vectors(self, latent: Latent) -> Tensor:
        """(R, S, W)."""
        assert latent.distribution is None or isinstance(latent.distribution, OnGrid)
        out: Tensor = self.map(latent.value.to(self.map.weight.dtype))
        return out
