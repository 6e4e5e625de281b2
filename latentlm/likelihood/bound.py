"""The evidence lower bound of a training batch, for the logs of training.

    elbo = E_q log p(x | z) - KL(q(z|x) || p(z)),   nats; one sample, KL in closed form where there is one

Legend: B rows, T tokens, S sites, E event dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from latentlm.errors import UserError
from latentlm.interface import Batch, LatentDecoder, Loss, Noise


@dataclass(frozen=True)
class Bound:
    """Per row of a batch, nats. A row may hold several packed documents."""

    value: Tensor
    """(B,) lower bound on the log-likelihood of the row's targets: -(reconstruction + kl). Exact without latents."""
    reconstruction: Tensor
    """(B,) posterior cross-entropy, summed over targets. Not a likelihood."""
    kl: Tensor
    """(B,) summed over sites; zero without latents."""
    tokens: Tensor
    """(B,) long: targets."""


def bound_of(loss: Loss) -> Bound:
    """The bound of a forward pass that was made for training: it costs nothing more. Raises UserError where a prior is not
    normalised."""
    if unknown := [name for name, own in loss.latents.items() if not own.normalised]:
        raise UserError(f"The prior of {unknown[0]} is not normalised: its KL is known up to a constant and bounds nothing.")
    reconstruction = loss.reconstruction.detach().double().sum(-1)
    kl = torch.zeros_like(reconstruction)
    for own in loss.latents.values():
        kl = kl + own.kl.detach().double().sum(-1).masked_fill(~own.site_mask, 0.0).sum(-1)
    return Bound(-(reconstruction + kl), reconstruction, kl, loss.target_mask.sum(-1))


@torch.no_grad()
def elbo(model: LatentDecoder, batch: Batch, noise: Noise) -> Bound:
    """One-sample bound of each row; `noise` has one row per row of the batch."""
    with without_schedule(model):
        return bound_of(model.loss(batch, step=0, noise=noise))


@contextmanager
def without_schedule(model: LatentDecoder) -> Iterator[None]:
    """The loss without a penalty, so that an evaluation leaves the schedule's state alone."""
    schedules = model.kl_schedules
    for name in schedules:
        model.latents[name].kl_schedule = None
    try:
        yield
    finally:
        for name, schedule in schedules.items():
            model.latents[name].kl_schedule = schedule
