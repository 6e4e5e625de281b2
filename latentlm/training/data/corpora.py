"""Where documents come from: the standard library, folders, .txt, .jsonl, .parquet, Hugging Face data sets.

`read_corpus(config)` yields `Document`s, raw bytes under a stable name, in a fixed order. What counts as one document:

    stdlib             each Python source of the running interpreter's standard library (see `standard_library`)
    a folder           each file that matches `data.pattern`; .jsonl and .parquet files in it give one document per row.
                       Patterns without a slash match file names at any depth; hidden files and __pycache__ are passed over.
    FILE.txt           the texts between lines that hold only <|endoftext|>; in a file without such lines, passages of 4 KiB or
                       a little more, cut after blank lines (after any line from 16 KiB on)
    FILE.jsonl[.gz]    each line's `data.text_field`
    FILE.parquet       each row's `data.text_field`
    synthetic:NAME     `data.max_documents` texts (100,000 where it is not set) of a source in synthetic/, drawn by
                       `data.seed`
    owner/name         each row of the data set's `data.split` ("owner/name:configuration" where it has several; "hf:" in front
                       where the name has no slash)

Text columns are taken as UTF-8; files are taken byte for byte, whatever their encoding.
"""

from __future__ import annotations

import gzip
import os
import re
import sysconfig
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentlm.config import DataConfig
from latentlm.config.reading import MOST_LINE, json_data, lines_of, no_file
from latentlm.errors import UserError, did_you_mean, short, typed_path, unknown_name
from latentlm.tokenizer import END_OF_TEXT, as_bytes
from latentlm.training.data.left_out import ROW_FILES, say_what_is_left_out
from latentlm.training.data.synthetic import PREFIX as SYNTHETIC
from latentlm.training.data.synthetic import source

if TYPE_CHECKING:
    from pyarrow import DataType
    from pyarrow.parquet import RowGroupMetaData

SINGLE_FILES = (".txt", *ROW_FILES)
_HUB = "hf:"
_PASSAGE = 4096  # bytes
_LONGEST_PASSAGE = 4 * _PASSAGE
_ROWS, _TOGETHER = 64, 2**30  # rows of Parquet, and bytes at most, that are unpacked together

# Test suites are dropped because systems differ most in which of them they ship; the others are written by programs: tables of
# character sets, the documentation as one string literal, and build settings of this very machine.
_STDLIB_SKIPPED_FOLDERS = {"test", "tests", "idle_test", "encodings", "pydoc_data", "site-packages", "dist-packages"}
_STDLIB_SKIPPED_FILES = ("_sysconfigdata*", "sitecustomize.py", "usercustomize.py")
_STDLIB_FEWEST = 100
_SYNTHETIC_TEXTS = 100_000


@dataclass(frozen=True)
class Document:
    """One text: its name, stable from run to run, and its bytes."""

    id: str
    data: bytes


def read_corpus(config: DataConfig, *, called: str | None = None) -> Iterator[Document]:
    """The documents of `data.path`, in a fixed order; empty ones too. Raises UserError.

    `called` is the path that a file or data set had when its documents got their names, where it has moved since."""
    if config.path == "stdlib":
        return standard_library()
    if config.path.startswith(SYNTHETIC):
        return _synthetic(config.path.removeprefix(SYNTHETIC), config)
    path = typed_path(config.path)
    if path.is_dir():
        return _folder(path, config, called)
    if path.is_file():
        return _single_file(path, config, called)
    if config.path.startswith(_HUB):
        return hub_documents(config.path.removeprefix(_HUB), config)
    if _names_a_file(config.path) or os.path.lexists(path):
        near = "" if os.path.lexists(path) else did_you_mean(path.name, _siblings(path))
        raise UserError(f"data.path: {no_file(path)}{near}")
    if near := did_you_mean(config.path, ["stdlib"]):  # before the network is asked, which takes half a minute to fail
        raise UserError(f'data.path "{config.path}" does not exist here.{near} For a data set of that name: hf:{config.path}.')
    return hub_documents(config.path, config)


