"""The key/value cache of generation: one buffer per block, columns shared by all rows.

Prompts of unequal length are padded on the right; new tokens go into the columns after the padding, and the document numbers
(-1 in the holes) keep the padding out of sight.

Prefixes and memory slots are kept per block and latent. Those of a document are made once, with the prompt. A prefix with
`since` grows: in later passes the slots of the sites that begin there join those before. The slots of a block's prefixes lie in
front of its columns, in one buffer, which attention reads as it lies. Passes write in place: no gradient goes through several.

Legend: B rows, Hkv key/value heads, C columns, M prefix slots, dh head width.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

from latentlm.backbone.attention import Mask
from latentlm.backbone.rotary import Rotation
from latentlm.interface import PADDING, Cross, Prefix, listed

_Key: TypeAlias = tuple[str, int]
"""A latent's name and a number among its prefixes (or memories) of one block."""
_Slots = TypeVar("_Slots", Prefix, Cross)


class KVCache:
    """Keys and values of the columns fed so far. Grows by doubling beyond `capacity`."""

    static = False
    """Nothing in it changes its shape, and no number of it is known before its time."""

    def __init__(self, blocks: int, *, capacity: int) -> None:
        self.capacity = max(1, capacity)
        self.start = 0
        """First column of the pass under way."""
        self.length = 0
        """Columns in use, the pass under way included."""
        self.plain = True
        """No row has a hole."""
        self.mask: Mask | None = None
        """Of the pass under way, over all columns: the trunk and the blocks above it share one."""
        self.rotation: Rotation | None = None
        """Of the pass under way."""
        self.prefixes: dict[int, dict[_Key, Prefix]] = {}
        self.crosses: dict[int, dict[_Key, Cross]] = {}
        self.kept: dict[str, Tensor] = {}
        """(B, ...) each: what else a decoder keeps of its rows from pass to pass, under names of its own."""
        self._begins: dict[str, Tensor] = {}  # of the pass under way
        self._joins: dict[tuple[str, tuple[int, ...]], _Join] = {}  # of the pass under way: blocks share who sees a prefix
        self._documents: Tensor | None = None  # (B, capacity)
        self._keys: list[Tensor | None] = [None] * blocks
        self._values: list[Tensor | None] = [None] * blocks
        self._fronts: list[tuple[Prefix, ...]] = [()] * blocks  # whose slots lie in front of a block's columns
        self._parent: tuple[Tensor, KVCache] | None = None  # of a branch: its rows, and whose

    @property
    def documents(self) -> Tensor | None:
        """(B, C) long, -1 in holes."""
        return None if self._documents is None else self._documents[:, : self.length]

    def columns(self) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values of each block, (B, Hkv, M + C, dh), behind those of its prefixes."""
        held = zip([*self._keys, *self._values], self._fronts * 2, strict=True)
        seen = [each.narrow(2, 0, _slots(front) + self.length) for each, front in held if each is not None]
        assert len(seen) == 2 * len(self._keys), "every block has run"
        return seen[: len(self._keys)], seen[len(self._keys) :]

    def extend(self, documents: Tensor, *, rotation: Rotation, plain: bool, given: Tensor | None = None) -> None:
        """Begin a pass over new columns: their document numbers (B, T), whether each row goes on without a hole, and how many
        of the first pass's columns see one another both ways (B,), none by default."""
        self.start, self.length = self.length, self.length + documents.shape[1]
        while self.capacity < self.length:
            self.capacity *= 2
        self._documents = _written(self._documents, documents, start=self.start, capacity=self.capacity, dim=1)
        self.plain = self.plain and plain
        given = given if self.start == 0 else None
        self.mask = Mask(documents, self._documents[:, : self.length], start=self.start, plain=self.plain, given=given)
        self.rotation = rotation
        self._begins, self._joins = {}, {}

    def begin(self, owner: str, rows: Tensor) -> None:
        """Say in which rows (B,) bool the first position of the pass under way begins a new site of the latent `owner`. Whoever
        feeds tokens after the prompt says so before the blocks run, for each latent whose prefixes have `since`."""
        self._begins[owner] = rows

    def update(self, block: int, key: Tensor, value: Tensor, prefixes: tuple[Prefix, ...] = ()) -> tuple[Tensor, Tensor]:
        """Write the pass's keys and values (B, Hkv, T, dh) of a block; return those of all columns, behind the slots of the
        block's prefixes."""
        front_key, front_value = [prefix.key for prefix in prefixes], [prefix.value for prefix in prefixes]
        if self._parent is not None:
            rows, held = self._parent
            behind = _slots(held._fronts[block])
            return (
                held._joined(held._keys[block], rows, key, behind, front_key),
                held._joined(held._values[block], rows, value, behind, front_value),
            )
        assert self.start == 0 or self._keys[block] is not None, "a state that went along a text goes on so (step_along)"
        had = self._fronts[block]
        if len(had) == len(prefixes) and all(map(operator.is_, had, prefixes)):
            front_key = front_value = []  # they lie there
        where = {"start": self.start, "capacity": self.capacity, "behind": _slots(had)}
        keys = self._keys[block] = _written(self._keys[block], key, front_key, **where)
        values = self._values[block] = _written(self._values[block], value, front_value, **where)
        self._fronts[block] = prefixes
        seen = _slots(prefixes) + self.length
        return keys.narrow(2, 0, seen), values.narrow(2, 0, seen)

    def _joined(self, held: Tensor | None, rows: Tensor, new: Tensor, behind: int, front: list[Tensor]) -> Tensor:
        """Some rows of the columns in a buffer, which lie behind so many slots, between slots and new columns."""
        assert held is not None
        slots = [each.to(new.dtype) for each in front]
        return torch.cat((*slots, held.narrow(2, behind, self.length).index_select(0, rows), new), dim=2)

    def prefix(self, block: int, made: Prefix | tuple[Prefix, ...] | None) -> tuple[Prefix, ...]:
        """The prefixes of a block, those made in passes before included."""
        if made is None:  # the common case, at every block and token
            return tuple(self.prefixes[block].values()) if block in self.prefixes else ()
        held = self.prefixes.setdefault(block, {})
        for key, prefix in _keyed(listed(made)):
            if key not in held:
                assert prefix.since is None or self.start == 0, "a prefix that grows begins with the prompt"
                held[key] = prefix
            elif prefix.since is not None:
                held[key] = self._grown(held[key], prefix)
        return tuple(held.values())

    def cross(self, block: int, made: Cross | tuple[Cross, ...] | None) -> tuple[Cross, ...]:
        """The memory slots of a block, made once, with the prompt; later passes find them here."""
        if made is None:
            return tuple(self.crosses[block].values()) if block in self.crosses else ()
        held = self.crosses.setdefault(block, {})
        for key, cross in _keyed(listed(made)):
            held.setdefault(key, cross)
        return tuple(held.values())

    def _grown(self, held: Prefix, made: Prefix) -> Prefix:
        """`held` and the slots in `made` of the sites that begin in the pass under way."""
        join = self._join(held, made)
        if join.order is None:
            return held
        order = join.order[:, None, :, None]  # (B, 1, M, 1)
        key = torch.cat((held.key, made.key.to(held.key.dtype)), dim=2).take_along_dim(order, dim=2)
        value = torch.cat((held.value, made.value.to(held.value.dtype)), dim=2).take_along_dim(order, dim=2)
        return replace(held, key=key, value=value, documents=join.documents, since=join.since)

    def _join(self, held: Prefix, made: Prefix) -> _Join:
        """Who sees the slots of `held` and the new ones of `made`. Rows begin sites at different steps: each keeps its live
        slots in front, so that M is the most that a row has, not one for each step at which any row begins a site."""
        assert held.since is not None, "a prefix that grows begins with `since`"
        assert made.since is not None
        kept = (held.documents, held.since, made.documents, made.since)
        key = (made.owner, tuple(id(tensor) for tensor in kept))
        if key not in self._joins:
            assert made.owner in self._begins, f'say which rows begin a site of latent "{made.owner}" (KVCache.begin)'
            # The pass may go on with a site that began before it: its slots are held already.
            new = self._begins[made.owner][:, None] | (made.since > 0)
            begun = made.documents.masked_fill(~new, PADDING)
            if not bool((begun >= 0).any()):
                self._joins[key] = _Join(None, held.documents, held.since, kept)
            else:
                documents = torch.cat((held.documents, begun), dim=1)
                since = torch.cat((held.since, made.since + self.start), dim=1)
                dead = documents < 0
                most = int((~dead).sum(1).max())
                order = dead.long().argsort(dim=1, stable=True)[:, :most]  # (B, M): live slots first, in their order
                self._joins[key] = _Join(order, documents.gather(1, order), since.gather(1, order), kept)
        return self._joins[key]

    def select(self, rows: Tensor) -> KVCache:
        """The given rows, in that order, as a cache of its own."""
        chosen = self._without_columns(rows)
        chosen._keys = [None if keys is None else keys.index_select(0, rows) for keys in self._keys]
        chosen._values = [None if values is None else values.index_select(0, rows) for values in self._values]
        return chosen

    def resample(self, rows: Tensor) -> KVCache:
        """As `select`, of as many rows as there are, in place: columns are copied where a row becomes another. This cache is
        used up."""
        chosen = self._without_columns(rows)
        changed = (rows != torch.arange(len(rows), device=rows.device)).nonzero()[:, 0]
        for buffer, front in zip((*self._keys, *self._values), self._fronts * 2, strict=True):
            if buffer is not None:
                filled = buffer.narrow(2, 0, _slots(front) + self.length)
                filled.index_copy_(0, changed, filled.index_select(0, rows[changed]))
        chosen._keys, chosen._values = self._keys, self._values
        return chosen

    def drop(self, blocks: Iterable[int]) -> None:
        """Forget the columns of blocks that do not run again."""
        for block in blocks:
            self._keys[block] = self._values[block] = None
            self._fronts[block] = ()

    def branch(self, rows: Tensor) -> KVCache:
        """The given rows for one pass, of which nothing is kept: each block's rows are picked when it runs, so that those of
        all blocks never lie in memory together."""
        chosen = self._without_columns(rows)
        chosen._parent = (rows, self)
        return chosen

    def _without_columns(self, rows: Tensor) -> KVCache:
        """The given rows, but for their keys and values."""
        chosen = KVCache(len(self._keys), capacity=self.capacity)
        chosen.start, chosen.length, chosen.plain = self.start, self.length, self.plain
        chosen._documents = None if self._documents is None else self._documents.index_select(0, rows)
        chosen.kept = {name: tensor.index_select(0, rows) for name, tensor in self.kept.items()}
        picked: dict[int, tuple[Tensor, Tensor]] = {}

        def pick(tensor: Tensor) -> Tensor:
            """Once for each tensor: blocks that share who sees a prefix go on sharing a mask."""
            if id(tensor) not in picked:
                picked[id(tensor)] = (tensor, tensor.index_select(0, rows))
            return picked[id(tensor)][1]

        def same(slots: _Slots) -> _Slots:
            return replace(slots, key=pick(slots.key), value=pick(slots.value), documents=pick(slots.documents))

        def since(prefix: Prefix) -> Prefix:
            return prefix if prefix.since is None else replace(prefix, since=pick(prefix.since))

        chosen.prefixes = {block: {key: since(same(one)) for key, one in held.items()} for block, held in self.prefixes.items()}
        chosen.crosses = {block: {key: same(one) for key, one in held.items()} for block, held in self.crosses.items()}
        chosen._fronts = [tuple(chosen.prefixes[block].values()) if front else () for block, front in enumerate(self._fronts)]
        return chosen


