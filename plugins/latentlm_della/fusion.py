"""How a latent is multiplied into the values of its block (paper, section 4.2).

    product    v' = (sum_j W_v^j v) * (sum_j W_z^j z)         equation 9, and the authors' code
    tensor     v' = v + sum_j (W_v^j v) * (W_z^j z)           products first, then the sum (ours, after Liu et al. 2018)

with constants beside every map, as in the code. Equation 9 sums before it multiplies: a sum of r linear maps is one linear
map, so its rank r adds weights (and longer steps of the optimiser) but no functions. What it is named after, the low-rank
product of Liu et al. 2018 ("Efficient low-rank multimodal fusion with modality-specific factors"), multiplies at each j and
then sums (so does its code), and there r is a rank. `tensor` is that, beside the identity.

Both are written around the identity, which changes no function: W_v^1 = I + D_1 and the constant of W_z^1 is 1 + g. With D, g
and all else zero the decoder is the one without z, which is also where weight decay pulls.

Legend: R latent rows, T tokens, N = Hkv*dh width of the values, p dimensions of a latent, r rank.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Fusion(nn.Module):
    """Maps of the values and of the latent, r each: lists of nn.Linear."""

    def __init__(self, latent_size: int, width: int, rank: int) -> None:
        super().__init__()
        self.of_values = nn.ModuleList(nn.Linear(width, width) for _ in range(rank))
        self.of_latent = nn.ModuleList(nn.Linear(latent_size, width) for _ in range(rank))

    def factor(self, z: Tensor) -> Tensor:
        """What `forward` takes of the latent (..., p)."""
        raise NotImplementedError

    def forward(self, values: Tensor, factor: Tensor) -> Tensor:
        """Values (R, T, N) -> (R, T, N)."""
        raise NotImplementedError


class ProductOfSums(Fusion):
    """Equation 9. The r weights are added up before they are used: the same numbers at a r-th of the cost."""

    def factor(self, z: Tensor) -> Tensor:
        """sum_j W_z^j z, (..., N): the factor of the values less one."""
        return _sum_of(self.of_latent, z)

    def forward(self, values: Tensor, factor: Tensor) -> Tensor:
        """(v + sum_j D_j v) * (1 + factor)."""
        mapped = values + _sum_of(self.of_values, values)
        return mapped + mapped * factor  # near one, 1 + factor has few digits left in half precision


class SumOfProducts(Fusion):
    """A product of rank r beside the identity."""

    def factor(self, z: Tensor) -> Tensor:
        """W_z^j z of every j, (..., r, N)."""
        return torch.stack([linear(z) for linear in self.of_latent], dim=-2)

    def forward(self, values: Tensor, factor: Tensor) -> Tensor:
        """v + sum_j (W_v^j v) * factor_j."""
        mapped = torch.stack([linear(values) for linear in self.of_values], dim=-2)  # (R, T, r, N)
        return values + (mapped * factor).sum(-2)


def linears(maps: nn.ModuleList) -> list[nn.Linear]:
    """The maps, as what they are."""
    return cast("list[nn.Linear]", list(maps))


def _sum_of(maps: nn.ModuleList, x: Tensor) -> Tensor:
    """sum_j map_j(x)."""
    weight = torch.stack([linear.weight for linear in linears(maps)]).sum(0)
    bias = torch.stack([linear.bias for linear in linears(maps)]).sum(0)
    return F.linear(x, weight, bias)
