"""From positions to sites and back.

Legend: B rows, T tokens, S sites, D width (of anything).
"""

from __future__ import annotations

from torch import Tensor

from latentlm.interface import Context


def site_means(x: Tensor, context: Context) -> Tensor:
    """Mean of x (B, T, D) over the real positions of each site: (B, S, D); zero where there is none."""
    real = (context.documents >= 0).to(x.dtype)[..., None]  # (B, T, 1)
    index = context.site_of[..., None]
    sums = x.new_zeros(x.shape[0], context.sites, x.shape[-1]).scatter_add(1, index.expand_as(x), x * real)
    counts = real.new_zeros(x.shape[0], context.sites, 1).scatter_add(1, index, real)
    return sums / counts.clamp(min=1)


def at_positions(x: Tensor, context: Context) -> Tensor:
    """x (B, S, D) of each position's own site: (B, T, D)."""
    return x.gather(1, context.site_of[..., None].expand(-1, -1, x.shape[-1]))


def at_first_token(x: Tensor, context: Context) -> Tensor:
    """x (B, T, D) at the latest position that the prior of each site may see: its first, or the prompt's last: (B, S, D)."""
    last_given = (context.given - 1)[:, None]
    seen = context.first_positions().maximum(last_given).clamp(max=x.shape[1] - 1)  # (B, S)
    return x.gather(1, seen[..., None].expand(-1, -1, x.shape[-1]))
