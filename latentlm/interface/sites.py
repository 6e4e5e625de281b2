"""Latent sites: which site conditions which position, for each granularity.

`token`: one site per position. `chunk:n`: n consecutive positions of a document share a site. `document`: one site each.

Legend: B rows, T tokens, S sites.
"""

from __future__ import annotations

import torch
from torch import Tensor


def chunk_length(granularity: str) -> int | None:
    """n of `chunk:n`; 1 for `token`; None for `document`."""
    if granularity == "document":
        return None
    return 1 if granularity == "token" else int(granularity.removeprefix("chunk:"))


def begins_site(positions: Tensor, granularity: str) -> Tensor:
    """Whether the token at each position within its document begins a new site; bool, shaped like positions."""
    length = chunk_length(granularity)
    return positions == 0 if length is None else positions % length == 0


def assign_sites(documents: Tensor, positions: Tensor, granularity: str) -> tuple[Tensor, int]:
    """site_of (B, T) and S, from documents (B, T, -1 = padding) and positions (B, T) within the documents.

    Sites are numbered in each row from 0, in the order of the text. At padding the index is below S and means nothing."""
    rows, length = documents.shape
    if granularity == "token":
        return torch.arange(length, device=documents.device).expand(rows, -1), length
    starts = begins_site(positions, granularity) & (documents >= 0)
    site_of = (starts.long().cumsum(dim=1) - 1).clamp(min=0).masked_fill(documents < 0, 0)
    return site_of, int(site_of.max()) + 1
