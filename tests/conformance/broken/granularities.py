"""Granularities with one bug each, and one that is right.

Legend: B rows, T tokens, S sites, E bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from conformance.broken.right import Settings
from latentlm.interface import Granularity, from_previous


class Pairs(Granularity):
    """A site behind every two equal tokens: right."""

    Config = Settings
    lookback = 1

    def begins(self, tokens: Tensor, positions: Tensor, documents: Tensor) -> Tensor:
        """(B, T) bool."""
        return (self.small(tokens) & from_previous(self.small(tokens), positions, documents)) | (positions == 0)

    def small(self, tokens: Tensor) -> Tensor:
        """A third of the vocabulary."""
        return tokens % 3 == 0


class LooksAhead(Pairs):
    """Begins a site before the token that should begin it."""

    def begins(self, tokens: Tensor, positions: Tensor, documents: Tensor) -> Tensor:
        return self.small(tokens.roll(-1, dims=1)) | (positions == 0)


class ShortLookback(Pairs):
    """Reads one token more than it says."""

    lookback = 0


class AcrossDocuments(Pairs):
    """Reads the last token of the document before."""

    def begins(self, tokens: Tensor, positions: Tensor, documents: Tensor) -> Tensor:
        before = torch.cat((torch.zeros_like(tokens[:, :1]), tokens[:, :-1]), dim=1)
        return (positions <= 1) & self.small(before.roll(1, dims=1)) | (positions == 0)


class FromTheRow(Pairs):
    """Counts from the row's beginning, not from the document's."""

    lookback = 0

    def begins(self, tokens: Tensor, positions: Tensor, documents: Tensor) -> Tensor:
        place = torch.arange(tokens.shape[1]).expand_as(tokens)
        return (place % 4 == 0) | (positions == 0)


class NotAtFirst(Pairs):
    """Leaves a document's first position to the frame."""

    def begins(self, tokens: Tensor, positions: Tensor, documents: Tensor) -> Tensor:
        return self.small(tokens) & from_previous(self.small(tokens), positions, documents)
