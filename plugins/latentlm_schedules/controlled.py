"""The frame of schedules with a state: a weight that moves once per optimiser step, by what the step's penalties saw.

    penalty  = (weight * sum_bs KL_bs + offset * S) / N       nats per target token
    update   weight, offset <- what `update(Observed)` makes of the whole step

The penalty is affine in the KL and its coefficients stand still within a step, so the penalties of micro-batches, weighted by
their target tokens, add up to that of the whole batch. Each penalty notes the sums of its rows; `advance` adds up the rows of
all of them exactly (math.fsum), so the new state is the same number however the step was split.

State is plain numbers. What was noted since the last `advance` is not part of it: checkpoints are written between steps. A
step that was begun and given up (another `step` number comes before `advance`) leaves no trace.

Legend: B rows, S real sites, E event dimensions, T tokens, N target tokens.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentlm.errors import UserError, did_you_mean
from latentlm.interface import KLSchedule, gathered
from latentlm_schedules.levels import as_log, real_kl, target_count


@dataclass(frozen=True)
class Observed:
    """One optimiser step, all micro-batches together."""

    kl: float
    """Nats, summed over real sites."""
    sites: int
    """Real sites, at least one."""
    cross_entropy: float
    """Nats, summed over targets, under a sample of the posterior."""
    targets: int
    """Target tokens, at least one."""

    @property
    def kl_per_site(self) -> float:
        """Mean KL of a site, nats."""
        return self.kl / self.sites

    @property
    def cross_entropy_per_target(self) -> float:
        """Mean cross-entropy, nats per target token."""
        return self.cross_entropy / self.targets


class Controlled(KLSchedule):
    """A KL weight with a state. Subclasses name their state in `initial` and move it in `update`."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.state: dict[str, float] = self.initial()
        self._rows: list[Tensor] = []  # (4, B) float64 for each penalty of this step: KL, sites, cross-entropy, targets
        self._step: int | None = None

    @abstractmethod
    def initial(self) -> dict[str, float]:
        """The state before the first step."""

    @property
    @abstractmethod
    def weight(self) -> float:
        """Weight of the KL in this step."""

    @property
    def offset(self) -> float:
        """Nats per real site that are charged whatever the KL; moves no weight of the model."""
        return 0.0

    @abstractmethod
    def update(self, observed: Observed) -> None:
        """Move the state by one step."""

    def penalty(
        self, kl: Tensor, reconstruction: Tensor, site_mask: Tensor, target_mask: Tensor, *, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """weight * KL + offset, in nats per target token; logs `kl_weight` and the state under its names."""
        kl = real_kl(kl, site_mask)
        self._note(kl, reconstruction, site_mask, target_mask, step)
        charged = self.weight * kl.sum() + self.offset * site_mask.sum().to(kl.dtype)
        logs = {name: as_log(value, kl) for name, value in {"kl_weight": self.weight, **self.state}.items()}
        return charged / target_count(target_mask), logs

    @torch.no_grad()
    def _note(self, kl: Tensor, reconstruction: Tensor, site_mask: Tensor, target_mask: Tensor, step: int) -> None:
        """Keep the sums of each row; they stay on the device until `advance` asks for them."""
        if step != self._step:
            self._rows, self._step = [], step
        nats = reconstruction.double().masked_fill(~target_mask, 0.0)
        columns = (kl.double().sum((-2, -1)), site_mask.sum(-1), nats.sum(-1), target_mask.sum(-1))
        self._rows.append(torch.stack([column.double() for column in columns]))

    def advance(self, step: int) -> None:
        """Move the state by what the penalties since the last call saw; without any, or without a real site, it stays."""
        rows, self._rows, self._step = self._rows, [], None
        if not rows:
            return
        everywhere = zip(*gathered(torch.cat(rows, dim=1).tolist()), strict=True)  # the columns of each process, side by side
        kl, sites, cross_entropy, targets = (math.fsum(value for own in columns for value in own) for columns in everywhere)
        if sites and targets:
            self.update(Observed(kl, int(sites), cross_entropy, int(targets)))

    def state_dict(self) -> dict[str, float | int]:
        """A copy of the state."""
        return dict(self.state)

    def load_state_dict(self, state: Mapping[str, float | int]) -> None:
        """Take over a state. Raises UserError for one with other keys, or with a value that is no finite number."""
        name = type(self).__name__
        if unknown := sorted(set(state) - set(self.state)):
            hint = did_you_mean(unknown[0], self.state)
            raise UserError(f"the state of {name} is {sorted(self.state)}; the checkpoint has {unknown} as well.{hint}")
        if missing := sorted(set(self.state) - set(state)):
            raise UserError(f"the checkpoint lacks {missing} of {name}'s state: it is that of another schedule.")
        if bad := [key for key, value in state.items() if not _is_number(value)]:
            raise UserError(f"the state of {name} must be finite numbers; {bad[0]} is {state[bad[0]]!r}.")
        self.state = {key: float(state[key]) for key in self.state}
        self._rows, self._step = [], None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
