"""Documents into what training and evaluation read: a tokenizer, packed training tokens, whole held-out documents.

    prepared = prepare(recipe.data)
    stream = PackedStream(prepared.train, context=256, batch=16, seed=recipe.data.seed, packing=recipe.data.packing)
    stream.batch(0)                                              # batch i is the same for every model
    prepared.held_out[0].id, prepared.held_out[0].tokens, prepared.held_out[0].bytes

Which documents are held out is decided by a keyed hash of (seed, document id) alone, so adding documents moves none of the
others; of the standard library, the modules that the shipped evaluation tasks draw on (`EVALUATED`) are held out as well. Empty
documents are dropped, and so are copies: of documents with the same bytes only the first stays, which keeps copies of held-out
documents out of training. (Texts of a synthetic source are independent draws: how often one comes up belongs to its density,
and all stay.) BPE is trained on the training documents only.
"""

from __future__ import annotations

import hashlib
import heapq
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from latentlm.config import DataConfig
from latentlm.errors import UserError, did_you_mean
from latentlm.tokenizer import FILE, BPETokenizer, Tokenizer, load_tokenizer
from latentlm.training.data.corpora import Document, read_corpus
from latentlm.training.data.packing import TokenStore, Window, windows_of
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

    train: list[Document]
    held_out: list[Document]
    duplicates: int
    """Documents dropped as copies of an earlier one."""
    empty: int
    """Documents dropped because they hold nothing."""

    def fingerprint(self) -> str:
        """SHA-256, in hex, of every document's part, id and content, in order."""
        digest = hashlib.sha256()
        for part, documents in (("train", self.train), ("held_out", self.held_out)):
            for document in documents:
                for field in (part.encode(), document.id.encode("utf-8", "surrogateescape"), document.data):
                    digest.update(len(field).to_bytes(8, "little") + field)
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


@dataclass(frozen=True)
class Prepared:
    """Data ready for training."""

    tokenizer: Tokenizer
    train: TokenStore
    held_out: list[HeldOut]
    train_bytes: int
    """Raw bytes of the training documents."""
    fingerprint: str
    """SHA-256 of the documents, for the manifest: a resumed run must see the same."""
    duplicates: int
    empty: int

    @property
    def bytes_per_target(self) -> float:
        """Raw bytes per target of the training documents: bits per byte = nats per target / (ln 2 * this)."""
        return self.train_bytes / self.train.targets

    def summary(self) -> dict[str, int | float | str]:
        """What the manifest and the report say of the data."""
        return {
            "train_documents": len(self.train),
            "train_bytes": self.train_bytes,
            "train_targets": self.train.targets,
            "held_out_documents": len(self.held_out),
            "held_out_bytes": sum(document.bytes for document in self.held_out),
            "duplicates_dropped": self.duplicates,
            "empty_dropped": self.empty,
            "bytes_per_target": self.bytes_per_target,
            "tokenizer": self.tokenizer.name,
            "fingerprint": self.fingerprint,
        }


def load_documents(config: DataConfig, *, called: str | None = None) -> Corpus:
    """Read, clean and part the documents of a data configuration. `called` is the path under which data that moved were
    read before. Raises UserError where fewer than two are left."""
    counts = {"duplicates": 0, "empty": 0}
    documents: Iterable[Document] = read_corpus(config, called=called)
    if not config.path.startswith(SYNTHETIC):
        documents = _distinct(documents, counts)
    if config.max_documents is not None:  # those that a hash puts first, not those that the alphabet does; still in their order
        ranked = ((_draw(config.seed, "keep", document.id), place, document) for place, document in enumerate(documents))
        kept = heapq.nsmallest(config.max_documents, ranked, key=lambda item: item[:2])
        documents = [document for _, _, document in sorted(kept, key=lambda item: item[1])]
    documents = list(documents)
    if len(documents) < 2:
        found = "no document" if not documents else "only one document"
        dropped = f"{counts['empty']} empty and {counts['duplicates']} duplicate ones were dropped"
        raise UserError(
            f'data.path "{config.path}" holds {found} with text in it ({dropped}); training needs at least two, as some are '
            "held out whole. Give a folder with more files, or widen data.pattern or data.text_field."
        )
    chosen = held_out_ids([document.id for document in documents], seed=config.seed, share=config.held_out)
    if config.path == "stdlib":
        chosen |= EVALUATED & {document.id for document in documents}
    return Corpus(
        train=[document for document in documents if document.id not in chosen],
        held_out=[document for document in documents if document.id in chosen],
        **counts,
    )


def _distinct(documents: Iterable[Document], counts: dict[str, int]) -> Iterator[Document]:
    """The documents that hold something and are no copies of earlier ones; counts the others."""
    seen: set[bytes] = set()
    for document in documents:
        digest = hashlib.sha256(document.data).digest()
        if not document.data.strip():
            counts["empty"] += 1
        elif digest in seen:
            counts["duplicates"] += 1
        else:
            seen.add(digest)
            yield document


def held_out_ids(ids: list[str], *, seed: int, share: float) -> set[str]:
    """The documents to hold out: those whose draw lies below `share`; at least one, and never all."""
    draws = {name: _draw(seed, "held out", name) for name in ids}
    assert len(draws) == len(ids) >= 2, "ids name the documents"
    ranked = sorted(ids, key=lambda name: draws[name])
    below = sum(draw < share for draw in draws.values())
    return set(ranked[: min(max(below, 1), len(ids) - 1)])


def _draw(seed: int, purpose: str, name: str) -> float:
    """A number in [0, 1), a function of its arguments alone."""
    text = f"{seed}\x1f{purpose}\x1f{name}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") / 2**64


def make_tokenizer(spec: str, documents: list[Document]) -> Tokenizer:
    """The tokenizer of `data.tokenizer`: "bytes", "bpe:N" trained on the documents, or a file. Raises UserError."""
    if spec == "bytes" or spec.endswith(".json"):
        return load_tokenizer(spec)
    if not re.fullmatch(r"bpe:[1-9]\d{0,8}", spec):
        hint = did_you_mean(spec, ["bytes", "bpe:4096"])
        raise UserError(f'data.tokenizer "{spec}" is none of "bytes", "bpe:N" (N symbols to learn), a tokenizer.json.{hint}')
    return BPETokenizer.train((document.data for document in documents), vocabulary=int(spec.removeprefix("bpe:")))


def prepare(config: DataConfig, *, folder: Path | None = None, called: str | None = None) -> Prepared:
    """Read, part and tokenize the data. `folder` is the run's: a tokenizer.json in it is used as it is (a resumed run),
    otherwise the tokenizer is saved there. `called` as in `load_documents`. Raises UserError."""
    corpus = load_documents(config, called=called)
    if folder is not None and config.tokenizer != "bytes" and (folder / FILE).is_file():
        tokenizer = load_tokenizer(FILE, folder=folder)
    else:
        tokenizer = make_tokenizer(config.tokenizer, corpus.train)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            tokenizer.save(folder)
    train = tokenizer.encode_all([document.data for document in corpus.train])
    kept = tokenizer.encode_all([document.data for document in corpus.held_out])
    return Prepared(
        tokenizer=tokenizer,
        train=TokenStore.of(train, end_of_text=tokenizer.end_of_text),
        held_out=[
            HeldOut(document.id, tokens, document.data, tokenizer.end_of_text)
            for document, tokens in zip(corpus.held_out, kept, strict=True)
        ],
        train_bytes=sum(len(document.data) for document in corpus.train),
        fingerprint=corpus.fingerprint(),
        duplicates=corpus.duplicates,
        empty=corpus.empty,
    )
