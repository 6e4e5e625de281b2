"""Encoders with a moving average of what they read, one of them right.

Legend: B rows, T tokens, S sites, E bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from conformance.broken.right import Settings, WindowBits
from latentlm.interface import Context, Distribution, Objective, Shape


class Averaging(WindowBits):
    """Subtracts from its stream the mean that it had over the steps so far: right."""

    mean: Tensor
    total: Tensor
    count: Tensor

    def __init__(self, config: Settings, shape: Shape) -> None:
        super().__init__(config, shape)
        self.register_buffer("mean", torch.zeros(shape.width))
        self.register_buffer("total", torch.zeros(shape.width), persistent=False)
        self.register_buffer("count", torch.zeros(1), persistent=False)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        for buffer in (self.mean, self.total, self.count):
            buffer.zero_()

    def forward(self, context: Context, objective: Objective | None = None) -> Distribution:
        q = super().forward(context, objective)
        if self.training and torch.is_grad_enabled():
            with torch.no_grad():
                self.gather(context.taps[self.taps[0]][context.documents >= 0])
        return self.distribution(q.logits - self.mean.mean())  # type: ignore[attr-defined]

    def gather(self, stream: Tensor) -> None:
        """What stands in a micro-batch, (N, D)."""
        self.total += stream.sum(0)
        self.count += len(stream)

    @torch.no_grad()
    def advance(self, step: int) -> None:
        self.mean.lerp_(self.total / self.count.clamp(min=1), 0.5)
        self.empty()

    def empty(self) -> None:
        """Begin anew."""
        self.total.zero_()
        self.count.zero_()


class MovesInLoss(Averaging):
    """Moves its average in the forward pass."""

    def gather(self, stream: Tensor) -> None:
        self.mean.lerp_(stream.mean(0), 0.5)

    def advance(self, step: int) -> None:
        pass


class NeverEmpties(Averaging):
    """Keeps what it gathered."""

    def empty(self) -> None:
        pass


class LastBatchAlone(Averaging):
    """Forgets the micro-batches before the last."""

    def gather(self, stream: Tensor) -> None:
        self.empty()
        super().gather(stream)
