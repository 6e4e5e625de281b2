"""Checkpoints and the atomic writes under them."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from latentlm.config import writing
from latentlm.config.hashed import with_hash
from latentlm.errors import CheckpointError
from latentlm.training.record import checkpoint
from latentlm.training.record.checkpoint import (
    checkpoints,
    latest_checkpoint,
    open_checkpoint,
    save_checkpoint,
    set_aside_newer,
)


def save(folder: Path, step: int, *, keep: int = 2, size: int = 10) -> Path:
    tensors = {"model": {"w": torch.arange(float(size)) + step}, "optimizer": {"exp_avg/w": torch.ones(size)}}
    return save_checkpoint(folder, step=step, tensors=tensors, state={"tokens": step * 10}, keep=keep)


def fail(text: str) -> None:
    raise AssertionError(f"unexpected warning: {text}")


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    save(tmp_path, 7)
    found = latest_checkpoint(tmp_path, warn=fail)
    assert found is not None
    assert (found.step, found.state) == (7, {"tokens": 70})
    torch.testing.assert_close(found.tensors("model")["w"], torch.arange(10.0) + 7, rtol=0, atol=0)
    assert set(found.tensors("optimizer")) == {"exp_avg/w"}


def test_only_the_newest_are_kept_by_number_not_by_name(tmp_path: Path) -> None:
    for step in (9, 10, 123456789, 11):
        save(tmp_path, step, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000011", "step-123456789"]


@pytest.mark.parametrize("keep", [1, 2])
def test_the_one_just_written_is_kept_whatever_its_number(tmp_path: Path, keep: int) -> None:
    for step in (6, 8):
        (save(tmp_path, step) / "model.safetensors").write_bytes(b"")
    save(tmp_path, 4, keep=keep)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000004", "step-00000008"][:keep]


def test_later_checkpoints_are_set_aside(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        save(tmp_path, step, keep=3)
    set_aside_newer(tmp_path, step=2)
    save(tmp_path, 4, keep=3)
    set_aside_newer(tmp_path, step=2)  # again: the older one makes room
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000002"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000002", "step-00000004.unused", "step-00000006.unused"
    ]  # fmt: skip


def test_a_users_own_folder_is_neither_pruned_nor_replaced(tmp_path: Path) -> None:
    mine = [tmp_path / "step-00000000", tmp_path / "step-00000003"]
    for folder in (*mine, tmp_path / "step-00000004.unused"):
        folder.mkdir()
        (folder / "notes.txt").write_text("mine")
    (save(tmp_path, 1) / "notes.txt").write_text("mine")
    (tmp_path / "step-00000002").symlink_to(mine[0], target_is_directory=True)
    save(tmp_path, 4, keep=1)
    set_aside_newer(tmp_path, step=3)
    save(tmp_path, 5, keep=1)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        save(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(f"step-0000000{step}" for step in range(4)), "step-00000004.unused", "step-00000004.unused-2", "step-00000005"
    ]  # fmt: skip
    assert len(list(tmp_path.glob("*/notes.txt"))) == 5  # the link's as well


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "missing", warn=fail) is None


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["truncated", "bit flipped", "missing"])
def test_damage_falls_back_to_the_one_before(tmp_path: Path, name: str, damage: str) -> None:
    save(tmp_path, 1)
    file = save(tmp_path, 2) / name
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        file.write_bytes(content[:-9])
    elif damage == "bit flipped":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        file.unlink()
    warnings: list[str] = []
    found = latest_checkpoint(tmp_path, warn=warnings.append)
    assert found is not None
    assert found.step == 1
    assert len(warnings) == 1
    assert "damaged" in warnings[0]
    assert name in warnings[0]
    assert "step 1" in warnings[0]


def rewritten(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """state.json with other values and the hash of these."""
    record = json.loads((path / "state.json").read_text())
    del record["sha256"]
    change(record)
    (path / "state.json").write_text(with_hash(record))


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.update(step="x"),
        lambda record: record.update(step=-1),
        lambda record: record.update(step=1),
        lambda record: record.update(step=True),
        lambda record: record.update(format=None),
        lambda record: record.pop("format"),
        lambda record: record.update(files=[1]),
        lambda record: record.update(files={"../../notes.txt": {"sha256": "", "size": 1}}),
        lambda record: record["files"]["model.safetensors"].update(size="x"),
        lambda record: record["files"]["model.safetensors"].pop("sha256"),
        lambda record: record.update(files={"model.safetensors": None}),
        lambda record: record.update(state=[]),
        lambda record: record.pop("state"),
        lambda record: record.update(more=1),
    ],
)
def test_right_hashes_of_wrong_values_fall_back_too(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    save(tmp_path, 1)
    rewritten(save(tmp_path, 2), change)
    warnings: list[str] = []
    found = latest_checkpoint(tmp_path, warn=warnings.append)
    assert found is not None
    assert (found.step, len(warnings)) == (1, 1)


def test_a_state_that_names_a_users_file_as_its_own_does_not_prune_it(tmp_path: Path) -> None:
    first = save(tmp_path, 1)
    (first / "thesis.pdf").write_text("mine")
    rewritten(first, lambda record: record["files"].update({"thesis.pdf": {"sha256": "", "size": 4}}))
    for step in (2, 3):
        save(tmp_path, step, keep=1)
    assert (first / "thesis.pdf").read_text() == "mine"


def test_what_was_hashed_is_what_is_read(tmp_path: Path) -> None:
    found = open_checkpoint(save(tmp_path, 1))
    other = save(tmp_path / "other", 5)
    for name in ("model.safetensors", "optimizer.safetensors"):
        os.replace(other / name, found.path / name)
    assert found.tensors("model")["w"][0] == 1
    assert not found.files["model"].file.closed


def test_all_damaged_is_an_error(tmp_path: Path) -> None:
    (save(tmp_path, 1) / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"damaged.*no other checkpoint"):
        latest_checkpoint(tmp_path, warn=fail)


def test_a_damaged_one_is_replaced_when_its_step_comes_again(tmp_path: Path) -> None:
    (save(tmp_path, 2) / "model.safetensors").write_bytes(b"")
    save(tmp_path, 2)
    found = latest_checkpoint(tmp_path, warn=fail)
    assert found is not None
    assert found.step == 2


def test_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    path = save(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="format 99"):
        open_checkpoint(path)


@pytest.mark.parametrize("moment", ["rename", "fsync", "mkdir"])
def test_a_crash_at_any_call_leaves_a_whole_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """Count the calls of one kind in a save, then die at each of them in turn; nothing may be cleaned up."""

    class Death(BaseException):
        pass

    holder = os if moment == "fsync" else Path
    real = getattr(holder, moment)
    for death in range(20):
        folder = tmp_path / str(death)
        save(folder, 1, keep=1)
        calls = 0

        def dying(*arguments: object, **options: object) -> object:
            nonlocal calls
            calls += 1
            if calls > death:  # noqa: B023 - read while this round lasts
                raise Death
            return real(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(holder, moment, dying)
            patch.setattr(writing.shutil, "rmtree", lambda path, **options: None)
            try:
                save(folder, 2, keep=1)
                finished = True
            except Death:
                finished = False
        found = latest_checkpoint(folder, warn=fail)
        assert found is not None
        assert found.step == 2 if finished else found.step in (1, 2)
        save(folder, 3, keep=1)  # whatever was left behind is no obstacle
        assert [path.name for path in folder.iterdir()] == ["step-00000003"]
        if finished:
            return
    raise AssertionError("the save never finished")


def test_a_full_disk_is_explained_and_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def full(tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(CheckpointError, match=r"disk is full.*intact"):
        save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert latest_checkpoint(tmp_path, warn=fail) is not None


@pytest.mark.skipif(os.name != "posix" or not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting needs root")
def test_a_really_full_disk(tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("cannot mount here")
    try:
        save(tmp_path, 1, size=1000)
        with pytest.raises(CheckpointError, match="disk is full"):
            save(tmp_path, 2, size=100_000)
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
        assert latest_checkpoint(tmp_path, warn=fail) is not None
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
