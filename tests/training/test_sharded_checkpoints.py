"""Checkpoints of several processes: what each has written goes on with any number of them, nothing half-written is ever found,
and no process that dies takes anything with it."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch import Tensor

from benchmarks import kills
from latentlm import zoo
from latentlm.composed import build
from latentlm.config.hashed import with_hash
from latentlm.errors import CheckpointError
from latentlm.interface.ranks import shared_by
from latentlm.training import load_recipe, train
from latentlm.training.parallel import Ranks
from latentlm.training.record import sharded
from latentlm.training.record.checkpoint import checkpoints, latest_checkpoint, open_checkpoint
from latentlm.training.record.folder import saved_recipe
from latentlm.training.resuming import check_resumable
from latentlm.zoo.loading import UnfinishedWarning
from torchrun import SMALL, assert_alike, lines, run

HINGE = ['model.kl_schedule={"name": "free_bits", "bits": 0.5, "level": "batch"}']
Stopped = Callable[[Path], Path]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one process: four steps, checkpoints of the second and the fourth."""
    out = tmp_path_factory.mktemp("runs") / "one"
    train(load_recipe("free-tiny", [*SMALL, *HINGE]), out=out, progress=False)
    return out


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of two processes."""
    out = tmp_path_factory.mktemp("runs") / "two"
    done = run("free-tiny", out, *HINGE)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def stopped(tmp_path: Path) -> Stopped:
    """Makes a copy of a run as it was when its second step had been saved, and its third not."""

    def make(whole: Path) -> Path:
        out = shutil.copytree(whole, tmp_path / "stopped")
        shutil.rmtree(out / "checkpoints" / "step-00000004")
        for name in ("card.yaml", "model.safetensors"):
            (out / name).unlink()
        return out

    return make


def tensors_of(path: Path) -> dict[str, Tensor]:
    """Weights and moments of a checkpoint, in full, whoever wrote it."""
    with sharded._reader(open_checkpoint(path)) as reader:
        found = reader.read_metadata().state_dict_metadata.items()
        tensors = {name: torch.empty(each.size, dtype=each.properties.dtype) for name, each in found}
        dcp.load(tensors, storage_reader=reader, no_dist=True)
    return tensors


# ------------------------------------------------------------------------------------------------------------- going on


def test_the_same_number_goes_on_bit_for_bit(two: Path, stopped: Stopped) -> None:
    done = run("free-tiny", again := stopped(two), *HINGE, "--resume")
    assert done.returncode == 0, done.stderr
    assert kills.same_run(two, again)


def test_one_goes_on_where_two_stopped(one: Path, two: Path, stopped: Stopped) -> None:
    train(load_recipe("free-tiny", [*SMALL, *HINGE]), out=(again := stopped(two)), resume=True, progress=False)
    assert_alike(one, again)
    resumed = json.loads((again / "manifest.json").read_text())["resumed"]
    assert [(each["step"], each["processes"]) for each in resumed] == [(2, 1)]


def test_two_go_on_where_one_stopped(one: Path, stopped: Stopped) -> None:
    done = run("free-tiny", again := stopped(one), *HINGE, "--resume")
    assert done.returncode == 0, done.stderr
    assert_alike(one, again)
    assert [open_checkpoint(path).sharded for path in checkpoints(again / "checkpoints")] == [False, True]


def test_what_two_have_written_is_what_one_writes(one: Path, two: Path) -> None:
    """In full, to rounding; and the model at the end is one file of the same layout."""
    for step in (2, 4):  # at 4 held-out texts were scored just before it
        first, second = (tensors_of(each / f"checkpoints/step-0000000{step}") for each in (one, two))
        assert first.keys() == second.keys()
        assert all(torch.allclose(first[key], second[key], rtol=1e-4, atol=1e-5) for key in first)
    headers = [(each / "model.safetensors").read_bytes() for each in (one, two)]
    size = 8 + int.from_bytes(headers[0][:8], "little")
    assert headers[0][:size] == headers[1][:size]
    last = tensors_of(two / "checkpoints/step-00000004")
    assert all(torch.equal(tensor, last[name]) for name, tensor in load_file(two / "model.safetensors").items())


def test_a_run_of_two_that_goes_on_is_a_model(two: Path, tmp_path: Path) -> None:
    """That of its newest checkpoint: as many numbers as the finished one has, and the same, since it is the last step's."""
    out = shutil.copytree(two, tmp_path / "goes-on")
    for name in ("card.yaml", "model.safetensors"):
        (out / name).unlink()
    with pytest.warns(UnfinishedWarning, match=r"after step 4 of 4\."):
        model = zoo.load(out)
    finished = zoo.load(two).state_dict()
    assert all(torch.equal(tensor, finished[name]) for name, tensor in model.state_dict().items())
    part = out / "checkpoints/step-00000004/shard-00002-model-00001-of-00002.safetensors"
    whole = part.read_bytes()
    part.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="do not match their card"):
        zoo.load(out)
    part.unlink()
    with pytest.raises(CheckpointError, match="are missing"):
        zoo.load(out)


