"""Which documents are read, and which of them are held out.

Which are held out is decided by a keyed hash of (seed, document id) alone, so adding documents moves none of the others; of the
standard library, the modules that the shipped evaluation tasks draw on (`EVALUATED`) are held out as well. Empty documents are
dropped, and so are copies: of documents with the same bytes only the first stays, which keeps copies of held-out documents out
of training. (Texts of a synthetic source are independent draws: how often one comes up belongs to its density, and all stay.)
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from latentlm.config import DataConfig
from latentlm.errors import UserError
from latentlm.training.data.corpora import Document
from latentlm.training.data.packing import Window, windows_of
from latentlm.training.data.synthetic import PREFIX as SYNTHETIC

EVALUATED = {
    "bisect.py",
    "calendar.py",
    "cmd.py",
    "colorsys.py",
    "configparser.py",
    "fileinput.py",
    "fnmatch.py",
    "graphlib.py",
    "netrc.py",
    "pprint.py",
    "queue.py",
    "sched.py",
    "shelve.py",
    "textwrap.py",
    "timeit.py",
    "zipapp.py",
}
"""Modules of the standard library that the shipped evaluation tasks take text from: always held out of the stdlib corpus. The
same list is in the tasks' sources.txt (a test compares them; this package does not import the evaluation's)."""


@dataclass(frozen=True)
class Corpus:
    """Documents, parted once and for all."""

    train: Sequence[Document]
    held_out: Sequence[Document]
    duplicates: int
    """Documents dropped as copies of an earlier one."""
    empty: int
    """Documents dropped because they hold nothing."""
    known: str | None = None
    """The fingerprint, where it is written down."""

    def fingerprint(self) -> str:
        """SHA-256, in hex, of every document's part, id and content, in order; of shards, of their hashes."""
        if self.known is not None:
            return self.known
        digest = hashlib.sha256()
        for part, documents in (("train", self.train), ("held_out", self.held_out)):
            for document in documents:
                for said in (part.encode(), document.id.encode("utf-8", "surrogateescape"), document.data):
                    digest.update(len(said).to_bytes(8, "little") + said)
        return digest.hexdigest()


@dataclass(frozen=True)
class HeldOut:
    """A document kept out of training."""

    id: str
    tokens: np.ndarray
    """(n,), without end-of-text."""
    data: bytes
    """Its text."""
    end_of_text: int

    @property
    def bytes(self) -> int:
        """Raw bytes, by which bits per byte divides; the targets that count are n + 1."""
        return len(self.data)

    def windows(self, context: int) -> list[Window]:
        """The document cut as in training."""
        return windows_of(self.tokens, end_of_text=self.end_of_text, context=context)


class Seen(Protocol):
    """A set of digests: a Python set's, or a file's (shards/making.py)."""

    def __contains__(self, digest: bytes, /) -> bool: ...

    def add(self, digest: bytes, /) -> None: ...


@dataclass
class Cleaned:
    """The documents that are read: all that hold something and are no copies of earlier ones, of which `data.max_documents`
    are chosen by a hash. Can be gone through once; counts what is dropped."""

    documents: Iterable[Document]
    config: DataConfig
    seen: Seen = field(default_factory=set[bytes])
    duplicates: int = 0
    empty: int = 0

    def __iter__(self) -> Iterator[Document]:
        """The documents, in their order. Those that `data.max_documents` chooses are held in memory."""
        if self.config.path.startswith(SYNTHETIC):  # which gives no more than so many
            return iter(self.documents)
        found, most, seed = self._distinct(), self.config.max_documents, self.config.seed
        if most is None:
            return found
        # Those that a hash puts first, not those that the alphabet does; still in their order.
        ranked = ((_draw(seed, "keep", document.id), place, document) for place, document in enumerate(found))
        kept = heapq.nsmallest(most, ranked, key=lambda item: item[:2])
        return iter([document for _, _, document in sorted(kept, key=lambda item: item[1])])

    def _distinct(self) -> Iterator[Document]:
        for document in self.documents:
            digest = hashlib.sha256(document.data).digest()
            if not document.data.strip():
                self.empty += 1
            elif digest in self.seen:
                self.duplicates += 1
            else:
                self.seen.add(digest)
                yield document

    def check(self, count: int) -> None:
        """Raise UserError unless `count`, as many as there were, can be parted."""
        if count < 2:
            found = "no document" if not count else "only one document"
            dropped = f"{self.empty} empty and {self.duplicates} duplicate ones were dropped"
            raise UserError(
                f'data.path "{self.config.path}" holds {found} with text in it ({dropped}); training needs at least two, as '
                "some are held out whole. Give a folder with more files, or widen data.pattern or data.text_field."
            )


@dataclass
class Parting:
    """Who is held out: those whose draw lies below `share`; at least one, and never all. It is told every name first."""

    seed: int
    share: float
    always: frozenset[str] = frozenset()
    """Names that are held out as well."""
    count: int = 0
    below: int = 0
    lowest: tuple[float, str] = (2.0, "")
    highest: tuple[float, str] = (-1.0, "")

    def add(self, name: str) -> None:
        """One more."""
        draw = _draw(self.seed, "held out", name)
        self.count += 1
        self.below += draw < self.share
        if draw < self.lowest[0]:
            self.lowest = (draw, name)
        if draw >= self.highest[0]:
            self.highest = (draw, name)

    def holds_out(self, name: str) -> bool:
        """Whether this one is."""
        if name in self.always:
            return True
        if self.below in (0, self.count):
            return name == self.lowest[1] if self.below == 0 else name != self.highest[1]
        return _draw(self.seed, "held out", name) < self.share


def held_out_ids(ids: Sequence[str], *, seed: int, share: float, always: Iterable[str] = ()) -> set[str]:
    """The documents to hold out, of those of these names."""
    parting = Parting(seed, share, frozenset(always))
    for name in ids:
        parting.add(name)
    return {name for name in ids if parting.holds_out(name)}


def parted(cleaned: Cleaned) -> Corpus:
    """Documents in memory, parted. Raises UserError where fewer than two are left."""
    documents = list(cleaned)
    cleaned.check(len(documents))
    config = cleaned.config
    ids = [document.id for document in documents]
    chosen = held_out_ids(ids, seed=config.seed, share=config.held_out, always=always_held_out(config))
    return Corpus(
        train=[document for document in documents if document.id not in chosen],
        held_out=[document for document in documents if document.id in chosen],
        duplicates=cleaned.duplicates,
        empty=cleaned.empty,
    )


def always_held_out(config: DataConfig) -> set[str]:
    """Names that are held out whatever they draw."""
    return EVALUATED if config.path == "stdlib" else set()


def _draw(seed: int, purpose: str, name: str) -> float:
    """A number in [0, 1), a function of its arguments alone."""
    text = f"{seed}\x1f{purpose}\x1f{name}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") / 2**64
