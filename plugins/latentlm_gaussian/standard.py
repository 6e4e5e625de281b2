"""The prior of Bowman et al. 2016 and of Optimus: z ~ N(0, I), whatever the text.

Legend: B rows, R latent rows, S sites, E dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from latentlm.config import Strict
from latentlm.interface import Context, Gaussian, Latent, Prior


def standard_normal(rows: int, sites: int, dims: int, device: torch.device) -> Gaussian:
    """N(0, I) at every site, (rows, sites, dims)."""
    zeros = torch.zeros(rows, sites, dims, device=device)
    return Gaussian(zeros, zeros)


class StandardNormal(Prior):
    """Standard normal dimensions."""

    Config = Strict
    family = "real"

    def forward(self, context: Context, latent: Latent | None = None) -> Gaussian:
        """(R, S, E)."""
        return standard_normal(context.rows, context.sites, self.shape.latent.dims, context.tokens.device)

    def step(
        self, state: Any, taps: Mapping[int, Tensor], previous: Tensor | None, starts: Tensor, above: Mapping[str, Tensor]
    ) -> tuple[Gaussian, Any]:
        """(B, 1, E)."""
        return standard_normal(len(starts), 1, self.shape.latent.dims, starts.device), state
