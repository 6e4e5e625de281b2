"""One optimiser step: micro-batches, accumulation, clipping, AdamW, the KL schedule.

The gradient of a step is that of one batch holding all its micro-batches: each is weighted by its share of the step's target
tokens, since `Loss.total` is nats per target token. (A hinge on the mean of a batch acts on each micro-batch; it is the only
thing that accumulation can change.) Row r of micro-batch i is sequence i B + r of the stream and draws the noise of that
number, so the same sequences make the same step however they are split.

Of several processes (parallel.py) each takes its share of the rows of every micro-batch.

A step waits for no device: `take` hands it the work, and `read` brings what several steps found in one transfer. That a step
whose loss or gradient is no number moves no weight is decided where the numbers are: the optimiser is handed `found_inf`, as by
torch's own GradScaler, and passes the step over, and each that follows.

bfloat16 means autocast around the forward pass: weights, gradients and moments stay float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import accumulate
from typing import TypeVar

import torch
from torch import Tensor

from latentlm.config import TrainConfig
from latentlm.errors import UserError, compiling
from latentlm.interface import Batch, LatentDecoder, LatentLoss, Loss, Noise, gathered, summed
from latentlm.training.compiling import compile_blocks
from latentlm.training.data.ahead import Ahead
from latentlm.training.data.packing import PackedStream
from latentlm.training.data.prompted import with_prompts
from latentlm.training.optimizer import learning_rate_at, make_optimizer, set_learning_rate
from latentlm.training.parallel import Ranks, shard
from latentlm.training.recomputing import chunk_head, recompute_blocks
from latentlm.zoo.weights import whole

T = TypeVar("T")


class DivergedError(UserError):
    """The loss or the gradient is no longer a number; that step was not taken, nor any after it."""


@dataclass
class StepFacts:
    """What one step did. Sums over target tokens are nats."""

    targets: int = 0
    cross_entropy: float = 0.0
    """Sum over targets, under a sample of the posterior where there are latents."""
    kl: float = 0.0
    """Sum over sites of the full KL, whatever the schedule charged."""
    kl_of: dict[str, float] = field(default_factory=dict)
    """The same by latent, in a decoder of several."""
    normalised: bool = True
    """False: some prior's density is known up to a constant only, and so is the KL."""
    penalty: float = 0.0
    """Nats per target token that the schedule charged, summed over targets."""
    auxiliary: float = 0.0
    """Nats per target token of the parts' own losses, summed over targets."""
    gradient_norm: float = 0.0
    """Before clipping."""
    learning_rate: float = 0.0
    schedule: dict[str, float] = field(default_factory=dict)
    """The schedule's logs, averaged over the targets."""

    @property
    def loss(self) -> float:
        """Nats, summed over targets."""
        return self.cross_entropy + self.penalty + self.auxiliary

    def plus(self, other: StepFacts) -> StepFacts:
        """With what another process found of its rows of the same step."""
        return StepFacts(
            targets=self.targets,  # of the whole step, as the two below
            gradient_norm=self.gradient_norm,
            learning_rate=self.learning_rate,
            cross_entropy=self.cross_entropy + other.cross_entropy,
            kl=self.kl + other.kl,
            kl_of=_added(self.kl_of, other.kl_of),
            normalised=self.normalised and other.normalised,
            penalty=self.penalty + other.penalty,
            auxiliary=self.auxiliary + other.auxiliary,
            schedule=_added(self.schedule, other.schedule),
        )


