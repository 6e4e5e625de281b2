"""A folder of data that holds more readable files than are read says so."""

from __future__ import annotations

import gzip
import warnings
from pathlib import Path

import pytest

from latentlm.config import DataConfig
from latentlm.training.data.corpora import read_corpus
from latentlm.training.data.left_out import LeftOutWarning


def names(root: Path, **settings: object) -> list[str]:
    return [document.id for document in read_corpus(DataConfig.model_validate({"path": str(root), **settings}))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text("read")
    return tmp_path


def test_readable_files_that_no_pattern_matches_are_counted_by_ending(folder: Path) -> None:
    (folder / "sub").mkdir()
    for name in ("b.rst", "sub/c.rst", "d.jsonl", "LICENSE", "README.MD"):
        (folder / name).write_text('{"text": "x"}')
    with pytest.warns(LeftOutWarning, match="5 readable files are left out") as seen:
        assert names(folder) == ["a.txt"]
    said = str(seen[0].message)
    assert all(part in said for part in ("2 .rst", "1 .jsonl", "1 .MD", "1 without an ending"))
    wanted = said.partition('too: data.pattern="')[2].partition('"')[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = names(folder, pattern=wanted)  # the remedy reads them all
    assert found == ["LICENSE", "README.MD", "a.txt", "b.rst", "d.jsonl:1", "sub/c.rst"]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("image.png", b"\x89PNG\r\n\x1a\n\0\0"),
        ("numbers.bin", bytes(range(256)) * 8),
        ("packed.gz", gzip.compress(b"text", mtime=0)),
        ("empty.rst", b" \n"),
        (".hidden", b"text"),
        ("__pycache__/a.pyc", b"text"),
        (".git/config", b"text"),
    ],
)
def test_what_is_no_text_or_hidden_costs_no_word(folder: Path, name: str, data: bytes) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert names(folder) == ["a.txt"]


@pytest.mark.parametrize("length", range(1020, 1030))
def test_a_letter_that_is_cut_where_the_look_ends_is_text(folder: Path, length: int) -> None:
    (folder / "b.log").write_text("x" * (length - 1) + "\u65e5\u672c")
    with pytest.warns(LeftOutWarning, match=r"1 readable file is left out \(1 \.log\)"):
        names(folder)


def test_a_text_that_is_not_utf_8_is_text(folder: Path) -> None:
    (folder / "b.tex").write_bytes("caf\u00e9, d\u00e9j\u00e0 vu\n".encode("latin-1"))
    with pytest.warns(LeftOutWarning, match=r"1 readable file is left out \(1 \.tex\)"):
        names(folder)


def test_a_link_to_a_folder_is_told(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "b.txt").write_text("not read")
    (folder / "more").symlink_to(other)
    with pytest.warns(LeftOutWarning, match=r"links to folders are not followed \(more\)"):
        assert names(folder) == ["a.txt"]
