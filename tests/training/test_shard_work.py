"""Shards that are being made: a work folder of someone else's is left alone, and a damaged one is said to be."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentlm.config import DataConfig, Recipe
from latentlm.config.hashed import with_hash
from latentlm.errors import UserError
from latentlm.tokenizer import BPETokenizer
from latentlm.training.data.corpora import Document
from latentlm.training.data.shards import format as layout
from latentlm.training.data.shards import making, work
from latentlm.training.data.shards.reading import Shards

Make = Callable[..., Recipe]


def sharded(data: DataConfig, out: Path) -> None:
    """Several shards."""
    making.make(data, out=out, shard_bytes=2500)


@pytest.mark.parametrize("name", ["thesis.txt", "00000.texts", "settings.json", "settings.json/mine"])
def test_a_work_folder_of_someone_else_stays_as_it_is(name: str, recipe: Make, tmp_path: Path) -> None:
    mine = tmp_path / "out" / layout.WORK / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(UserError, match="none that this command has made"):
        making.make(recipe().data, out=tmp_path / "out")
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [mine]


@pytest.mark.parametrize("name", ["thesis.txt", "settings.json"])
def test_a_work_folder_of_someone_else_beside_whole_shards_stays_as_it_is(name: str, recipe: Make, tmp_path: Path) -> None:
    sharded(recipe().data, tmp_path)
    mine = tmp_path / layout.WORK / name
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(UserError, match="none that this command has made"):
        sharded(recipe().data, tmp_path)
    assert mine.read_text() == "mine"


def test_work_that_is_left_beside_whole_shards_is_taken_away(recipe: Make, tmp_path: Path) -> None:
    """The command was killed after its last file."""
    sharded(recipe().data, tmp_path)
    index = layout.read_index(tmp_path)
    work.write_record(tmp_path / layout.WORK / work.SETTINGS, work.Settings(data=index.data, shard_bytes=index.shard_bytes))
    sharded(recipe().data, tmp_path)
    assert not (tmp_path / layout.WORK).exists()


def test_a_lock_of_someone_else_is_none(recipe: Make, tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("4711")
    with pytest.raises(UserError, match=r"\.lock is not the lock of this command"):
        making.make(recipe().data, out=tmp_path)
    assert (tmp_path / ".lock").read_text() == "4711"


class BrokenOffError(Exception):
    pass


def _broken_off(data: DataConfig, out: Path, monkeypatch: pytest.MonkeyPatch, *, shards: int) -> None:
    """Preparing, ended after so many shards."""
    made = making.make_shards

    def some(folder: Path, number: int, *rest: Any, **options: Any) -> None:
        if number == shards:
            raise BrokenOffError
        made(folder, number, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(making, "make_shards", some)
        with pytest.raises(BrokenOffError):
            sharded(data, out)


def _as_if_written(path: Path, **changes: Any) -> None:
    """A record with other values and a right hash."""
    record = {**json.loads(path.read_text()), **changes}
    del record["sha256"]
    path.write_text(with_hash(record))


def _said(path: Path) -> Any:
    return json.loads(path.read_text())


def _in_shard(at: Path, **changes: Any) -> None:
    """The record of the first chunk, of whose training shard something else is said."""
    _as_if_written(at / "00000.json", train={**_said(at / "00000.json")["train"], **changes})


def _borders(at: Path) -> list[int]:
    return np.fromfile(at / "00001.text_borders", dtype=layout.BORDER).tolist()


def _with_borders(at: Path, borders: list[int]) -> None:
    """The second chunk with other borders, which its record knows."""
    chunks = _said(at / "read.json")["chunks"]
    file = layout.write_array(at / "00001.text_borders", np.array(borders, dtype=layout.BORDER))
    chunks[1]["text_borders"] = file.model_dump()
    _as_if_written(at / "read.json", chunks=chunks)


def _replaced(path: Path, old: bytes, new: bytes) -> None:
    path.write_bytes(path.read_bytes().replace(old, new))


_DAMAGES: dict[str, Callable[[Path], Any]] = {
    "a text cut short": lambda at: os.truncate(at / "00001.texts", 9),
    "a text empty": lambda at: os.truncate(at / "00001.texts", 0),
    "a text changed": lambda at: _replaced(at / "00001.texts", b"e", b"E"),
    "a text gone": lambda at: (at / "00001.texts").unlink(),
    "borders cut short": lambda at: os.truncate(at / "00001.text_borders", 8),
    "a record that is no mapping": lambda at: (at / "00000.json").write_text("[1]"),
    "a record changed": lambda at: _replaced(at / "00000.json", b'"documents": ', b'"documents": 1'),
    "a record of other shards": lambda at: (at / "00000.json").write_bytes((at / "00001.json").read_bytes()),
    "a record of shards of another number": lambda at: _in_shard(at, name="train-00007"),
    "a record of nothing": lambda at: _as_if_written(at / "00000.json", train=None, held_out=5),
    "a record without the shard of a part": lambda at: _as_if_written(at / "00000.json", train=None),
    "a record of shards without files": lambda at: _in_shard(at, files={}),
    "a record of more tokens than there are": lambda at: _in_shard(at, tokens=2**40),
    "a shard cut short": lambda at: os.truncate(at.parent / "train-00000.tokens", 8),
    "a shard gone": lambda at: (at.parent / "train-00000.borders").unlink(),
    "settings gone": lambda at: (at / "settings.json").unlink(),
    "settings that are none": lambda at: (at / "settings.json").write_text("{}"),
    "a number of chunks": lambda at: _as_if_written(at / "read.json", chunks=30_000_000),
    "a chunk that is not read": lambda at: _as_if_written(at / "read.json", chunks=_said(at / "read.json")["chunks"][:-1]),
    "a parting that is none": lambda at: _as_if_written(at / "read.json", lowest=5),
    "fewer borders": lambda at: _with_borders(at, [*_borders(at)[:-3], _borders(at)[-1]]),
    "borders of longer texts": lambda at: _with_borders(at, [*_borders(at)[:-1], _borders(at)[-1] + 9]),
    "borders that fall": lambda at: _with_borders(at, [*_borders(at)[:2], 1, *_borders(at)[3:]]),
    "another tokenizer": lambda at: BPETokenizer.train([b"sphinx of black quartz"] * 9, vocabulary=300).save(at.parent),
    "another end of text": lambda at: (at.parent / "tokenizer_config.json").write_text('{"eos_token": "t"}'),
    "a tokenizer that is gone": lambda at: (at.parent / "tokenizer.json").unlink(),
    "a tokenizer's mark of an earlier version": lambda at: (at / "tokenizer").write_text("bpe:300"),
    "a folder for a file": lambda at: ((at / "seen.sqlite").unlink(missing_ok=True), (at / "seen.sqlite").mkdir()),
}


@pytest.mark.parametrize("what", _DAMAGES)
def test_damaged_work_is_refused_by_one_message(
    what: str, recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = recipe("data.tokenizer=bpe:300").data
    _broken_off(data, tmp_path / "out", monkeypatch, shards=2 if "of other shards" in what else 1)
    _DAMAGES[what](tmp_path / "out" / layout.WORK)
    with pytest.raises(UserError, match=r"is damaged: .*Delete .*out, and give the command again|Choose another folder"):
        sharded(data, tmp_path / "out")
    assert not (tmp_path / "out" / layout.INDEX).exists()


def test_damaged_settings_of_work_that_is_ours_say_so(recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _broken_off(recipe().data, tmp_path, monkeypatch, shards=1)
    (tmp_path / layout.WORK / "settings.json").write_text("{}")
    with pytest.raises(UserError, match=r"what was begun in .* is damaged"):
        sharded(recipe().data, tmp_path)


def test_a_companion_that_is_left_of_a_tokenizer_is_not_the_new_ones(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the tokenizer and its mark."""
    data = recipe("data.tokenizer=bpe:300").data
    _broken_off(data, tmp_path, monkeypatch, shards=0)
    (tmp_path / layout.WORK / "tokenizer").unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "t"}')
    sharded(data, tmp_path)
    assert list(layout.read_index(tmp_path).tokenizer.files) == ["tokenizer.json"]


