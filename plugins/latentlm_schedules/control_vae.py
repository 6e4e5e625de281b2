"""ControlVAE: a non-linear PI controller keeps the KL at a set point by moving its weight (Shao et al. 2020, "ControlVAE:
Controllable variational autoencoder").

    e(t)    = v - KL(t)                                          error, nats per site
    P(t)    = K_p / (1 + exp(e(t)))                              in (0, K_p): large where the KL is too high
    I(t)    = I(t-1) - K_i e(t)                                  I(0) = 0
    beta(t) = P(t) + I(t) + beta_min, kept within [beta_min, beta_max]
    penalty = beta * (1/N) sum_bs KL_bs                          nats per target token

A PID controller without its D term, as in the authors' code. KL(t) is the mean KL of a
site over the whole step; the weight that it leads to holds in the next one. Defaults K_p = 0.01, K_i = 0.0001, beta in [0, 1],
starting at beta_min, as in the authors' language modelling. The set point has no published default. The gains are meant for set
points of several nats and tens of thousands of steps: at half a bit, from 0 to 1 takes at least 30,000 steps; raise K_i for
shorter runs.

Anti-windup, our reading: an integral that would take beta over a bound is cut to what takes it there, so that the weight turns
as soon as the error does. (The authors' code means to hold the integral there too, but tests for a number that is below 0 and
above 1 at once.)

The weight never becomes negative: the controller can stop charging for KL, but cannot reward it.

Legend: B rows, S sites, N target tokens.
"""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from latentlm.config import Strict
from latentlm_schedules.controlled import Controlled, Observed
from latentlm_schedules.levels import nats
from latentlm_schedules.weights import logistic


class ControlVAEConfig(Strict):
    """Shao et al. 2020, language modelling."""

    bits: float = Field(0.5, ge=0, description="v: set point of the KL, bits per site (mean over the sites of a step)")
    proportional: float = Field(0.01, ge=0, description="K_p")
    integral: float = Field(0.0001, ge=0, description="K_i, per nat of error and step")
    smallest: float = Field(0.0, ge=0, description="beta_min")
    largest: float = Field(1.0, ge=0, description="beta_max")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.smallest > self.largest:
            raise ValueError(f"smallest ({self.smallest}) is above largest ({self.largest}).")
        return self


class ControlVAE(Controlled):
    """A PI controller moves the KL's weight so that the KL stays at a set point.

    Formula: beta * KL, beta = K_p / (1 + exp(e)) - K_i sum e + beta_min within [beta_min, beta_max], e = v - mean KL
    Source: Shao et al. 2020 (K_p 0.01, K_i 0.0001, beta in [0, 1] for language)
    """

    Config = ControlVAEConfig

    def initial(self) -> dict[str, float]:
        """beta and the integral I."""
        return {"beta": float(self.config.smallest), "integral": 0.0}

    @property
    def weight(self) -> float:
        """beta."""
        return self.state["beta"]

    def update(self, observed: Observed) -> None:
        """One step of the controller."""
        low, high = float(self.config.smallest), float(self.config.largest)
        error = nats(self.config.bits) - observed.kl_per_site
        fixed = self.config.proportional * logistic(-error) + low
        wanted = fixed + self.state["integral"] - self.config.integral * error
        beta = min(high, max(low, wanted))
        self.state = {"beta": beta, "integral": beta - fixed}
