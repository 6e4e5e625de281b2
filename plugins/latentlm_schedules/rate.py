"""Minimum desired rate: the ELBO under the constraint KL >= r, with a multiplier that learns how hard to push (Pelsmaeker &
Aziz 2020, "Effective estimation of deep generative language models").

    maximise ELBO  subject to  KL >= r          L = -ELBO + u (r - KL),   u >= 0
    penalty  = (1/N) sum_bs [KL_bs + u (r - KL_bs)]                        nats per target token
    update   u <- max(0, u + rate * (r - mean_bs KL_bs))                   gradient ascent on L, once per optimiser step

with r in nats per site. The weight on the KL is 1 - u: below r the multiplier grows past 1 and the loss then *rewards* KL,
which a one-sided hinge never does; above r it falls, to 0 where the ELBO alone keeps the rate. The gradient has no jump at r.

The multiplier starts at 1.01, as in the authors' code. Their paper's unit is a sentence's KL, one site here. The step size of
the ascent is ours, and so is doing it by plain steps with a projection rather than with an optimiser of its own.

Legend: B rows, S sites, N target tokens.
"""

from __future__ import annotations

from pydantic import Field

from latentlm.config import Strict
from latentlm_schedules.controlled import Controlled, Observed
from latentlm_schedules.levels import nats


class MinimumDesiredRateConfig(Strict):
    """The rate. The paper searches it for each data set; half a bit is ours, as for `free_bits`."""

    bits: float = Field(0.5, ge=0, description="r: least KL, bits per site (mean over the sites of a step)")
    rate: float = Field(0.002, gt=0, description="step of the ascent on the multiplier, per nat of missing rate")
    start: float = Field(1.01, ge=0, description="the multiplier before the first step")


class MinimumDesiredRate(Controlled):
    """The ELBO subject to KL >= r; a multiplier, learned by ascent, pushes the KL up to r.

    Formula: KL + u (r - KL), u <- max(0, u + rate (r - mean KL))
    Source: Pelsmaeker & Aziz 2020 (multiplier from 1.01 in the code; the ascent's step size is ours)
    """

    Config = MinimumDesiredRateConfig

    def initial(self) -> dict[str, float]:
        """The multiplier u."""
        return {"multiplier": float(self.config.start)}

    @property
    def weight(self) -> float:
        """1 - u."""
        return 1.0 - self.state["multiplier"]

    @property
    def offset(self) -> float:
        """u r, nats per site."""
        return self.state["multiplier"] * nats(self.config.bits)

    def update(self, observed: Observed) -> None:
        """Projected gradient ascent."""
        missing = nats(self.config.bits) - observed.kl_per_site
        self.state["multiplier"] = max(0.0, self.state["multiplier"] + self.config.rate * missing)
