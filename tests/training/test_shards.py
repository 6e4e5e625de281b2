"""Token shards: the rows of the path in memory, whole or made on, and refused where they are not what was written."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from safetensors.torch import load_file
from typer.testing import CliRunner

from benchmarks.timing import call
from latentlm.cli.data import app
from latentlm.config import DataConfig, Recipe
from latentlm.errors import CheckpointError, UserError
from latentlm.training.data import PackedStream, Prepared, load_documents, prepare
from latentlm.training.data.shards import format as layout
from latentlm.training.data.shards import making, work
from latentlm.training.data.shards.reading import Shards, damages
from latentlm.training.loop import train
from latentlm.training.record.metrics import read_metrics
from stumbling import stumbling

Make = Callable[..., Recipe]
SMALL = 2500  # bytes of text of a shard: the texts of the tests make several


def sharded(data: DataConfig, out: Path, **options: Any) -> DataConfig:
    """The same data, in shards."""
    making.make(data, out=out, shard_bytes=SMALL, **options)
    return data.model_copy(update={"path": str(out)})


def on(recipe: Recipe, data: DataConfig) -> Recipe:
    return recipe.model_copy(update={"data": data})


def files(folder: Path) -> dict[str, bytes]:
    """What is in a folder of shards, but for its lock."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def lines(out: Path) -> list[dict[str, Any]]:
    """The metrics of a run, without times."""
    times = ("elapsed", "tokens_per_second")
    return [{key: value for key, value in line.items() if key not in times} for line in read_metrics(out / "metrics.jsonl")]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written is there after a kill; the disk need not have it."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def shards(recipe: Make, tmp_path: Path) -> DataConfig:
    """The texts as bytes."""
    return sharded(recipe().data, tmp_path / "shards")


