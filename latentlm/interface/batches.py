"""What goes into a decoder: a batch of texts, and the context that the trunk makes of it.

Legend: B rows, T tokens, D width, S latent sites. Indices are those of `latentlm.interface`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from latentlm.errors import UserError

PADDING = -1
"""Document number of a padding position."""


@dataclass(frozen=True)
class Batch:
    """Packed or padded text. Across a document's end the target is end-of-text, never the next document.

    Shapes: every tensor (B, T) but `given` (B,), the number of prompt tokens (0 = none).

    Example::

        batch = Batch.of([[256, 72, 105], [256, 72]])  # two documents, the second padded
        assert batch.documents.tolist() == [[0, 0, 0], [0, 0, -1]]
    """

    inputs: Tensor
    """Token consumed at each position, long."""
    targets: Tensor
    """Token to predict at each position, long; ignored where `target_mask` is false."""
    documents: Tensor
    """Document number within the row, rising from 0; -1 = padding. Long."""
    positions: Tensor
    """Position within the document, from 0. Long."""
    target_mask: Tensor
    """True where the target counts. Bool."""
    given: Tensor | None = None

    @classmethod
    def of(
        cls,
        inputs: Sequence[Sequence[int]],
        targets: Sequence[Sequence[int]] | None = None,
        *,
        given: Sequence[int] | None = None,
        device: torch.device | str | None = None,
    ) -> Batch:
        """One document per row, padded on the right to the longest. Without `targets`, they are the inputs shifted by one
        (the last position of each row then has none)."""
        if not inputs or any(len(row) == 0 for row in inputs):
            raise UserError("A batch needs at least one row and one token per row; start empty texts with end-of-text.")
        longest = max(len(row) for row in inputs)
        tokens = torch.zeros(len(inputs), longest, dtype=torch.long)
        goals = torch.zeros_like(tokens)
        documents = torch.full_like(tokens, PADDING)
        target_mask = torch.zeros_like(tokens, dtype=torch.bool)
        for row, text in enumerate(inputs):
            goal = list(targets[row]) if targets is not None else list(text[1:])
            tokens[row, : len(text)] = torch.tensor(list(text), dtype=torch.long)
            documents[row, : len(text)] = 0
            goals[row, : len(goal)] = torch.tensor(goal, dtype=torch.long)
            target_mask[row, : len(goal)] = True
        positions = torch.arange(longest).expand(len(inputs), -1).contiguous()
        prompt = None if given is None else torch.tensor(list(given), dtype=torch.long)
        return cls(tokens, goals, documents, positions, target_mask, prompt).to(device or "cpu")

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`."""
        return self._map(lambda tensor: tensor.to(device))

    def select(self, rows: Tensor) -> Batch:
        """The given rows, in that order."""
        return self._map(lambda tensor: tensor.index_select(0, rows))

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with every tensor changed alike."""
        return Batch(
            inputs=change(self.inputs),
            targets=change(self.targets),
            documents=change(self.documents),
            positions=change(self.positions),
            target_mask=change(self.target_mask),
            given=None if self.given is None else change(self.given),
        )


@dataclass(frozen=True)
class Context:
    """What the trunk saw: the z-free part of a forward pass, which encoders, priors and injections read.

    The trunk is causal, so hiding later tokens (`before`) changes the masks only and the trunk is not run again.

    Example::

        context = build(ModelConfig(decoder="free", event_dims=4)).context(Batch.of([[256, 72, 105, 33]]))
        early = context.before(torch.tensor([2]))  # what an encoder of the first two tokens may see
        assert early.documents.tolist() == [[0, 0, -1, -1]]
    """

    tokens: Tensor
    """(B, T) long."""
    taps: Mapping[int, Tensor]
    """{k: (B, T, D)}, the residual stream entering block k."""
    positions: Tensor
    """(B, T) long, restarting per document."""
    documents: Tensor
    """(B, T) long, -1 = padding."""
    site_of: Tensor
    """(B, T) long: index of the site that conditions each position (some index below S at padding, where it means nothing)."""
    site_mask: Tensor
    """(B, S) bool: sites that condition at least one real position."""
    given: Tensor
    """(B,) long: prompt tokens, 0 = none. A prior's site may see tokens up to max(its first position, given)."""

    @property
    def rows(self) -> int:
        """B."""
        return self.tokens.shape[0]

    @property
    def sites(self) -> int:
        """S."""
        return self.site_mask.shape[1]

    def first_positions(self) -> Tensor:
        """(B, S) long: index in the row of the first position that each site conditions (T where none does)."""
        rows, length = self.tokens.shape
        index = torch.arange(length, device=self.tokens.device).expand(rows, -1)
        index = index.masked_fill(self.documents < 0, length)
        first = torch.full((rows, self.sites), length, dtype=torch.long, device=self.tokens.device)
        return first.scatter_reduce(1, self.site_of, index, reduce="amin")

    def begins_document(self) -> Tensor:
        """(B, S) bool: no site of the same document lies before the site."""
        first = self.first_positions().clamp(max=self.tokens.shape[1] - 1)
        documents = self.documents.gather(1, first)
        begins = torch.ones_like(documents, dtype=torch.bool)
        begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
        return begins

    def at_first_positions(self, x: Tensor) -> Tensor:
        """x (B, T, D) at the first position that each site conditions: (B, S, D)."""
        first = self.first_positions().clamp(max=x.shape[1] - 1)
        return x.gather(1, first[..., None].expand(-1, -1, x.shape[-1]))

    def before(self, lengths: Tensor) -> Context:
        """Hide from encoders and priors everything at row positions >= lengths (B,). The taps stay: they are causal."""
        index = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        hidden = index[None, :] >= lengths[:, None]
        documents = self.documents.masked_fill(hidden, PADDING)
        return replace(self, documents=documents, site_mask=site_mask(self.site_of, documents, self.sites))

    def select(self, rows: Tensor) -> Context:
        """The given rows, in that order; rows may repeat."""
        return Context(
            tokens=self.tokens.index_select(0, rows),
            taps={k: tap.index_select(0, rows) for k, tap in self.taps.items()},
            positions=self.positions.index_select(0, rows),
            documents=self.documents.index_select(0, rows),
            site_of=self.site_of.index_select(0, rows),
            site_mask=self.site_mask.index_select(0, rows),
            given=self.given.index_select(0, rows),
        )


def site_mask(site_of: Tensor, documents: Tensor, sites: int) -> Tensor:
    """(B, S) bool: which sites condition a real position, from site_of (B, T) and documents (B, T)."""
    counts = torch.zeros(site_of.shape[0], sites, dtype=torch.long, device=site_of.device)
    return counts.scatter_add(1, site_of, (documents >= 0).long()) > 0
