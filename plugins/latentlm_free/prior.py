"""The Free Transformer's prior: Z uniform over the 2^H codes, independent from token to token (paper, section 3.2).

Legend: B rows, S sites, H bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from latentlm.config import Strict
from latentlm.interface import Bits, Context, Latent, Prior


class UniformBitsConfig(Strict):
    """No settings."""


class UniformBits(Prior):
    """Every bit a fair coin."""

    Config = UniformBitsConfig
    family = "bits"

    def forward(self, context: Context, latent: Latent | None = None) -> Bits:
        """Logits zero at every site, (R, S, H)."""
        return self._fair(context.rows, context.sites, context.tokens.device)

    def step(
        self, state: Any, taps: Mapping[int, Tensor], previous: Tensor | None, starts: Tensor, above: Mapping[str, Tensor]
    ) -> tuple[Bits, Any]:
        """The same at each token, (B, 1, H)."""
        return self._fair(starts.shape[0], 1, starts.device), state

    def _fair(self, rows: int, sites: int, device: torch.device) -> Bits:
        return Bits(torch.zeros(rows, sites, self.shape.latent.dims, device=device))