# ---------------------------------------------------------------------------------------------------------------- files


def standard_library(root: Path | None = None) -> Iterator[Document]:
    """The sources of the running Python's standard library, in the order of their paths: every .py file but the test suites,
    what programs wrote, and what is installed beside it. `root` is another interpreter's library."""
    root = root or Path(sysconfig.get_path("stdlib"))  # the base interpreter's, also inside a virtual environment
    paths = [
        path
        for path in _walk(root, skip=_STDLIB_SKIPPED_FOLDERS)
        if path.suffix == ".py" and not any(fnmatchcase(path.name, pattern) for pattern in _STDLIB_SKIPPED_FILES)
    ]
    if len(paths) < _STDLIB_FEWEST:
        raise UserError(
            f"only {len(paths)} Python sources found in {root}, the standard library of the running Python; it seems to be "
            "stripped or zipped. Install the full one (Debian: apt install libpython3-stdlib), or give a text of your own: "
            "data.path=FOLDER."
        )
    return (Document(path.relative_to(root).as_posix(), _read(path)) for path in paths)


def _synthetic(name: str, config: DataConfig) -> Iterator[Document]:
    """Texts of a synthetic source. Raises UserError for a name that is unknown."""
    texts = source(name).texts(config.max_documents or _SYNTHETIC_TEXTS, seed=config.seed)
    return (Document(f"{name}:{number}", text) for number, text in enumerate(texts))


def _walk(root: Path, *, skip: set[str]) -> Iterator[Path]:
    """Files under a folder in the order of their relative paths; hidden ones, __pycache__, `skip`ped folders and links to
    folders are passed over."""
    found: list[Path] = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in skip and name != "__pycache__" and not name.startswith(".")]
        found += [Path(folder, name) for name in files if not name.startswith(".")]
    yield from sorted((path for path in found if path.is_file()), key=lambda path: path.relative_to(root).as_posix())


def _folder(root: Path, config: DataConfig, called: str | None) -> Iterator[Document]:
    """A folder of files, or a data set written by `datasets.Dataset.save_to_disk`."""
    if (root / "dataset_info.json").is_file() or (root / "dataset_dict.json").is_file():
        return _saved_data_set(root, config, Path(called or root).name)
    patterns = [pattern.strip() for pattern in config.pattern.split(",") if pattern.strip()]
    there = list(_walk(root, skip=set()))
    paths = [path for path in there if _matches(path.relative_to(root).as_posix(), patterns)]
    if not paths:
        seen = sorted({path.suffix for path in there if path.suffix})[:8]
        found = f" It has files ending in {', '.join(seen)}." if seen else " It is empty." if not there else ""
        raise UserError(
            f'no file in {root} matches data.pattern "{config.pattern}".{found} Set data.pattern, as "*.py,docs/*".'
        )
    say_what_is_left_out(root, set(there) - set(paths), pattern=config.pattern)
    return _folder_files(root, paths, config)


def _folder_files(root: Path, paths: list[Path], config: DataConfig) -> Iterator[Document]:
    for path in paths:
        name = path.relative_to(root).as_posix()
        if name.lower().endswith(ROW_FILES):
            yield from _rows_of_file(path, name, config)
        else:
            yield Document(name, _read(path))


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(name if "/" in pattern else name.rpartition("/")[2], pattern) for pattern in patterns)


def _single_file(path: Path, config: DataConfig, called: str | None) -> Iterator[Document]:
    name = Path(called or path).name
    if path.name.lower().endswith(ROW_FILES):
        return _rows_of_file(path, name, config)
    if path.suffix.lower() == ".txt":
        return _text_file(path, name)
    pattern = re.sub(r"[,*?\[]", "?", path.name)
    raise UserError(
        f"data.path: {path.name} ends in none of {', '.join(SINGLE_FILES)}. Rename it, or give its folder with "
        f"data.pattern={pattern} (each matching file is then one document)."
    )


