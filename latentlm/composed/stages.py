"""Stages of a forward pass: the trunk is free of z and runs once per text; a part that reads a block above an earlier latent's
injection waits until that latent is known.

    unrun                no block yet: the embedding, and where sites lie
    trunk                blocks below the lowest injection of any latent
    raised(k, latents)   the blocks from there up to k, under the latents known so far, for their rows
    view                 a context as one part of one latent is to see it

A decoder of one latent has one stage: no part of it reads a block above its own injection.

Legend: B rows, R latent rows, T tokens, D width, E event dimensions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from torch import Tensor

from latentlm.backbone import KVCache, Mask, Rotation, Transformer, rotation
from latentlm.composed.sockets import Sockets, needs
from latentlm.errors import PluginError, UserError
from latentlm.interface import (
    Batch,
    BlockCondition,
    Condition,
    Context,
    Latents,
    SiteMap,
    assign_sites,
    merged,
    owned,
    site_mask,
)
from latentlm.interface.granularity import Token

if TYPE_CHECKING:
    from latentlm.config import ModelConfig


class Staged(Protocol):
    """What the stages need of a decoder."""

    config: ModelConfig
    backbone: Transformer
    latents: Mapping[str, Sockets]
    cut: int
    prompt_both_ways: ClassVar[bool]

    @property
    def taps(self) -> frozenset[int]:
        """Taps that some part reads."""


def unrun(decoder: Staged, batch: Batch) -> Context:
    """The context of a batch before any block has run: the embedding, and where the sites of every latent lie."""
    maps = {name: _sites(latent, batch) for name, latent in decoder.latents.items()}
    given = batch.given if batch.given is not None else batch.inputs.new_zeros(batch.inputs.shape[0])
    own = next(iter(maps.values())) if len(maps) == 1 else _no_sites(batch)
    return Context(
        tokens=batch.inputs,
        taps={0: decoder.backbone.embedding(batch.inputs)},  # (B, T, D)
        positions=batch.positions,
        documents=batch.documents,
        site_of=own.site_of,
        site_mask=own.mask,
        given=given,
        maps=maps if len(maps) > 1 else {},
        single=batch.single,
    )


def _sites(latent: Sockets, batch: Batch) -> SiteMap:
    """Where a latent's sites lie. One token has one site, whatever the granularity."""
    if batch.inputs.shape[1] == 1:
        return SiteMap(torch.zeros_like(batch.inputs), batch.documents >= 0)
    known = None if batch.sites is None else batch.sites.get(latent.name)
    site_of, sites = assign_sites(latent.granularity, batch.inputs, batch.documents, batch.positions, sites=known)
    if isinstance(latent.granularity, Token):
        return SiteMap(site_of, batch.documents >= 0)
    return SiteMap(site_of, site_mask(site_of, batch.documents, sites))


def _no_sites(batch: Batch) -> SiteMap:
    """Of a decoder without latents, and of one with several as a whole: an index that is none."""
    none = batch.documents.new_zeros(batch.documents.shape[0], 0, dtype=torch.bool)
    return SiteMap(torch.full_like(batch.inputs, -1), none)


def trunk(
    decoder: Staged, context: Context, cache: KVCache | None, conditions: Mapping[int, BlockCondition] | None = None
) -> Context:
    """The context, which has the embedding alone, with the blocks below the first injected one run, under conditions that are
    free of z."""
    mask, turn = _mask(decoder, context, cache)
    _, taps = decoder.backbone.run(
        context.taps[0],
        start=0,
        stop=decoder.cut,
        mask=mask,
        rotation=turn,
        conditions=conditions,
        cache=cache,
        taps=decoder.taps,
    )
    return replace(context, taps={**context.taps, **taps})


def upper(decoder: Staged, context: Context, latents: Latents, cache: KVCache | None) -> Tensor:
    """The blocks that are left, under all latents, and the final norm: (R, T, D). Rows are the latents'."""
    made = conditions(decoder, context, latents, cache)
    start = decoder.cut if context.reach is None else context.reach
    x, _ = run(decoder, context, made, start, decoder.config.backbone.blocks, cache)
    out: Tensor = decoder.backbone.norm(x)
    for condition in made.values():
        out = out if condition.logit_bias is None else out + condition.logit_bias
    return out


def rows_like(context: Context, latents: Latents) -> Context:
    """The context with each row repeated to match the latents' rows (row b*K + k is context row b)."""
    if not latents or latents.rows == context.rows:
        return context
    assert latents.rows % context.rows == 0, "latent rows must be a multiple of the context's rows"
    repeats = latents.rows // context.rows
    rows = torch.arange(context.rows, device=context.tokens.device).repeat_interleave(repeats)
    # The taps are the bulk of a context and most parts never read them again: repeat them on demand only.
    wide = replace(context, taps={}).select(rows)
    return replace(wide, taps=SelectedTaps(context.taps, rows), single=context.single)