def test_documents_of_one_name_cannot_be_parted(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no document is left to train on: they are parted by their names"):
        making.prepare([Document("one", letter) for letter in (b"a", b"b", b"c")], out=tmp_path)


def test_what_was_broken_off_is_gone_on_with(recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _broken_off(recipe().data, tmp_path / "out", monkeypatch, shards=1)
    for name in ("out", "whole"):
        sharded(recipe().data, tmp_path / name)
    one, other = (layout.read_index(tmp_path / name) for name in ("out", "whole"))
    assert one == other


def test_the_tokenizer_of_a_folder_that_was_made_anew_is_the_new_one(tmp_path: Path) -> None:
    """In one process, too."""
    for words in ("the quick brown fox", "sphinx of black quartz"):
        texts = [f"{words} {number} {words}" for number in range(20)]
        index = making.prepare(texts, out=tmp_path / "out", tokenizer="bpe:300")
        found = Shards(tmp_path / "out").corpus()
        assert {document.data.decode() for document in (*found.train, *found.held_out)} == set(texts)
        assert index.tokenizer.files
        shutil.rmtree(tmp_path / "out")


def test_a_source_whose_name_is_no_text_is_written_down(recipe: Make, tmp_path: Path) -> None:
    data = recipe().data
    odd = tmp_path / os.fsdecode(b"te\xffxts")
    shutil.copytree(data.path, odd)
    sharded(data.model_copy(update={"path": str(odd)}), tmp_path / "out")
    assert layout.read_index(tmp_path / "out").data.path == str(odd)


def test_files_that_are_gone_from_finished_shards_are_missed(recipe: Make, tmp_path: Path) -> None:
    sharded(recipe().data, tmp_path)
    (tmp_path / "train-00000.tokens").unlink()
    with pytest.raises(UserError, match=r"train-00000.tokens.*prepare the data anew"):
        sharded(recipe().data, tmp_path)