def _text_file(path: Path, name: str) -> Iterator[Document]:
    """The documents in one .txt file: between separator lines, or passages."""
    data = _read(path)
    pieces = re.split(rb"(?m)^[ \t]*%s[ \t]*\r?(?:\n|\Z)" % re.escape(END_OF_TEXT.encode()), data)
    for number, piece in enumerate(pieces if len(pieces) > 1 else _passages(data)):
        yield Document(f"{name}:{number}", piece)


def _passages(data: bytes) -> Iterator[bytes]:
    """Cut a text after blank lines into passages; joined, they are the text."""
    start = end = 0
    for line in data.splitlines(keepends=True):
        end += len(line)
        if end - start >= (_LONGEST_PASSAGE if line.strip() else _PASSAGE):
            yield data[start:end]
            start = end
    if end > start:
        yield data[start:end]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except MemoryError:
        raise UserError(f"{path} does not fit into memory. Split it into files that do, in a folder.") from None


# ----------------------------------------------------------------------------------------------------------------- rows


def _rows_of_file(path: Path, name: str, config: DataConfig) -> Iterator[Document]:
    rows = _parquet_rows(path, config.text_field) if path.suffix.lower() == ".parquet" else _json_rows(path, config.text_field)
    for number, text in rows:
        found = _text(text, where=f"{name}:{number}", field=config.text_field)
        if len(found) > MOST_LINE:
            raise UserError(f"{name}:{number} is longer than {MOST_LINE // 2**20} MiB, too long for a text.")
        yield Document(f"{name}:{number}", found)


def _text(value: Any, *, where: str, field: str) -> bytes:
    if value is None:
        return b""
    if not isinstance(value, str | bytes):
        raise UserError(
            f'{where}: "{field}" holds {type(value).__name__}, not text; choose a text column with data.text_field.'
        )
    return as_bytes(value)


def _missing_column(source: str, field: str, columns: list[str]) -> UserError:
    near = did_you_mean(field, columns)
    return UserError(f'{source} has no column "{field}".{near} It has: {", ".join(columns)}. Set data.text_field.')


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number from 1, bytes) of each line that is not blank, of a plain file or a gzip one (.gz). Raises UserError where it
    cannot be read on."""
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    number = 0
    try:
        with opener(path, "rb") as lines:
            for number, line in lines_of(lines, path, most=MOST_LINE):
                yield number, line
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read after line {number}: {error}.") from None


def _json_rows(path: Path, field: str) -> Iterator[tuple[int, Any]]:
    """(line number from 1, value of the field) of each line that is not blank."""
    for number, line in numbered_lines(path):
        where = f"{path}, line {number}"
        row = json_data(line, source=where, remedy="A .jsonl file holds one JSON object per line.")
        yield number, _field(row, field, where=where)


def _field(row: Any, field: str, *, where: str) -> Any:
    if not isinstance(row, dict):
        raise UserError(f'{where}: a {type(row).__name__} where an object such as {{"{field}": "..."}} belongs.')
    if field not in row:
        raise _missing_column(where, field, list(row))
    return row[field]


def _parquet_rows(path: Path, field: str) -> Iterator[tuple[int, Any]]:
    """(row number from 0, value of the column) of each row."""
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            columns = list(file.schema_arrow.names)
            if field not in columns:
                raise _missing_column(str(path), field, columns)
            if (count := columns.count(field)) > 1:
                raise UserError(f'{path} has {count} columns called "{field}": rename one, or set data.text_field to another.')
            _check_type(path, field, file.schema_arrow.field(field).type)
            for group in range(file.metadata.num_row_groups):
                together = _rows_together(path, file.metadata.row_group(group), field)
                for batch in file.iter_batches(columns=[field], row_groups=[group], batch_size=together):
                    for value in batch.column(field):
                        text = value.value if isinstance(value, pyarrow.DictionaryScalar) else value
                        held = text.as_buffer() if hasattr(text, "as_buffer") else None
                        if held is not None and held.size > MOST_LINE:  # before it is made again as one of Python's
                            raise UserError(f"{path}:{number} is longer than {MOST_LINE // 2**20} MiB, too long for a text.")
                        yield number, value.as_py()
                        number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is not readable as Parquet: {error}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}, row {number}, is no text in UTF-8, which Parquet promises. Write the file anew.") from None


def _check_type(path: Path, field: str, found: DataType) -> None:
    """Refuse a column whose values are no texts before any is turned into one of Python's. Raises UserError."""
    from pyarrow import types

    inner = found.value_type if types.is_dictionary(found) else found
    texts = (types.is_string, types.is_large_string, types.is_string_view, types.is_binary, types.is_large_binary,
             types.is_binary_view, types.is_null)  # fmt: skip
    if not any(holds(inner) for holds in texts):
        said = f'{path}: the column "{field}" holds {short(str(found), 80)}, not text.'
        raise UserError(f"{said} Name another with data.text_field.")


