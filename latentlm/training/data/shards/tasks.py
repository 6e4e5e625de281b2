"""What one of several processes does: a chunk of raw documents becomes a shard of each part.

When the shards of a chunk are on the disk, NUMBER.json says what they are, and the chunk is deleted (work.py). Chunk, tokenizer
and parting alone decide what its shards hold: they are the same whoever makes them, and when.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing import parent_process
from pathlib import Path

import numpy as np

from latentlm.tokenizer import FILE, Tokenizer, load_tokenizer
from latentlm.training.data.corpora import Document
from latentlm.training.data.packing import joined
from latentlm.training.data.parting import Parting
from latentlm.training.data.shards.format import BORDER, Ending, File, Shard, write_array
from latentlm.training.data.shards.work import Chunk, Done, Tokenized, as_arrays, chunk_file, read_chunk, write_record

_TOGETHER = 2**20  # bytes of text that are tokenized together


@dataclass
class _Half:
    """The documents of a chunk that belong to one part."""

    tokens: list[np.ndarray] = field(default_factory=list)
    documents: list[Document] = field(default_factory=list)
    """Of those held out alone."""
    bytes: int = 0


def make_shards(folder: Path, number: int, chunk: Chunk, parting: Parting, tokenized: Tokenized) -> None:
    """Make the shards of a chunk, unless that is done."""
    record = chunk_file(folder, number, "json")
    if not record.exists():
        tokenizer = _tokenizer(folder, *(file.sha256 for file in tokenized.files.values()))
        halves = _halves(read_chunk(folder, number, chunk), parting, tokenizer)
        made = {part: _write(folder, f"{part}-{number:05}", half, tokenizer.end_of_text) for part, half in halves.items()}
        write_record(record, Done.model_validate(made))
    for ending in ("texts", "text_borders"):
        chunk_file(folder, number, ending).unlink(missing_ok=True)


@lru_cache(maxsize=1)
def _tokenizer(folder: Path, *hashes: str) -> Tokenizer:
    """The tokenizer in the folder, whose files have these hashes; bytes where it has none."""
    return load_tokenizer(FILE if hashes else "bytes", folder=folder)


def _halves(documents: Iterable[Document], parting: Parting, tokenizer: Tokenizer) -> dict[str, _Half]:
    halves = {"train": _Half(), "held_out": _Half()}
    for some in portions(documents, size=_TOGETHER):
        for document, tokens in zip(some, tokenizer.encode_all([each.data for each in some]), strict=True):
            held_out = parting.holds_out(document.id)
            half = halves["held_out" if held_out else "train"]
            half.tokens.append(tokens)
            half.bytes += len(document.data)
            if held_out:
                half.documents.append(document)
    return halves


def portions(documents: Iterable[Document], *, size: int) -> Iterator[list[Document]]:
    """The documents, as many at a time as have `size` bytes of text or a little more; the last time, what is left."""
    some: list[Document] = []
    count = 0
    for document in documents:
        some.append(document)
        count += len(document.data)
        if count >= size:
            yield some
            some, count = [], 0
    if some:
        yield some


def _write(folder: Path, name: str, half: _Half, end_of_text: int) -> Shard | None:
    if not half.tokens:
        return None
    tokens, borders = joined(half.tokens, end_of_text=end_of_text)
    arrays: dict[Ending, np.ndarray] = {"tokens": tokens, "borders": borders.astype(BORDER)}
    if half.documents:
        arrays["texts"], arrays["text_borders"] = as_arrays(half.documents)
    files: dict[Ending, File] = {ending: write_array(folder / f"{name}.{ending}", values) for ending, values in arrays.items()}
    return Shard(name=name, documents=len(borders) - 1, tokens=len(tokens), bytes=half.bytes, files=files)


def begin_worker() -> None:
    """In a process that was started to make shards: Ctrl-C is its parent's, and it ends when its parent does, however that
    ended. The tokenizers of several processes start no threads of their own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = parent_process()
    assert parent is not None, "it was started by another"

    def end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()
