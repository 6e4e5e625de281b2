"""Several processes, one run: `torchrun --nproc_per_node N -m latentlm train RECIPE`, on one machine or several.

Of every micro-batch, rank r of N takes rows r, r + N, r + 2N, ...; a row keeps its number in the stream, so it draws the same
noise whoever computes it, and a step is the same, up to rounding, on any number of processes. Weights, gradients and moments
are spread over the processes (FSDP2, `torch.distributed.fsdp.fully_shard`): each block is gathered while it computes, and so
is each other module that says `gathered_alone` (an embedding that is not tied, a table); what belongs to none of them (readout,
norms) during the whole step. With `train.parallel.replicate` R, there are R
copies of the model, each spread over N / R processes (hybrid sharding).

Rank 0 speaks, and writes the files. What the ranks have to agree upon they exchange on the CPU (gloo); gradients and weights go
by the devices' own way (NCCL on GPUs).
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from latentlm.backbone.block import Block
from latentlm.composed import ComposedDecoder
from latentlm.composed.initialisation import initialise
from latentlm.config import TrainConfig
from latentlm.errors import UserError
from latentlm.interface import LatentDecoder
from latentlm.interface.ranks import gathered, place, shared_by
from latentlm.zoo.weights import fill, whole

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")
_SOON, _LONG = 20.0, timedelta(minutes=10)
"""Seconds in which the processes of a run find each other, and how long one waits for the others."""


class ElsewhereError(UserError):
    """Another process of this run failed, and says why."""


class LostError(UserError):
    """Another process of this run has ended, and has said nothing, or this one refuses what they do in step; of those that
    notice, one says so."""


class _RefusedError(UserError):
    """What this process refused in the midst of what they do in step."""


def speaks() -> bool:
    """Whether this process is the one of a run that speaks."""
    return place()[0] == 0


@dataclass(frozen=True)
class Ranks:
    """Which of the processes of a run this one is."""

    rank: int = 0
    size: int = 1
    local: int = 0
    """Among those of this machine: the number of its GPU."""
    beside: int = 1
    """How many there are on this machine."""

    @property
    def first(self) -> bool:
        """Whether this process speaks and writes."""
        return self.rank == 0

    def rows(self, batch: int) -> range:
        """The rows of a micro-batch that this process takes."""
        return range(self.rank, batch, self.size)

    def agreed(self, work: Callable[[], T]) -> T:
        """Do something that every process does, or, where it fails for one, that none has done. Raises what failed here; where
        nothing did, ElsewhereError. An error of the user's on a rank that does not speak is raised on the one that does."""
        result, error = None, None
        try:
            result = work()
        except UserError as refused:
            error = refused
        errors = gathered(None if error is None else str(error))
        said = next((text for text in errors if text is not None), None)
        if said is None:
            return result  # type: ignore[return-value]
        if not self.first:
            raise ElsewhereError(said)
        raise error if error is not None else UserError(f"process {errors.index(said)}: {said}")

    def in_step(self, work: Callable[[], T]) -> T:
        """Do something in which the processes need each other all the way, such as passes through weights that are spread. What
        one of them refuses ends them all, and one says it."""
        try:
            return work()
        except UserError as refused:
            raise refused if self.size == 1 else _RefusedError(str(refused)) from refused

    def from_first(self, work: Callable[[], T]) -> T:
        """What rank 0 makes, plain data, for every rank; the others wait for it. Raises as `agreed`."""
        return gathered(self.agreed(work) if self.first else self.agreed(lambda: None))[0]  # type: ignore[return-value]

    def any(self, flag: bool) -> bool:
        """Whether it is so for any process."""
        return any(gathered(flag))


@contextmanager
def joined() -> Iterator[Ranks]:
    """The processes that torchrun has started, this one among them; within the block they share their batches. Raises UserError
    where they do not find each other."""
    _, size, local = place()
    if size == 1:
        yield Ranks()
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        with _said_if_it_takes_long(size):
            store, rank, size = next(dist.rendezvous("env://", timeout=_LONG))
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_LONG)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"the {size} processes did not find each other: {error}. Start them with torchrun.") from None
    try:
        ranks = Ranks(rank, size, local, beside=_on_this_machine(size))
        with shared_by(dist.group.WORLD), heard(ranks):
            yield ranks
    except _RefusedError as error:
        raise (LostError if _first_to_end(store) else ElsewhereError)(str(error)) from error
    except RuntimeError as error:
        first = _first_to_end(store)
        if not is_lost(error):
            raise
        reason = "another process of this run has ended, or cannot be reached any more. What was saved before is intact"
        raise (LostError if first else ElsewhereError)(f"{reason}: go on with --resume.") from error
    except BaseException:
        _first_to_end(store)  # what this process says will do
        raise
    finally:
        dist.destroy_process_group()