def _rows_together(path: Path, group: RowGroupMetaData, field: str) -> int:
    """How many rows of a group are unpacked together: each may be a repetition of one that is as long as the whole column.
    Raises UserError where they are longer than texts on the mean."""
    columns = (group.column(number) for number in range(group.num_columns))
    size = sum(column.total_uncompressed_size for column in columns if column.path_in_schema == field)
    mean = size / max(group.num_rows, 1)
    if mean > MOST_LINE:
        said = f"{mean / 2**20:,.0f} MiB on average"
        raise UserError(f"{path}: its rows, {said}, are longer than {MOST_LINE // 2**20} MiB, too long for texts.")
    return max(1, min(_ROWS, _TOGETHER // max(size, 1)))


# ----------------------------------------------------------------------------------------------------------- data sets


def hub_documents(name: str, config: DataConfig) -> Iterator[Document]:
    """Rows of a Hugging Face data set, "owner/name" or "owner/name:configuration", or a local folder in that layout."""
    from datasets import load_dataset

    dataset, configuration = (name, "") if os.path.lexists(name) else name.partition(":")[::2]
    near = did_you_mean(dataset, ["stdlib", *_siblings(Path(dataset))])
    try:
        rows = load_dataset(dataset, configuration or None, split=config.split)
    except Exception as error:  # the loader raises errors of a dozen libraries
        raise UserError(
            f'data.path "{name}": no such file or folder here, and no Hugging Face data set could be loaded by that name '
            f"({type(error).__name__}: {_first_line(error)}).{near} Check the spelling of a path; for a data set, the "
            f'network, the name ("owner/name" or "owner/name:configuration") and data.split (now "{config.split}").'
        ) from None
    return _data_set_rows(rows, name, config)


def _saved_data_set(root: Path, config: DataConfig, name: str) -> Iterator[Document]:
    from datasets import Dataset, load_from_disk

    try:
        loaded = load_from_disk(str(root))
    except Exception as error:  # as above
        raise UserError(f"{root} is not readable as a saved data set: {_first_line(error)}") from None
    if not isinstance(loaded, Dataset):
        if config.split not in loaded:
            raise unknown_name("split", config.split, loaded, remedy="Set data.split.")
        loaded = loaded[config.split]
    return _data_set_rows(loaded, name, config)


def _data_set_rows(rows: Any, name: str, config: DataConfig) -> Iterator[Document]:
    field = config.text_field
    if field not in rows.column_names:
        raise _missing_column(name, field, rows.column_names)
    texts = rows.select_columns([field])
    numbered = (f"{name}:{config.split}:{number}" for number in range(len(texts)))
    return (Document(where, _text(row[field], where=where, field=field)) for where, row in zip(numbered, texts, strict=True))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]


def _names_a_file(path: str) -> bool:
    """The text looks like a path rather than a data set's name."""
    return path.startswith(("/", ".", "~")) or path.count("/") > 1 or bool(re.search(r"\\|/$|\.[a-z]{2,5}(\.gz)?$", path))


def _siblings(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
