"""How z enters the decoder (Optimus, arXiv 2004.04092, section 3): by memory, by embedding, or both.

    memory      h = W_M z, W_M in R^(L M Hkv dh x E): a slot for each block, which every position attends beside the text. In
                the authors' code one vector is both the slot's key and its value: `shared`
    embedding   e'_t = e_t + W_D z at every position of the document, W_D in R^(D x E)
    both        Optimus's default; W_M and W_D are linear maps without bias

Word dropout (Bowman, arXiv 1511.06349, section 3.1) makes the decoder look at z: in training, each token that the decoder reads
is replaced by an unknown word with a given probability. Here the embedding of a dropped token is exchanged for a learned vector
through the same slot, so that encoder and prior still see the text. The first token of a document, end-of-text, is kept.

Ours: several slots; separate keys and values; and the scale at initialisation. A standard normal z makes e'_t - e_t as large as
an embedding, init_std, and a slot as large as a token's key or value, init_std sqrt(D). (Optimus takes 0.02 for both maps.)

Legend: R latent rows, T tokens, S sites (documents), E dimensions, L blocks, M slots, D width, Hkv key/value heads, dh head
width.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor, nn

from latentlm.backbone.init import normal_
from latentlm.config import Strict
from latentlm.interface import BlockCondition, Condition, Context, Injection, Latent, Prefix, Shape


class GaussianMemoryConfig(Strict):
    """Optimus's injection by default."""

    scheme: Literal["both", "memory", "embedding"] = Field("both", description="where z enters; both is Optimus's default")
    slots: int | None = Field(None, ge=1, description="memory slots per block; default: 1 (Optimus)")
    shared: bool | None = Field(None, description="one vector is a slot's key and its value (Optimus's code); default: true")
    init_std: float | None = Field(None, gt=0, description="of both maps; default: by the scale of what they are added to")
    word_dropout: float = Field(0.0, ge=0, le=1, description="share of the tokens that the decoder does not see in training")

    @model_validator(mode="after")
    def _slots_of_a_memory(self) -> Self:
        if self.scheme == "embedding" and (self.slots, self.shared) != (None, None):
            raise ValueError('slots and shared belong to the memory, but scheme is "embedding": drop them.')
        return self


class GaussianMemory(Injection):
    """One linear map to a slot of every block, another to the embedding."""

    Config = GaussianMemoryConfig
    family = "real"
    granularities = ("document",)

    def __init__(self, config: GaussianMemoryConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        assert shape.backbone.kv_heads is not None
        assert shape.backbone.head_dim is not None
        by_memory, by_embedding = config.scheme != "embedding", config.scheme != "memory"
        self.blocks = tuple(range(shape.blocks)) if by_memory else (0,)
        self.slots = (("prefix",) if by_memory else ()) + (("embedding",) if by_embedding or config.word_dropout else ())
        self.count, self.streams = config.slots or 1, 1 if config.shared is not False else 2
        size = shape.blocks * self.streams * self.count * shape.backbone.kv_heads * shape.backbone.head_dim
        self.memory = nn.Linear(shape.latent.dims, size, bias=False) if by_memory else None
        self.embedding = nn.Linear(shape.latent.dims, shape.width, bias=False) if by_embedding else None
        self.unknown = nn.Parameter(torch.empty(shape.width)) if config.word_dropout else None

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Maps by scale (module docstring), the unknown word like an embedding."""
        std = self.shape.backbone.init_std
        unit = self.shape.latent.dims**-0.5
        if self.embedding is not None:
            normal_(self.embedding.weight, std=self.config.init_std or std * unit, generator=generator)
        if self.memory is not None:
            slot = std * self.shape.width**0.5 * unit
            normal_(self.memory.weight, std=self.config.init_std or slot, generator=generator)
        if self.unknown is not None:
            normal_(self.unknown, std=std, generator=generator)

    def forward(self, latent: Latent, context: Context) -> Condition:
        """Slots of every block and what is added to the embeddings, (R, T, D)."""
        added = None
        if self.embedding is not None:
            rows = self.embedding(latent.value.to(self.embedding.weight.dtype))  # (R, S, D)
            added = context.at_positions(rows)
        if self.unknown is not None and self.training and latent.noise is not None:
            dropped = self._dropped(latent, context)
            added = dropped if added is None else added + dropped
        return Condition(self._slots(latent, context), embedding=added)

    def _slots(self, latent: Latent, context: Context) -> dict[int, BlockCondition]:
        """The memory of every block. The slots of a site are seen by the document that it stands for."""
        if self.memory is None:
            return {}
        seen_by = context.seen_by(self.count)  # (R, S M)
        vectors = self.memory(latent.value.to(self.memory.weight.dtype))
        each = rearrange(
            vectors,
            "r s (l kv m h d) -> l kv r h (s m) d",
            l=self.shape.blocks,
            kv=self.streams,
            m=self.count,
            h=self.shape.backbone.kv_heads,
        )
        return {block: BlockCondition(prefix=Prefix(each[block, 0], each[block, -1], seen_by)) for block in self.blocks}

    def _dropped(self, latent: Latent, context: Context) -> Tensor:
        """What turns the embeddings of dropped tokens into the unknown word's, zero elsewhere: (R, T, D)."""
        assert latent.noise is not None
        assert self.unknown is not None
        stream = latent.noise.stream("word dropout")
        uniform = stream.uniform(context.tokens.shape[1], 1, device=context.tokens.device)  # (R, T, 1)
        dropped = (uniform < self.config.word_dropout) & (context.positions > 0)[..., None]
        return torch.where(dropped, self.unknown - context.taps[0], 0.0)