class Trainer:
    """A model, its optimiser and its data, and how many steps are done."""

    def __init__(
        self,
        model: LatentDecoder,
        config: TrainConfig,
        stream: PackedStream,
        ranks: Ranks | None = None,
        *,
        device: torch.device | None = None,
    ) -> None:
        """`device`: where several processes train a model that is still on the meta device."""
        self.model, self.config, self.stream, self.ranks = model, config, stream, ranks or Ranks()
        if config.recompute:
            recompute_blocks(model)
        if config.head_chunk is not None:
            chunk_head(model, config.head_chunk)
        if config.compile:
            compile_blocks(model)
        self._sharded = shard(model, config, self.ranks, device or model.device) if self.ranks.size > 1 else None
        self.optimizer = make_optimizer(model, config)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.step = 0
        """Finished optimiser steps; also the number of the next one, counted from 0."""
        self._ahead = Ahead(self._batches, end=config.steps)
        self._unread: list[_Taken] = []
        self._diverged = torch.zeros((), device=self.model.device)
        """One from the first step on whose loss or gradient was not finite, for any of the processes."""

    def advance(self) -> StepFacts:
        """`take` one optimiser step and `read` it."""
        self.take()
        return self.read()[-1]

    def take(self) -> None:
        """Take one optimiser step; `read` says what it did. Where the loss or the gradient is not finite, weights and moments
        stay as they are, in this step and in those that follow, until `read` says so."""
        try:
            self._take()
        except Exception:
            if self.ranks.size == 1:  # several would have to ask together
                self.read()  # a step before this one that diverged is the reason
            raise

    def _take(self) -> None:
        self.model.train()
        targets, batches = self._ahead.take(self.step)
        rate = learning_rate_at(self.step, self.config)
        self.optimizer.zero_grad(set_to_none=True)
        found = []
        for number, batch in enumerate(batches, start=self.step * self.config.accumulate):
            with compiling(remedy="Set train.compile=false"):
                found.append(self._accumulate(batch, number, targets))
        norm = whole(torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip))
        finite = torch.cat([*(each.values[:1] for each in found), norm[None]]).isfinite().all()
        self._diverged = (self._diverged + summed((~finite).float())).clamp(max=1.0)
        self.optimizer.found_inf = self._diverged  # type: ignore[attr-defined]
        set_learning_rate(self.optimizer, rate)
        self.optimizer.step()
        known = StepFacts(targets=targets, learning_rate=rate)
        self._unread.append(_Taken(known, tuple(found), torch.stack([self._diverged, norm]).double()))
        self.step += 1
        self.model.advance(self.step - 1)

    def read(self) -> list[StepFacts]:
        """What the steps did that were taken since the last time, in their order: the one wait for the device. Every process
        must. Raises DivergedError where one of them was passed over: `step` is that step again, and weights and moments are
        those before it; what schedules and parts keep has moved on, so go on from a checkpoint."""
        taken, self._unread = self._unread, []
        values = iter(_on_cpu([vector for each in taken for vector in each.vectors]))
        own, diverged = [], []
        for each in taken:
            *found, (flag, norm) = (next(values) for _ in each.vectors)
            own.append(each.facts(found, norm))
            diverged.append(flag)
        every = [reduce(StepFacts.plus, of_step) for of_step in zip(*gathered(own), strict=True)]
        if any(diverged):
            first = diverged.index(1.0)
            self._diverged, self.step = torch.zeros_like(self._diverged), self.step - len(every) + first
            loss, norm = every[first].loss, every[first].gradient_norm
            what = f"gradient norm is {norm}" if math.isfinite(loss) else f"loss is {loss}"
            raise DivergedError(
                f"the {what} at step {self.step + 1}: training has diverged, and this step was not taken. "
                "Start again with a lower train.learning_rate, a longer train.warmup or a smaller train.clip."
            )
        return every

    def _batches(self, step: int) -> tuple[int, list[Batch]]:
        """The targets of a step, and of each of its micro-batches the rows that this process takes."""
        first, count = step * self.config.accumulate, self.config.accumulate
        batches = [self._batch(number) for number in range(first, first + count)]
        return sum(int(batch.target_mask.sum()) for batch in batches), [self._own(batch) for batch in batches]

    def _batch(self, number: int) -> Batch:
        """Micro-batch `number` of the stream, some of its rows with a prompt where the recipe says so."""
        batch = self.stream.batch(number)
        first = number * batch.inputs.shape[0]
        return with_prompts(batch, share=self.config.prompts, seed=self.config.seed, first=first)

    def _own(self, batch: Batch) -> Batch:
        """The rows of a micro-batch that this process takes."""
        rows = self.ranks.rows(len(batch.inputs))
        return self.model.counted(batch if self.ranks.size == 1 else batch.select(torch.tensor(rows)))

    def close(self) -> None:
        """No further step will be taken."""
        self._ahead.close()

    def within(self, work: Callable[[], T]) -> T:
        """Do something with the model beside the steps: its weights may be spread over processes, and are again afterwards.
        Every process must."""
        if self._sharded is None:
            return work()
        result: T = self._sharded(work)
        self._sharded.scatter()
        return result

    def _accumulate(self, batch: Batch, number: int, of: int) -> _Found:
        """Add the gradient of micro-batch `number`, weighted by its share of the step's targets, `of`: what it found, not read
        yet."""
        targets = int(batch.target_mask.sum())
        first = number * self.stream.rows_per_batch
        rows = self.ranks.rows(self.stream.rows_per_batch)
        noise = Noise.keyed(self.config.seed, [("train", first + row) for row in rows])
        batch = batch.to(self.model.device)
        found: list[Loss] = []

        def forward() -> Tensor:
            found.append(self.model.loss(batch, step=self.step, noise=noise))
            return found[0].total.clone()  # no view: what gathers weights for the way back hangs on this tensor

        with autocast(self.model, self.config):
            descending = forward() if self._sharded is None else self._sharded(forward)
        share = targets / of * self.ranks.size  # gradients are averaged over the processes
        (descending * share).backward()
        if self._sharded is not None:
            self._sharded.scatter()
        return _Found.of(found[0], targets)


