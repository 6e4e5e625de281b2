"""One discrete code per chunk of tokens, uniform or with a learned causal prior, and finite scalar quantisation (FSQ;
Mentzer et al. 2023, arXiv 2309.15505) as an alternative code.

    decoder    chunk           ComposedDecoder with the parts below in its sockets                                  ours
    encoder    chunk_codes     one non-causal block, pooled per chunk, a categorical over 2^H codes (or H bits)     ours
               fsq             the same network, bounded and rounded to a grid                                      FSQ's
    prior      causal_codes    categorical over 2^H codes given the text and the codes before                       ours
               causal_levels   the same for the grid                                                                ours
               uniform_levels  every code of the grid equally likely                                                ours
    injection  chunk_codes     a table of codes into a slot of choice, with the exact straight-through gradient      ours
               fsq             a linear map of the quantised vector into a slot of choice                           ours

The uniform prior over bit codes is `uniform_bits` of the plugin `free`; it goes with the parts of kind "bits".
"""

from __future__ import annotations

from typing import ClassVar

from latentlm.composed import ComposedDecoder
from latentlm.config import ModelConfig, PartSpec
from latentlm.plugins import hookimpl
from latentlm_chunk.encoder import ChunkCodes, FsqEncoder
from latentlm_chunk.injection import CodeInjection, LevelsInjection
from latentlm_chunk.prior import CausalCodes, CausalLevels, UniformLevels

latentlm_contract = 2

_ON_GRID = {"encoder": ("fsq",), "prior": ("causal_levels", "uniform_levels"), "injection": ("fsq",)}


class ChunkDecoder(ComposedDecoder):
    """A code of 8 bits for each 8 tokens; with one part of FSQ named, the others and the dimensions follow."""

    defaults: ClassVar[dict[str, PartSpec]] = {
        "encoder": PartSpec(name="chunk_codes"),
        "prior": PartSpec(name="causal_codes"),
        "injection": PartSpec(name="chunk_codes"),
        "kl_schedule": PartSpec.model_validate({"name": "free_bits", "bits": 2.0}),
    }
    grid_defaults: ClassVar[dict[str, PartSpec]] = {
        "encoder": PartSpec(name="fsq"),
        "prior": PartSpec(name="causal_levels"),
        "injection": PartSpec(name="fsq"),
        "kl_schedule": PartSpec.model_validate({"name": "constant", "weight": 1.0}),
    }

    @classmethod
    def complete(cls, config: ModelConfig) -> ModelConfig:
        """Fill the open sockets, chunk:8, and the number of bits or of levels."""
        sockets = {socket: getattr(config, socket) for socket in _ON_GRID}
        grid = any(spec is not None and spec.name in _ON_GRID[socket] for socket, spec in sockets.items())
        defaults = cls.grid_defaults if grid else cls.defaults
        given = {socket: getattr(config, socket) for socket in defaults}
        filled = {socket: spec if given[socket] is None else given[socket].over(spec) for socket, spec in defaults.items()}
        event_dims = config.event_dims or 8
        if grid:
            levels = _levels(filled)
            event_dims = config.event_dims or (len(levels) if levels else 3)
            for socket in ("encoder", "prior"):
                if levels and filled[socket].name in _ON_GRID[socket] and filled[socket].settings.get("levels") is None:
                    filled[socket] = PartSpec(**(filled[socket].model_dump() | {"levels": levels}))
        granularity = config.granularity if "granularity" in config.model_fields_set else "chunk:8"
        return config.model_copy(update={**filled, "event_dims": event_dims, "granularity": granularity})


def _levels(specs: dict[str, PartSpec]) -> list[int] | None:
    """The encoder's, else the prior's, if they are named."""
    for socket in ("encoder", "prior"):
        levels = specs[socket].settings.get("levels")
        if isinstance(levels, list | tuple):  # what is no list the part's own check refuses
            return list(levels)
    return None


@hookimpl
def latentlm_parts() -> dict[str, dict[str, type]]:
    """The parts of this plugin."""
    return {
        "decoder": {"chunk": ChunkDecoder},
        "encoder": {"chunk_codes": ChunkCodes, "fsq": FsqEncoder},
        "prior": {"causal_codes": CausalCodes, "causal_levels": CausalLevels, "uniform_levels": UniformLevels},
        "injection": {"chunk_codes": CodeInjection, "fsq": LevelsInjection},
    }