def test_each_has_written_its_part_and_nothing_is_a_pickle(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What reads them would fail if it called what unpickles."""
    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, None)
    assert {"read_metadata", "read_data"} <= vars(sharded.HuggingFaceStorageReader).keys()
    for path in checkpoints(two / "checkpoints"):
        names = [f"shard-0000{number}-model-0000{kind}-of-00002.safetensors" for number in (1, 2) for kind in (1, 2)]
        assert sorted(file.name for file in path.iterdir()) == [*names, "state.json"]
        parts = [load_file(path / weights) | load_file(path / moments) for weights, moments in (names[:2], names[2:])]
        shared = parts[0].keys() & parts[1].keys()
        assert len(shared) > len(tensors_of(path)) / 2
        sizes = [sum(tensor.nbytes for tensor in part.values()) for part in parts]
        assert max(sizes) < 0.6 * sum(sizes)
    starts = {file.read_bytes()[:2] for file in two.rglob("*") if file.is_file()}
    assert not starts & {b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"}


# --------------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("damage", ["truncated", "bit flipped", "missing"])
def test_a_damaged_shard_falls_back_to_the_one_before(two: Path, tmp_path: Path, damage: str) -> None:
    folder = shutil.copytree(two / "checkpoints", tmp_path / "checkpoints")
    file = folder / "step-00000004" / "shard-00002-model-00001-of-00002.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes(content[:-9] if damage == "truncated" else content)
    warnings: list[str] = []
    found = latest_checkpoint(folder, warn=warnings.append)
    assert found is not None
    assert found.step == 2
    assert len(warnings) == 1
    assert file.name in warnings[0]


def test_what_is_read_is_hashed_before_and_nothing_else(two: Path, tmp_path: Path) -> None:
    """By a process that looks after another has hashed all."""
    path = shutil.copytree(two / "checkpoints" / "step-00000004", tmp_path / "step-00000004")
    file = path / "shard-00002-model-00001-of-00002.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    opened, target = open_checkpoint(path, compare=False), next(iter(load_file(file)))
    with sharded._reader(opened) as reader:
        found = reader.read_metadata().state_dict_metadata
        first = {name: torch.empty(each.size) for name, each in found.items() if name.startswith("step/")}
        dcp.load(first, storage_reader=reader, no_dist=True)  # of one file alone
    assert opened.files.keys() - opened.promised.keys() == {"shard-00001-model-00002-of-00002"}
    with pytest.raises(CheckpointError, match=rf"hash of {file.name} is not"), sharded._reader(opened) as reader:
        dcp.load({target: torch.empty(found[target].size)}, storage_reader=reader, no_dist=True)


def test_right_hashes_of_a_part_alone_are_none_to_go_on_from(two: Path, tmp_path: Path) -> None:
    path = shutil.copytree(two / "checkpoints" / "step-00000004", tmp_path / "step-00000004")
    model = build(saved_recipe(two).model)
    check_resumable(open_checkpoint(path), model)
    record = json.loads((path / "state.json").read_text())
    del record["sha256"], record["files"]["shard-00002-model-00001-of-00002.safetensors"]
    (path / "state.json").write_text(with_hash(record))
    with pytest.raises(CheckpointError, match=r"is missing|not there in full"):
        check_resumable(open_checkpoint(path), model)


# ------------------------------------------------------------------------------------------------------ in the background


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[sharded.Background]:
    """Writes checkpoints of a group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with shared_by(dist.group.WORLD):
            yield sharded.Background(tmp_path / "checkpoints", Ranks())
    finally:
        dist.destroy_process_group()


def save(background: sharded.Background, step: int, tensor: Tensor) -> None:
    background.save(step=step, weights={"w": tensor}, moments={}, state={"tokens": step}, keep=2)


def names(background: sharded.Background) -> list[str]:
    return sorted(path.name for path in background._folder.iterdir())


def test_training_goes_on_while_a_checkpoint_is_written(
    alone: sharded.Background, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What changes meanwhile does not change it; nothing is there under its name before it is whole; the next one waits."""
    begun, may_go_on, weights = threading.Event(), threading.Event(), torch.ones(3, 2)
    hashed = sharded.facts_of

    def slow(file: Path) -> dict[str, Any]:
        begun.set()
        assert may_go_on.wait(60)
        return hashed(file)

    monkeypatch.setattr(sharded, "facts_of", slow)
    save(alone, 1, weights)
    weights += 1
    assert begun.wait(60)
    assert checkpoints(alone._folder) == []
    assert not alone.failed
    threading.Timer(0.2, may_go_on.set).start()
    save(alone, 2, weights)
    assert names(alone)[-1] == "step-00000001"
    alone.wait()
    assert names(alone) == ["step-00000001", "step-00000002"]
    assert [float(tensors_of(path)["w"].sum()) for path in checkpoints(alone._folder)] == [6.0, 12.0]


def test_only_the_newest_are_kept(alone: sharded.Background) -> None:
    for step in (1, 2, 3):
        save(alone, step, torch.ones(1))
    alone.wait()
    assert names(alone) == ["step-00000002", "step-00000003"]


def test_a_write_that_fails_says_so_once_and_leaves_no_trace(
    alone: sharded.Background, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(alone, 1, torch.ones(1))
    alone.wait()

    def full(file: Path) -> dict[str, Any]:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sharded, "facts_of", full)
    save(alone, 2, torch.ones(1))
    with pytest.raises(CheckpointError, match=r"step-00000002 could not be written: the disk is full.*intact"):
        alone.wait()
    monkeypatch.undo()
    assert names(alone) == ["step-00000001"]
    alone.wait()
    save(alone, 2, torch.ones(1))
    alone.wait()
    assert names(alone) == ["step-00000001", "step-00000002"]


@pytest.mark.skipif(os.name != "posix" or not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting needs root")
def test_a_really_full_disk_ends_a_run_with_one_message(tmp_path: Path) -> None:
    """Room for a run and one checkpoint, not for a second."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    mounted = subprocess.run(mount, check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip("cannot mount here")
    try:
        done = run("vanilla-tiny", tmp_path / "run", "train.save_every=1", "train.steps=9", "train.eval_every=9")
        assert done.returncode != 0
        assert done.stderr.count("the disk is full. Free some space; what was saved before is intact.") == 1
        assert "latentlm/training" not in done.stderr
        found = latest_checkpoint(tmp_path / "run" / "checkpoints", warn=pytest.fail)
        assert found is not None
        assert found.step < len(lines(tmp_path / "run"))
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


# ---------------------------------------------------------------------------------------------------------------- deaths


@pytest.mark.conformance
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="it looks for processes as Linux shows them")
def test_kill_9_of_one_process_and_of_all(tmp_path: Path) -> None:
    found = kills.measure(tmp_path, kills=30, steps=600, seed=6)
    assert 0 < found["of one process"] < 30
    assert found["messages"] == [1]
    assert found["seconds until all had ended, at most"] < 60
    assert (found["lost checkpoints"], found["left behind"], found["same bits in the end"]) == (0, 0, True)
