"""Encoders of one code per chunk: q(z_s | x).

    chunk_codes   (ours)    pooled_s -> logits of all 2^H codes, or of H independent bits
    fsq           (Mentzer et al. 2023, section 3, on a pooled chunk)    pooled_s -> E numbers -> bounded, rounded

Legend: B rows, S sites, D width, H bits, E dimensions.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from latentlm.backbone import wide_linear
from latentlm.errors import UserError
from latentlm.interface import Bits, Codes, Context, Objective, Shape
from latentlm_chunk.grid import LevelCounts, grid_of
from latentlm_chunk.point import PointLevels
from latentlm_chunk.tower import ChunkEncoder, ChunkEncoderConfig

MOST_BITS = 12


def check_bits(bits: int, part: str) -> None:
    """Refuse a table of too many codes. Raises UserError."""
    if bits > MOST_BITS:
        raise UserError(f"{part} writes down all 2^{bits} codes; set event_dims to at most {MOST_BITS}.")


class ChunkCodesConfig(ChunkEncoderConfig):
    """Which family of distributions over the codes."""

    family: Literal["codes", "bits"] = Field("codes", description="one categorical over 2^H codes, or H independent bits")


class ChunkCodes(ChunkEncoder):
    """A code of H bits for each chunk."""

    Config = ChunkCodesConfig
    config: ChunkCodesConfig
    family = "bits"

    def __init__(self, config: ChunkCodesConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        check_bits(shape.latent.dims, "chunk_codes")
        outputs = 2**shape.latent.dims if config.family == "codes" else shape.latent.dims
        self.readout = nn.Linear(shape.width, outputs)

    def forward(self, context: Context, objective: Objective | None = None) -> Codes | Bits:
        """(B, S, H)."""
        logits = wide_linear(self.pooled(context), self.readout)
        return Codes(logits) if self.config.family == "codes" else Bits(logits)


class FsqConfig(ChunkEncoderConfig):
    """The grid."""

    levels: LevelCounts | None = Field(
        None, description="levels of each dimension, whose number is event_dims; default: the paper's for that number"
    )
    pays: bool = Field(True, description="under a learned prior, the KL has a gradient for the encoder (ours)")


class FsqEncoder(ChunkEncoder):
    """A point of the grid for each chunk."""

    Config = FsqConfig
    config: FsqConfig
    family = "levels"

    def __init__(self, config: FsqConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        self.grid = grid_of(config.levels, shape.latent.dims, "The encoder fsq")
        self.readout = nn.Linear(shape.width, self.grid.dims)

    def forward(self, context: Context, objective: Objective | None = None) -> PointLevels:
        """(B, S, E)."""
        raw = wide_linear(self.pooled(context), self.readout)
        return PointLevels(raw, self.grid, pays=self.config.pays)