class _Join(NamedTuple):
    """Which slots of two prefixes to keep, and who sees them."""

    order: Tensor | None
    """(B, M) long: where each slot lies in both, side by side; None: all of the first, none of the second."""
    documents: Tensor
    """(B, M)."""
    since: Tensor
    """(B, M)."""
    kept: tuple[Tensor, ...]
    """The tensors by whose identity this is found."""


def _keyed(slots: tuple[_Slots, ...]) -> Iterator[tuple[_Key, _Slots]]:
    """Slots with their latent's name and their number among that latent's."""
    if len(slots) == 1:
        yield (slots[0].owner, 0), slots[0]
        return
    met: Counter[str] = Counter()
    for each in slots:
        yield (each.owner, met[each.owner]), each
        met[each.owner] += 1


def _slots(prefixes: tuple[Prefix, ...]) -> int:
    """How many there are in all."""
    return sum(prefix.key.shape[2] for prefix in prefixes)


def _written(
    buffer: Tensor | None,
    new: Tensor,
    front: Sequence[Tensor] = (),
    *,
    start: int,
    capacity: int,
    behind: int = 0,
    dim: int = 2,
) -> Tensor:
    """Write `new` at column `start` of a buffer of at least `capacity` columns along `dim`, behind the slots of `front`, or
    where it is empty those that are there: so far the columns lie `behind` so many."""
    slots = sum(each.shape[dim] for each in front) if front else behind
    if buffer is None or behind != slots or buffer.shape[dim] < slots + capacity:
        shape = list(new.shape)
        shape[dim] = slots + capacity
        grown = new.new_empty(shape)
        if buffer is not None:
            grown.narrow(dim, slots, start).copy_(buffer.narrow(dim, behind, start))
            if not front:
                grown.narrow(dim, 0, slots).copy_(buffer.narrow(dim, 0, slots))
        buffer = grown
    if front:
        buffer.narrow(dim, 0, slots).copy_(torch.cat(list(front), dim=dim))
    buffer.narrow(dim, slots + start, new.shape[dim]).copy_(new)
    return buffer
