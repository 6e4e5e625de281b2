"""Checkpoints of several processes: each writes and reads its own part alone, on `torch.distributed.checkpoint` (DCP).

    background = Background(folder, ranks)            # by every process
    background.save(step=..., weights=..., moments=..., ...)          # returns when the tensors are copied to CPU memory
    background.wait()                                 # the files are there under their name, or it raises
    load(open_checkpoint(path), model, optimizer)     # by any number of processes, from files of any number

The files are safetensors with DCP's offsets in their headers (its Hugging Face storage), never its own format, whose
`.metadata` is a pickle: of what is called here, nothing unpickles a file (`HuggingFaceStorageReader` overrides both methods of
its base that do, and finds names, shapes and offsets in the headers). Files of one process (format 1) are read in the same way.

A process dying while it writes leaves a folder with a hidden name, which the next run removes (config/writing.py).
"""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.futures import Future as TorchFuture

from latentlm.config.tensor_files import finite
from latentlm.config.writing import explained
from latentlm.errors import CheckpointError, sentence, short
from latentlm.training.optimizer import make_room, optimizer_shapes
from latentlm.training.parallel import Ranks
from latentlm.training.record.checkpoint import Checkpoint, facts_of, new_checkpoint, path_of_step, write_state
from latentlm.zoo.unfinished import SHARDED
from latentlm.zoo.weights import weights_of

Files = dict[str, dict[str, Any]]
"""What state.json says of each."""


class Background:
    """Writes checkpoints while training goes on, one at a time. Every process has one, and calls its methods when the others
    do. What the processes tell each other meanwhile goes by a group of its own (gloo)."""

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self._folder, self._ranks = folder, ranks
        self._group = dist.new_group(backend="gloo")
        self._future: Future[Any] | None = None
        self._path = folder
        self._unfinished = ExitStack()
        """Of process 0: the folder that is no checkpoint yet."""

    def save(
        self,
        *,
        step: int,
        weights: Mapping[str, Tensor],
        moments: Mapping[str, Tensor],
        state: Mapping[str, Any],
        keep: int,
    ) -> None:
        """Begin to write a checkpoint. Raises CheckpointError, in every process, where the one before could not be written, or
        this one's folder cannot be made."""
        self.wait()
        new = new_checkpoint(self._folder, step=step, keep=keep)
        temporary = Path(self._ranks.from_first(lambda: str(self._unfinished.enter_context(new))))

        def publish(files: Files) -> None:
            write_state(temporary, format=SHARDED, step=step, files=files, state=state)
            self._unfinished.close()

        self._path = path_of_step(self._folder, step)
        owner = {**dict.fromkeys(weights, 1), **dict.fromkeys(moments, 2)}  # files of their own: weights alone are a model
        writer, planner = _Writer(temporary, owner, publish), DefaultSavePlanner(dedup_save_to_lowest_rank=True)
        future = dcp.async_save({**weights, **moments}, storage_writer=writer, planner=planner, process_group=self._group)
        assert isinstance(future, Future), "its writer copies before it returns"
        self._future = future

    @property
    def failed(self) -> bool:
        """Whether this process knows already that `wait` will raise."""
        return self._future is not None and self._future.done() and self._future.exception() is not None

    def wait(self) -> None:
        """Until what was begun is there. Raises CheckpointError, in every process, where it could not be written; no checkpoint
        appears then, and those before are as they were."""
        if self._future is not None:
            self._ranks.agreed(self._end)

    def abandon(self) -> None:
        """Where the run ends by another error: let what was begun come to its end, whatever it is."""
        with suppress(BaseException):
            self._end()

    def _end(self) -> None:
        future, self._future = self._future, None
        if future is None:
            return
        with explained(self._path), self._unfinished:
            try:
                future.result()
            except CheckpointException as error:
                raise _cause(error) from error


def _cause(error: CheckpointException) -> BaseException:
    """What failed in the first of the processes in which something did."""
    return next(iter(error.failures.values()))[0]