@pytest.fixture(scope="module")
def whole(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of shards that tests copy before they damage it."""
    return Path(sharded(DataConfig(path=str(texts), held_out=0.25), tmp_path_factory.mktemp("whole") / "shards").path)


# ----------------------------------------------------------------------------------------------------- as in memory


@pytest.mark.parametrize("tokenizer", ["bpe:270", pytest.param("bytes", marks=pytest.mark.conformance)])
def test_losses_are_those_of_the_path_in_memory_bit_for_bit(recipe: Make, tmp_path: Path, tokenizer: str) -> None:
    settings = recipe(f"data.tokenizer={tokenizer}")
    train(settings, out=tmp_path / "memory", progress=False)
    data = sharded(settings.data, tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("train-*.tokens"))) > 1
    train(on(settings, data), out=tmp_path / "run", progress=False)
    assert lines(tmp_path / "run") == lines(tmp_path / "memory")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "memory"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def assert_same(one: Prepared, other: Prepared, data: DataConfig) -> None:
    """Rows of two epochs, held-out documents and counts."""
    assert {**one.summary(), "fingerprint": ""} == {**other.summary(), "fingerprint": ""}
    both = [PackedStream(each.train, context=24, batch=3, seed=data.seed, packing=data.packing) for each in (one, other)]
    for number in range(both[0].batches(2)):
        batch, same = (stream.batch(number) for stream in both)
        for name in ("inputs", "targets", "documents", "positions", "target_mask"):
            assert torch.equal(getattr(batch, name), getattr(same, name))
    for mine, theirs in zip(one.held_out, other.held_out, strict=True):
        assert (mine.id, mine.data, mine.tokens.tolist(), mine.end_of_text) == (
            theirs.id, theirs.data, theirs.tokens.tolist(), theirs.end_of_text
        )  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        {"path": "rows.jsonl", "text_field": "body"},
        {"path": "rows.parquet", "text_field": "body", "packing": False},
        {"path": "one.txt", "tokenizer": "bpe:300", "held_out": 0.9},
        {"path": "rows.jsonl", "text_field": "body", "max_documents": 9, "seed": 3},
        {"path": "synthetic:coin", "max_documents": 50, "held_out": 1e-9},
        {"path": "rows.jsonl", "text_field": "body", "held_out": 1 - 1e-9},
    ],
    ids=lambda settings: " ".join(str(value) for value in settings.values()),
)
def test_rows_and_split_are_those_of_the_path_in_memory(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    found = [file.read_text() for file in sorted(texts.iterdir())]
    bodies = [found[0], "", *found, found[3], "déjà vu\0\n", "  "]  # copies and empty ones among them
    Path("rows.jsonl").write_text("".join(json.dumps({"body": body}) + "\n" for body in bodies))
    Path("one.txt").write_text("\n<|endoftext|>\n".join(found))
    Dataset.from_dict({"body": bodies}).to_parquet("rows.parquet")
    data = DataConfig.model_validate(settings)
    assert_same(prepare(sharded(data, tmp_path / "shards")), prepare(data), data)


def test_a_data_set_that_streams_is_prepared_without_holding_it(texts: Path, tmp_path: Path) -> None:
    out, given = tmp_path / "shards", 0

    def rows() -> Iterator[dict[str, str]]:
        nonlocal given
        for file in sorted(texts.iterdir()):
            given += len(file.read_bytes())
            kept = sum(path.stat().st_size for path in (out / layout.WORK).glob("*.texts"))
            assert given - kept < 2 * SMALL, "it is on the disk before the next is asked for"
            yield {"text": file.read_text()}

    stream = IterableDataset.from_generator(rows)
    making.prepare((row["text"] for row in stream), out=out, held_out=0.25, name="set:train", shard_bytes=SMALL)
    (tmp_path / "set").mkdir()
    Dataset.from_dict({"text": [file.read_text() for file in sorted(texts.iterdir())]}).save_to_disk(str(tmp_path / "set"))
    data = DataConfig(path=str(tmp_path / "set"), held_out=0.25)
    assert_same(prepare(data.model_copy(update={"path": str(out)})), prepare(data), data)


def test_what_is_scored_and_compared_is_there(recipe: Make, shards: DataConfig) -> None:
    found, wanted = load_documents(shards), load_documents(recipe().data)
    assert list(found.held_out) == list(wanted.held_out)
    assert [document.data for document in found.train] == [document.data for document in wanted.train]
    assert found.fingerprint() == prepare(shards).fingerprint


def test_a_run_on_shards_goes_on_where_they_are_now(recipe: Make, shards: DataConfig, tmp_path: Path) -> None:
    train(on(recipe(), shards), out=tmp_path / "whole", progress=False)
    with pytest.raises(InterruptedError), stumbling(at=7, error=InterruptedError()):
        train(on(recipe(), shards), out=tmp_path / "run", progress=False)
    Path(shards.path).rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"If the data of .* have moved, say where they are"):
        train(on(recipe(), shards), out=tmp_path / "run", resume=True, progress=False)
    moved = shards.model_copy(update={"path": str(tmp_path / "moved")})
    train(on(recipe(), moved), out=tmp_path / "run", resume=True, progress=False)
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")


# ------------------------------------------------------------------------------------------------- killed and made on


def dies_at(data: DataConfig, out: Path, number: int) -> int:
    """The exit status of a process that makes shards and kills itself instead of renaming for the `number`th time."""

    def work() -> None:
        replace, left = os.replace, iter(range(number))

        def dying(*arguments: Any) -> None:
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*arguments)

        os.replace = dying  # type: ignore[assignment]
        making.make(data, out=out, shard_bytes=SMALL)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.conformance)])
def test_killed_at_any_write_it_goes_on_to_the_same_bytes(recipe: Make, tmp_path: Path, every: int) -> None:
    data = recipe("data.tokenizer=bpe:270").data
    making.make(data, out=tmp_path / "whole", shard_bytes=SMALL)
    number = 0
    while dies_at(data, out := tmp_path / str(number), number) == -signal.SIGKILL:
        finished = {record.stem for record in (out / layout.WORK).glob("[0-9]*.json")}
        before = {path: path.stat().st_mtime_ns for path in out.glob("*.tokens") if path.stem.rpartition("-")[2] in finished}
        making.make(data, out=out, shard_bytes=SMALL)
        assert files(out) == files(tmp_path / "whole")
        assert {path: path.stat().st_mtime_ns for path in before} == before, "what is finished is not made again"
        number += every
    assert number > 15


def test_finished_it_stays_as_it_is(recipe: Make, shards: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "read_corpus", lambda config: iter(()))
    before = files(Path(shards.path))
    sharded(recipe().data, Path(shards.path))
    assert files(Path(shards.path)) == before


@pytest.mark.conformance
def test_several_processes_killed_at_random_make_the_same_bytes(texts: Path, tmp_path: Path) -> None:
    data = DataConfig(path=str(texts), tokenizer="bpe:270", held_out=0.25)
    making.make(data, out=tmp_path / "one", shard_bytes=SMALL)
    making.make(data, out=tmp_path / "two", shard_bytes=SMALL, processes=2)
    assert files(tmp_path / "two") == files(tmp_path / "one")
    source = tmp_path / "rows.jsonl"  # some seconds of work
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefgh", k=5)) for _ in range(2000)]
    source.write_text("".join(json.dumps({"text": " ".join(draw.choices(words, k=300))}) + "\n" for _ in range(5_000)))
    command = [sys.executable, "-m", "latentlm", "data", "prepare", str(source), "data.tokenizer=bpe:600", "--shard-mib", "1"]
    subprocess.run([*command, "--out", str(tmp_path / "calm")], check=True, timeout=300)
    out, kills = tmp_path / "killed", 0
    while not (out / layout.INDEX).exists():
        process = subprocess.Popen([*command, "--out", str(out), "--processes", "2"])
        try:
            process.wait(timeout=draw.uniform(3, 6) + kills)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    assert kills > 0
    subprocess.run([*command, "--out", str(out)], check=True, timeout=300)
    time.sleep(1)  # what was orphaned has ended
    assert files(out) == files(tmp_path / "calm")


# ------------------------------------------------------------------------------------------------------------ refused


def test_a_vocabulary_that_holds_no_bytes_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    def unread() -> Iterator[str]:
        raise AssertionError("a document was read")
        yield

    with pytest.raises(UserError, match="257 or more"):
        making.prepare(unread(), out=tmp_path / "out", tokenizer="bpe:10", name="mine")
    assert not (tmp_path / "out").exists()


class KilledBeside(dict[int, Any]):
    """The processes of a pool, of which the first is killed just before the next is noted: nobody tells that one to end."""

    pool: Any

    def __setitem__(self, number: int, process: Any) -> None:
        for other in self:
            kill(self.pool, other)
            time.sleep(0.3)  # those that are noted have been told
        super().__setitem__(number, process)


def kill(pool: Any, number: int) -> None:
    os.kill(number, signal.SIGKILL)
    for _ in range(200):
        if pool._broken:
            return
        time.sleep(0.05)


@pytest.mark.parametrize("moment", ["before another begins", "while another begins", "before it has begun"])
def test_a_process_that_is_killed_ends_the_others(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    begin = ProcessPoolExecutor._spawn_process

    def beside_a_killed_one(pool: Any) -> None:
        if not pool._processes and moment == "while another begins":
            pool._processes = KilledBeside()
            pool._processes.pool = pool
        elif pool._processes and moment == "before another begins":
            kill(pool, next(iter(pool._processes)))
        elif pool._processes and moment == "before it has begun":
            raise EOFError  # what the server of processes says then
        begin(pool)

    monkeypatch.setattr(ProcessPoolExecutor, "_spawn_process", beside_a_killed_one)
    data = DataConfig(path=str(texts), tokenizer="bpe:270", held_out=0.25)
    with pytest.raises(UserError, match=r"was killed, maybe for want of memory\. Give the same command again"):
        making.make(data, out=tmp_path / "out", shard_bytes=SMALL, processes=2)
    monkeypatch.undo()
    making.make(data, out=tmp_path / "out", shard_bytes=SMALL, processes=2)


def changed_index(folder: Path, change: Callable[[Any], None]) -> None:
    index = json.loads((folder / layout.INDEX).read_text())
    change(index)
    (folder / layout.INDEX).write_text(json.dumps(index))


def rename_first(index: Any) -> None:
    index["train"][0]["name"] = "../train-00000"


def leave(folder: Path) -> None:
    (folder / "train-00000.tokens").rename(folder.parent / "elsewhere")
    (folder / "train-00000.tokens").symlink_to(folder.parent / "elsewhere")


def cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, size)


def gone(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def said(change: Callable[[Any], None]) -> Callable[[Path], None]:
    return lambda folder: changed_index(folder, change)


def unfinished(folder: Path) -> None:
    (folder / layout.INDEX).unlink()
    (folder / layout.WORK).mkdir()


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a missing shard": (gone("train-00001.tokens"), "train-00001.tokens does not exist.*Bring the file back"),
    "a short shard": (cut("train-00001.borders", 8), "has 8 bytes instead of .*Bring the file back"),
    "half an index": (cut(layout.INDEX, 400), "index.json is not readable as JSON"),
    "no index": (gone(layout.INDEX), "index.json does not exist"),
    "another version": (said(lambda index: index.update(version=2)), "version 2; .* reads version 1.*Install"),
    "an unknown key": (said(lambda index: index.update(more=1)), 'unknown key "more"'),
    "counts that contradict": (said(lambda index: index["train"][0].update(documents=1)), "contradicts itself about train-0"),
    "a shard twice": (said(lambda index: index["train"].append(index["train"][0])), "contradicts itself"),
    "a path that leaves": (said(rename_first), "train.0.name"),
    "a link": (leave, "is a link, and none is followed"),
    "another vocabulary": (said(lambda index: index["tokenizer"].update(vocabulary=99)), "contradicts its tokenizer"),
    "not finished": (unfinished, "is not finished: give the command"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_one_message_with_the_remedy(whole: Path, tmp_path: Path, damage: str) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "shards"))
    act, words = DAMAGES[damage]
    act(folder)
    with pytest.raises(UserError, match=words):
        prepare(DataConfig(path=str(folder), held_out=0.25))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tokenizer": "bpe:300"}, r"were made with the tokenizer bytes .* Set data.tokenizer=bytes"),
        ({"held_out": 0.5}, r"parted with data.held_out=0.25, and the recipe says 0.5. Set data.held_out=0.25"),
        ({"seed": 1}, r"Set data.seed=0"),
        ({"max_documents": 7}, r"data.max_documents=None"),
    ],
)
def test_shards_that_are_not_what_the_recipe_says_are_refused(whole: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        prepare(DataConfig.model_validate({"path": str(whole), "held_out": 0.25, **settings}))


def test_the_tokenizer_may_be_named_by_its_size_or_its_file(recipe: Make, tmp_path: Path) -> None:
    data = sharded(recipe("data.tokenizer=bpe:270").data, tmp_path / "shards")
    other = sharded(recipe("data.tokenizer=bpe:280").data, tmp_path / "other")
    own = data.model_copy(update={"tokenizer": str(tmp_path / "shards" / "tokenizer.json")})
    assert prepare(own).tokenizer.vocabulary == prepare(data).tokenizer.vocabulary == 270
    with pytest.raises(UserError, match=r"were made with the tokenizer bpe:270 .* Set data.tokenizer=.*shards/tokenizer.json"):
        prepare(data.model_copy(update={"tokenizer": str(Path(other.path) / "tokenizer.json")}))
    (tmp_path / "shards" / "tokenizer.json").write_bytes((tmp_path / "other" / "tokenizer.json").read_bytes())
    with pytest.raises(UserError, match=r"tokenizer.json has .* bytes instead"):
        prepare(data)


def damaged_tokens(whole: Path, folder: Path, token: int) -> Path:
    """A copy in which one token is another."""
    shutil.copytree(whole, folder)
    values = np.fromfile(folder / "train-00000.tokens", dtype="<u2")
    values[3] = token
    values.tofile(folder / "train-00000.tokens")
    return folder


def test_a_token_beyond_the_vocabulary_is_refused_when_it_is_read(whole: Path, tmp_path: Path) -> None:
    stream = PackedStream(Shards(damaged_tokens(whole, tmp_path / "shards", 257)).train, context=16, batch=1, seed=0)
    with pytest.raises(UserError, match=r"hold token 257, and the vocabulary ends at 256.*latentlm data verify"):
        _ = [stream.batch(number) for number in range(stream.rows_per_epoch)]


def test_borders_that_do_not_rise_are_refused(whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "shards"))
    borders = np.fromfile(folder / "train-00000.borders", dtype="<u8")
    borders[1] = 2**63
    borders.tofile(folder / "train-00000.borders")
    with pytest.raises(UserError, match="do not rise"):
        PackedStream(Shards(folder).train, context=16, batch=1, seed=0)


def test_verify_finds_a_changed_byte_that_training_does_not_look_for(whole: Path, tmp_path: Path) -> None:
    assert [wrong for _, wrong in damages(whole) if wrong is not None] == []
    folder = damaged_tokens(whole, tmp_path / "shards", 65)
    Shards(folder)
    assert [name for name, wrong in damages(folder) if wrong is not None] == ["train-00000.tokens"]


def test_verify_finds_tokens_beyond_the_vocabulary_whose_hash_is_right(whole: Path, tmp_path: Path) -> None:
    folder = damaged_tokens(whole, tmp_path / "shards", 300)
    right = layout.hashed(folder / "train-00000.tokens").model_dump()
    changed_index(folder, lambda index: index["train"][0]["files"].update(tokens=right))
    said = f"{folder}/train-00000.tokens holds token 300, and the vocabulary ends at 256"
    assert [wrong for _, wrong in damages(folder) if wrong] == [said]


# ---------------------------------------------------------------------------------------------------- others' folders


def test_a_folder_of_someone_else_stays_as_it_is(recipe: Make, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"full is not empty \(mine.txt\)"):
        making.make(recipe().data, out=tmp_path / "full")
    assert files(tmp_path / "full") == {"mine.txt": b"mine"}
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / layout.WORK).symlink_to(tmp_path / "full")
    with pytest.raises(UserError, match="none that this command has made"):
        making.make(recipe().data, out=tmp_path / "linked")
    (tmp_path / "file").write_text("mine")
    with pytest.raises((UserError, CheckpointError), match="Choose another folder"):
        making.make(recipe().data, out=tmp_path / "file")


def test_other_settings_are_refused_once_documents_were_read(recipe: Make, shards: DataConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"other settings \(seed: 0 then, 1 now\)"):
        sharded(recipe("data.seed=1").data, Path(shards.path))
    with pytest.raises(UserError, match="no document with text"):
        making.prepare([], out=tmp_path / "begun")
    making.prepare(["one", b"two"], out=tmp_path / "begun", seed=1)
    with pytest.raises(UserError, match="holds token shards already"):
        making.make(shards, out=tmp_path / "again")
    with pytest.raises(UserError, match=r"documents:0: a document is a text \(str or bytes\), not 3"):
        making.prepare([3], out=tmp_path / "numbers")  # type: ignore[list-item]


def test_two_at_a_time_are_refused(recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def meanwhile(config: DataConfig) -> Iterator[Any]:
        monkeypatch.undo()
        with pytest.raises(UserError, match="another process is preparing"):
            sharded(recipe().data, tmp_path / "shards")
        return documents(config)

    documents = making.read_corpus
    monkeypatch.setattr(making, "read_corpus", meanwhile)
    sharded(recipe().data, tmp_path / "shards")
    assert work.chunk_file(tmp_path / "shards", 0, "texts").exists() is False


# ------------------------------------------------------------------------------------------------------------ command


def test_the_command_prepares_and_verifies(texts: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "shards")
    made = CliRunner().invoke(app, ["prepare", str(texts), "data.held_out=0.25", "--out", out, "--json"])
    assert made.exit_code == 0, made.output
    found = json.loads(made.stdout)
    assert (found["train"]["documents"] + found["held_out"]["documents"], found["dtype"]) == (24, "uint16")
    assert found["fingerprint"] == prepare(DataConfig(path=out, held_out=0.25)).fingerprint
    said = CliRunner().invoke(app, ["prepare", str(texts), "data.held_out=0.25", "--out", out, "-q"])
    assert f"latentlm train RECIPE data.path={out} data.held_out=0.25" in said.stdout
    assert CliRunner().invoke(app, ["verify", out]).exit_code == 0
    (tmp_path / "shards" / "held_out-00000.texts").write_bytes(bytes(found["held_out"]["bytes"]))
    damaged = CliRunner().invoke(app, ["verify", out, "--json"])
    assert isinstance(damaged.exception, UserError)
    assert "held_out-00000.texts has" in json.loads(damaged.stdout)["damaged"][0]


@pytest.mark.parametrize("setting", ["train.steps=3", "data.path=elsewhere", "data.sed=1"])
def test_the_command_takes_settings_of_data_alone(texts: Path, tmp_path: Path, setting: str) -> None:
    done = CliRunner().invoke(app, ["prepare", str(texts), setting, "--out", str(tmp_path / "shards")])
    assert isinstance(done.exception, UserError)
    assert not (tmp_path / "shards").exists()


@pytest.mark.conformance
def test_ten_gigabytes_are_trained_on_in_less_than_one() -> None:
    found = call("benchmarks.shards", "--batches", "2000", "--steps", "1", "--json")
    assert found["gigabytes"] > 10
    assert found["most_mib"] < 1000
