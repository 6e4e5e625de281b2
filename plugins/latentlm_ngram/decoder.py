"""The n-gram decoder: R_t = sum over n of table[hash of the last n tokens], into one block of a plain decoder.

    slot kv        R is added to the stream of keys and values before the block's norm, as the Free Transformer's R
    slot residual  R is added to the residual stream entering the block

Hashed n-gram embeddings: of bytes, at the input (Pagnoni et al. 2024, arXiv 2412.09871), of tokens, at the input (Huang et al.
2025, arXiv 2501.16975), between blocks, behind a gate (Cheng et al. 2026, arXiv 2601.07372). Here they are a control, so they
stand where the latent would, without a gate, and the orders share their rows.

Legend: B rows, T tokens, m tokens looked back at, D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from latentlm.backbone import KVCache
from latentlm.backbone.init import normal_
from latentlm.composed import ComposedDecoder
from latentlm.composed.sockets import Filled
from latentlm.config import SOCKETS, ModelConfig, PartSpec, Strict
from latentlm.errors import UserError
from latentlm.interface import Batch, BlockCondition
from latentlm_ngram.hashing import hashed, newest, windows_of

_KEPT = "ngram/tokens"
"""The last m tokens of each row, in the cache."""


class NgramConfig(Strict):
    """The table, and where its rows enter."""

    rows: int = Field(1024, ge=1, description="of the table, shared by all orders")
    orders: list[Annotated[int, Field(ge=1, le=16)]] = Field(
        [2, 3], min_length=1, description="tokens that look up a row, each order a row of its own"
    )
    block: int | None = Field(None, ge=0, description="block that they enter; default: L//2, as the Free Transformer's")
    slot: Literal["kv", "residual"] = Field("kv", description="keys and values alone, or the residual stream too")
    init_std: float | None = Field(None, gt=0, description="of the sum over orders; default: the backbone's")

    @field_validator("orders")
    @classmethod
    def _once_each(cls, orders: list[int]) -> list[int]:
        if len(set(orders)) < len(orders):
            raise ValueError(f"an order stands there twice: {orders}.")
        return orders


class NgramDecoder(ComposedDecoder):
    """A plain decoder, one block of which sees a row of a table for the last n tokens at each position."""

    Config = NgramConfig

    @classmethod
    def complete(cls, config: ModelConfig) -> ModelConfig:
        """Refuse latents: a table beside them would be another model."""
        filled = [socket for socket in SOCKETS if getattr(config, socket) is not None]
        if filled or config.event_dims or config.latents:
            what = ", ".join(filled) or "latents"
            raise UserError(f'The decoder "ngram" has no {what}: it is a control without a latent. Choose another decoder.')
        return config

    def __init__(self, config: ModelConfig, latents: Sequence[Filled] = ()) -> None:
        super().__init__(config, latents)
        assert isinstance(config.decoder, PartSpec), "a completed configuration has the decoder's settings"
        self.settings = NgramConfig.model_validate(config.decoder.settings)
        blocks = config.backbone.blocks
        self.block = blocks // 2 if self.settings.block is None else self.settings.block
        if self.block >= blocks:
            raise UserError(f"model.decoder.block is {self.block}, but the last of {blocks} blocks is {blocks - 1}.")
        self.table = nn.Embedding(
            self.settings.rows, config.backbone.width, _weight=torch.empty(self.settings.rows, config.backbone.width)
        )

    @property
    def back(self) -> int:
        """m: tokens before its own that a position looks at."""
        return max(self.settings.orders) - 1

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Rows such that the sum over orders has entries of standard deviation `init_std`."""
        super().init_weights(generator)
        std = self.settings.init_std or self.config.backbone.init_std
        normal_(self.table.weight, std=std / math.sqrt(len(self.settings.orders)), generator=generator)

    def token_conditions(self, batch: Batch, cache: KVCache | None) -> Mapping[int, BlockCondition]:
        """R, (B, T, D), in the slot of its block."""
        before = batch.inputs.new_zeros(batch.inputs.shape[0], self.back)
        if cache is not None:
            before = cache.kept.get(_KEPT, before)
            cache.kept[_KEPT] = newest(batch.inputs, batch.documents, before)
        rows = self.rows_of(batch.inputs, batch.positions, before)
        keyed = self.settings.slot == "kv"
        return {self.block: BlockCondition(kv=rows) if keyed else BlockCondition(residual=rows)}

    def rows_of(self, tokens: Tensor, positions: Tensor, before: Tensor) -> Tensor:
        """The sum of the rows of all orders at each position, (B, T, D), from tokens and positions (B, T) and the m tokens
        before (B, m)."""
        windows = windows_of(tokens, positions, before, outside=self.config.backbone.vocabulary)
        found = [self.table(hashed(windows[..., -order:], self.settings.rows)) for order in self.settings.orders]
        return sum(found[1:], start=found[0])
