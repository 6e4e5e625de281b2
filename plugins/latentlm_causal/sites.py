"""Where a site's prior reads the trunk. It may see tokens up to max(first position of the site, given - 1) of its document.

    own      the site's first position, always: what training, where nothing is given, has taught it to read
    prompt   the last of these tokens: a site inside a prompt reads the prompt's last token

Legend: B rows, R latent rows, T tokens, S sites, D width.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from latentlm.interface import Context

Reads = Literal["own", "prompt"]


def read_at(tap: Tensor, context: Context, reads: Reads) -> Tensor:
    """The stream tap (B, T, D) where the prior of each site reads it: (B, S, D)."""
    place = context.first_positions().clamp(max=tap.shape[1] - 1)  # (B, S)
    if reads == "prompt":
        ends = _ends(context.documents).gather(1, place)
        place = place.maximum((context.given - 1)[:, None].minimum(ends))
    return tap.gather(1, place[..., None].expand(-1, -1, tap.shape[-1]))


def _ends(documents: Tensor) -> Tensor:
    """(B, T): the last position of each position's document."""
    length = documents.shape[1]
    index = torch.arange(length, device=documents.device).expand_as(documents)
    is_last = torch.ones_like(documents, dtype=torch.bool)
    is_last[:, :-1] = documents[:, 1:] != documents[:, :-1]
    return index.masked_fill(~is_last, length).flip(1).cummin(1).values.flip(1)


class Prompt(NamedTuple):
    """What a step must know of the prompt to read like `prompt`, rows first."""

    fed: Tensor
    """(B,) tokens fed."""
    given: Tensor
    """(B,) tokens of the prompt."""
    last: Tensor
    """(B, D) stream at its last token."""

    @classmethod
    def of(cls, context: Context, tap: Tensor) -> Prompt:
        """After the tokens of `context`, whose stream is tap (B, T, D)."""
        index = (context.given - 1).clamp(min=0)[:, None, None].expand(-1, 1, tap.shape[-1])
        return cls((context.documents >= 0).sum(-1), context.given, tap.gather(1, index)[:, 0])

    def at(self, tap: Tensor) -> Tensor:
        """The stream to read at the token under way, whose own is tap (B, D)."""
        return torch.where((self.fed < self.given)[:, None], self.last, tap)

    def moved(self) -> Prompt:
        """One token later."""
        return self._replace(fed=self.fed + 1)
