"""Documents into a folder of token shards (format.py), so that it can be killed at any time and gone on with.

    make(recipe.data, out=Path("shards"), processes=8)                           anything that `data.path` takes
    prepare(texts, out=Path("shards"), tokenizer="tokenizer.json")               any texts, such as a data set that streams:

    rows = datasets.load_dataset("owner/name", split="train", streaming=True)
    prepare((row["text"] for row in rows), out=Path("shards"), tokenizer="bpe:32768", name="owner/name:train")

Four steps, each taken up again where it was broken off:

    1  documents are read once, cleaned (parting.py) and put on the disk as they are, in chunks of `shard_bytes`
    2  the tokenizer is made, where it is to be trained, of the training documents
    3  each chunk becomes a shard of training documents and one of those held out: by several processes, in any order (tasks.py)
    4  the index is written, which says that the folder is whole

In memory are one chunk (of each process: a chunk and its tokens), and nothing that grows with the number of documents.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

from latentlm.config import DataConfig, checking, parse
from latentlm.config.reading import MOST_LINE
from latentlm.config.writing import acquired, open_to_append, remove_folder, remove_leftovers, write_text
from latentlm.errors import UserError, path_of
from latentlm.tokenizer import COMPANION, FILE, as_bytes, load_tokenizer
from latentlm.training.data.corpora import Document, read_corpus
from latentlm.training.data.parting import Cleaned, Parting, always_held_out
from latentlm.training.data.shards.format import (
    INDEX,
    WORK,
    Index,
    TokenizerFacts,
    check_files,
    check_index,
    hashed,
    read_index,
    shards_at,
)
from latentlm.training.data.shards.tasks import begin_worker, make_shards, portions
from latentlm.training.data.shards.work import (
    MARK,
    READ,
    SEEN,
    SETTINGS,
    Read,
    Settings,
    Tokenized,
    check_work,
    chunk_file,
    read_chunk,
    read_done,
    read_record,
    read_tokenized,
    whole,
    write_chunk,
    write_record,
)
from latentlm.training.data.tokenizing import given_tokenizer, make_tokenizer

SHARD_BYTES = 2**26
Say = Callable[[str, int, int | None], None]
"""Told how it goes on: what is done, how much of it, of how much."""


def prepare(
    documents: Iterable[str | bytes | Document],
    *,
    out: Path | str,
    tokenizer: str = "bytes",
    held_out: float = 0.05,
    seed: int = 0,
    name: str = "documents",
    processes: int = 1,
    shard_bytes: int = SHARD_BYTES,
    say: Say | None = None,
) -> Index:
    """Write token shards of documents into the folder `out`, without holding the documents; they are gone through once.

    `tokenizer`, `held_out` and `seed` are a recipe's `data.tokenizer`, `data.held_out` and `data.seed`. Document n, from 0, is
    called NAME:n, by which it is held out or not; a `Document` has a name of its own. With more than one of `processes`, a
    script needs `if __name__ == "__main__":` around the call, as with all of Python's processes. Called again with the same
    after it was killed, it goes on (with the documents from the first on, unless all had been read). Raises UserError.
    """
    data = {"path": name, "tokenizer": tokenizer, "held_out": held_out, "seed": seed}
    config = parse(DataConfig, data, source="prepare")
    return _made(config, lambda: _named(documents, name), out=out, processes=processes, shard_bytes=shard_bytes, say=say)


def make(
    config: DataConfig, *, out: Path | str, processes: int = 1, shard_bytes: int = SHARD_BYTES, say: Say | None = None
) -> Index:
    """Write token shards of the documents of a recipe's `data` into the folder `out`; as `prepare`. Raises UserError."""
    if shards_at(config.path):
        raise UserError(f"{config.path} holds token shards already: train on it with data.path={config.path}.")
    return _made(config, lambda: read_corpus(config), out=out, processes=processes, shard_bytes=shard_bytes, say=say)


def _named(documents: Iterable[str | bytes | Document], name: str) -> Iterator[Document]:
    for number, each in enumerate(documents):
        if not isinstance(each, str | bytes | Document):
            raise UserError(f"{name}:{number}: a document is a text (str or bytes), not {checking.shown(each)}.")
        document = each if isinstance(each, Document) else Document(f"{name}:{number}", as_bytes(each))
        if len(document.data) > MOST_LINE:
            raise UserError(f"{document.id} is longer than {MOST_LINE // 2**20} MiB, too long for a text.")
        yield document


