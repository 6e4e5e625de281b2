"""Thought vectors as the memory of a cross-attention in every block (Kong et al. 2025, section 2.1).

    layered   z = (z_1 .. z_L): block l reads its own M vectors z_l         (the paper)
    shared    every block reads the same M vectors                          (ours)

    x <- x + selfattention(norm(x));   x <- x + crossattention(norm(x), z_l);   x <- x + feedforward(norm(x))

The paper counts N_z vectors in all: 24 in LTM-Small and LTM-Medium, 96 in LTM-Large. With the 3, 6 and 12 blocks that reproduce
its parameter counts (38M, 51M, 76M, embedding included) that is M = 8, 4 and 8 a block. Each vector is as wide as the model
(512, appendix A.1). Where a vector's place among the M comes from the paper does not say (`positions`).

Legend: R latent rows, S sites (documents), E = all dimensions of a document, L blocks, M slots of a block, C width of a vector.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from einops import rearrange, repeat
from pydantic import Field, field_validator
from torch import nn

from latentlm.backbone import CrossAttention, Rotation, rotation
from latentlm.backbone.init import normal_
from latentlm.config import Strict
from latentlm.errors import UserError, did_you_mean
from latentlm.interface import BlockCondition, Condition, Context, Injection, Latent, Shape

Positions = Literal["rotary", "learned", "none"]


class ThoughtInjectionConfig(Strict):
    """How many vectors, and who reads which."""

    slots: int = Field(8, ge=1, description="M: vectors that a block reads; 8 in LTM-Small and LTM-Large, 4 in LTM-Medium")
    shared: bool = Field(False, description="every block reads the same vectors (ours); default: each its own (the paper)")
    positions: Positions = Field(
        "rotary",
        description="what tells the slots of a block apart: rotary (the authors' code: slot m stands at position "
        "m * (context // M) of the document), learned (a vector added to each), none (nothing but the noise of the fit)",
    )

    @field_validator("positions", mode="before")
    @classmethod
    def _known_positions(cls, value: Any) -> Any:
        known = ("rotary", "learned", "none")
        if value not in known:
            raise ValueError(f'unknown positions "{value}".{did_you_mean(str(value), known)} Available: {", ".join(known)}.')
        return value

    def vectors(self, blocks: int) -> int:
        """N_z: the thought vectors of a document in a decoder of so many blocks."""
        return self.slots * (1 if self.shared else blocks)


class ThoughtInjection(Injection):
    """One cross-attention layer per block over the thought vectors of the position's document."""

    Config = ThoughtInjectionConfig
    slots = ("cross",)
    family = "real"
    granularities = ("document",)

    def __init__(self, config: ThoughtInjectionConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        self.blocks = tuple(range(shape.blocks))
        vectors = config.vectors(shape.blocks)
        if shape.latent.dims % vectors:
            raise UserError(
                f"the latent's dimensions ({shape.latent.dims}) are no multiple of the {vectors} thought vectors "
                f"({config.slots} slots{'' if config.shared else f' in each of {shape.blocks} blocks'}): "
                f"set them to {vectors} times the width of a vector, or leave them out for vectors of the model's width."
            )
        width = shape.latent.dims // vectors
        rotary = config.positions == "rotary"
        self.layers = nn.ModuleList(CrossAttention(shape.backbone, memory_width=width, rotary=rotary) for _ in self.blocks)
        if config.positions == "learned":
            self.places = nn.Parameter(torch.empty(vectors, width))

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Outputs like those of the other sub-layers, scaled by 1 / sqrt(2 L); places like an embedding."""
        std = self.shape.backbone.init_std
        for layer in self._layers():
            normal_(layer.output.weight, std=std * (2 * self.shape.blocks) ** -0.5, generator=generator)
        if self.config.positions == "learned":
            normal_(self.places, std=std, generator=generator)

    def forward(self, latent: Latent, context: Context) -> Condition:
        """Memory slots of every block: those of site s are read by the document that s stands for."""
        weight = next(self._layers()).key.weight
        vectors = rearrange(latent.value.to(weight), "r s (n c) -> r s n c", n=self.config.vectors(self.shape.blocks))
        if self.config.positions == "learned":
            vectors = vectors + self.places
        memories = rearrange(vectors, "r s (l m) c -> l r (s m) c", m=self.config.slots)  # l is 1 where shared
        readers, places = context.seen_by(self.config.slots), self._places(context)
        blocks = {}
        for block, layer in zip(self.blocks, self._layers(), strict=True):
            memory = memories[0 if self.config.shared else block]
            blocks[block] = BlockCondition(cross=layer.memory(memory, readers, rotation=places))
        return Condition(blocks)

    def _layers(self) -> Iterator[CrossAttention]:
        for layer in self.layers:
            assert isinstance(layer, CrossAttention)
            yield layer

    def _places(self, context: Context) -> Rotation | None:
        """Angles of the slots, which are spread evenly over the context."""
        if self.config.positions != "rotary":
            return None
        slots, length = self.config.slots, self.shape.backbone.context
        places = torch.arange(slots, device=context.tokens.device) * max(1, length // slots)
        return rotation(self.shape.backbone, repeat(places, "m -> 1 (s m)", s=context.sites))