def _added(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """Key by key."""
    return {key: one.get(key, 0.0) + other.get(key, 0.0) for key in {**one, **other}}


def autocast(model: LatentDecoder, config: TrainConfig) -> torch.autocast:
    """The context in which forward passes run: bfloat16 where the recipe says so."""
    return torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=config.dtype == "bfloat16")


@dataclass(frozen=True)
class _Found:
    """What a micro-batch found, as it lies on the device: reading it would wait for all that was asked of a GPU."""

    values: Tensor
    """Total, summed cross-entropy, auxiliary losses, summed KL of each latent, each log; float64."""
    targets: int
    latents: tuple[str, ...]
    logs: tuple[str, ...]
    normalised: bool

    @classmethod
    def of(cls, loss: Loss, targets: int) -> _Found:
        """Of a micro-batch with so many targets."""
        total = loss.total.detach().double()
        auxiliary = torch.zeros_like(total) if loss.auxiliary is None else loss.auxiliary.detach().double()
        kl = [full_kl(own).sum() for own in loss.latents.values()]
        logs = [value.detach().double().mean() for value in loss.logs.values()]
        values = torch.stack([total, loss.reconstruction.detach().double().sum(), auxiliary, *kl, *logs])
        normalised = all(own.normalised for own in loss.latents.values())
        return cls(values, targets, tuple(loss.latents), tuple(loss.logs), normalised)

    def add_to(self, facts: StepFacts, values: list[float]) -> None:
        """Add it to what the step did, from `values` as they were read."""
        total, cross_entropy, auxiliary, *rest = values
        kl = dict(zip(self.latents, rest, strict=False))
        facts.normalised = self.normalised
        facts.cross_entropy += cross_entropy
        facts.kl += sum(kl.values())
        if len(kl) > 1:
            facts.kl_of = {name: facts.kl_of.get(name, 0.0) + nats for name, nats in kl.items()}
        if self.latents:
            facts.penalty += (total - auxiliary) * self.targets - cross_entropy
            facts.auxiliary += auxiliary * self.targets
        for name, value in zip(self.logs, rest[len(kl) :], strict=True):
            facts.schedule[name] = facts.schedule.get(name, 0.0) + value * self.targets / facts.targets


@dataclass(frozen=True)
class _Taken:
    """A step that was taken, not read yet."""

    known: StepFacts
    """What it did as far as it is known beforehand."""
    found: tuple[_Found, ...]
    ends: Tensor
    """Whether training has diverged (1.0, or 0.0), and the norm of the gradient; float64."""

    @property
    def vectors(self) -> list[Tensor]:
        """All that is on the device."""
        return [*(each.values for each in self.found), self.ends]

    def facts(self, found: list[list[float]], norm: float) -> StepFacts:
        """What it did, from `vectors` as they were read."""
        facts = replace(self.known, gradient_norm=norm, kl_of={}, schedule={})
        for each, own in zip(self.found, found, strict=True):
            each.add_to(facts, own)
        return facts


def _on_cpu(tensors: list[Tensor]) -> list[list[float]]:
    """Vectors as numbers, brought to the CPU in one transfer."""
    if not tensors:
        return []
    every = torch.cat(tensors).tolist()
    ends = list(accumulate(len(tensor) for tensor in tensors))
    return [every[end - len(tensor) : end] for end, tensor in zip(ends, tensors, strict=True)]


def full_kl(latent: LatentLoss) -> Tensor:
    """(B, S) nats, float64, zero where there is no site."""
    return latent.kl.detach().double().sum(-1).masked_fill(~latent.site_mask, 0.0)
