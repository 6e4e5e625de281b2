"""What a prior may read.

Legend: B rows, T tokens, S sites, D width (of anything).
"""

from __future__ import annotations

from torch import Tensor

from latentlm.interface import Context


def at_first_token(x: Tensor, context: Context) -> Tensor:
    """x (B, T, D) at the latest position that the prior of each site may see: its first, or the prompt's last: (B, S, D)."""
    last_given = (context.given - 1)[:, None]
    seen = context.first_positions().maximum(last_given).clamp(max=x.shape[1] - 1)  # (B, S)
    return x.gather(1, seen[..., None].expand(-1, -1, x.shape[-1]))
