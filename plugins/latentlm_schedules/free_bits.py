"""Free bits: KL up to a budget kappa costs nothing (Kingma et al. 2016, "free bits"; Fleuret 2025, section 3.4).

With KL_bse of row b, site s and dimension e, KL_bs = sum_e KL_bse, S_b real sites in row b and N target tokens in the batch,
the penalty in nats per target token is

    dimension    (1/N) sum_bse max(0, KL_bse - kappa)
    site         (1/N) sum_bs  max(0, KL_bs - kappa)              the Free Transformer's: one site per token
    sequence     (1/N) sum_b   max(0, sum_s KL_bs - kappa S_b)    the budgets of a row (of all its documents) are pooled
    batch        (1/N) max(0, sum_bs KL_bs - kappa sum_b S_b)     ... of the micro-batch

so that kappa always means bits per site (per dimension at the first level). The hinge acts before any further sum or mean:
averaging first would let one site's deficit pay for another's surplus, which is what the coarser levels do on purpose.

Legend: B rows, S sites, E event dimensions, T tokens.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from latentlm.config import Strict
from latentlm.interface import KLSchedule


class FreeBitsConfig(Strict):
    """The budget and the level at which it is granted."""

    bits: float = Field(0.5, ge=0, description="kappa: free bits per site (per dimension at level `dimension`)")
    level: Literal["dimension", "site", "sequence", "batch"] = Field("site", description="what a budget is granted to")


class FreeBits(KLSchedule):
    """max(0, KL - kappa) at the level asked for; kappa = bits * ln 2 nats."""

    Config = FreeBitsConfig

    def penalty(
        self, kl: Tensor, reconstruction: Tensor, site_mask: Tensor, target_mask: Tensor, *, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Hinge in nats per target token.

        Logs `free_bits_nats` (kappa), `within_budget` (share of the dimensions, sites, rows or batches whose KL is free) and
        `free_nats` (KL that cost nothing, nats per target token)."""
        kl = kl.masked_fill(~site_mask[..., None], 0.0)  # a padded site's KL may be anything
        amounts, budgets, counted = self._pooled(kl, site_mask)
        tokens = target_mask.sum().clamp(min=1)
        penalty = (amounts - budgets).clamp(min=0.0).sum() / tokens
        within = ((amounts <= budgets) & counted).sum() / counted.sum().clamp(min=1)
        free = (kl.sum() / tokens - penalty).detach()
        logs = {"free_bits_nats": free.new_tensor(self._kappa), "within_budget": within.detach(), "free_nats": free}
        return penalty, logs

    @property
    def _kappa(self) -> float:
        """The budget in nats."""
        return float(self.config.bits) * math.log(2)

    def _pooled(self, kl: Tensor, site_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """KL and budget in nats of each unit of the level, and which units are real."""
        budgets = self._kappa * site_mask.to(kl.dtype)  # (B, S)
        if self.config.level == "dimension":
            return kl, budgets[..., None], site_mask[..., None].expand_as(kl)
        per_site = kl.sum(-1)
        if self.config.level == "site":
            return per_site, budgets, site_mask
        if self.config.level == "sequence":
            return per_site.sum(-1), budgets.sum(-1), site_mask.any(-1)
        return per_site.sum(), budgets.sum(), torch.atleast_1d(site_mask.any())
