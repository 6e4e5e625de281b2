"""Claims the schedule `twice_claimed`, as another distribution does, and offers one that nobody else has."""

from __future__ import annotations

from torch import Tensor

from latentlm.config import Strict
from latentlm.interface import KLSchedule
from latentlm.plugins import hookimpl

latentlm_contract = 2


class Nothing(KLSchedule):
    """Costs nothing."""

    Config = Strict

    def penalty(
        self, kl: Tensor, reconstruction: Tensor, site_mask: Tensor, target_mask: Tensor, *, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Zero."""
        return kl.sum() * 0.0, {}


@hookimpl
def latentlm_parts() -> dict[str, dict[str, type]]:
    """Two names for one class."""
    return {"kl_schedule": {"twice_claimed": Nothing, "only_a": Nothing}}
