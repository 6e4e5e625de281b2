"""What goes into a decoder: a batch of texts, and the context that the trunk makes of it.

Legend: B rows, T tokens, D width, S latent sites. Indices are those of `latentlm.interface`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from latentlm.errors import UserError
from latentlm.interface.conditions import Condition
from latentlm.interface.moving import moved

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
    sites: Mapping[str, int] | None = None
    """S of each latent, where it was counted while the batch lay on the CPU (`LatentDecoder.counted`): a GPU would wait."""
    single: bool | None = None
    """Whether every row is one document without padding; None: not looked at. Known as `sites` is."""

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
        return self._map(lambda tensor: moved(tensor, device))

    def select(self, rows: Tensor) -> Batch:
        """The given rows, in that order."""
        return replace(self._map(lambda tensor: tensor.index_select(0, rows)), sites=None, single=self.single or None)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with every tensor changed alike."""
        return Batch(
            inputs=change(self.inputs),
            targets=change(self.targets),
            documents=change(self.documents),
            positions=change(self.positions),
            target_mask=change(self.target_mask),
            given=None if self.given is None else change(self.given),
            sites=self.sites,
            single=self.single,
        )


@dataclass(frozen=True)
class Stems:
    """Which rows of a batch begin alike, so that what is made of a beginning is made once.

    Example::

        stems = Stems(torch.tensor([0, 0, 2]), torch.tensor([5, 5, 3]))  # rows 0 and 1 share their first 5 tokens
        assert stems.within(torch.tensor([4, 5, 3])).lengths.tolist() == [4, 4, 3]
    """

    first: Tensor
    """(B,) long: the earliest row that begins as this one does; its own number where there is none before it."""
    lengths: Tensor
    """(B,) long: tokens of the beginning, the same for all rows of one `first`, at most those of each."""
    parent: Stems | None = None
    """How the beginnings themselves begin, one for each `first`, in rising order. Of tokens alone, not of latents."""

    @property
    def spared(self) -> int:
        """Tokens that need not run: those of beginnings that an earlier row has."""
        index = torch.arange(len(self.first), device=self.first.device)
        return int(self.lengths[self.first != index].sum())

    def within(self, lengths: Tensor) -> Stems:
        """Shorter beginnings, without a parent: none longer than `lengths` (B,) says for any of its rows."""
        least = self.lengths.scatter_reduce(0, self.first, lengths, reduce="amin")
        return Stems(self.first, torch.minimum(self.lengths, least)[self.first])

    def select(self, rows: Tensor) -> Stems:
        """Of some rows, in rising order, without a parent."""
        chosen = self.first[rows]
        index = torch.arange(len(rows), device=rows.device)
        earliest = torch.full_like(self.first, len(self.first)).scatter_reduce(0, chosen, index, reduce="amin")
        return Stems(earliest[chosen], self.lengths[rows])


@dataclass(frozen=True)
class SiteMap:
    """Where the sites of one latent lie."""

    site_of: Tensor
    """(B, T) long: index of the site that conditions each position (some index below S at padding, where it means nothing)."""
    mask: Tensor
    """(B, S) bool: sites that condition at least one real position."""

    def before(self, documents: Tensor) -> SiteMap:
        """The map with some positions hidden, from documents (B, T) in which they are padding."""
        return SiteMap(self.site_of, site_mask(self.site_of, documents, self.mask.shape[1]))

    def select(self, rows: Tensor) -> SiteMap:
        """The given rows."""
        return SiteMap(self.site_of.index_select(0, rows), self.mask.index_select(0, rows))


