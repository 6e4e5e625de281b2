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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from latentlm.errors import UserError
from latentlm.interface import PADDING, Batch

_PART = 2**20
"""Windows that are looked at together."""
_NONE = np.empty(0, dtype=np.uint8)
_DAMAGED = "The shards are damaged: `latentlm data verify` says which; prepare them anew."


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


class Tokens(Protocol):
    """An array of tokens, or of places among them, that is read in slices: numpy's, or a file's (shards/reading.py)."""

    def __len__(self) -> int: ...

    def __getitem__(self, where: slice, /) -> np.ndarray: ...


class TokenStore:
    """The tokens of all documents in one sequence, e d_1..d_n e d_1..d_m e ...: neighbours share their end-of-text.

    It is read piece by piece: (tokens, starts) of some documents, each piece such a sequence by itself, `starts`
    (documents + 1,) being where in it the end-of-text before each document stands, and the last one. What is in memory is one
    piece, and so is each shard of a folder. Places count through all pieces as if they were one.
    """

    def __init__(self, pieces: Sequence[tuple[Tokens, Tokens]], *, vocabulary: int | None = None) -> None:
        """`vocabulary`: tokens are checked to be below it when they are read."""
        self._pieces, self._vocabulary = pieces, vocabulary
        self._first = np.cumsum([0, *(len(tokens) - 1 for tokens, _ in pieces)])  # place of each piece's first token
        self._documents = np.cumsum([0, *(len(starts) - 1 for _, starts in pieces)])

    @classmethod
    def of(cls, documents: Sequence[np.ndarray], *, end_of_text: int) -> TokenStore:
        """Store documents, each (n,) of one unsigned type that holds `end_of_text`."""
        return cls([joined(documents, end_of_text=end_of_text)])

    def __len__(self) -> int:
        """Number of documents."""
        return int(self._documents[-1])

    @property
    def targets(self) -> int:
        """Targets in one epoch: all tokens and an end-of-text per document."""
        return int(self._first[-1])

    def read(self, start: int, count: int) -> np.ndarray:
        """`count` tokens from a place on, (count,), all of one document with the end-of-texts around it. Raises UserError for
        one outside the vocabulary."""
        piece = int(np.searchsorted(self._first, start, side="right")) - 1
        place = start - int(self._first[piece])
        found = self._pieces[piece][0][place : place + count]
        if len(found) != count:
            raise UserError(f"borders of the data lie beyond their end. {_DAMAGED}")
        if self._vocabulary is not None and int(found.max()) >= self._vocabulary:
            said = f"the data hold token {int(found.max())}, and the vocabulary ends at {self._vocabulary - 1}"
            raise UserError(f"{said}. {_DAMAGED}")
        return found

    def document(self, index: int) -> np.ndarray:
        """The tokens of one document, without end-of-text, (n,)."""
        piece = int(np.searchsorted(self._documents, index, side="right")) - 1
        number = index - int(self._documents[piece])
        start, end = (int(place) for place in self._pieces[piece][1][number : number + 2])
        return self.read(int(self._first[piece]) + start, end - start)[1:]

    def windows(self, context: int) -> tuple[np.ndarray, np.ndarray]:
        """Where each window begins and how many targets it has: (W,) int64 and (W,) of the smallest unsigned type that holds
        the context, in document order."""
        counts = [int(np.sum(-(-self._sizes(piece) // context))) for piece in range(len(self._pieces))]
        offsets = np.empty(sum(counts), dtype=np.int64)
        lengths = np.empty(sum(counts), dtype=np.min_scalar_type(context))
        last = np.cumsum(counts)
        for piece, (end, count) in enumerate(zip(last.tolist(), counts, strict=True)):
            sizes = self._sizes(piece)
            each = -(-sizes // context)
            first = np.cumsum(each) - each  # number of the first window of each document
            number = np.arange(count) - np.repeat(first, each)  # number of each window within its document
            starts = self._first[piece] + np.cumsum(sizes) - sizes
            offsets[end - count : end] = np.repeat(starts, each) + number * context
            lengths[end - count : end] = np.minimum(context, np.repeat(sizes, each) - number * context)
        return offsets, lengths

    def _sizes(self, piece: int) -> np.ndarray:
        """Targets of each document of a piece, int64. Raises UserError where its borders cannot be."""
        tokens, places = self._pieces[piece]
        starts = places[:].astype(np.int64)
        sizes = np.diff(starts)
        if starts[0] != 0 or starts[-1] != len(tokens) - 1 or (sizes < 1).any():
            raise UserError(f"borders of the data do not rise from their first token to their last. {_DAMAGED}")
        return sizes


def joined(documents: Sequence[np.ndarray], *, end_of_text: int) -> tuple[np.ndarray, np.ndarray]:
    """A piece of a store: documents, each (n,) of one unsigned type that holds `end_of_text`, as e d_1..d_n e d_1..d_m e, and
    where the end-of-texts stand, (documents + 1,) int64."""
    assert documents, "a store needs a document"
    kind = documents[0].dtype
    end = np.array([end_of_text], dtype=kind)
    lengths = np.array([len(document) + 1 for document in documents], dtype=np.int64)
    tokens = np.concatenate([end, *(part for document in documents for part in (document, end))])
    assert tokens.dtype == kind, "all documents have the same type"
    return tokens, np.concatenate([[0], np.cumsum(lengths)])


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
        self._counter = np.min_scalar_type(len(self._lengths))
        self._alone = int((self._lengths == context).sum()) if packing else len(self._lengths)
        self._by_bin, self._borders = self._bins()
        self.rows_per_epoch = self._alone + len(self._borders) - 1
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
            start, length = int(self._offsets[window]), int(self._lengths[window])
            here = slice(place, place + length)
            tokens = self._store.read(start, length + 1)
            columns[0, here], columns[1, here] = tokens[:-1], tokens[1:]
            columns[2, here] = number
            columns[3, here] = np.arange(length)
            place += length

    def _row(self, epoch: int, row: int) -> np.ndarray:
        """The windows in a row of an epoch."""
        if self._epoch[0] != epoch:
            self._epoch = (-1, _NONE, _NONE)  # before the next is made: they may be large
            self._epoch = (epoch, *self._plan(epoch))
        _, windows, bins = self._epoch
        chosen = int(bins[row])
        if chosen < self._alone:
            return windows[chosen : chosen + 1]
        start, end = (int(border) for border in self._borders[chosen - self._alone : chosen - self._alone + 2])
        return windows[self._alone :][self._by_bin[start:end]]

    def _bins(self) -> tuple[np.ndarray, np.ndarray]:
        """The windows that share rows, numbered from the longest, bin by bin (W',), and where each bin begins (R' + 1,)."""
        bins = best_fit(np.sort(self._lengths)[::-1][self._alone :], room=self.context)
        counts = np.bincount(bins)
        by_bin = grouped(np.arange(len(bins), dtype=self._counter), lambda windows: bins[windows], counts)
        return by_bin, np.concatenate([[0], np.cumsum(counts)]).astype(self._counter)

    def _plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Of an epoch: all windows (W,), longest first, and the bin of each row (R,). The windows are put in random order, then
        sorted by length, then dealt to the bins, which were made for windows of those lengths: first those that fill a row."""
        shuffled = permutation(len(self._lengths), self._seed, "windows", epoch)
        shorter = (self.context - np.arange(self.context + 1)).astype(self._lengths.dtype)  # than the context, by length
        counts = np.bincount(self._lengths, minlength=self.context + 1)[shorter]
        windows = grouped(shuffled, lambda part: shorter[self._lengths[part]], counts)
        return windows, permutation(self.rows_per_epoch, self._seed, "rows", epoch)


def grouped(items: np.ndarray, keys: Callable[[np.ndarray], np.ndarray], counts: np.ndarray) -> np.ndarray:
    """Items (n,) sorted by their keys, integers below K, of which there are `counts` (K,); those of one key in the order given.
    Part by part, so that little is in memory beside."""
    free = np.cumsum(counts) - counts  # by key: the next free place
    found = np.empty_like(items)
    for start in range(0, len(items), _PART):
        part = items[start : start + _PART]
        own = keys(part)
        order = np.argsort(own, kind="stable")
        own, here = own[order], np.bincount(own, minlength=len(counts))
        first = np.cumsum(here) - here
        found[free[own] + np.arange(len(part)) - first[own]] = part[order]
        free += here
    return found


def best_fit(lengths: np.ndarray, *, room: int) -> np.ndarray:
    """Best-fit decreasing: the bin of each length, (W,), for lengths (W,) in falling order, each at most `room`.

    Each goes into the bin with the least room that still holds it, of several the one that was changed last. All of one length
    are dealt together: since a bin that is chosen has the least room that will do, it takes as many as it holds."""
    bins = np.empty(len(lengths), dtype=np.min_scalar_type(len(lengths)))
    opened = dealt = 0
    waiting: list[list[np.ndarray]] = [[] for _ in range(room + 1)]  # bins by the room left in them
    available = 0  # bit r is set where waiting[r] holds a bin
    for length, count in _runs(lengths):
        until = dealt + count
        while dealt < until:
            fitting = available >> length
            left = length + (fitting & -fitting).bit_length() - 1 if fitting else room  # lowest set bit: the tightest fit
            each = left // length
            wanted = -(-(until - dealt) // each)
            if fitting:
                last = waiting[left].pop()
                chosen, rest = last[::-1][:wanted], last[: max(0, len(last) - wanted)]
                if len(rest):
                    waiting[left].append(rest)
                elif not waiting[left]:
                    available &= ~(1 << left)
            else:
                chosen = np.arange(opened, opened + wanted)
                opened += wanted
            taken = min(until - dealt, len(chosen) * each)
            bins[dealt : dealt + taken] = np.repeat(chosen, each)[:taken]
            dealt += taken
            filled, over = divmod(taken, each)
            for some, has in ((chosen[:filled], left - each * length), (chosen[filled:], left - over * length)):
                if has and len(some):
                    waiting[has].append(some)
                    available |= 1 << has
    return bins


def _runs(values: np.ndarray) -> list[tuple[int, int]]:
    """(value, how often) of each run of equal values."""
    starts = np.flatnonzero(np.diff(values, prepend=values[:1] + 1)) if len(values) else np.empty(0, np.int64)
    counts = np.diff(starts, append=len(values))
    return list(zip(values[starts].tolist(), counts.tolist(), strict=True))


def permutation(count: int, *key: int | str) -> np.ndarray:
    """A random order of 0..count-1, (count,) of the smallest unsigned type that holds `count`, a function of the key alone.

    It sorts words of the counter-based generator Philox, whose stream numpy guarantees, as it does not for
    `Generator.permutation`. Where they are many, they are drawn again for each range of values, and one range is in memory at a
    time."""
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=16).digest()
    order, done = np.empty(count, dtype=np.min_scalar_type(count)), 0
    bits = max(0, (count // _PART).bit_length() - 2)  # ranges of some millions of words
    for high in range(2**bits):
        words = np.random.Philox(key=int.from_bytes(digest, "little"))
        places, values = [], []
        for start in range(0, count, _PART):
            drawn = words.random_raw(min(_PART, count - start))
            here = np.flatnonzero(drawn >> np.uint64(64 - bits) == high) if bits else np.arange(len(drawn))
            places.append(start + here)
            values.append(drawn[here])
        if places:
            found = np.concatenate(places)[np.argsort(np.concatenate(values), kind="stable")]
            order[done : done + len(found)] = found
            done += len(found)
    return order
