"""Tokens into batches: documents cut into windows, windows packed into rows, rows in a new order every epoch.

A document d_1..d_n is the sequence e d_1 .. d_n e, with e = end-of-text. Consecutive pairs of it are its n + 1 inputs and
targets:

    inputs   e   d_1 ... d_n
    targets  d_1 d_2 ... e

A document of more than T such pairs is cut into *windows* of T pairs (the last one shorter). A window after the first begins
with the token before it as its one token of context, and is a document of its own: positions start at 0 and nothing attends
across. This is also how long texts are scored. So every token of the corpus, and one end-of-text per document, is a target
exactly once per epoch, and the target at a document's end is never the next document's token.

Full windows are rows by themselves. Shorter ones share rows: longest first, each goes into the row with the least room that
still holds it (best-fit decreasing), so no window is cut again and little is padding. Which windows of one length meet in a
row, and the order of the rows, are drawn anew each epoch from (seed, epoch). The number of rows is the same in every epoch,
and `batch(i)` is a function of i alone: a run that resumes at step n asks for the batches of step n; nothing is replayed.

Legend: B rows, T tokens (the context), N tokens of the corpus, W windows, R rows per epoch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from latentlm.errors import UserError
from latentlm.interface import PADDING, Batch


@dataclass(frozen=True)
class Window:
    """Part of a document, to train on or to score: `inputs[t]` predicts `targets[t]`."""

    inputs: list[int]
    targets: list[int]


def windows_of(tokens: Sequence[int] | np.ndarray, *, end_of_text: int, context: int) -> list[Window]:
    """The windows of one document, given its tokens without end-of-text; each has at most `context` targets."""
    sequence = [end_of_text, *(int(token) for token in tokens), end_of_text]
    last = len(sequence) - 1
    ends = [(start, min(start + context, last)) for start in range(0, last, context)]
    return [Window(sequence[start:end], sequence[start + 1 : end + 1]) for start, end in ends]


@dataclass(frozen=True)
class TokenStore:
    """The tokens of all documents in one array, e d_1..d_n e d_1..d_m e ...: neighbours share their end-of-text."""

    tokens: np.ndarray
    """(N + documents + 1,) uint16 or uint32."""
    starts: np.ndarray
    """(documents + 1,) int64: where the end-of-text before each document stands, and the last one."""

    @classmethod
    def of(cls, documents: Sequence[np.ndarray], *, end_of_text: int) -> TokenStore:
        """Store documents, each (n,) of one unsigned type that holds `end_of_text`."""
        assert documents, "a store needs a document"
        kind = documents[0].dtype
        end = np.array([end_of_text], dtype=kind)
        lengths = np.array([len(document) + 1 for document in documents], dtype=np.int64)
        joined = np.concatenate([end, *(part for document in documents for part in (document, end))])
        assert joined.dtype == kind, "all documents have the same type"
        return cls(joined, np.concatenate([[0], np.cumsum(lengths)]))

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.starts) - 1

    @property
    def targets(self) -> int:
        """Targets in one epoch: all tokens and an end-of-text per document."""
        return len(self.tokens) - 1

    def document(self, index: int) -> np.ndarray:
        """The tokens of one document, without end-of-text, (n,)."""
        return self.tokens[self.starts[index] + 1 : self.starts[index + 1]]

    def windows(self, context: int) -> tuple[np.ndarray, np.ndarray]:
        """Where each window begins in `tokens` and how many targets it has: two (W,) int64 arrays, in document order."""
        sizes = np.diff(self.starts)  # targets per document
        counts = -(-sizes // context)
        first = np.cumsum(counts) - counts  # number of the first window of each document
        number = np.arange(counts.sum()) - np.repeat(first, counts)  # number of each window within its document
        offsets = np.repeat(self.starts[:-1], counts) + number * context
        lengths = np.minimum(context, np.repeat(sizes, counts) - number * context)
        return offsets, lengths


class PackedStream:
    """An endless stream of batches: `batch(0)`, `batch(1)`, ... Any of them can be asked for, in any order.

    It depends on the tokens, context, batch size, seed and packing; never on the model. Rows follow on from one epoch to the
    next, also within a batch, so no window is left out.
    """

    def __init__(self, store: TokenStore, *, context: int, batch: int, seed: int, packing: bool = True) -> None:
        if context < 2 or batch < 1:
            raise UserError(f"a batch needs at least 1 row of 2 tokens (asked for: {batch} rows of {context}).")
        self.context = context
        self.rows_per_batch = batch
        self._store = store
        self._seed = seed
        self._packing = packing
        self._offsets, self._lengths = store.windows(context)
        ordered = np.sort(self._lengths)[::-1]
        bins = best_fit(ordered, room=context) if packing else np.arange(len(ordered))
        self._by_bin = np.argsort(bins, kind="stable")
        self._borders = np.concatenate([[0], np.cumsum(np.bincount(bins))])
        self.rows_per_epoch = len(self._borders) - 1
        self._epoch = (0, *self._plan(0))

    @property
    def targets_per_epoch(self) -> int:
        """Targets that count in one epoch."""
        return self._store.targets

    @property
    def filled(self) -> float:
        """Share of the positions of an epoch that hold a token."""
        return self.targets_per_epoch / (self.rows_per_epoch * self.context)

    def batches(self, epochs: float) -> int:
        """Batches that make at least so many epochs."""
        return int(-(-epochs * self.rows_per_epoch // self.rows_per_batch))

    def batch(self, index: int) -> Batch:
        """The batch of that number, from 0. Packed rows are (B, T); unpacked ones are as long as the longest window."""
        numbers = range(index * self.rows_per_batch, (index + 1) * self.rows_per_batch)
        rows = [self._row(*divmod(number, self.rows_per_epoch)) for number in numbers]
        length = self.context if self._packing else max(int(self._lengths[row].sum()) for row in rows)
        columns = np.zeros((4, len(rows), length), dtype=np.int64)
        columns[2] = PADDING
        for place, row in enumerate(rows):
            self._fill(columns[:, place], row)
        inputs, targets, documents, positions = torch.from_numpy(columns)
        return Batch(inputs, targets, documents, positions, target_mask=documents >= 0)

    def _fill(self, columns: np.ndarray, row: np.ndarray) -> None:
        """Write the windows of a row into its inputs, targets, documents and positions (4, T)."""
        place = 0
        for number, window in enumerate(row):
            start, length = self._offsets[window], self._lengths[window]
            here = slice(place, place + length)
            columns[0, here] = self._store.tokens[start : start + length]
            columns[1, here] = self._store.tokens[start + 1 : start + length + 1]
            columns[2, here] = number
            columns[3, here] = np.arange(length)
            place += length

    def _row(self, epoch: int, row: int) -> np.ndarray:
        """The windows in a row of an epoch."""
        if self._epoch[0] != epoch:
            self._epoch = (epoch, *self._plan(epoch))
        _, windows, bins = self._epoch
        return windows[self._borders[bins[row]] : self._borders[bins[row] + 1]]

    def _plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Of an epoch: all windows (W,), bin by bin, and the bin of each row (R,). The windows are put in random order, then
        sorted by length, then dealt to the bins, which were made for windows of those lengths."""
        shuffled = permutation(len(self._lengths), self._seed, "windows", epoch)
        by_length = shuffled[np.argsort(-self._lengths[shuffled], kind="stable")]
        return by_length[self._by_bin], permutation(self.rows_per_epoch, self._seed, "rows", epoch)


