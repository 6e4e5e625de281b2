"""From the processor's memory to a device, without waiting for what the device is doing; kernels of our own there."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def moved(tensor: Tensor, device: torch.device | str | None) -> Tensor:
    """The tensor on a device (None: the CPU). A GPU copies it from pinned memory when it gets there; nobody waits."""
    device = torch.device(device or "cpu")
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def compiled_all_the_same() -> AbstractContextManager[object]:
    """The context in which a kernel of ours is compiled, though the model around it is not: each pass of an evaluation has
    shapes of its own (training/compiling.py), and a kernel takes any."""
    return nullcontext() if torch.compiler.is_compiling() else torch.compiler.set_stance("default")
