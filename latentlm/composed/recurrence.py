"""A linear recurrence over the sites of a text, all of them at once.

    h_s = keep_s h_{s-1} + add_s,    h_{-1} = 0

by doubling (Hillis & Steele 1986): log2(S) passes. With gates that do not look at h it is the memory of a minGRU (Feng et al.
2024, arXiv 2410.01201), in which a step costs the same however long the text is.

Legend: R latent rows, S sites, G memory.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def scan(keep: Tensor, add: Tensor) -> Tensor:
    """h of every site from keep and add (R, S, G). Exact where keep is 0, which is how a document starts afresh."""
    reach, sites = 1, keep.shape[1]
    while reach < sites:
        before = (0, 0, reach, 0)
        add = add + keep * F.pad(add[:, :-reach], before)
        keep = keep * F.pad(keep[:, :-reach], before)
        reach *= 2
    return add


@torch.no_grad()
def spread_memories(gate_bias: Tensor, *, longest: float = 32.0) -> None:
    """Set the bias (G,) of a gate keep = sigmoid(...) in place, so that memories last 1 to `longest` sites, evenly in the
    logarithm: the logit of 1 - 1 / (1 + n) is log n."""
    gate_bias.copy_(torch.linspace(0.0, math.log(longest), len(gate_bias), device=gate_bias.device))
