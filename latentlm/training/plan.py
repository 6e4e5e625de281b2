"""What a run will cost, before it starts: parameters, memory, time. Nothing is written.

    latentlm train RECIPE --dry-run

Memory is an estimate: 16 bytes per parameter (float32 weight, gradient and AdamW's two moments) plus the activations that the
backward pass keeps, per token of a micro-batch

    (16 D + 6 F) per block,  4 V at the readout,  8 E at the latent

in numbers of 4 bytes (2 with bfloat16; the readout's stay at 4). Recomputed blocks keep D, and one of them all; with a chunked
head the readout's are those of a chunk. Time is measured, on two real steps, where a step is short; else it follows from the
operations (zoo/accounting.py) at half the speed of a large matrix product.

Legend: D width, F feed-forward width, V vocabulary, E event dimensions.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import torch

from latentlm.config import Recipe, memory
from latentlm.errors import UserError
from latentlm.interface import LatentDecoder
from latentlm.training.data.prepared import Prepared, prepare
from latentlm.training.measuring import tasks_of
from latentlm.training.setup import make_model, make_stream, parameters_by_socket, pick_device, resolve
from latentlm.training.trainer import Trainer
from latentlm.training.warm import check_source
from latentlm.zoo.accounting import cost_of

_LONGEST_TRIAL = 10.0  # seconds that a trial step may take by the operations' count


@dataclass(frozen=True)
class Memory:
    """Estimated bytes."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class Plan:
    """What a dry run says."""

    name: str
    parameters: dict[str, int]
    """By socket, and "total"."""
    memory: Memory
    available: int | None
    """Free bytes on the device; None where the system does not tell."""
    device: str
    steps: int
    tokens_per_step: int
    """Positions of a step, padding included."""
    epochs: float
    data: dict[str, Any]
    seconds_per_step: float
    measured: bool
    """`seconds_per_step` was timed, not estimated from the operations."""

    @property
    def seconds(self) -> float:
        """Expected duration of the run, evaluation and saving left out."""
        return self.steps * self.seconds_per_step

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "memory": {**asdict(self.memory), "total": self.memory.total}, "seconds": self.seconds}

    def text(self) -> str:
        """For people."""
        sockets = ", ".join(f"{name} {count:,}" for name, count in self.parameters.items() if name != "total" and count)
        needed, free = self.memory, "unknown" if self.available is None else gib(self.available)
        how = "measured on real steps" if self.measured else "estimated from the operations"
        return "\n".join(
            (
                f"{self.name}: dry run, nothing is written",
                f"parameters  {self.parameters['total']:,} ({sockets})",
                f"memory      about {gib(needed.total)} (weights {gib(needed.weights)}, gradients {gib(needed.gradients)}, "
                f"AdamW {gib(needed.optimizer)}, activations {gib(needed.activations)}); free on {self.device}: {free}",
                f"data        {self.data['train_documents']:,} documents, {self.data['train_bytes']:,} bytes, "
                f"{self.data['train_targets']:,} target tokens; held out: {self.data['held_out_documents']:,} documents",
                f"steps       {self.steps:,} of {self.tokens_per_step:,} tokens: {self.steps * self.tokens_per_step:,} tokens, "
                f"{self.epochs:.2f} epochs",
                f"time        about {duration(self.seconds)} ({self.seconds_per_step:.3g} s per step, {how}; "
                "evaluation and saving come on top)",
            )
        )


def duration(seconds: float) -> str:
    """For people: a time that nobody lives to see in years."""
    years = seconds / (365.25 * 24 * 3600)
    return str(timedelta(seconds=round(seconds))) if years < 100 else f"{years:,.3g} years"


