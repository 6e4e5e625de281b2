"""GECO: the least KL that still reconstructs well enough (Rezende & Viola 2018, "Taming VAEs", algorithm 1).

    minimise KL  subject to  C <= 0,   C = cross-entropy - kappa             nats per target token
    L        = KL + lambda C
    average  C_ma <- alpha C_ma + (1 - alpha) C(step)                        C_ma = C at the first step
    update   lambda <- lambda * exp(rate * C_ma)                             once per optimiser step

The loss of this project is the cross-entropy plus a penalty, so it is the paper's L divided by lambda, up to a constant:

    penalty  = (1 / lambda) (1/N) sum_bs KL_bs                               nats per target token

The two have the same minima; dividing keeps the scale of the gradient, which `train.clip` and the learning rate are made for,
where lambda is large. The paper's constraint is a reconstruction error; here it is the cross-entropy. Its surrogate (the
batch's C with the moving average's value) gives the model the gradient of the batch's own cross-entropy, and lambda the moving
average, which is what is written here.

The target kappa is a cross-entropy under the posterior's latents, in *bits per target token*. It depends on data and tokenizer:
set it a little below what the model without latents reaches. While the cross-entropy is above it the KL gets ever cheaper; once
it is below, dearer. The smoothing 0.99, the step size 0.01 and the bounds on lambda are ours.

Legend: B rows, S sites, N target tokens.
"""

from __future__ import annotations

import math

from pydantic import Field

from latentlm.config import Strict
from latentlm_schedules.controlled import Controlled, Observed
from latentlm_schedules.levels import nats

_LARGEST = 1e6  # lambda stays within [1 / this, this]: an average that never changes sign must not overflow


class GECOConfig(Strict):
    """The target and how fast the multiplier follows it."""

    cross_entropy_bits: float = Field(
        1.0, ge=0, description="kappa: cross-entropy to reach under the posterior, bits per target token; yours to set"
    )
    smoothing: float = Field(0.99, ge=0, lt=1, description="alpha of the constraint's moving average")
    rate: float = Field(0.01, gt=0, description="step of log lambda, per nat that the average is off")


class GECO(Controlled):
    """The least KL whose cross-entropy is below a target; a multiplier follows the constraint's moving average.

    Formula: KL / lambda, lambda <- lambda exp(rate C_ma), C_ma the moving average of cross-entropy - kappa
    Source: Rezende & Viola 2018 (the paper's loss divided by lambda; alpha 0.99 and the rate are ours)
    """

    steers_reconstruction = True
    Config = GECOConfig

    def initial(self) -> dict[str, float]:
        """lambda, the moving average in nats per target token, and how many steps it has seen."""
        return {"lambda": 1.0, "constraint": 0.0, "updates": 0.0}

    @property
    def weight(self) -> float:
        """1 / lambda."""
        return 1.0 / self.state["lambda"]

    def update(self, observed: Observed) -> None:
        """The average first, then the multiplier."""
        constraint = observed.cross_entropy_per_target - nats(self.config.cross_entropy_bits)
        if self.state["updates"]:
            kept = self.config.smoothing
            constraint = kept * self.state["constraint"] + (1 - kept) * constraint
        limit = math.log(_LARGEST)
        moved = math.log(self.state["lambda"]) + self.config.rate * constraint
        self.state = {
            "lambda": math.exp(min(limit, max(-limit, moved))),
            "constraint": constraint,
            "updates": self.state["updates"] + 1,
        }
