"""One vector per site from the states of its positions.

    first        the state at the site's first position (paper, section 4.1)
    attention    sum_t a_t x_t, a = softmax over the site's positions of w . x_t (the authors' code, which squashes w . x_t by a
                 GELU and lets padding take part; neither is done here)
    mean         the average (ours)

Legend: B rows, T tokens, S sites, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from latentlm.interface import Context


def first_states(x: Tensor, context: Context) -> Tensor:
    """(B, T, D) -> (B, S, D); anything at sites without a real position."""
    first = context.first_positions().clamp(max=x.shape[1] - 1)
    return x.gather(1, first[..., None].expand(-1, -1, x.shape[-1]))


def mean_states(x: Tensor, context: Context) -> Tensor:
    """(B, T, D) -> (B, S, D), zero at sites without a real position."""
    return _weighted(x, (context.documents >= 0).to(x.dtype), context)


def attended_states(x: Tensor, query: Tensor, context: Context) -> Tensor:
    """(B, T, D) and w (D,) -> (B, S, D), zero at sites without a real position."""
    real = context.documents >= 0
    scores = (x @ query.to(x.dtype)).masked_fill(~real, float("-inf"))  # (B, T)
    floor = torch.full((x.shape[0], context.sites), float("-inf"), dtype=x.dtype, device=x.device)
    # (B, S): without gradient, since a softmax does not depend on it.
    highest = floor.scatter_reduce(1, context.site_of, scores.detach(), reduce="amax")
    relative = torch.where(real, scores - highest.gather(1, context.site_of), 0.0)
    return _weighted(x, relative.exp() * real, context)


def _weighted(x: Tensor, weights: Tensor, context: Context) -> Tensor:
    """Mean of x (B, T, D) over each site's positions with weights (B, T), zero outside the documents."""
    index = context.site_of
    sums = x.new_zeros(x.shape[0], context.sites, x.shape[-1])
    sums = sums.scatter_add(1, index[..., None].expand_as(x), x * weights[..., None])
    totals = x.new_zeros(x.shape[0], context.sites).scatter_add(1, index, weights)
    return sums / torch.where(totals > 0, totals, 1.0)[..., None]
