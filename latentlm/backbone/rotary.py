"""Rotary position embedding (Su et al., RoFormer, 2021), plain or with Llama-3's frequency scaling.

Half-split convention: dimension i of a head is paired with i + dh/2, as in the released Llama weights.

Legend: B rows, T tokens, H heads, dh head width.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from latentlm.config import BackboneConfig, RopeScaling


class Rotation(NamedTuple):
    """Cosines and sines of every position's angles, (B, 1, T, dh), for both halves of a head."""

    cos: Tensor
    sin: Tensor
    """Negative in the first half, whose partner is subtracted."""

    def apply(self, x: Tensor) -> Tensor:
        """Rotate x (B, H, T, dh)."""
        partner = x.roll(x.shape[-1] // 2, dims=-1)
        return x * self.cos.to(x.dtype) + partner * self.sin.to(x.dtype)


def frequencies(config: BackboneConfig, *, device: torch.device) -> Tensor:
    """Angular frequency of each pair of dimensions, (dh/2,) float32. Not to be written to."""
    assert config.head_dim is not None
    make = _frequencies.__wrapped__ if torch.compiler.is_compiling() else _frequencies  # a compiled graph keeps its own
    return make(config.head_dim, config.rope_base, config.rope_scaling, device)


@lru_cache(maxsize=64)
def _frequencies(head_dim: int, base: float, scaling: RopeScaling | None, device: torch.device) -> Tensor:
    """Made once: in generation they would be made anew for every token."""
    exponents = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim
    plain = base**-exponents
    return plain if scaling is None else _scaled(plain, scaling)


def _scaled(plain: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama-3: slow frequencies divided by `factor`, fast ones kept, a linear blend between."""
    turns = scaling.original_context * plain / (2.0 * math.pi)  # full turns within the original context
    span = scaling.high_freq_factor - scaling.low_freq_factor
    kept = ((turns - scaling.low_freq_factor) / span).clamp(0.0, 1.0)
    return kept * plain + (1.0 - kept) * plain / scaling.factor


def rotation(config: BackboneConfig, positions: Tensor) -> Rotation:
    """Angles of positions (B, T), in float32 whatever the model's dtype."""
    angles = positions[:, None, :, None].float() * frequencies(config, device=positions.device)  # (B, 1, T, dh/2)
    cos, sin = angles.cos(), angles.sin()
    return Rotation(torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1))