def _made(
    config: DataConfig,
    documents: Callable[[], Iterable[Document]],
    *,
    out: Path | str,
    processes: int,
    shard_bytes: int,
    say: Say | None,
) -> Index:
    """The folder's index, after whatever of the four steps is not done."""
    folder, settings = path_of(out), Settings(data=config, shard_bytes=checking.whole("shard_bytes", shard_bytes, least=1))
    processes = checking.whole("processes", processes, least=1, most=4096)
    say = say or (lambda what, done, of: None)
    given_tokenizer(config.tokenizer)
    with _claimed(folder, settings):
        if (folder / INDEX).exists():
            index = read_index(folder)
            check_files(index, folder)
        else:
            read = _read_all(folder, Cleaned(documents(), config), settings, say)
            parting = read.parting(config)
            tokenized = _tokenized(folder, config.tokenizer, read, parting, say)
            _make_all(folder, read, parting, tokenized, processes=processes, say=say)
            index = _write_index(folder, settings, read, tokenized)
        if (folder / WORK).exists():
            remove_folder(folder / WORK)
    return index


# -------------------------------------------------------------------------------------------------------------- folder


@contextmanager
def _claimed(folder: Path, settings: Settings) -> Iterator[None]:
    """Hold the folder for this process, if it is empty, or holds what these settings make or have made. Raises UserError."""
    _check(folder, settings)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror or error}. Choose another folder with --out.") from None
    with open_to_append(folder / ".lock") as lock:
        if os.fstat(lock.fileno()).st_size:
            raise UserError(f"{folder / '.lock'} is not the lock of this command. Choose another folder with --out.")
        if not acquired(lock.fileno()):
            raise UserError(f"another process is preparing data in {folder}. Wait for it, or choose another folder with --out.")
        _check(folder, settings)  # another process may have come first
        for place in (folder, folder / WORK):
            remove_leftovers(place)
        if not (folder / INDEX).exists():
            write_record(folder / WORK / SETTINGS, settings)
        yield


def _check(folder: Path, settings: Settings) -> None:
    """Raise UserError where the folder is someone else's, or was begun with other settings; writes nothing."""
    begun = check_work(folder)
    if (folder / INDEX).exists():
        index = read_index(folder)
        before = Settings(data=index.data, shard_bytes=index.shard_bytes)
    elif begun is not None and (folder / WORK / READ).exists():
        before = begun
    else:  # nothing was made: other settings will do
        found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        others = [name for name in found if not name.startswith(".")]
        if others:
            raise UserError(f"{folder} is not empty ({', '.join(others[:3])}). Choose another folder with --out.")
        return
    one, other = ({**each.data.model_dump(), "shard_bytes": each.shard_bytes} for each in (before, settings))
    if differing := [f"{key}: {one[key]} then, {other[key]} now" for key in one if one[key] != other[key]]:
        said = f"{folder} holds shards that were begun with other settings ({'; '.join(differing)})"
        raise UserError(f"{said}. Choose another folder with --out, or delete it first.")


# --------------------------------------------------------------------------------------------------------------- steps


