"""Checkpoints: whole or not there, checked by hash, the newest good one found by looking.

    checkpoints/step-00000200/model.safetensors        weights, tied ones once
                              optimizer.safetensors    AdamW's moments and step counts
                              state.json               step, schedule, metrics in progress, and the hashes of all three

Of a run of several processes each has written its own part of both (sharded.py), and the format is 2:

    checkpoints/step-00000200/shard-00001-model-00001-of-00002.safetensors      weights, of process 0
                              shard-00001-model-00002-of-00002.safetensors      moments
                              shard-00002-..., state.json

A folder appears under its name only when everything in it is on the disk. There is no random state to save: noise is keyed
(interface/noise.py), and batches are numbered (data/packing.py).
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from latentlm.config import read_json
from latentlm.config.hashed import with_hash
from latentlm.config.tensor_files import TensorFile, open_file
from latentlm.config.writing import atomic_folder, remove_folder, remove_leftovers
from latentlm.errors import CheckpointError, UserError
from latentlm.zoo.unfinished import FORMAT, SHARDED, STATE, checkpoints, read_record
from latentlm.zoo.weights import sha256


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose hashes are right. Its files stay open as long as it is there: what is read was hashed."""

    path: Path
    step: int
    state: dict[str, Any]
    files: Mapping[str, TensorFile]
    """By name: "model" and "optimizer", or the shards of each process."""
    sharded: bool = False
    promised: dict[str, str] = field(default_factory=dict)
    """Hashes that are yet to be compared, each before its file is read."""

    def __post_init__(self) -> None:
        for file in self.files.values():
            weakref.finalize(self, file.file.close)

    def compare(self, name: str) -> None:
        """Hash a file, unless that was done. Raises CheckpointError where it is not the one that was saved."""
        promised, file = self.promised.pop(name, None), self.files[name]
        if promised is not None and file.sha256() != promised:
            damage = f"the SHA-256 hash of {file.path.name} is not the recorded one"
            raise CheckpointError(f"the checkpoint {self.path} is damaged: {damage}.")

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one of its files, on the CPU. Raises CheckpointError where the file is none."""
        with self.files[name].tensors() as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - not a mapping


def save_checkpoint(
    folder: Path, *, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int
) -> Path:
    """Write `folder/step-...` with one safetensors file per entry of `tensors`, and delete all but it and the newest
    `keep` - 1 others.

    Raises CheckpointError where the disk refuses; what was there before stays.
    """
    with new_checkpoint(folder, step=step, keep=keep) as temporary:
        files = {}
        for name, content in tensors.items():
            file = temporary / f"{name}.safetensors"
            save_file({key: tensor.detach().contiguous().cpu() for key, tensor in content.items()}, file)
            files[file.name] = facts_of(file)
        write_state(temporary, format=FORMAT, step=step, files=files, state=state)
    return path_of_step(folder, step)


def path_of_step(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return folder / f"step-{step:08d}"


@contextmanager
def new_checkpoint(folder: Path, *, step: int, keep: int) -> Iterator[Path]:
    """A temporary folder for the files of a checkpoint, which it becomes when the block ends without an error; of the others
    the newest `keep` - 1 stay. Raises CheckpointError where the disk refuses."""
    path = path_of_step(folder, step)
    with atomic_folder(path, ours=is_ours, kind="a checkpoint") as temporary:
        yield temporary
    others = [other for other in checkpoints(folder) if other != path and is_ours(other)]
    for old in others[: max(0, len(others) + 1 - keep)]:
        remove_folder(old)


def facts_of(file: Path) -> dict[str, Any]:
    """What state.json says of a file."""
    return {"sha256": sha256(file), "size": file.stat().st_size}


def write_state(
    folder: Path, *, format: int, step: int, files: Mapping[str, Mapping[str, Any]], state: Mapping[str, Any]
) -> None:
    """Write state.json, the last file of a checkpoint; `files` are `facts_of` each by its name."""
    record = {"format": format, "step": step, "files": dict(files), "state": dict(state)}
    (folder / STATE).write_text(with_hash(record), encoding="utf-8")


def set_aside_newer(folder: Path, *, step: int) -> None:
    """Rename the checkpoints after `step` to `step-....unused`: a run that goes on from `step` makes them again, and they must
    not be counted, nor found, as its own."""
    for path in checkpoints(folder):
        if int(path.name.removeprefix("step-")) > step:
            aside, number = path.with_name(f"{path.name}.unused"), 1
            while os.path.lexists(aside) and not is_ours(aside):
                number += 1
                aside = path.with_name(f"{path.name}.unused-{number}")
            if aside.exists():
                remove_folder(aside)
            path.rename(aside)


def is_ours(path: Path) -> bool:
    """Whether a folder holds a checkpoint, whole or damaged, and nothing else that would go with it."""
    if path.is_symlink() or not path.is_dir():
        return False
    try:
        known = {name for name in read_json(path / STATE)["files"] if name.endswith(".safetensors")}  # anyone can write it
        return {file.name for file in path.iterdir()} <= {STATE, *known}
    except (UserError, AttributeError, KeyError, TypeError, OSError):
        return False


def latest_checkpoint(
    folder: Path, *, warn: Callable[[str], None], check: Callable[[Checkpoint], object] = lambda checkpoint: None
) -> Checkpoint | None:
    """The newest checkpoint that is whole, and that `check` does not refuse by a CheckpointError; None where there never was
    one. Each that is passed over is told to `warn`. Raises CheckpointError where all are damaged.
    """
    remove_leftovers(folder)
    damages = []
    for path in reversed(checkpoints(folder)):
        try:
            checkpoint = open_checkpoint(path)
            check(checkpoint)
        except CheckpointError as error:
            damages.append(str(error))
            continue
        for damage in damages:
            warn(f"{damage} Going on from the one before it, step {checkpoint.step}.")
        return checkpoint
    if damages:
        raise CheckpointError(f"{' '.join(damages)} There is no other checkpoint: train again into another folder (--out).")
    return None


def open_checkpoint(path: Path, *, compare: bool = True) -> Checkpoint:
    """Read a checkpoint's state and compare every hash; without `compare`, each when its file is going to be read. Raises
    CheckpointError with what is damaged."""
    said = read_record(path)
    with ExitStack() as opened:
        files = {name.partition(".")[0]: _of_size(path, name, facts.size, opened) for name, facts in said.files.items()}
        promised = {name.partition(".")[0]: facts.sha256 for name, facts in said.files.items()}
        checkpoint = Checkpoint(path, said.step, said.state, files, said.format == SHARDED, promised)
        opened.pop_all()  # from here on the checkpoint closes them
    for name in files if compare else ():
        checkpoint.compare(name)
    return checkpoint


def _of_size(path: Path, name: str, promised: int, until: ExitStack) -> TensorFile:
    """A file of a checkpoint, open until then. Raises CheckpointError where it is not there, or has another size."""
    if not (path / name).is_file():
        raise CheckpointError(f"the checkpoint {path} is damaged: {name} is missing.")
    file = open_file(path / name)
    until.callback(file.file.close)
    if (size := file.size) != promised:
        raise CheckpointError(f"the checkpoint {path} is damaged: {name} has {size} bytes instead of {promised}.")
    return file
