"""The work folder (`.prepare`) of shards that are being made. Every record has a hash of its own: what went wrong with the disk
since is found before anything is made of it.

    settings.json                        what was asked for
    read.json                            written after the last document: the chunks with their hashes, and who is held out
    NUMBER.texts, NUMBER.text_borders    a chunk of raw documents, as of a shard (format.py), until its shards are there
    NUMBER.json                          the shards of a chunk
    tokenizer                            which files of the folder are the tokenizer
    seen.sqlite                          hashes of the documents read so far
"""

from __future__ import annotations

import itertools
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Self, TypeVar

import numpy as np
from pydantic import Field, model_validator

from latentlm.config import DataConfig, Strict, parse
from latentlm.config.hashed import read_hashed, with_hash
from latentlm.config.writing import is_leftover, write_text
from latentlm.errors import UserError, sentence, short
from latentlm.tokenizer import COMPANION, FILE
from latentlm.training.data.corpora import Document
from latentlm.training.data.parting import Parting, always_held_out
from latentlm.training.data.shards.format import BORDER, INDEX, WORK, File, Shard, hashed, write_array

SETTINGS, READ, MARK, SEEN = "settings.json", "read.json", "tokenizer", "seen.sqlite"
_NAMES = re.compile(r"settings\.json|read\.json|tokenizer|seen\.sqlite(-journal)?|[0-9]{5,12}\.(json|texts|text_borders)")
_T = TypeVar("_T", bound=Strict)


class Settings(Strict):
    """settings.json."""

    data: DataConfig
    shard_bytes: int


class Chunk(Strict):
    """How many documents a chunk has, and its files."""

    documents: int = Field(ge=1)
    texts: File
    text_borders: File


class Read(Strict):
    """read.json."""

    chunks: list[Chunk] = Field(min_length=1)
    documents: int
    """Of all chunks."""
    duplicates: int = Field(ge=0)
    empty: int = Field(ge=0)
    below: int = Field(ge=0)
    lowest: tuple[float, str]
    highest: tuple[float, str]
    """Of `Parting`, with `below`."""

    @model_validator(mode="after")
    def _all(self) -> Self:
        if self.documents != sum(chunk.documents for chunk in self.chunks):
            raise ValueError("its chunks have another number of documents than it says")
        return self

    def parting(self, config: DataConfig) -> Parting:
        """Who is held out."""
        always = frozenset(always_held_out(config))
        return Parting(config.seed, config.held_out, always, self.documents, self.below, self.lowest, self.highest)


class Tokenized(Strict):
    """The files of the tokenizer; none where bytes are tokens."""

    files: dict[Literal["tokenizer.json", "tokenizer_config.json"], File]


class Done(Strict):
    """NUMBER.json: the shards of a chunk; None where it has no document of a part."""

    train: Shard | None
    held_out: Shard | None


def check_work(folder: Path) -> Settings | None:
    """What the work in `folder` was begun with, None where there is none. Raises UserError where it is damaged, or none of this
    command's: at the end it is deleted."""
    work = folder / WORK
    if not os.path.lexists(work):
        return None
    other = f"{work} is none that this command has made. Choose another folder with --out."
    if work.is_symlink() or not work.is_dir():
        raise UserError(other)
    found = [path for path in work.iterdir() if not is_leftover(path)]
    if any(not _NAMES.fullmatch(path.name) or not stat.S_ISREG(path.lstat().st_mode) for path in found):
        raise UserError(other)
    if not found:
        return None
    if not (work / SETTINGS).exists():
        raise UserError(other)
    try:
        with whole(folder):
            return read_record(work / SETTINGS, Settings)
    except UserError:
        if (folder / INDEX).exists():
            raise UserError(f"{other} Or delete {work}, if it is nobody's: the shards beside it are not touched.") from None
        if (work / READ).exists():  # of ours, and damaged
            raise
        raise UserError(other) from None


