"""The prior of latent thought vectors: z ~ N(0, I), whatever the text (Kong et al. 2025, section 2.1).

Legend: B rows, R latent rows, S sites (documents), E dimensions of all thought vectors of a document.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from latentlm.config import Strict
from latentlm.distributions import Gaussian
from latentlm.interface import Context, Latent, Prior


class ThoughtNormalConfig(Strict):
    """No settings."""


class ThoughtNormal(Prior):
    """Standard normal."""

    Config = ThoughtNormalConfig
    latents = "real"

    def forward(self, context: Context, latent: Latent | None = None) -> Gaussian:
        """Mean 0 and standard deviation 1 at every site, (R, S, E)."""
        return self._standard(context.rows, context.sites, context.tokens.device)

    def step(
        self, state: Any, taps: Mapping[int, Tensor], previous: Tensor | None, starts: Tensor
    ) -> tuple[Gaussian, Any]:
        """The same at each token, (B, 1, E)."""
        return self._standard(starts.shape[0], 1, starts.device), state

    def _standard(self, rows: int, sites: int, device: torch.device) -> Gaussian:
        zeros = torch.zeros(rows, sites, self.shape.event_dims, device=device)
        return Gaussian(zeros, zeros)
