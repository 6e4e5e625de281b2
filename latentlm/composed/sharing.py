"""Rows that begin alike: the beginning of each stem runs once, and the rest of every row goes on from its keys and values.

    context   the trunk's taps, of texts with the same first tokens
    hidden    the upper blocks' output, of latent rows whose latents over those tokens are the same too

Both are two passes through one cache: the stems, of Q rows, then what is left of the B rows. A row's rest stands in the columns
after the stems' padding, as a generation's tokens do. Stems that begin alike themselves are such rows in turn.

Legend: B rows, Q stems, T tokens, D width, N positions, S sites, E event dimensions, K samples, R = B*K.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from latentlm.backbone import KVCache, rotation
from latentlm.composed import stages
from latentlm.interface import PADDING, Batch, Context, Latent, Latents, SiteMap, Stems, site_mask


class Decoder(stages.Staged, Protocol):
    """What sharing needs of a decoder: passes that go on from a cache."""

    def context(self, batch: Batch, cache: KVCache | None = None) -> Context:
        """The trunk."""

    def hidden(self, context: Context, latents: Latents, cache: KVCache | None = None) -> Tensor:
        """The blocks above it."""


def context(decoder: Decoder, batch: Batch, stems: Stems) -> Context:
    """The context of a batch whose rows begin alike."""
    return replace(stages.unrun(decoder, batch), taps=_taps(decoder, batch, stems)[0])


def _taps(decoder: Decoder, batch: Batch, stems: Stems | None) -> tuple[Mapping[int, Tensor], KVCache]:
    """The trunk's taps of whole rows, and the keys and values to go on from."""
    if stems is None:
        cache = KVCache(decoder.config.backbone.blocks, capacity=batch.inputs.shape[1])
        return decoder.context(batch, cache).taps, cache
    cut = _Cut.of(stems, batch.documents)
    beginnings, cache = _taps(decoder, cut.beginnings(batch), stems.parent)
    cache = cache.select(cut.stem)
    rests = decoder.context(cut.rests(batch), cache).taps
    return {tap: cut.joined(beginnings[tap], rest) for tap, rest in rests.items()}, cache


def hidden(decoder: Decoder, context: Context, latents: Latents, positions: Tensor, stems: Stems) -> Tensor:
    """The upper blocks' output at the positions (B, N), none before the last of its stem: (R, N, D)."""
    samples = latents.rows // context.rows
    parts, order = [], []
    # What a document's prefix holds is made with the first tokens: rows that share none go by themselves.
    for rows, run in ((stems.lengths.nonzero()[:, 0], _shared), ((stems.lengths == 0).nonzero()[:, 0], _alone)):
        if len(rows):
            order.append(_latent_rows(rows, samples))
            own = latents.select(order[-1])
            parts.append(run(decoder, context.select(rows), own, positions[rows], stems.select(rows)))
    return torch.cat(parts)[torch.cat(order).argsort()]