class _Digests:
    """A set of hashes in a file, which need not outlive the process."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._table = sqlite3.connect(path, isolation_level=None)
        self._table.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA locking_mode=EXCLUSIVE;")
        self._table.execute("CREATE TABLE seen (digest BLOB PRIMARY KEY) WITHOUT ROWID")

    def __contains__(self, digest: bytes, /) -> bool:
        return self._table.execute("SELECT 1 FROM seen WHERE digest = ?", (digest,)).fetchone() is not None

    def add(self, digest: bytes, /) -> None:
        self._table.execute("INSERT INTO seen VALUES (?)", (digest,))

    def close(self) -> None:
        self._table.close()


def _read_all(folder: Path, cleaned: Cleaned, settings: Settings, say: Say) -> Read:
    """Step 1: documents on the disk, in chunks."""
    record = folder / WORK / READ
    if record.exists():
        with whole(folder):
            return read_record(record, Read)
    config, seen = settings.data, _Digests(folder / WORK / SEEN)
    parting = Parting(config.seed, config.held_out, frozenset(always_held_out(config)))
    cleaned.seen = seen
    chunks = []
    for number, documents in enumerate(portions(cleaned, size=settings.shard_bytes)):
        chunks.append(write_chunk(folder, number, documents))
        for document in documents:
            parting.add(document.id)
        say("documents read", parting.count, None)
    seen.close()
    cleaned.check(parting.count)
    read = Read(
        chunks=chunks,
        documents=parting.count,
        duplicates=cleaned.duplicates,
        empty=cleaned.empty,
        below=parting.below,
        lowest=parting.lowest,
        highest=parting.highest,
    )
    write_record(record, read)
    return read


def _tokenized(folder: Path, spec: str, read: Read, parting: Parting, say: Say) -> Tokenized:
    """Step 2: the tokenizer, in the folder."""
    tokenized = read_tokenized(folder)
    if tokenized is None:
        say("tokenizer", 0, 1)
        documents = (document for number, chunk in enumerate(read.chunks) for document in read_chunk(folder, number, chunk))
        texts = (document.data for document in documents if not parting.holds_out(document.id))
        made = make_tokenizer(spec, texts)
        for name in (FILE, COMPANION):  # of one that was broken off, whose companion this one may not have
            (folder / name).unlink(missing_ok=True)
        made.save(folder)
        names = () if spec == "bytes" else (FILE, COMPANION)
        tokenized = Tokenized(files={name: hashed(folder / name) for name in names if (folder / name).exists()})  # type: ignore[misc]
        write_record(folder / WORK / MARK, tokenized)
    say("tokenizer", 1, 1)
    return tokenized


def _make_all(
    folder: Path, read: Read, parting: Parting, tokenized: Tokenized, *, processes: int, say: Say
) -> None:
    """Step 3: all shards."""
    left, of = [], len(read.chunks)
    for number in range(of):
        if chunk_file(folder, number, "json").exists():
            read_done(folder, number, read.chunks[number], files=True)  # by the command that was broken off
        else:
            left.append(number)
    done = of - len(left)
    say("shards", done, of)
    if processes == 1 or len(left) < 2:
        for number in left:
            make_shards(folder, number, read.chunks[number], parting, tokenized)
            done += 1
            say("shards", done, of)
        return
    start = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context, others = multiprocessing.get_context(start), set(multiprocessing.active_children())
    context.set_forkserver_preload([make_shards.__module__])  # which takes seconds, and is then shared
    with ProcessPoolExecutor(min(processes, len(left)), mp_context=context, initializer=begin_worker) as pool:
        try:
            try:
                waiting = [pool.submit(make_shards, folder, number, read.chunks[number], parting, tokenized) for number in left]
            except (EOFError, OSError) as error:  # pipes that are closed: one was killed while another was to begin
                if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
                    raise
                raise BrokenProcessPool from error
            for future in as_completed(waiting):
                future.result()
                done += 1
                say("shards", done, of)
        except BaseException as error:
            # Without waiting for what takes them a while; and one that began while another was killed waits for ever.
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()
            if not isinstance(error, BrokenProcessPool):
                raise
            said = "a process that makes shards has ended: it was killed, maybe for want of memory"
            raise UserError(f"{said}. Give the same command again, with fewer --processes.") from None


def _write_index(folder: Path, settings: Settings, read: Read, tokenized: Tokenized) -> Index:
    """Step 4: the index."""
    done = [read_done(folder, number, chunk, files=False) for number, chunk in enumerate(read.chunks)]
    train = [each.train for each in done if each.train is not None]
    held_out = [each.held_out for each in done if each.held_out is not None]
    if not (train and held_out):
        missing = "to train on" if held_out else "to hold out"
        raise UserError(f"no document is left {missing}: they are parted by their names. Give each one of its own.")
    with whole(folder):
        tokenizer = load_tokenizer(FILE if tokenized.files else "bytes", folder=folder)
    index = Index(
        format="latentlm token shards",
        version=1,
        tokenizer=TokenizerFacts(
            spec=settings.data.tokenizer,
            name=tokenizer.name,
            vocabulary=tokenizer.vocabulary,
            end_of_text=tokenizer.end_of_text,
            files=tokenized.files,
        ),
        dtype="uint16" if tokenizer.vocabulary <= 2**16 else "uint32",
        data=settings.data,
        shard_bytes=settings.shard_bytes,
        duplicates=read.duplicates,
        empty=read.empty,
        train=train,
        held_out=held_out,
    )
    with whole(folder):
        check_index(index, source=INDEX)
    write_text(folder / INDEX, json.dumps(index.model_dump(mode="python"), indent=1) + "\n")
    return index