def best_fit(lengths: np.ndarray, *, room: int) -> np.ndarray:
    """Best-fit decreasing: the bin of each length, (W,) int64, for lengths (W,) in falling order, each at most `room`."""
    bins = np.empty(len(lengths), dtype=np.int64)
    full = int(np.searchsorted(-lengths, -room, side="right"))  # these need no search
    bins[:full] = np.arange(full)
    opened = full
    waiting: list[list[int]] = [[] for _ in range(room + 1)]  # bins by the room left in them
    available = 0  # bit r is set where waiting[r] holds a bin
    for item in range(full, len(lengths)):
        length = int(lengths[item])
        fitting = available >> length
        if fitting:
            left = length + (fitting & -fitting).bit_length() - 1  # lowest set bit: the tightest fit
            chosen = waiting[left].pop()
            if not waiting[left]:
                available &= ~(1 << left)
        else:
            left, chosen, opened = room, opened, opened + 1
        bins[item] = chosen
        if left > length:
            waiting[left - length].append(chosen)
            available |= 1 << (left - length)
    return bins


def permutation(count: int, *key: int | str) -> np.ndarray:
    """A random order of 0..count-1, (count,), a function of the key alone. It sorts words of the counter-based generator
    Philox, whose stream numpy guarantees, as it does not for `Generator.permutation`."""
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=16).digest()
    words = np.random.Philox(key=int.from_bytes(digest, "little")).random_raw(count)
    return np.argsort(words, kind="stable")
