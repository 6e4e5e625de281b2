"""Decoders and a schedule with one bug each; everything else about them is right.

Legend: B rows, R latent rows, T tokens, S sites, E bits, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from conformance.broken.right import Linear, Settings
from latentlm.backbone import KVCache
from latentlm.composed.sockets import Filled
from latentlm.composed.state import ComposedState
from latentlm.config import ModelConfig, PartSpec
from latentlm.interface import (
    Batch,
    Context,
    Distribution,
    KLSchedule,
    Latent,
    Latents,
    Loss,
    Met,
    Noise,
)


class NotCausal(Linear):
    """The last position's stream reaches every position."""

    def hidden(self, context: Context, latent: Latents | None, cache: KVCache | None = None) -> Tensor:
        out = super().hidden(context, latent, cache)
        return out + 0.1 * out.mean(1, keepdim=True) if cache is None else out


class LeakingScores(Linear):
    """Weighs nothing: its prior is the posterior, so that scores are read off under latents which saw their targets."""

    def prior(
        self, context: Context, name: str | None = None, latents: Latent | Latents | None = None
    ) -> Distribution:
        q = self.posterior(context)
        rows = context.rows if not latents else latents.value.shape[0]  # type: ignore[union-attr]
        return q.select(torch.arange(context.rows).repeat_interleave(rows // context.rows))


class TrunkReadsZ(Linear):
    """With a cache, the last latent reaches the trunk of the next token."""

    def context(self, batch: Batch, cache: KVCache | None = None) -> Context:
        context = super().context(batch, cache)
        seen = getattr(cache, "seen", None)
        if seen is None:
            return context
        return replace(context, taps={k: tap + 0.5 * seen for k, tap in context.taps.items()})

    def hidden(self, context: Context, latent: Latents | None, cache: KVCache | None = None) -> Tensor:
        if cache is not None and latent:
            cache.seen = latent.value[:, -1:].mean(-1, keepdim=True)  # type: ignore[attr-defined]
        return super().hidden(context, latent, cache)


class StaleCache(Linear):
    """Steps at the position before: rotary positions are off by one after the prompt."""

    def context(self, batch: Batch, cache: KVCache | None = None) -> Context:
        if cache is not None and cache.length > 0:
            batch = replace(batch, positions=batch.positions - 1)
        return super().context(batch, cache)


class ForksShare(Linear):
    """Selected rows keep the latents of the first."""

    def select(self, state: Any, rows: Tensor) -> ComposedState:
        chosen = super().select(state, rows)
        met = {name: Met(own.value[:1].expand_as(own.value).clone(), own.counts) for name, own in chosen.met.items()}
        return replace(chosen, met=met)


class ResamplesInPlace(Linear):
    """Writes over rows that others are still to become."""

    def resample(self, state: Any, rows: Tensor) -> ComposedState:
        for buffer in (*state.cache._keys, *state.cache._values):
            for row, parent in enumerate(rows.tolist()) if buffer is not None else ():
                buffer[row] = buffer[parent if parent <= row else row]
        return replace(super().select(state, rows), cache=state.cache)


class LosesState(Linear):
    """Computes with a tensor that is not saved with it."""

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        super().init_weights(generator)
        self.scale = 1.0 + float(torch.rand((), generator=generator))

    def logits(self, hidden: Tensor) -> Tensor:
        return super().logits(hidden) * getattr(self, "scale", 1.0)


class Dropout(Linear):
    """Draws from torch's global state in training."""

    def hidden(self, context: Context, latent: Latents | None, cache: KVCache | None = None) -> Tensor:
        return nn.functional.dropout(super().hidden(context, latent, cache), 0.1, training=self.training)


class CompletesTwice(Linear):
    """Halves the weight of its schedule whenever it is completed."""

    @classmethod
    def complete(cls, config: ModelConfig) -> ModelConfig:
        filled = super().complete(config)
        assert filled.kl_schedule is not None
        weight = 0.5 * filled.kl_schedule.settings.get("weight", 1.0)
        return filled.model_copy(update={"kl_schedule": PartSpec.model_validate({"name": "constant", "weight": weight})})


class WrongRows(Linear):
    """Takes latent row k*B + b for sample k of context row b."""

    def hidden(self, context: Context, latent: Latents | None, cache: KVCache | None = None) -> Tensor:
        if latent is not None and latent.value.shape[0] > context.rows:
            times = latent.value.shape[0] // context.rows
            context = context.select(torch.arange(context.rows).repeat(times))
        return super().hidden(context, latent, cache)


class Spare(Linear):
    """A layer that nothing reads."""

    def __init__(self, config: ModelConfig, latents: Sequence[Filled] = ()) -> None:
        super().__init__(config, latents)
        self.spare = nn.Linear(4, 4)


class Ascends(Linear):
    """Trains uphill."""

    def loss(self, batch: Batch, *, step: int, noise: Noise) -> Loss:
        loss = super().loss(batch, step=step, noise=noise)
        return replace(loss, total=-2.0 * loss.total)


class Encoderless(Linear):
    """Bits from the prior alone: right, and without an encoder."""

    @classmethod
    def complete(cls, config: ModelConfig) -> ModelConfig:
        """All but the encoder."""
        return super().complete(config).model_copy(update={"encoder": None})


class ForgetsState(KLSchedule):
    """Its weight grows with every step, and it does not say so when it is saved."""

    Config = Settings

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.weight = 0.0

    def penalty(
        self, kl: Tensor, reconstruction: Tensor, site_mask: Tensor, target_mask: Tensor, *, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self.weight * kl.sum(-1)[site_mask].sum() / target_mask.sum(), {}

    def advance(self, step: int) -> None:
        self.weight += 0.1