@dataclass(frozen=True)
class Context:
    """What the trunk saw: the z-free part of a forward pass, which encoders, priors and injections read.

    The trunk is causal, so hiding later tokens (`before`) changes the masks only and the trunk is not run again.

    A part sees the context of its own latent: `site_of`, `site_mask` and what follows from them are that latent's. In a
    decoder of several latents, `of(name)` is one latent's view; that of the decoder as a whole belongs to none: no sites.

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
    above: Mapping[str, Tensor] = field(default_factory=dict)
    """{name: (B, T, E)}: of each latent that the part names in `above`, the value open at each position. A prior's site reads
    it at its own first position (`at_first_positions`); an encoder may read all of it."""
    maps: Mapping[str, SiteMap] = field(default_factory=dict)
    """The sites of every latent, in a decoder of several."""
    single: bool | None = None
    """Whether every row is one document without padding, where the batch knew; `one_document_a_row` asks."""
    reach: int | None = None
    """The block whose incoming stream is the last that was computed; None: the end of the trunk. The frame's own."""
    made: Mapping[str, Condition] = field(default_factory=dict)
    """Conditions under which the blocks up to `reach` ran. The frame's own."""

    def of(self, name: str) -> Context:
        """The same context as the parts of one latent see it."""
        if not self.maps:
            return self
        return replace(self, site_of=self.maps[name].site_of, site_mask=self.maps[name].mask)

    def sites_of(self, name: str) -> SiteMap:
        """Where the sites of one latent lie."""
        return self.maps[name] if self.maps else SiteMap(self.site_of, self.site_mask)

    @property
    def rows(self) -> int:
        """B."""
        return self.tokens.shape[0]

    @property
    def sites(self) -> int:
        """S."""
        return self.site_mask.shape[1]

    def one_document_a_row(self) -> bool:
        """Whether every row is one document without padding, and attention needs no mask of documents."""
        return one_document_a_row(self.documents) if self.single is None else self.single

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

    def at_positions(self, x: Tensor) -> Tensor:
        """x (R, S, D) of the site that is open at each position: (R, T, D)."""
        return x.gather(1, self.site_of[..., None].expand(-1, -1, x.shape[-1]))

    def site_means(self, x: Tensor) -> Tensor:
        """Mean of x (B, T, D) over the real positions of each site: (B, S, D); zero where there is none."""
        real = (self.documents >= 0).to(x.dtype)[..., None]  # (B, T, 1)
        index = self.site_of[..., None]
        sums = x.new_zeros(x.shape[0], self.sites, x.shape[-1]).scatter_add(1, index.expand_as(x), x * real)
        counts = real.new_zeros(x.shape[0], self.sites, 1).scatter_add(1, index, real)
        return sums / counts.clamp(min=1)

    def seen_by(self, slots: int) -> Tensor:
        """(R, S * M) long: the document that sees each of the M `slots` of each site, -1 where the site is padding; what a
        prefix or a memory says. Blocks that share it share their mask."""
        first = self.first_positions().clamp(max=self.tokens.shape[1] - 1)  # (R, S)
        documents = self.documents.gather(1, first).masked_fill(~self.site_mask, PADDING)
        return documents.repeat_interleave(slots, dim=1)

    def before(self, lengths: Tensor) -> Context:
        """Hide from encoders and priors everything at row positions >= lengths (B,). The taps stay: they are causal."""
        index = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        hidden = index[None, :] >= lengths[:, None]
        documents = self.documents.masked_fill(hidden, PADDING)
        own = self.site_mask if self.sites == 0 else site_mask(self.site_of, documents, self.sites)
        maps = {name: sites.before(documents) for name, sites in self.maps.items()}
        return replace(self, documents=documents, site_mask=own, maps=maps, single=None)

    def select(self, rows: Tensor) -> Context:
        """The given rows, in that order; rows may repeat. What was made for the old rows is not kept."""
        return Context(
            tokens=self.tokens.index_select(0, rows),
            taps={k: tap.index_select(0, rows) for k, tap in self.taps.items()},
            positions=self.positions.index_select(0, rows),
            documents=self.documents.index_select(0, rows),
            site_of=self.site_of.index_select(0, rows),
            site_mask=self.site_mask.index_select(0, rows),
            given=self.given.index_select(0, rows),
            above={name: value.index_select(0, rows) for name, value in self.above.items()},
            maps={name: sites.select(rows) for name, sites in self.maps.items()},
            reach=self.reach,
            single=self.single or None,
        )


def one_document_a_row(documents: Tensor) -> bool:
    """Whether documents (B, T) are one in each row, without padding. On a GPU, the processor waits for the answer."""
    return bool((documents == 0).all())


def site_mask(site_of: Tensor, documents: Tensor, sites: int) -> Tensor:
    """(B, S) bool: which sites condition a real position, from site_of (B, T) and documents (B, T)."""
    counts = torch.zeros(site_of.shape[0], sites, dtype=torch.long, device=site_of.device)
    return counts.scatter_add(1, site_of, (documents >= 0).long()) > 0
