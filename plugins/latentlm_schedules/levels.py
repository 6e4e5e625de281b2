"""Pooling of the KL into units that each have a budget: what `free_bits` and `capacity` compare a budget with.

With KL_bse of row b, site s and dimension e, and S_b real sites in row b:

    level        a unit's KL                  its budget        one latent per document (the publications' case)
    dimension    KL_bse                       kappa             a dimension of a document's latent
    site         KL_bs = sum_e KL_bse         kappa             a document
    sequence     sum_s KL_bs                  kappa S_b         a row, which may hold several documents
    batch        sum_bs KL_bs                 kappa sum_b S_b   the mean over the micro-batch, on all processes that share it

so that a budget always means bits per site (per dimension at the first level). A non-linear penalty on the coarsest level acts
on each micro-batch by itself, so it is the one thing that accumulation can change; at the other levels a step is the same
however it is split.

Legend: B rows, S sites, E event dimensions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from latentlm.interface import summed

Level = Literal["dimension", "site", "sequence", "batch"]


@dataclass(frozen=True)
class Pooled:
    """The units of a level: all three of one shape, (B, S, E), (B, S), (B,) or (1,) by level."""

    kl: Tensor
    """Nats, with gradient; zero where nothing is real."""
    budget: Tensor
    """Nats; zero where nothing is real."""
    surplus: Tensor
    """Nats above the budget, of the whole unit: its rows may lie with several processes, each of which has `kl` and `budget` of
    its own ones. No gradient."""
    real: Tensor
    """Bool: the unit has a real site."""

    @property
    def above(self) -> Tensor:
        """Bool: the unit's KL exceeds its budget."""
        return self.surplus > 0


def real_kl(kl: Tensor, site_mask: Tensor) -> Tensor:
    """kl (B, S, E) or (B, S, 1) nats with zeros at sites that are padding, whose KL may be anything, also NaN."""
    return kl.masked_fill(~site_mask[..., None], 0.0)


def pool(kl: Tensor, site_mask: Tensor, *, level: Level, kappa: float) -> Pooled:
    """Units of `kl` (B, S, E) or (B, S, 1) nats, with a budget of `kappa` nats per real site (per dimension at that level)."""
    kl = real_kl(kl, site_mask)
    budgets = kappa * site_mask.to(kl.dtype)  # (B, S)
    if level == "dimension":
        return _within_rows(kl, budgets[..., None].expand_as(kl), site_mask[..., None].expand_as(kl))
    per_site = kl.sum(-1)
    if level == "site":
        return _within_rows(per_site, budgets, site_mask)
    if level == "sequence":
        return _within_rows(per_site.sum(-1), budgets.sum(-1), site_mask.any(-1))
    own, budget = per_site.sum()[None], budgets.sum()[None]
    return Pooled(own, budget, summed(own - budget), site_mask.any()[None])


def _within_rows(kl: Tensor, budget: Tensor, real: Tensor) -> Pooled:
    """Units that no row shares with another."""
    return Pooled(kl, budget, (kl - budget).detach(), real)


def nats(bits: float) -> float:
    """Bits in nats."""
    return bits * math.log(2)


def target_count(target_mask: Tensor) -> Tensor:
    """N, the number of target tokens, at least one."""
    return target_mask.sum().clamp(min=1)


def as_log(value: float, like: Tensor) -> Tensor:
    """A number as the schedules log it: a scalar without a graph, on the device of `like`."""
    return torch.tensor(value, dtype=like.dtype, device=like.device)
