"""What a run on many GPUs would need, counted on paper: nothing is trained, and no data are read.

    latentlm train RECIPE --dry-run --processes 64 --gpu H100 train.parallel.replicate=8

N processes hold R copies of the model (`train.parallel.replicate`), each spread over S = N / R of them (parallel.py). Bytes of
one process, of P parameters of which P_b lie in blocks and P_1 in one of them, P_t in tables and T_1 in one of them, P_e in the
embedding, all gathered alone, and P_r elsewhere; b bytes a number where blocks compute (2 in bfloat16):

    kept     4 P / S weights + 4 P / S gradients + 8 P / S moments
    whole    4 P_r + 4 P_r: what is gathered with nothing else, and its gradient, during the step
    passing  2 b P_1 + the larger of b P_1 and 8 T_1: two blocks, and the gradient of one, or a table with its gradient (and
             8 P_e where that is more than this and all activations, before and after which the embedding is gathered)
    kept for the way back: activations of this process's rows (plan.py)

It receives, of every micro-batch, (S - 1) / S of 2 b P_b + 8 P_t + 8 P_e (on the way forward and back), of 4 P_r, and of 4 P of
gradients; between copies, 8 P / S (R - 1) / R. Speeds of a GPU and its links are those of NVIDIA's data sheets; the share of
the peak is what compiled steps of the nearest size reached on one H100 (docs/gpu.md), without latents or with a table.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from latentlm.backbone.block import Block
from latentlm.config import Recipe, TrainConfig, memory
from latentlm.errors import UserError, unknown_name
from latentlm.interface import LatentDecoder
from latentlm.training.gpus import GPUS
from latentlm.training.measuring import tasks_of
from latentlm.training.parallel import Ranks, check_ranks, units
from latentlm.training.plan import duration, estimate_memory, gib, operations_of
from latentlm.training.setup import make_model, resolve
from latentlm.training.warm import check_source
from latentlm.zoo.accounting import count

REACHED = {51e6: (0.267, 0.116), 124e6: (0.358, 0.188), 1.5e9: (0.437, 0.365), 8e9: (0.388, 0.306)}
"""Shares of the peak, by parameters, of `vanilla` and `free` (full table, H=16, in float32): docs/gpu/training.json."""


@dataclass(frozen=True)
class Share:
    """Bytes of one process."""

    kept: float
    whole: float
    passing: float
    activations: float

    @property
    def total(self) -> float:
        """Bytes in all."""
        return self.kept + self.whole + self.passing + self.activations


@dataclass(frozen=True)
class MeshPlan(Share):
    """What a dry run says of many GPUs. Bytes and seconds of one process and one step."""

    name: str
    processes: int
    replicate: int
    gpu: str
    parameters: int
    available: float
    received: float
    computing_seconds: float
    receiving_seconds: float
    tokens_per_step: int
    steps: int
    share_of_peak: float
    recompute: bool

    @property
    def seconds(self) -> float:
        """Of a step, if all that is received is received while something is computed; at least that of the longer one."""
        return max(self.computing_seconds, self.receiving_seconds)

    @property
    def tokens_per_second(self) -> float:
        """Of one GPU."""
        return self.tokens_per_step / self.seconds / self.processes

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        own = ("total", "seconds", "tokens_per_second")
        return {**asdict(self), **{name: getattr(self, name) for name in own}}

    def text(self) -> str:
        """For people."""
        spread = self.processes // self.replicate
        copies = "one copy," if self.replicate == 1 else f"{self.replicate} copies, each"
        less = "a smaller train.batch (train.accumulate makes up for it)"
        remedy = f"more processes or {less}" if self.recompute else f"more processes, {less}, or train.recompute=true"
        fits = "fits" if self.total < self.available else f"DOES NOT FIT ({remedy})"
        tokens, alone = self.tokens_per_step * self.steps, self.processes == 1
        parted = "" if alone else f"; whole during a step {gib(self.whole)}; passing {gib(self.passing)}"
        received = f"; {gib(self.received)} received, {self.receiving_seconds:.3g} s on the slowest link"
        in_all = f", {_about(self.tokens_per_second * self.processes)} in all"
        return "\n".join(
            (
                f"{self.name} on {self.processes} {self.gpu}: counted on paper, nothing is measured, no data are read",
                f"parameters  {self.parameters:,}" + ("" if alone else f"; {copies} spread over {spread}"),
                f"memory      {gib(self.total)} of each GPU's {gib(self.available)}: {fits}",
                f"            weights, gradients, AdamW {gib(self.kept)}{parted}; activations {gib(self.activations)}",
                f"a step      {self.computing_seconds:.3g} s of computing, at the {self.share_of_peak:.0%} of the peak that "
                f"the nearest size reached on one H100{'' if alone else received}",
                f"speed       about {_about(self.tokens_per_second)} tokens/s a GPU{'' if alone else in_all}",
                f"time        about {_days(self.seconds * self.steps)} for {tokens:,} tokens ({self.steps:,} steps of "
                f"{self.tokens_per_step:,})",
            )
        )


def _about(number: float) -> str:
    """To three digits."""
    return f"{float(f'{number:.3g}'):,.0f}"


def _days(seconds: float) -> str:
    """For people: no minutes of a month."""
    days = seconds / (24 * 3600)
    return f"{days:.3g} days" if 2 < days < 1000 else duration(seconds)


def _share_of_peak(model: LatentDecoder, parameters: int) -> float:
    """What was measured of the nearest size."""
    nearest = min(REACHED, key=lambda size: abs(math.log(size / parameters)))
    return REACHED[nearest][1 if model.latents else 0]


def share_of(recipe: Recipe, processes: int) -> Share:
    """Memory of one of the processes that train a resolved recipe, the one with the most rows."""
    train, model = recipe.train, make_model(recipe, "meta")
    counts = _Counts.of(model)
    spread, rows = processes // train.parallel.replicate, math.ceil(train.batch / processes)
    one_share = recipe.model_copy(update={"train": train.model_copy(update={"batch": rows})})
    activations, block = estimate_memory(one_share).activations, _bytes_within(train) * counts.block
    passing = max(2 * block + max(block, 8 * counts.table), 8 * counts.embedding - activations)
    return Share(
        kept=16 * counts.all / spread,
        whole=8 * counts.outside if spread > 1 else 0,
        passing=passing if spread > 1 else 0,
        activations=activations,
    )


@dataclass(frozen=True)
class _Counts:
    """Parameters of a model, by when they are gathered."""

    all: int
    blocks: int
    block: int
    """The largest one."""
    tables: int
    """And whatever else is gathered alone."""
    table: int
    embedding: int

    @classmethod
    def of(cls, model: LatentDecoder) -> _Counts:
        """Counted."""
        found: dict[type, list[int]] = {Block: [], nn.Embedding: [], nn.Module: []}
        counted: set[int] = set()
        for module in units(model):
            own = {id(weight): weight.numel() for weight in module.parameters() if id(weight) not in counted}
            counted |= own.keys()  # what lies in a unit within this one is that one's
            found[next(kind for kind in found if isinstance(module, kind))].append(sum(own.values()))
        blocks, embeddings, tables = found.values()
        largest = max(blocks, default=0), max(tables, default=0)
        return cls(count(model), sum(blocks), largest[0], sum(tables), largest[1], sum(embeddings))

    @property
    def outside(self) -> int:
        """Those that are whole during a step."""
        return self.all - self.blocks - self.tables - self.embedding


def _bytes_within(train: TrainConfig) -> int:
    """Bytes a number where blocks compute."""
    return 2 if train.dtype == "bfloat16" else 4


def check_share(recipe: Recipe, ranks: Ranks, device: torch.device) -> None:
    """Raise UserError where one of several processes has too little memory for its share; those of a machine share that of its
    CPU."""
    needed, free = share_of(recipe, ranks.size), memory.available(device)
    sharing = ranks.beside if device.type == "cpu" else 1
    if free is None or needed.total * sharing <= free:
        return
    among = f" for the {sharing} processes of this machine" if sharing > 1 else ""
    state, activations = gib(needed.total - needed.activations), gib(needed.activations)
    raise UserError(
        f"each of {ranks.size} processes needs about {gib(needed.total)} of memory ({state} for weights, gradients and AdamW, "
        f"{activations} for activations), and {gib(free)} are free on {device}{among}. Start them on more GPUs or machines, "
        "lower train.batch (train.accumulate makes up for it), set train.recompute=true, or choose a smaller model."
    )


def make_mesh_plan(recipe: Recipe, *, processes: int, gpu: str) -> MeshPlan:
    """Plan a run of `recipe` on so many GPUs of a kind. Raises UserError for what could not run."""
    if gpu not in GPUS:
        raise unknown_name("GPU", gpu, GPUS)
    card, train = GPUS[gpu], recipe.train
    if train.init is not None:
        check_source(train.init)
    tasks_of(train)
    check_ranks(train, Ranks(0, processes))
    if train.batch % processes:
        raise UserError(
            f"train.batch is {train.batch}, which {processes} processes do not share evenly: the fullest sets the pace. "
            "Choose a multiple."
        )
    recipe = resolve(recipe)
    train, model = recipe.train, make_model(recipe, "meta")
    counts, each = _Counts.of(model), _bytes_within(train)
    copies, spread = train.parallel.replicate, processes // train.parallel.replicate
    assert train.context is not None, "the recipe is resolved"
    tokens = train.batch * train.accumulate * train.context
    gathered = 2 * each * counts.blocks + 8 * (counts.tables + counts.embedding) + 4 * counts.outside
    within = (spread - 1) / spread * train.accumulate * (gathered + 4 * counts.all)
    between = 8 * counts.all / spread * (copies - 1) / copies
    near = card.near if spread <= card.a_machine else card.far
    operations, share = operations_of(recipe, model) / tokens, _share_of_peak(model, counts.all)
    return MeshPlan(
        name=recipe.name,
        processes=processes,
        replicate=copies,
        gpu=gpu,
        parameters=counts.all,
        **asdict(share_of(recipe, processes)),
        available=card.memory,
        received=within + between,
        computing_seconds=tokens / processes * operations / ((card.half if each == 2 else card.full) * share),
        receiving_seconds=within / near + between / (card.far if processes > card.a_machine else card.near),
        tokens_per_step=tokens,
        steps=train.steps,
        share_of_peak=share,
        recompute=train.recompute,
    )
