"""A plugin whose second hook fails after the first has returned a part, which must not stay behind."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from latentlm.config import Strict
from latentlm.interface import KLSchedule
from latentlm.plugins import hookimpl

latentlm_contract = 2


class Orphan(KLSchedule):
    """Costs nothing."""

    Config = Strict

    def penalty(
        self, kl: Tensor, reconstruction: Tensor, site_mask: Tensor, target_mask: Tensor, *, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Zero."""
        return kl.sum() * 0.0, {}


@hookimpl
def latentlm_parts() -> dict[str, dict[str, type]]:
    """A part that is fine."""
    return {"kl_schedule": {"orphan": Orphan}}


@hookimpl
def latentlm_cards() -> list[Path]:
    """Fails."""
    raise RuntimeError("the shelf fell down")
