"""DELLA's prior: p(z_1) = N(0, I), then p(z_l | z_<l) by the recursion of the latents (paper, section 4.1, equations 7 and 8).

It sees no text, and every site is alike. The constants beside W_p^l and in h_l are the authors' code's; equation 7 and 8 have
none. The code also learns p(z_1), through its constants; here it is the standard Gaussian that the text says.

Legend: R latent rows, S sites, L latents, p dimensions of each, E = L p.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from latentlm.interface import Context, Latent, Prior, Shape
from latentlm_della.chain import Chain, Recursion
from latentlm_della.layers import LayersConfig, layout


class DellaPrior(Prior):
    """A learned chain over layers, the same for every site."""

    Config = LayersConfig
    family = "real"

    def __init__(self, config: LayersConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        layers, size = layout(config, shape)
        self.recursion = Recursion(len(layers), size, bias=True)

    def forward(self, context: Context, latent: Latent | None = None) -> Chain:
        """(R, S, E). It is not autoregressive over sites: `latent` is not looked at."""
        return self._chain(context.rows, context.sites, context.tokens.device)

    def step(
        self, state: Any, taps: Mapping[int, Tensor], previous: Tensor | None, starts: Tensor, above: Mapping[str, Tensor]
    ) -> tuple[Chain, Any]:
        """(B, 1, E)."""
        return self._chain(starts.shape[0], 1, starts.device), state

    def _chain(self, rows: int, sites: int, device: torch.device) -> Chain:
        layers, size = self.recursion.layers, self.recursion.size
        return Chain(self.recursion, torch.zeros(rows, sites, layers, 2 * size, device=device))
