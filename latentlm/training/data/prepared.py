"""Documents into what training and evaluation read: a tokenizer, packed training tokens, whole held-out documents.

    prepared = prepare(recipe.data)
    stream = PackedStream(prepared.train, context=256, batch=16, seed=recipe.data.seed, packing=recipe.data.packing)
    stream.batch(0)                                              # batch i is the same for every model
    prepared.held_out[0].id, prepared.held_out[0].tokens, prepared.held_out[0].bytes

Where `data.path` is a folder of token shards (shards/), nothing is read but its index: tokens and held-out documents are read
when they are asked for. Anything else is read, parted (parting.py) and tokenized into memory. The rows are the same. BPE is
trained on the training documents only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from latentlm.config import DataConfig
from latentlm.tokenizer import Tokenizer
from latentlm.training.data.corpora import read_corpus
from latentlm.training.data.packing import TokenStore
from latentlm.training.data.parting import EVALUATED, Cleaned, Corpus, HeldOut, held_out_ids, parted
from latentlm.training.data.shards.reading import Shards, shards_at
from latentlm.training.data.tokenizing import kept_tokenizer, make_tokenizer

__all__ = ["EVALUATED", "Corpus", "HeldOut", "Prepared", "held_out_ids", "load_documents", "prepare"]


@dataclass(frozen=True)
class Prepared:
    """Data ready for training."""

    tokenizer: Tokenizer
    train: TokenStore
    held_out: Sequence[HeldOut]
    train_bytes: int
    """Raw bytes of the training documents."""
    held_out_bytes: int
    """And of those held out."""
    fingerprint: str
    """SHA-256 of the documents, or of the shards' hashes, for the manifest: a resumed run must see the same."""
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
            "held_out_bytes": self.held_out_bytes,
            "duplicates_dropped": self.duplicates,
            "empty_dropped": self.empty,
            "bytes_per_target": self.bytes_per_target,
            "tokenizer": self.tokenizer.name,
            "fingerprint": self.fingerprint,
        }


def load_documents(config: DataConfig, *, called: str | None = None) -> Corpus:
    """Read, clean and part the documents of a data configuration. `called` is the path under which data that moved were
    read before. Raises UserError where fewer than two are left."""
    if (folder := shards_at(config.path)) is not None:
        return Shards(folder).asked(config).corpus()
    return parted(Cleaned(read_corpus(config, called=called), config))


def prepare(config: DataConfig, *, folder: Path | None = None, called: str | None = None) -> Prepared:
    """Read, part and tokenize the data, or open their shards. `folder` is the run's: a tokenizer.json in it is used as it is (a
    resumed run), otherwise the tokenizer is saved there. `called` as in `load_documents`. Raises UserError."""
    kept = kept_tokenizer(config.tokenizer, folder)
    if (shards := shards_at(config.path)) is not None:
        prepared = _of_shards(Shards(shards).asked(config, kept))
    else:
        prepared = _in_memory(load_documents(config, called=called), config.tokenizer, kept)
    if folder is not None and kept is None:
        folder.mkdir(parents=True, exist_ok=True)
        prepared.tokenizer.save(folder)
    return prepared


def _of_shards(shards: Shards) -> Prepared:
    return Prepared(
        tokenizer=shards.tokenizer,
        train=shards.train,
        held_out=shards.held_out,
        train_bytes=sum(shard.bytes for shard in shards.index.train),
        held_out_bytes=sum(shard.bytes for shard in shards.index.held_out),
        fingerprint=shards.index.fingerprint(),
        duplicates=shards.index.duplicates,
        empty=shards.index.empty,
    )


def _in_memory(corpus: Corpus, spec: str, kept: Tokenizer | None) -> Prepared:
    tokenizer = kept or make_tokenizer(spec, (document.data for document in corpus.train))
    train = tokenizer.encode_all([document.data for document in corpus.train])
    held_out = tokenizer.encode_all([document.data for document in corpus.held_out])
    return Prepared(
        tokenizer=tokenizer,
        train=TokenStore.of(train, end_of_text=tokenizer.end_of_text),
        held_out=[
            HeldOut(document.id, tokens, document.data, tokenizer.end_of_text)
            for document, tokens in zip(corpus.held_out, held_out, strict=True)
        ],
        train_bytes=sum(len(document.data) for document in corpus.train),
        held_out_bytes=sum(len(document.data) for document in corpus.held_out),
        fingerprint=corpus.fingerprint(),
        duplicates=corpus.duplicates,
        empty=corpus.empty,
    )
