"""The posterior of finite scalar quantisation: a point mass on a code of the grid. Its gradients: see `levels.py`.

Legend: B rows, S sites, E dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from latentlm.interface import Distribution, Latent, Noise, Point, sampled_kl
from latentlm_chunk.grid import Grid
from latentlm_chunk.levels import CategoricalOnGrid, OnGrid


class PointLevels(OnGrid, Point):
    """round(bound(raw)), for certain."""

    parameters = ("value", "through", "raw")

    def __init__(self, raw: Tensor, grid: Grid, *, pays: bool = True) -> None:
        """raw (B, S, E): any real numbers. `pays`: the KL has a gradient."""
        self.raw = raw if raw.dtype == torch.float64 else raw.float()
        self.grid, self.pays = grid, pays
        value = grid.values(self._index()).to(self.raw.dtype)
        super().__init__(value, through=grid.bound(self.raw) / grid.half_widths(self.raw))

    def log_prob(self, latent: Latent) -> Tensor:
        """(B, S) nats: zero at the code, minus infinity elsewhere."""
        same = (self.grid.index(latent.value) == self._index()).all(-1)
        return torch.where(same, 0.0, float("-inf")).to(self.raw.dtype)

    def kl(self, prior: Distribution, latent: Latent) -> Tensor:
        """-log p(code) in nats: (B, S, E) against independent levels, else (B, S, 1)."""
        if not isinstance(prior, CategoricalOnGrid):
            return sampled_kl(self, prior, latent)
        index = self._index()
        kl = -prior.log_probs_at(index)
        if not self.pays:
            return kl
        bounded = self.grid.bound(self.raw)
        rises = prior.slopes(index, self.grid.below(bounded.detach())).detach()
        linear = rises * (bounded - bounded.detach())  # zero, with a gradient
        return kl - (linear if kl.shape == linear.shape else linear.sum(-1, keepdim=True))

    def near_ties(self, noise: Noise, rounding: float) -> Tensor:
        """Dimensions within `rounding`, as a share of the range, of the middle between two levels."""
        bounded = self.grid.bound(self.raw)
        from_middle = (bounded - bounded.floor() - 0.5).abs()
        return (from_middle < rounding * self.grid.half_widths(self.raw)).sum(-1)

    def _index(self) -> Tensor:
        """(B, S, E) long."""
        bounded = self.grid.bound(self.raw.detach())
        return self.grid.index(bounded.round() / self.grid.half_widths(bounded))

    @property
    def _device(self) -> torch.device:
        return self.raw.device
