"""Schedules that weight the whole KL: penalty = weight(step) * (1/N) sum_bse KL_bse, in nats per target token.

    constant   weight                                          the ELBO at 1 (Kingma & Welling 2014; Higgins et al. 2017)
    linear     end * min(1, step / steps)                      KL warm-up (Bowman et al. 2016; Sonderby et al. 2016)
    sigmoid    end / (1 + exp(-rate (step - midpoint)))        logistic annealing (Bowman et al. 2016)
    cyclical   end * ramp(min(1, phase / ratio)), phase = (step mod P) / P, P = steps / cycles
               cyclical annealing (Fu et al. 2019: 4 cycles, ratio 1/2); the ramp of v in [0, 1] is
                   linear   v
                   sigmoid  1 / (1 + exp(-(12 v - 6)))         from 0.0025 to 0.9975; the weight is 1 once v is
                   cosine   (1 - cos(pi v)) / 2

N is the number of target tokens; the sum runs over real sites. `step` counts optimiser steps from 0. A weight is a function of
the step alone, so there is no state to resume. The three ramps are those of the authors' code (cyclical_annealing). Bowman et
al. draw their logistic curve without giving its numbers; rate 0.0025 and midpoint 2500 are those of the widely used
reimplementation (Sentence-VAE), our reading.

Legend: B rows, S sites, E event dimensions, T tokens.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Literal

from pydantic import Field
from torch import Tensor

from latentlm.config import Strict
from latentlm.interface import KLSchedule
from latentlm_schedules.levels import as_log, real_kl, target_count


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
        total = real_kl(kl, site_mask).sum()
        return weight * total / target_count(target_mask), {"kl_weight": as_log(weight, total)}


class ConstantConfig(Strict):
    """The weight."""

    weight: float = Field(1.0, ge=0, description="1 is the ELBO; less is beta-VAE's relaxation")


class ConstantWeight(_Weighted):
    """The same weight throughout; 1 makes the loss the negative ELBO.

    Formula: weight * KL
    Source: Kingma & Welling 2014 (weight 1); Higgins et al. 2017 (beta-VAE)
    """

    Config = ConstantConfig

    def weight(self, step: int) -> float:
        """`weight`."""
        return float(self.config.weight)


class LinearConfig(Strict):
    """Where the weight ends, and when."""

    steps: int = Field(1000, ge=1, description="optimiser steps until the weight is reached")
    end: float = Field(1.0, ge=0, description="the weight from then on")


class LinearWarmup(_Weighted):
    """From 0 at step 0 to `end` at step `steps`, then constant.

    Formula: end * min(1, step / steps) * KL
    Source: Bowman et al. 2016; Sonderby et al. 2016
    """

    Config = LinearConfig

    def weight(self, step: int) -> float:
        """end * min(1, step / steps)."""
        return float(self.config.end) * min(1.0, step / self.config.steps)


class SigmoidConfig(Strict):
    """The logistic curve."""

    midpoint: float = Field(2500, description="optimiser step at which half the weight is reached")
    rate: float = Field(0.0025, gt=0, description="steepness per optimiser step: from 12% to 88% of `end` in 4 / rate steps")
    end: float = Field(1.0, ge=0, description="the weight that it tends to")


class SigmoidAnnealing(_Weighted):
    """The weight follows a logistic curve in the step.

    Formula: end / (1 + exp(-rate (step - midpoint))) * KL
    Source: Bowman et al. 2016 (the curve); rate and midpoint: the Sentence-VAE reimplementation, our reading
    """

    Config = SigmoidConfig

    def weight(self, step: int) -> float:
        """end / (1 + exp(-rate (step - midpoint)))."""
        return float(self.config.end) * logistic(self.config.rate * (step - self.config.midpoint))


class CyclicalConfig(Strict):
    """The defaults of Fu et al. 2019: four cycles, rising over the first half of each."""

    steps: int = Field(1000, ge=1, description="optimiser steps of all cycles together; the weight stays at its end afterwards")
    cycles: int = Field(4, ge=1, description="M")
    ratio: float = Field(0.5, gt=0, le=1, description="R: share of a cycle over which the weight rises")
    end: float = Field(1.0, ge=0, description="the weight at the top of a cycle")
    ramp: Literal["linear", "sigmoid", "cosine"] = Field("linear", description="how it rises")


class CyclicalWeight(_Weighted):
    """Rises from 0 to `end` at the start of every cycle and stays there for the rest of it.

    Formula: end * ramp(min(1, phase / ratio)) * KL, phase = (step mod P) / P, P = steps / cycles
    Source: Fu et al. 2019 (M = 4 cycles, ratio R = 0.5, linear ramp)
    """

    Config = CyclicalConfig

    def weight(self, step: int) -> float:
        """end * ramp(min(1, phase / ratio))."""
        if step >= self.config.steps:
            return float(self.config.end)
        share = min(1.0, cycle_phase(step, steps=self.config.steps, cycles=self.config.cycles) / self.config.ratio)
        return float(self.config.end) * self._ramp(share)

    def _ramp(self, share: float) -> float:
        """[0, 1] -> [0, 1]."""
        if share >= 1.0 or self.config.ramp == "linear":
            return share
        return logistic(12 * share - 6) if self.config.ramp == "sigmoid" else 0.5 - 0.5 * math.cos(math.pi * share)


def cycle_phase(step: int, *, steps: int, cycles: int) -> float:
    """Place of a step within its cycle, in [0, 1)."""
    return step * cycles % steps / steps  # in integers: cycles start where they should


def logistic(x: float) -> float:
    """1 / (1 + exp(-x)) without overflow."""
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))
