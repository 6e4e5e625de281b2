"""The key/value cache of generation: one buffer per block, columns shared by all rows.

Prompts of unequal length are padded on the right; new tokens go into the columns after the padding, and the document numbers
(-1 in the holes) keep the padding out of sight.

Legend: B rows, Hkv key/value heads, C columns, M prefix slots, dh head width.
"""

from __future__ import annotations

from torch import Tensor

from latentlm.backbone.attention import Mask
from latentlm.backbone.rotary import Rotation
from latentlm.interface import Cross, Prefix


class KVCache:
    """Keys and values of the columns fed so far. Grows by doubling beyond `capacity`."""

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
        self.prefixes: dict[int, Prefix] = {}
        self.crosses: dict[int, Cross] = {}
        self._documents: Tensor | None = None  # (B, capacity)
        self._keys: list[Tensor | None] = [None] * blocks
        self._values: list[Tensor | None] = [None] * blocks

    @property
    def documents(self) -> Tensor | None:
        """(B, C) long, -1 in holes."""
        return None if self._documents is None else self._documents[:, : self.length]

    def extend(self, documents: Tensor, *, rotation: Rotation, plain: bool) -> None:
        """Begin a pass over new columns: their document numbers (B, T), and whether each row goes on without a hole."""
        self.start, self.length = self.length, self.length + documents.shape[1]
        while self.capacity < self.length:
            self.capacity *= 2
        self._documents = _written(self._documents, documents, self.start, self.capacity, dim=1)
        self.plain = self.plain and plain
        self.mask = Mask(documents, self._documents[:, : self.length], start=self.start, plain=self.plain)
        self.rotation = rotation

    def update(self, block: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write the pass's keys and values (B, Hkv, T, dh) of a block; return those of all columns."""
        keys = self._keys[block] = _written(self._keys[block], key, self.start, self.capacity, dim=2)
        values = self._values[block] = _written(self._values[block], value, self.start, self.capacity, dim=2)
        return keys.narrow(2, 0, self.length), values.narrow(2, 0, self.length)

    def prefix(self, block: int, made: Prefix | None) -> Prefix | None:
        """The prefix of a block: made once, with the prompt; later passes find it here."""
        return self.prefixes.get(block) if made is None else self.prefixes.setdefault(block, made)

    def cross(self, block: int, made: Cross | None) -> Cross | None:
        """The memory slots of a block, likewise."""
        return self.crosses.get(block) if made is None else self.crosses.setdefault(block, made)

    def select(self, rows: Tensor) -> KVCache:
        """The given rows, in that order, as a cache of its own."""
        chosen = KVCache(len(self._keys), capacity=self.capacity)
        chosen.start, chosen.length, chosen.plain = self.start, self.length, self.plain
        chosen._documents = None if self._documents is None else self._documents.index_select(0, rows)
        chosen._keys = [None if keys is None else keys.index_select(0, rows) for keys in self._keys]
        chosen._values = [None if values is None else values.index_select(0, rows) for values in self._values]
        for block, prefix in self.prefixes.items():
            picked = (tensor.index_select(0, rows) for tensor in (prefix.key, prefix.value, prefix.documents))
            chosen.prefixes[block] = Prefix(*picked)
        for block, cross in self.crosses.items():
            picked = (tensor.index_select(0, rows) for tensor in (cross.key, cross.value, cross.documents))
            chosen.crosses[block] = Cross(cross.layer, *picked)
        return chosen


def _written(buffer: Tensor | None, new: Tensor, start: int, capacity: int, *, dim: int) -> Tensor:
    """Write `new` at column `start` of a buffer of at least `capacity` columns, which lie along `dim`."""
    if buffer is None or buffer.shape[dim] < capacity:
        shape = list(new.shape)
        shape[dim] = capacity
        grown = new.new_empty(shape)
        if buffer is not None:
            grown.narrow(dim, 0, start).copy_(buffer.narrow(dim, 0, start))
        buffer = grown
    buffer.narrow(dim, start, new.shape[dim]).copy_(new)
    return buffer
