"""Controlled capacity: the KL is pulled to a level that rises with the step (Burgess et al. 2018, "Understanding disentangling
in beta-VAE", equation 8).

    penalty = gamma * (1/N) sum_u |KL_u - C_u(step)|,    C(step) = C_end * min(1, step / steps)

in nats per target token. A unit u is that of levels.py and C_u is C times its real sites, so C is bits per site (per dimension
at level `dimension`). The paper writes the absolute value for one datum's KL; implementations (disentanglement_lib's
AnnealedVAE) take it of the minibatch's mean, which is level `batch`, our default, and lets sites differ in how much they say.
`site` is the equation to the letter. At level `batch` the absolute value acts on each micro-batch (levels.py).

Two-sided: below C the gradient on the KL is -gamma / N, so a collapsed latent is pushed up, whether or not what it then says is
of use to the decoder. Defaults are the paper's for dSprites: gamma 1000, C from 0 to 25 nats (36.07 bits) in 100,000
iterations. They are meant for one vector of ten Gaussians per image; E bits hold at most E bits, so set `bits` below that.

`step` counts optimiser steps from 0; there is no state.

Legend: B rows, S sites, E event dimensions, N target tokens.
"""

from __future__ import annotations

import math

from pydantic import Field
from torch import Tensor

from latentlm.config import Strict
from latentlm.interface import KLSchedule
from latentlm_schedules.levels import Level, as_log, nats, pool, target_count


class CapacityConfig(Strict):
    """Burgess et al. 2018, dSprites."""

    bits: float = Field(25 / math.log(2), ge=0, description="C at the end, bits per site (per dimension at level `dimension`)")
    steps: int = Field(100_000, ge=1, description="optimiser steps over which C rises from 0")
    gamma: float = Field(1000.0, ge=0, description="weight of the distance")
    level: Level = Field("batch", description="what the distance is taken of")


class Capacity(KLSchedule):
    """The KL is held at a capacity that rises linearly; two-sided.

    Formula: gamma * (1/N) sum |KL - C(step)|, C(step) = C_end * min(1, step / steps)
    Source: Burgess et al. 2018 (gamma 1000, 0 to 25 nats in 100,000 steps)
    """

    Config = CapacityConfig

    def penalty(
        self, kl: Tensor, reconstruction: Tensor, site_mask: Tensor, target_mask: Tensor, *, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """In nats per target token; logs `capacity_nats` (C) and `within_capacity` (share of the units whose KL is below)."""
        capacity = nats(self.config.bits) * min(1.0, step / self.config.steps)
        units = pool(kl, site_mask, level=self.config.level, kappa=capacity)
        distance = units.surplus.sign() * (units.kl - units.budget)  # of the whole unit, so its sign decides
        penalty = self.config.gamma * distance.sum() / target_count(target_mask)
        below = ((units.surplus < 0) & units.real).sum() / units.real.sum().clamp(min=1)
        return penalty, {"capacity_nats": as_log(capacity, units.budget), "within_capacity": below}
