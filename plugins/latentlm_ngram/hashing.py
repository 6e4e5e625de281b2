"""From the last n tokens to a row of a table: a hash of multiplications and exclusive ors, the same on every device.

    h = n;  h = ((h ^ id) 16777619) mod 2^32   for each id, the oldest first
    h = ((h ^ (h >> 16)) 2146121005) mod 2^32;  h = h ^ (h >> 15);  row = h mod rows

n begins the hash, so that 2-grams and 3-grams that share rows lie apart. All factors are below 2^31 and h below 2^32: no
product leaves int64. What lies before a document's first token has an id of its own, V.

Legend: B rows of a batch, T tokens, m tokens looked back at, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LOW = 2**32 - 1
_STEP = 16777619
_MIX = 2146121005


def hashed(windows: Tensor, rows: int) -> Tensor:
    """The table row of each n-gram: (..., n) long, the newest token last -> (...) long, 0 .. rows-1."""
    order = windows.shape[-1]
    found = torch.full_like(windows[..., 0], order)
    for place in range(order):
        found = ((found ^ windows[..., place]) * _STEP) & _LOW
    found = ((found ^ (found >> 16)) * _MIX) & _LOW
    return (found ^ (found >> 15)) % rows


def windows_of(tokens: Tensor, positions: Tensor, before: Tensor, *, outside: int) -> Tensor:
    """The tokens that end at each position: (B, T, m + 1), from tokens (B, T), their positions in the document and the m tokens
    before (B, m). What lies before the document is `outside`."""
    back = before.shape[1]
    windows = torch.cat((before, tokens), dim=1).unfold(1, back + 1, 1)  # (B, T, m + 1)
    age = torch.arange(back, -1, -1, device=tokens.device)
    return windows.masked_fill(age > positions[..., None], outside)


def newest(tokens: Tensor, documents: Tensor, before: Tensor) -> Tensor:
    """The last m tokens of each row after a pass: (B, m). Padding, -1 in documents (B, T), is on the right."""
    fed = (documents >= 0).sum(1, keepdim=True)  # (B, 1)
    place = fed + torch.arange(before.shape[1], device=tokens.device)
    return torch.cat((before, tokens), dim=1).gather(1, place)
