"""Optimus's schedule: an autoencoder, then a rising weight, then the weight held, with a threshold on every dimension's KL
(Li et al. 2020, "Optimus: Organizing sentences via pre-trained modeling of a latent space", and its code).

    weight  =  0                                    first `zero` of a cycle: a plain autoencoder, nothing is charged
               end * (phase - zero) / rising        next `rising`
               end                                  the rest
    penalty =  weight * (1/N) sum_bse f(KL_bse),    f = 1[KL > lambda] KL while the weight is above 0

The paper writes the threshold as max(lambda, KL_i) per dimension; the authors' code masks, 1[KL_i > lambda] KL_i, at
non-zero weight only (its `fb_mode`). The gradients are the same (free_bits.py); we do as the code does. Defaults are those of
the authors' fine-tuning commands: one cycle, half of it at zero, a quarter rising, end 1, lambda = 0.5 nats per dimension
(0.7213 bits). A threshold at a coarser level than the dimension is not theirs.

One thing of their code is left out: with `length_weighted_loss` it adds the KL of a sentence, undivided, to the cross-entropy
per token, which weights the KL by the sentence's length; here both are per target token, as everywhere in this project.

The phase is counted as in `cyclical`. `step` counts optimiser steps from 0; there is no state.

Legend: B rows, S sites, E event dimensions, N target tokens.
"""

from __future__ import annotations

import math
from typing import Self

from pydantic import Field, model_validator
from torch import Tensor

from latentlm.config import Strict
from latentlm.interface import KLSchedule
from latentlm_schedules.free_bits import thresholded
from latentlm_schedules.levels import as_log, nats, pool, target_count
from latentlm_schedules.weights import cycle_phase


class OptimusConfig(Strict):
    """The authors' fine-tuning settings; `steps` is the length of the run."""

    steps: int = Field(1000, ge=1, description="optimiser steps of all cycles together; the weight stays at its end afterwards")
    cycles: int = Field(1, ge=1)
    zero: float = Field(0.5, ge=0, lt=1, description="share of a cycle at weight 0, without the threshold")
    rising: float = Field(0.25, ge=0, le=1, description="share of a cycle over which the weight rises")
    end: float = Field(1.0, ge=0, description="beta: the weight for the rest of a cycle")
    bits: float = Field(0.5 / math.log(2), ge=0, description="lambda: free bits per dimension while the weight is above 0")

    @model_validator(mode="after")
    def _shares_of_a_cycle(self) -> Self:
        if self.zero + self.rising > 1:
            raise ValueError(f"zero ({self.zero}) and rising ({self.rising}) are shares of one cycle: together at most 1.")
        return self


class Optimus(KLSchedule):
    """Weight zero, then rising, then held; free bits per dimension while it is above zero.

    Formula: weight(step) * (1/N) sum_bse 1[KL_bse > lambda] KL_bse
    Source: Li et al. 2020 and its code (one cycle: 1/2 at zero, 1/4 rising, 1/4 at 1; lambda 0.5 nats per dimension)
    """

    Config = OptimusConfig

    def penalty(
        self, kl: Tensor, reconstruction: Tensor, site_mask: Tensor, target_mask: Tensor, *, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """In nats per target token; logs `kl_weight` and `free_bits_nats` (lambda)."""
        weight, threshold = self.weight(step), nats(self.config.bits)
        charged = thresholded(pool(kl, site_mask, level="dimension", kappa=threshold), "mask").sum()
        logs = {"kl_weight": as_log(weight, charged), "free_bits_nats": as_log(threshold, charged)}
        return weight * charged / target_count(target_mask), logs

    def weight(self, step: int) -> float:
        """beta at an optimiser step, counted from 0."""
        end = float(self.config.end)
        if step >= self.config.steps:
            return end
        above = cycle_phase(step, steps=self.config.steps, cycles=self.config.cycles) - self.config.zero
        if above < 0:
            return 0.0
        return end if above >= self.config.rising else end * above / self.config.rising
