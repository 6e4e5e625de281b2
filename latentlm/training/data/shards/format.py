"""What lies in a folder of token shards, format 1.

    index.json              this module's `Index`: which files there are, their sizes and SHA-256, tokenizer, dtype, counts
    tokenizer.json          the tokenizer (and tokenizer_config.json, where the file alone does not say what ends a text);
                            neither with "bytes"
    train-NUMBER.tokens     tokens of documents, e d_1..d_n e d_1..d_m e with e = end-of-text: raw little-endian uint16, or
                            uint32 where the vocabulary has more than 65,536 symbols
    train-NUMBER.borders    at which token of that file each e stands: raw little-endian uint64, one more than documents
    held_out-NUMBER.tokens, .borders        the same of documents held out
    held_out-NUMBER.texts, .text_borders    and their names and texts in the same way, as bytes: 0 name 0 text 0 name 0 ... 0

In the order of their numbers the shards hold the documents in the order in which they were read. Numbers may be missing.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from latentlm.config import DataConfig, Strict, parse, read_json
from latentlm.config.reading import open_plain, why_not
from latentlm.config.writing import write_atomically
from latentlm.errors import UserError
from latentlm.tokenizer import FILE, Tokenizer, load_tokenizer

FORMAT, VERSION, INDEX = "latentlm token shards", 1, "index.json"
WORK = ".prepare"
"""The folder within, while the shards are being made."""
BORDER = np.dtype("<u8")
Ending = Literal["tokens", "borders", "texts", "text_borders"]


class File(Strict):
    """Size in bytes and hash of a file."""

    size: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Shard(Strict):
    """Some documents of one part."""

    name: str = Field(pattern=r"^(train|held_out)-[0-9]{5,12}$", max_length=24)
    documents: int = Field(ge=1)
    tokens: int = Field(ge=2, description="in its file, the first end-of-text and all others among them")
    bytes: int = Field(ge=0, description="of the documents' texts")
    files: dict[Ending, File]


class TokenizerFacts(Strict):
    """With which tokenizer the tokens were made."""

    spec: str = Field(description="the `data.tokenizer` of whoever prepared them")
    name: str
    vocabulary: int = Field(ge=1)
    end_of_text: int = Field(ge=0)
    files: dict[Literal["tokenizer.json", "tokenizer_config.json"], File]


class Index(Strict):
    """index.json."""

    format: Literal["latentlm token shards"]
    version: Literal[1]
    tokenizer: TokenizerFacts
    dtype: Literal["uint16", "uint32"]
    data: DataConfig
    """Where the documents came from, and how they were parted."""
    shard_bytes: int = Field(ge=1, description="of text, at least, that make a shard")
    duplicates: int = Field(ge=0)
    empty: int = Field(ge=0)
    train: list[Shard] = Field(min_length=1)
    held_out: list[Shard] = Field(min_length=1)

    def files(self) -> dict[str, File]:
        """All files that belong to it, by name."""
        shards = [*self.train, *self.held_out]
        own = {f"{shard.name}.{ending}": file for shard in shards for ending, file in shard.files.items()}
        return {**{str(name): file for name, file in self.tokenizer.files.items()}, **own}

    def fingerprint(self) -> str:
        """SHA-256, in hex, of the hashes of everything that is learned from, wherever it came from."""
        said = self.model_dump(mode="json", include={"dtype", "train", "held_out"})
        said["tokenizer"] = self.tokenizer.model_dump(mode="json", exclude={"spec"})
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def shards_at(path: str | Path) -> bool:
    """Whether a folder holds shards, whole or not."""
    if os.path.isdir(Path(path, WORK)) or os.path.lexists(Path(path, "train-00000.tokens")):
        return True
    try:
        with open_plain(Path(path, INDEX)) as file:
            return FORMAT.encode() in file.read(256)
    except (OSError, ValueError):
        return False


def read_index(folder: Path) -> Index:
    """The index of a folder, checked against itself; no other file is looked at. Raises UserError."""
    path = folder / INDEX
    if not path.exists() and (folder / WORK).is_dir():
        raise UserError(f"{folder} is not finished: give the command `latentlm data prepare` again that began it.")
    opened(path).close()
    data = read_json(path)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise UserError(f'{path} is no index of shards ("format": "{FORMAT}").')
    version = data.get("version")
    if type(version) is not int or version != VERSION:  # to Python, true is 1
        said = f"has version {version!r}; this latentlm reads version {VERSION}"
        raise UserError(f"{path} {said}. Install the latentlm that made it, or prepare the data anew.")
    index = parse(Index, data, source=str(path))
    check_index(index, source=str(path))
    return index


def check_index(index: Index, *, source: str) -> None:
    """Raise UserError where an index contradicts itself."""
    wanted = {"train": {"tokens", "borders"}, "held_out": {"tokens", "borders", "texts", "text_borders"}}
    width = np.dtype(index.dtype).itemsize
    seen: set[str] = set()
    for part in ("train", "held_out"):
        for shard in getattr(index, part):
            sizes = {ending: shard.files[ending].size for ending in shard.files}
            right = {**sizes, "tokens": shard.tokens * width, "borders": (shard.documents + 1) * BORDER.itemsize}
            if part == "held_out":
                right |= {"texts": sizes.get("texts", 0), "text_borders": (2 * shard.documents + 1) * BORDER.itemsize}
            if not shard.name.startswith(f"{part}-") or sizes.keys() != wanted[part] or sizes != right or shard.name in seen:
                raise UserError(f"{source} contradicts itself about {shard.name}: it is damaged. Prepare the data anew.")
            seen.add(shard.name)
    if np.dtype(index.dtype) != (np.uint16 if index.tokenizer.vocabulary <= 2**16 else np.uint32):
        raise UserError(f"{source} contradicts itself about dtype and vocabulary: it is damaged. Prepare the data anew.")


def tokenizer_of(index: Index, folder: Path) -> Tokenizer:
    """The tokenizer of a folder whose files are as the index says. Raises UserError."""
    for name, file in index.tokenizer.files.items():
        if hashed(folder / name).sha256 != file.sha256:
            raise UserError(f"{folder / name} has been changed since the shards were made. Bring the old file back.")
    tokenizer = load_tokenizer(FILE if FILE in index.tokenizer.files else "bytes", folder=folder)
    if (tokenizer.vocabulary, tokenizer.end_of_text) != (index.tokenizer.vocabulary, index.tokenizer.end_of_text):
        raise UserError(f"{folder / INDEX} contradicts its tokenizer: it is damaged. Prepare the data anew.")
    return tokenizer


def opened(path: Path, *, size: int | None = None) -> Any:
    """A file of a folder of shards, opened for reading bytes; no link is followed. Raises UserError where it is missing, or has
    another size."""
    try:
        file = open_plain(path, links=False)
    except (OSError, ValueError) as error:
        why = f"{path} is a link, and none is followed." if path.is_symlink() else why_not(path, error)
        raise UserError(f"{why} Bring the file back, or prepare the data anew.") from None
    found = os.fstat(file.fileno()).st_size
    if size is not None and found != size:
        file.close()
        raise UserError(f"{path} has {found:,} bytes instead of {size:,}. Bring the file back, or prepare the data anew.")
    return file


def check_files(index: Index, folder: Path) -> None:
    """Raise UserError where a file of a folder is missing, or has another size than its index says."""
    for shard in (*index.train, *index.held_out):
        for ending, file in shard.files.items():
            opened(folder / f"{shard.name}.{ending}", size=file.size).close()
    for name, file in index.tokenizer.files.items():
        opened(folder / name, size=file.size).close()


def hashed(path: Path) -> File:
    """Size and hash of a file. Raises UserError."""
    digest = hashlib.sha256()
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        while block := file.read(2**20):
            digest.update(block)
    return File(size=size, sha256=digest.hexdigest())


def write_array(path: Path, values: np.ndarray) -> File:
    """Write numbers as they lie in memory; says size and hash. Raises CheckpointError where the disk refuses."""
    data = memoryview(np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<"), copy=False)).view(np.uint8).data)
    write_atomically(path, lambda temporary: temporary.write_bytes(data))
    return File(size=len(data), sha256=hashlib.sha256(data).hexdigest())