def make_plan(recipe: Recipe) -> Plan:
    """Plan a run of `recipe`; reads the data, writes nothing. Raises UserError for all that would stop the run at its start."""
    device = pick_device(recipe.train.device)
    resolve(recipe)
    if recipe.train.init is not None:
        check_source(recipe.train.init)
    tasks_of(recipe.train)
    prepared = prepare(recipe.data)
    recipe = resolve(recipe, tokenizer=prepared.tokenizer)
    stream = make_stream(recipe, prepared)
    needed, free = estimate_memory(recipe), memory.available(device)
    if needed.total > memory.ADDRESSABLE:
        raise UserError(f"training needs about {gib(needed.total)}, more than can be addressed: choose smaller sizes.")
    seconds, measured = _step_time(recipe, prepared, device, fits=free is None or needed.total < free)
    rows = recipe.train.batch * recipe.train.accumulate
    return Plan(
        name=recipe.name,
        parameters=parameters_by_socket(make_model(recipe, "meta")),
        memory=needed,
        available=free,
        device=str(device),
        steps=recipe.train.steps,
        tokens_per_step=rows * stream.context,
        epochs=recipe.train.steps * rows / stream.rows_per_epoch,
        data=prepared.summary(),
        seconds_per_step=seconds,
        measured=measured,
    )


# ------------------------------------------------------------------------------------------------------------- memory


def estimate_memory(recipe: Recipe) -> Memory:
    """Memory of a training step of a resolved recipe, from a model on the meta device."""
    parameters = parameters_by_socket(make_model(recipe, "meta"))["total"]
    backbone = recipe.model.backbone
    assert backbone.feed_forward is not None
    assert recipe.train.context is not None, "the recipe is resolved"
    latents = recipe.model.by_latent.values()
    blocks = backbone.blocks + sum(latent.encoder is not None for latent in latents)
    block = 16 * backbone.width + 6 * backbone.feed_forward
    again = recipe.train.recompute
    tokens = recipe.train.batch * recipe.train.context
    logits = 4 * backbone.vocabulary * min(recipe.train.head_chunk or tokens, tokens)
    within = tokens * block * (1 if again else blocks) * (2 if recipe.train.dtype == "bfloat16" else 4)
    between = 4 * tokens * blocks * backbone.width if again else 0  # what enters a block is float32, whatever it computes in
    activations = within + between + 4 * (logits + 8 * tokens * sum(latent.dims for latent in latents))
    return Memory(4 * parameters, 4 * parameters, 8 * parameters, activations)


def check_memory(needed: Memory, device: torch.device) -> None:
    """Raise UserError where the estimate exceeds what is free."""
    free = memory.available(device)
    if free is not None and needed.total > free:
        raise UserError(
            f"training needs about {gib(needed.total)} of memory ({gib(needed.total - needed.activations)} for weights, "
            f"gradients and AdamW, {gib(needed.activations)} for activations), and {gib(free)} are free on {device}. Lower "
            "train.batch (train.accumulate makes up for it) or train.context, set train.recompute=true, or choose a smaller "
            "model."
        )


def gib(count: float) -> str:
    """Bytes for people."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


# --------------------------------------------------------------------------------------------------------------- time


def _step_time(recipe: Recipe, prepared: Prepared, device: torch.device, *, fits: bool) -> tuple[float, bool]:
    """Seconds per optimiser step, and whether they were measured."""
    estimate = operations_of(recipe, make_model(recipe, "meta")) / (0.5 * _matrix_speed(device, recipe.train.dtype))
    if not fits or estimate > _LONGEST_TRIAL:
        return estimate, False
    trainer = Trainer(make_model(recipe, device), recipe.train, make_stream(recipe, prepared))
    trainer.advance()  # the first one allocates
    started = time.perf_counter()
    trainer.take()
    trainer.take()
    _wait(device)
    seconds = (time.perf_counter() - started) / 2
    trainer.close()
    return seconds, True


def operations_of(recipe: Recipe, model: LatentDecoder) -> float:
    """Floating-point operations of an optimiser step, forward and backward; a third more where blocks are recomputed."""
    assert recipe.train.context is not None, "the recipe is resolved"
    tokens = recipe.train.batch * recipe.train.accumulate * recipe.train.context
    again = 4 / 3 if recipe.train.recompute else 1
    return tokens * again * cost_of(model, dtype=torch.float32).training_flops_per_token


def _matrix_speed(device: torch.device, dtype: str) -> float:
    """Operations per second of a square matrix product."""
    size = 4096 if device.type == "cuda" else 512
    matrix = torch.ones(size, size, device=device, dtype=getattr(torch, dtype))
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        matrix @ matrix
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