@contextmanager
def _said_if_it_takes_long(size: int) -> Iterator[None]:
    """Say on standard error what is waited for: variables of the environment may be left from another run."""
    said = f"waiting for {size - 1} other processes: WORLD_SIZE is {size}. Without torchrun, unset RANK and WORLD_SIZE."
    timer = threading.Timer(_SOON, lambda: print(said, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _on_this_machine(size: int) -> int:
    """How many of the processes there are here, as torchrun says; all, where nothing does."""
    said = os.environ.get("LOCAL_WORLD_SIZE", "")
    return min(int(said), size) if re.fullmatch("[1-9][0-9]{0,8}", said) else size


def is_lost(error: BaseException) -> bool:
    """Whether this is what torch says where another process cannot be reached."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


@contextmanager
def heard(ranks: Ranks) -> Iterator[None]:
    """Where the block ends because another process was lost, torchrun asks this one to end at the same moment (SIGTERM): it
    ends by itself, and says why first."""
    try:
        yield
    except RuntimeError:
        if ranks.size > 1 and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise


def _first_to_end(store: dist.Store) -> bool:
    """Whether no process of this run has ended with an error before this one. The store is torchrun's, which outlives them."""
    try:
        return int(store.add("latentlm/ended", 1)) == 1
    except RuntimeError:
        return speaks()


def check_ranks(config: TrainConfig, ranks: Ranks) -> None:
    """Raise UserError where the processes cannot share the work."""
    if ranks.size > config.batch:
        raise UserError(
            f"{ranks.size} processes share the rows of a micro-batch, and train.batch is {config.batch}. Raise it (and lower "
            "train.accumulate), or start fewer processes."
        )
    if ranks.size % config.parallel.replicate:
        raise UserError(
            f"train.parallel.replicate is {config.parallel.replicate}, and {ranks.size} processes do not divide into as many "
            "copies. Choose a divisor of their number."
        )


class Sharded(nn.Module):
    """A model whose weights are spread over processes. What is done with it is done within `forward`, where those that belong
    to no block are whole."""

    def __init__(self, model: LatentDecoder) -> None:
        super().__init__()
        self.model = model

    def scatter(self) -> None:
        """After the way back: the weights that were whole during the step are spread again, and gathered anew for the next."""
        self.reshard()  # type: ignore[operator]

    def forward(self, work: Callable[[], T]) -> T:
        """What `work` returns."""
        return work()


def units(model: nn.Module) -> list[nn.Module]:
    """The modules whose weights are gathered when they are called, and for no longer; inner ones first."""
    return [module for module in reversed(list(model.modules())) if getattr(module, "gathered_alone", False) is True]


def shard(model: LatentDecoder, config: TrainConfig, ranks: Ranks, device: torch.device) -> Sharded:
    """Spread a model over processes, in place; one on the meta device gets its first weights (of `train.seed`) where they are
    spread, a module at a time. With bfloat16 the blocks are gathered in it, all else in float32; gradients are added up in
    float32."""
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard  # runs of one process need none of it

    mesh = _mesh(device, config, ranks)
    half = torch.bfloat16 if config.dtype == "bfloat16" else None
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for module in units(model):
        fully_shard(module, mesh=mesh, mp_policy=policy if isinstance(module, Block) else MixedPrecisionPolicy())
    sharded = Sharded(model)
    fully_shard(sharded, mesh=mesh, reshard_after_forward=False)
    # An encoder that descends (ltm) goes back through the decoder within a step: what is whole must stay so, until `scatter`.
    sharded.set_reshard_after_backward(False, recurse=False)  # type: ignore[operator]
    if model.device.type == "meta":
        sharded.to_empty(device=device)
        generator = torch.Generator(device=device).manual_seed(config.seed)
        initialise(model, model.config.backbone, generator, held=_whole_within)
    for module in sharded.modules():
        if isinstance(module, FSDPModule):  # whole tensors take over `requires_grad` when they are first made: not within
            module.unshard()  # such a descent, where the decoder stands still
            module.reshard()
    return sharded


@contextmanager
@torch.no_grad()
def _whole_within(module: nn.Module, *, filled: bool) -> Iterator[None]:
    """Within the block the weights of a module are whole, in every process; after it each keeps its piece of what they are
    then. `filled`: they have values already, which the block may look at."""
    spread = [
        (each, name, parameter)
        for each in (module.modules() if filled else [module])
        for name, parameter in each.named_parameters(recurse=False)
    ]
    held: dict[int, nn.Parameter] = {}
    for owner, name, parameter in spread:
        if id(parameter) not in held:  # modules may share one
            empty = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
            held[id(parameter)] = nn.Parameter(whole(parameter) if filled else empty, requires_grad=parameter.requires_grad)
        setattr(owner, name, held[id(parameter)])
    yield
    for owner, name, parameter in spread:
        if held.pop(id(parameter), None) is not None:
            fill(parameter, getattr(owner, name).detach())
        setattr(owner, name, parameter)


def spreads(model: LatentDecoder) -> bool:
    """Whether `shard` can give a model its first weights: not where the decoder sets some beside those of its parts, which is
    built whole by every process first."""
    return isinstance(model, ComposedDecoder) and type(model).init_weights is ComposedDecoder.init_weights


def _mesh(device: torch.device, config: TrainConfig, ranks: Ranks) -> DeviceMesh:
    from torch.distributed.device_mesh import init_device_mesh

    copies = config.parallel.replicate
    if copies == 1:
        return init_device_mesh(device.type, (ranks.size,))
    return init_device_mesh(device.type, (copies, ranks.size // copies), mesh_dim_names=("replicate", "shard"))