@contextmanager
def whole(folder: Path) -> Iterator[None]:
    """What the block finds damaged of the work in `folder`, as a UserError that says how to go on."""
    try:
        yield
    except (UserError, OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        said = sentence(short(str(error).splitlines()[0] if str(error) else type(error).__name__))
        raise UserError(f"what was begun in {folder} is damaged: {said} Delete {folder}, and give the command again.") from None


def write_record(path: Path, record: Strict) -> None:
    """Put a record on the disk, with its hash."""
    write_text(path, with_hash(record.model_dump()))


def read_record(path: Path, kind: type[_T]) -> _T:
    """A record as it was written. Raises errors for `whole`."""
    return parse(kind, read_hashed(path), source=path.name)


def read_tokenized(folder: Path) -> Tokenized | None:
    """The tokenizer's files, None where it is not made yet. Raises UserError where they are not what was written."""
    if not (folder / WORK / MARK).exists():
        return None
    with whole(folder):
        tokenized = read_record(folder / WORK / MARK, Tokenized)
        for name in (FILE, COMPANION):
            found = hashed(folder / name) if (folder / name).exists() else None
            if found != tokenized.files.get(name):  # type: ignore[call-overload]
                raise UserError(f"{name} has been changed")
        return tokenized


def chunk_file(folder: Path, number: int, ending: str) -> Path:
    """A file of a chunk in the work folder of `folder`."""
    return folder / WORK / f"{number:05}.{ending}"


def write_chunk(folder: Path, number: int, documents: Sequence[Document]) -> Chunk:
    """Put raw documents on the disk."""
    arrays = zip(("texts", "text_borders"), as_arrays(documents), strict=True)
    files = {ending: write_array(chunk_file(folder, number, ending), values) for ending, values in arrays}
    return Chunk(documents=len(documents), **files)


def read_chunk(folder: Path, number: int, chunk: Chunk) -> Iterator[Document]:
    """Raw documents from the disk, one at a time. Raises UserError where they are not what was written."""
    with whole(folder):
        for ending in ("texts", "text_borders"):
            if hashed(chunk_file(folder, number, ending)) != getattr(chunk, ending):
                raise UserError(f"{number:05}.{ending} has been changed")
        texts = np.memmap(chunk_file(folder, number, "texts"), dtype=np.uint8, mode="r")
        borders = np.fromfile(chunk_file(folder, number, "text_borders"), dtype=BORDER).tolist()
        whole_chunk = len(borders) == 2 * chunk.documents + 1 and borders[-1] == len(texts) - 1
        if not whole_chunk or any(after <= before for before, after in itertools.pairwise(borders)):
            raise UserError(f"{number:05}.text_borders contradicts the texts")
    for name, text, end in zip(borders[:-1:2], borders[1::2], borders[2::2], strict=True):
        yield Document(texts[name + 1 : text].tobytes().decode("utf-8", "surrogateescape"), texts[text + 1 : end].tobytes())


def read_done(folder: Path, number: int, chunk: Chunk, *, files: bool) -> Done:
    """The shards of a chunk. `files`: they are hashed. Raises UserError where they are not what was written."""
    with whole(folder):
        done = read_record(chunk_file(folder, number, "json"), Done)
        if sum(shard.documents for shard in (done.train, done.held_out) if shard is not None) != chunk.documents:
            raise UserError(f"{number:05}.json speaks of other documents")
        for part, shard in (("train", done.train), ("held_out", done.held_out)):
            if shard is not None and shard.name != f"{part}-{number:05}":
                raise UserError(f"{number:05}.json speaks of {shard.name}")
            for ending, file in shard.files.items() if shard is not None and files else ():
                if hashed(folder / f"{part}-{number:05}.{ending}") != file:
                    raise UserError(f"{part}-{number:05}.{ending} has been changed")
        return done


def as_arrays(documents: Sequence[Document]) -> tuple[np.ndarray, np.ndarray]:
    """Names and texts, each between two zero bytes, and where these stand."""
    halves = [half for each in documents for half in (each.id.encode("utf-8", "surrogateescape"), each.data)]
    texts = b"".join([b"\0", *(piece for half in halves for piece in (half, b"\0"))])
    borders = np.cumsum([0, *(len(half) + 1 for half in halves)])
    return np.frombuffer(texts, dtype=np.uint8), borders.astype(BORDER)
