"""Linear layers whose result decides a probability: in float32, outside any autocast.

Half precision moves a logit by up to its 256th part, which is a change of the KL that the schedule then works on.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def wide_linear(x: Tensor, linear: nn.Linear) -> Tensor:
    """The linear layer of x (..., F) in float32 (float64 where x is)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        bias = None if linear.bias is None else linear.bias.to(wide)
        return F.linear(x.to(wide), linear.weight.to(wide), bias)
