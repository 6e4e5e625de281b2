"""Schedules that weight the whole KL: penalty = weight(step) * (1/N) sum_bse KL_bse, in nats per target token.

    constant   weight                                               the ELBO at 1 (Kingma & Welling 2014; Higgins et al. 2017)
    linear     end * min(1, step / steps)                           KL warm-up (Bowman et al. 2016; Sonderby et al. 2016)
    cyclical   end * min(1, phase / ratio), phase = (step mod P) / P, P = steps / cycles
                                                                    cyclical annealing (Fu et al. 2019: 4 cycles, ratio 1/2)

N is the number of target tokens; the sum runs over real sites. `step` counts optimiser steps from 0. A weight is a function of
the step alone, so there is no state to resume.

Legend: B rows, S sites, E event dimensions, T tokens.
"""

from __future__ import annotations

from abc import abstractmethod

from pydantic import Field
from torch import Tensor

from latentlm.config import Strict
from latentlm.interface import KLSchedule


class _Weighted(KLSchedule):
    """weight(step) * KL."""

    @abstractmethod
    def weight(self, step: int) -> float:
        """Weight of the KL at an optimiser step, counted from 0."""

    def penalty(
        self, kl: Tensor, reconstruction: Tensor, site_mask: Tensor, target_mask: Tensor, *, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """weight * KL in nats per target token; logs `kl_weight`."""
        weight = self.weight(step)
        total = kl.masked_fill(~site_mask[..., None], 0.0).sum()  # a padded site's KL may be anything
        return weight * total / target_mask.sum().clamp(min=1), {"kl_weight": total.detach().new_tensor(weight)}


class ConstantConfig(Strict):
    """The weight."""

    weight: float = Field(1.0, ge=0, description="1 is the ELBO; less is beta-VAE's relaxation")


class ConstantWeight(_Weighted):
    """The same weight throughout; 1 makes the loss the negative ELBO."""

    Config = ConstantConfig

    def weight(self, step: int) -> float:
        """`weight`."""
        return float(self.config.weight)


class LinearConfig(Strict):
    """Where the weight ends, and when."""

    steps: int = Field(1000, ge=1, description="optimiser steps until the weight is reached")
    end: float = Field(1.0, ge=0, description="the weight from then on")


class LinearWarmup(_Weighted):
    """From 0 at step 0 to `end` at step `steps`, then constant."""

    Config = LinearConfig

    def weight(self, step: int) -> float:
        """end * min(1, step / steps)."""
        return float(self.config.end) * min(1.0, step / self.config.steps)


class CyclicalConfig(Strict):
    """The defaults of Fu et al. 2019: four cycles, rising over the first half of each."""

    steps: int = Field(1000, ge=1, description="optimiser steps of all cycles together; the weight stays at its end afterwards")
    cycles: int = Field(4, ge=1)
    ratio: float = Field(0.5, gt=0, le=1, description="share of a cycle over which the weight rises")
    end: float = Field(1.0, ge=0, description="the weight at the top of a cycle")


class CyclicalWeight(_Weighted):
    """Rises from 0 to `end` at the start of every cycle and stays there for the rest of it."""

    Config = CyclicalConfig

    def weight(self, step: int) -> float:
        """end * min(1, phase / ratio)."""
        if step >= self.config.steps:
            return float(self.config.end)
        phase = step * self.config.cycles % self.config.steps / self.config.steps  # in integers: cycles start where they should
        return float(self.config.end) * min(1.0, phase / self.config.ratio)