class SelectedTaps(Mapping[int, Tensor]):
    """Rows of taps, gathered when they are read."""

    def __init__(self, taps: Mapping[int, Tensor], rows: Tensor) -> None:
        self._taps, self._rows = taps, rows

    def __getitem__(self, tap: int) -> Tensor:
        return self._taps[tap].index_select(0, self._rows)

    def __iter__(self) -> Iterator[int]:
        return iter(self._taps)

    def __len__(self) -> int:
        return len(self._taps)


def view(decoder: Staged, context: Context, name: str, socket: str, latents: Latents, cache: KVCache | None = None) -> Context:
    """The context as a part sees it: sites of its own latent, the blocks that it reads, the values that its `above` names.
    Rows are the latents' where the part depends on any of them, else the context's own."""
    if len(decoder.latents) == 1:
        return context  # one stage, one view
    highest, depends = needs(decoder.latents, name, socket)
    if not depends:
        return context.of(name)
    if missing := [other for other in depends if other not in latents]:
        raise UserError(f"The {socket} of {name} depends on {' and '.join(missing)}: give their latents with it.")
    known = Latents({other: latents[other] for other in decoder.latents if other in depends})
    wide = raised(decoder, rows_like(context, known), highest, latents, cache)
    above = {other: wide.of(other).at_positions(latents[other].value) for other in decoder.latents[name].above_of(socket)}
    return replace(wide.of(name), above=above)


def conditions(
    decoder: Staged, context: Context, latents: Latents, cache: KVCache | None, *, wanted: Collection[str] | None = None
) -> dict[str, Condition]:
    """What each latent adds (of those that are wanted); those that the context has already are not made again, nor what the
    cache holds."""
    made = dict(context.made)
    for name, sockets in decoder.latents.items():
        if name in latents and (wanted is None or name in wanted) and name not in made and not _held(sockets, cache):
            seen = view(decoder, context, name, "injection", latents)
            condition: Condition = sockets.injection(latents[name], rows_like(seen, latents))
            _check_blocks(sockets, condition)
            made[name] = condition if len(decoder.latents) == 1 else owned(condition, name)
    return made


def _check_blocks(sockets: Sockets, condition: Condition) -> None:
    """Refuse what would have no effect: a condition on a block, or on the embedding, that the injection does not declare."""
    injection = sockets.injection
    if outside := [block for block in condition.blocks if block not in injection.blocks]:
        raise PluginError(
            f"{sockets.called('injection')} ({type(injection).__name__}) conditions blocks {outside}, but declares `blocks` as "
            f"{injection.blocks}: declare every block that it conditions."
        )
    if condition.embedding is not None and "embedding" not in injection.slots:
        raise PluginError(
            f"{sockets.called('injection')} ({type(injection).__name__}) conditions the embedding, but declares `slots` as "
            f'{injection.slots}: add "embedding".'
        )


def _held(sockets: Sockets, cache: KVCache | None) -> bool:
    """Whether the cache holds all that the injection would make: prefixes and memory slots are made with the prompt."""
    if cache is None or cache.start == 0 or sockets.shape.granularity != "document":
        return False
    return set(sockets.injection.slots) <= {"prefix", "cross"}


def raised(decoder: Staged, context: Context, block: int, latents: Latents, cache: KVCache | None = None) -> Context:
    """The context with the blocks below `block` run, under latents of the context's rows, and their taps."""
    start = decoder.cut if context.reach is None else context.reach
    if start >= block:
        return context
    entering = [name for name in latents if decoder.latents[name].changes(block)]
    made = conditions(decoder, context, latents, cache, wanted=entering)
    x, kept = run(decoder, context, made, start, block, cache)
    return replace(context, taps={**context.taps, **kept, block: x}, reach=block, made=made)


def run(
    decoder: Staged, context: Context, made: Mapping[str, Condition], start: int, stop: int, cache: KVCache | None
) -> tuple[Tensor, dict[int, Tensor]]:
    """Blocks start .. stop-1 over the stream that the context has there, (R, T, D), and the taps above `start`."""
    whole = merged([made[name] for name in decoder.latents if name in made])
    x = context.taps[start]
    if start == 0 and whole.embedding is not None:
        x = x + whole.embedding
    mask, turn = _mask(decoder, context, cache)
    x, kept = decoder.backbone.run(
        x,
        start=start,
        stop=stop,
        mask=mask,
        rotation=turn,
        conditions=whole.blocks,
        cache=cache,
        taps=[tap for tap in decoder.taps if start < tap <= stop] if len(decoder.latents) > 1 else (),
    )
    return x, kept


def _mask(decoder: Staged, context: Context, cache: KVCache | None) -> tuple[Mask, Rotation]:
    """Who sees whom in the pass under way."""
    if cache is not None:
        assert cache.mask is not None
        assert cache.rotation is not None
        return cache.mask, cache.rotation
    # A single document without padding needs no document mask; `before` contexts have a mask of their own.
    prompt = context.given if decoder.prompt_both_ways else None
    mask = Mask(context.documents, context.documents, plain=context.one_document_a_row(), given=prompt)
    return mask, rotation(decoder.config.backbone, context.positions)
