"""Free bits: KL up to a budget kappa costs nothing (Kingma et al. 2016, "Improved variational inference with inverse
autoregressive flow"; Fleuret 2025, section 3.4).

With KL_u of a unit u, its budget kappa_u (levels.py: what a unit is) and N target tokens in the batch, the penalty in nats per
target token is (1/N) sum_u f(KL_u), where f is, by form,

    hinge      max(0, KL_u - kappa_u)         the Free Transformer's, at level `site` (one site per token)
    maximum    max(kappa_u, KL_u)             Kingma's, whose unit is a group of dimensions averaged over the minibatch
    mask       1[KL_u > kappa_u] KL_u         as in the code of Optimus (Li et al. 2020), at level `dimension`

All three have the same gradient, 1[KL_u > kappa_u] dKL_u: the hinge differs from the maximum by the constant kappa_u, from the
mask by kappa_u 1[KL_u > kappa_u], which is constant wherever it has a derivative. So they train alike, bit for bit, and only
the loss that is logged differs. Below its budget a unit gets no gradient from any of them: whether a collapsed latent comes
back is up to the cross-entropy (docs/schedules.md has it measured).

A budget may begin larger and be lowered: `start_bits` for `hold` steps, then down to `bits` over `fall` steps, by the same
factor in each (ours; a budget that is ample at first lets a latent come alive before it has to be thrifty).

The form acts before any further sum or mean: averaging first would let one site's deficit pay for another's surplus, which is
what the coarser levels do on purpose.

Legend: B rows, S sites, E event dimensions, T tokens.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from latentlm.config import Strict
from latentlm.interface import KLSchedule
from latentlm_schedules.levels import Level, Pooled, as_log, nats, pool, target_count

Form = Literal["hinge", "maximum", "mask"]


class FreeBitsConfig(Strict):
    """The budget, the level at which it is granted, and the form."""

    bits: float = Field(0.5, ge=0, description="kappa: free bits per site (per dimension at level `dimension`)")
    level: Level = Field("site", description="what a budget is granted to")
    form: Form = Field("hinge", description="hinge, maximum or mask; their gradients are equal, their values are not")
    start_bits: float | None = Field(None, gt=0, description="kappa of the first `hold` steps; default: `bits`, throughout")
    hold: int = Field(0, ge=0, description="optimiser steps at `start_bits`")
    fall: int = Field(0, ge=0, description="optimiser steps over which kappa then falls (or rises) to `bits`")

    @model_validator(mode="after")
    def _annealed_or_not(self) -> Self:
        """Settings that would do nothing are a mistake."""
        if self.start_bits is None and (self.hold or self.fall):
            raise ValueError("hold and fall belong to a kappa that changes: set start_bits, or drop them.")
        if self.start_bits is not None and not (self.hold or self.fall):
            raise ValueError("start_bits would last for no step: set hold, fall or both.")
        if self.start_bits is not None and self.bits == 0:
            raise ValueError("a kappa that changes by the same factor in each step cannot reach 0: set bits above 0.")
        return self


class FreeBits(KLSchedule):
    """KL below a budget is free: no gradient there, the full one above.

    Formula: (1/N) sum max(0, KL - kappa), or max(kappa, KL), or 1[KL > kappa] KL
    Source: Kingma et al. 2016 (maximum); Fleuret 2025 (hinge, half a bit per token); Li et al. 2020, code (mask)
    """

    Config = FreeBitsConfig

    def bits(self, step: int) -> float:
        """kappa at an optimiser step, counted from 0."""
        end, start = self.config.bits, self.config.start_bits
        if start is None or step >= self.config.hold + self.config.fall:
            return float(end)
        fallen = max(0, step - self.config.hold) / max(1, self.config.fall)
        return float(start * (end / start) ** fallen)

    def penalty(
        self, kl: Tensor, reconstruction: Tensor, site_mask: Tensor, target_mask: Tensor, *, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """In nats per target token.

        Logs `free_bits_nats` (kappa), `within_budget` (share of the dimensions, sites, rows or batches whose KL is free) and
        `free_nats` (KL that cost nothing under the hinge, nats per target token)."""
        kappa = nats(self.bits(step))
        units = pool(kl, site_mask, level=self.config.level, kappa=kappa)
        tokens = target_count(target_mask)
        penalty = thresholded(units, self.config.form).sum() / tokens
        with torch.no_grad():
            within = (~units.above & units.real).sum() / units.real.sum().clamp(min=1)
            free = torch.where(units.above, units.budget, units.kl).sum() / tokens
        return penalty, {"free_bits_nats": as_log(kappa, free), "within_budget": within, "free_nats": free}


def thresholded(units: Pooled, form: Form) -> Tensor:
    """What each unit costs, nats; zero where nothing is real (its KL and budget are zero)."""
    if form == "hinge":
        return torch.where(units.above, units.kl - units.budget, 0.0)
    return torch.where(units.above, units.kl, units.budget if form == "maximum" else 0.0)