class _Writer(HuggingFaceStorageWriter):
    """Two files for each process, of weights and of moments, hashed by the process that wrote them; `publish` is called by
    process 0 when all are there."""

    def __init__(self, folder: Path, owner: Mapping[str, int], publish: Callable[[Files], None]) -> None:
        super().__init__(str(folder), fqn_to_index_mapping=dict(owner), save_distributed=True)
        self._publish = publish

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> TorchFuture[list[Any]]:
        """Write, and hand over what state.json says of each file."""
        names = {result.storage_data.relative_path for result in super().write_data(plan, planner).value()}
        written: TorchFuture[list[Any]] = TorchFuture()
        written.set_result([(name, facts_of(Path(self.path) / name)) for name in sorted(names)])
        return written

    def finish(self, metadata: Metadata, results: list[list[Any]]) -> None:
        """By process 0, when every process has written."""
        files = dict(each for own in results for each in own)
        for name, facts in files.items():
            found = Path(self.path) / name
            if not found.is_file() or found.stat().st_size != facts["size"]:
                raise CheckpointError(f"process 0 does not see {name}, which another process wrote: all need the same folder.")
        self._publish(files)


# ------------------------------------------------------------------------------------------------------------------ reading


def check_shards(checkpoint: Checkpoint, model: nn.Module) -> dict[str, TensorStorageMetadata]:
    """Type and shape of each tensor of a checkpoint, from the headers. Raises CheckpointError unless they are, in full, the
    weights of `model` and moments of its parameters."""
    with _reader(checkpoint) as reader:
        found: dict[str, Any] = reader.read_metadata().state_dict_metadata
    wanted = weights_of(model)
    shapes = {**{name: tensor.shape for name, tensor in wanted.items()}, **optimizer_shapes(model)}
    named = f"the checkpoint {checkpoint.path} is damaged"
    if odd := sorted((wanted.keys() - found.keys()) | (found.keys() - shapes.keys())):
        raise CheckpointError(f"{named}: {odd[0]} is {'missing' if odd[0] in wanted else 'nothing of this model'}.")
    for name, tensor in found.items():
        if tensor.size != shapes[name] or sum(math.prod(chunk.sizes) for chunk in tensor.chunks) != math.prod(tensor.size):
            raise CheckpointError(f"{named}: {name} has another shape than in the model, or is not there in full.")
    return found


@torch.no_grad()
def load(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Fill this process's part of the weights and moments in place; it reads no more of the files. Raises CheckpointError as
    `check_shards`, and for weights that are no finite numbers."""
    found, weights = check_shards(checkpoint, model), weights_of(model)
    moments = [name for name in optimizer_shapes(model) if name in found]  # in the order in which they come about
    tensors = {**weights, **make_room(optimizer, model, moments)}
    with _reader(checkpoint) as reader, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it loads for this process alone, as it is told to
        dcp.load(tensors, storage_reader=reader, no_dist=True)
    for name, tensor in weights.items():
        finite(tensor.to_local() if hasattr(tensor, "to_local") else tensor, name, checkpoint.path)


class _Reader(HuggingFaceStorageReader):
    """Hashes the files of a checkpoint that it reads from, if nobody has."""

    def __init__(self, folder: str, checkpoint: Checkpoint) -> None:
        super().__init__(folder)
        self._checkpoint = checkpoint

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> TorchFuture[None]:
        """Into the tensors of the planner."""
        for path in {self.storage_data[item.storage_index].relative_path for item in plan.items}:
            self._checkpoint.compare(Path(path).stem)
        return super().read_data(plan, planner)


@contextmanager
def _reader(checkpoint: Checkpoint) -> Iterator[_Reader]:
    """A reader of the files of a checkpoint as they were opened, and hashed. It opens names alone: each gets one that leads to
    the open file."""
    with tempfile.TemporaryDirectory(prefix="latentlm-") as folder:
        for name, file in checkpoint.files.items():
            Path(folder, f"{name}.safetensors").symlink_to(file.name)
        try:
            yield _Reader(folder, checkpoint)
        except (CheckpointException, SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            cause = _cause(error) if isinstance(error, CheckpointException) else error
            if isinstance(cause, CheckpointError):
                raise cause from None
            raise CheckpointError(f"the checkpoint {checkpoint.path} is damaged: {sentence(short(str(cause)))}") from None
