"""Which blocks have a latent, and how the E event dimensions of a site divide into them: z = (z_1, ..., z_G), E = G p.

The authors' code has the same choice as a first and a last layer (paper, figure 2); a list says more.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from latentlm.config import Strict
from latentlm.errors import UserError
from latentlm.interface import Shape


class LayersConfig(Strict):
    """The setting that encoder, prior and injection share."""

    layers: list[int] | None = Field(None, description="blocks that have a latent, rising; default: all (the paper)")


def chosen_layers(layers: Sequence[int] | None, blocks: int) -> tuple[int, ...]:
    """The blocks, lowest first. Raises UserError where they are none, not rising, or not there."""
    chosen = tuple(range(blocks)) if layers is None else tuple(layers)
    if not chosen or list(chosen) != sorted(set(chosen)) or chosen[0] < 0 or chosen[-1] >= blocks:
        raise UserError(f"layers {list(chosen)} must be rising numbers of blocks, each from 0 to {blocks - 1}.")
    return chosen


def latent_size(event_dims: int, count: int) -> int:
    """p, the dimensions of each of `count` latents. Raises UserError where event_dims does not divide."""
    size, rest = divmod(event_dims, count)
    if rest or size == 0:
        near = max(1, round(event_dims / count)) * count
        raise UserError(
            f"the latent's dimensions ({event_dims}) must be a multiple of the {count} layers that have a latent each: set "
            f"them to {near}, or choose other `layers`."
        )
    return size


def layout(config: LayersConfig, shape: Shape) -> tuple[tuple[int, ...], int]:
    """The blocks that have a latent, and p."""
    layers = chosen_layers(config.layers, shape.blocks)
    return layers, latent_size(shape.latent.dims, len(layers))
