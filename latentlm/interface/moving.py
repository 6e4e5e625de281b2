"""From the processor's memory to a device, without waiting for what the device is doing."""

from __future__ import annotations

import torch
from torch import Tensor


def moved(tensor: Tensor, device: torch.device | str | None) -> Tensor:
    """The tensor on a device (None: the CPU). A GPU copies it from pinned memory when it gets there; nobody waits."""
    device = torch.device(device or "cpu")
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