def _alone(decoder: Decoder, context: Context, latents: Latents, positions: Tensor, stems: Stems) -> Tensor:
    """Without sharing."""
    found = decoder.hidden(context, latents)
    place = _times(positions, latents.rows // context.rows)
    return found.gather(1, place[..., None].expand(-1, -1, found.shape[-1]))


def _shared(decoder: Decoder, context: Context, latents: Latents, positions: Tensor, stems: Stems) -> Tensor:
    """Stems first, then the rests."""
    cut, samples = _Cut.of(stems, context.documents), latents.rows // context.rows
    cache = KVCache(decoder.config.backbone.blocks, capacity=cut.width + cut.left)
    every = torch.arange(context.rows, device=positions.device)
    stem_rows = _latent_rows(cut.stem, samples)
    stem = _Part.of(
        decoder, context, cut.firsts, torch.zeros_like(cut.firsts), width=cut.width, ends=cut.lengths[cut.firsts]
    )
    beginnings = stem.passed(decoder, latents.select(_latent_rows(cut.firsts, samples)), cache)  # (Q*K, width, D)
    rest = _Part.of(decoder, context, every, cut.lengths, width=cut.left, ends=cut.ends)
    rests = rest.passed(decoder, latents, cache.branch(stem_rows))  # (R, left, D)
    newest = (cut.lengths - 1)[cut.firsts].repeat_interleave(samples)[:, None, None]
    newest = beginnings.gather(1, newest.expand(-1, -1, beginnings.shape[-1]))[stem_rows]  # (R, 1, D)
    found = torch.cat((newest, rests), dim=1)
    place = (positions - cut.lengths[:, None] + 1).clamp(min=0)  # (B, N); what stands at padding means nothing
    return found.gather(1, _times(place, samples)[..., None].expand(-1, -1, found.shape[-1]))


@dataclass(frozen=True)
class _Cut:
    """Where the rows of a batch part from their stems."""

    firsts: Tensor
    """(Q,) long: the row that stands for each stem."""
    stem: Tensor
    """(B,) long: of each row."""
    lengths: Tensor
    """(B,) long: tokens of the row's stem."""
    ends: Tensor
    """(B,) long: tokens of the row."""
    width: int
    """Columns of the stems, one at least."""
    left: int
    """Columns of the rests, one at least."""

    @classmethod
    def of(cls, stems: Stems, documents: Tensor) -> _Cut:
        """From the rows' documents (B, T)."""
        firsts, stem = stems.first.unique(return_inverse=True)
        ends = (documents >= 0).sum(1)
        width, left = max(1, int(stems.lengths.max())), max(1, int((ends - stems.lengths).max()))
        return cls(firsts, stem, stems.lengths, ends, width, left)

    def beginnings(self, batch: Batch) -> Batch:
        """The stems as a batch of Q rows."""
        return _columns(batch.select(self.firsts), torch.zeros_like(self.firsts), self.width, self.lengths[self.firsts])

    def rests(self, batch: Batch) -> Batch:
        """What is left of each row."""
        return _columns(batch, self.lengths, self.left, self.ends)

    def joined(self, beginnings: Tensor, rests: Tensor) -> Tensor:
        """(Q, width, D) and (B, left, D) as whole rows: (B, T, D), T that of the longest."""
        place = torch.arange(int(self.ends.max()), device=rests.device)[None]
        behind = self.width + (place - self.lengths[:, None]).clamp(max=self.left - 1)
        place = torch.where(place < self.lengths[:, None], place, behind)  # (B, T)
        both = torch.cat((beginnings[self.stem], rests), dim=1)
        return both.gather(1, place[..., None].expand(-1, -1, both.shape[-1]))


def _columns(batch: Batch, starts: Tensor, width: int, ends: Tensor) -> Batch:
    """So many columns of each row from `starts` (B,) on; those from `ends` (B,) on are padding."""
    index, hidden = _index(starts, width, ends, batch.inputs.shape[1])
    inputs, positions = batch.inputs.gather(1, index), batch.positions.gather(1, index)
    documents = batch.documents.gather(1, index).masked_fill(hidden, PADDING)
    return Batch(inputs, inputs, documents, positions, documents >= 0, given=batch.given)


def _index(starts: Tensor, width: int, ends: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Columns (B, width) of rows that have `most`, and which of them are padding."""
    index = starts[:, None] + torch.arange(width, device=starts.device)
    return index.clamp(max=most - 1), index >= ends[:, None]


@dataclass(frozen=True)
class _Part:
    """Some columns of a context, as a context of their own, and where the latents' sites in it begin."""

    context: Context
    bases: Mapping[str, Tensor]
    """(B,) long, by latent: the site that is open at the first column."""
    begins: Mapping[str, Tensor]
    """(B,) bool, by latent: that site begins there."""

    @classmethod
    def of(
        cls, decoder: Decoder, whole: Context, rows: Tensor, starts: Tensor, *, width: int, ends: Tensor
    ) -> _Part:
        """Of some rows the columns from `starts` on; those from `ends` on are padding."""
        context = replace(whole, taps={}, made={}).select(rows)
        index, hidden = _index(starts, width, ends, whole.tokens.shape[1])
        documents = context.documents.gather(1, index).masked_fill(hidden, PADDING)
        maps: dict[str, SiteMap] = {}
        bases: dict[str, Tensor] = {}
        begins: dict[str, Tensor] = {}
        for name in decoder.latents:
            site_of = context.sites_of(name).site_of
            base = site_of.gather(1, index[:, :1])
            before = site_of.gather(1, (starts - 1).clamp(min=0)[:, None])
            bases[name], begins[name] = base[:, 0], (starts == 0) | (base != before)[:, 0]
            moved = (site_of.gather(1, index) - base).clamp(min=0).masked_fill(hidden, 0)
            maps[name] = SiteMap(moved, site_mask(moved, documents, int(moved.max()) + 1))
        own = next(iter(maps.values())) if len(maps) == 1 else SiteMap(context.site_of.gather(1, index), context.site_mask)
        return cls(
            replace(
                context,
                tokens=context.tokens.gather(1, index),
                taps={
                    tap: x[rows].gather(1, index[..., None].expand(-1, -1, x.shape[-1])) for tap, x in whole.taps.items()
                },
                positions=context.positions.gather(1, index),
                documents=documents,
                site_of=own.site_of,
                site_mask=own.mask,
                maps=maps if len(maps) > 1 else {},
                single=None,
            ),
            bases,
            begins,
        )

    def passed(self, decoder: Decoder, latents: Latents, cache: KVCache) -> Tensor:
        """Run the upper blocks, after what the cache holds, under the latents of the whole rows: (R, width, D)."""
        samples = latents.rows // self.context.rows
        own = Latents({name: Latent(self._values(name, latent.value, samples)) for name, latent in latents.items()})
        wide = stages.rows_like(self.context, own)
        turn = rotation(decoder.config.backbone, wide.positions)
        cache.extend(wide.documents, rotation=turn, plain=wide.one_document_a_row())
        for name, begins in self.begins.items():
            cache.begin(name if len(self.begins) > 1 else "", _times(begins, samples))
        return decoder.hidden(wide, own, cache)

    def _values(self, name: str, value: Tensor, samples: int) -> Tensor:
        """Those of the part's sites: (R, S, E) -> (R, S', E)."""
        sites = self.context.sites_of(name).mask.shape[1]
        index = _times(self.bases[name], samples)[:, None] + torch.arange(sites, device=value.device)
        return value.gather(1, index.clamp(max=value.shape[1] - 1)[..., None].expand(-1, -1, value.shape[-1]))


def _latent_rows(rows: Tensor, samples: int) -> Tensor:
    """The latent rows of all samples of some rows."""
    return (rows[:, None] * samples + torch.arange(samples, device=rows.device)).flatten()


def _times(rows: Tensor, samples: int) -> Tensor:
    """Each row once for each sample."""
    return rows.repeat_interleave(samples, dim=0)
