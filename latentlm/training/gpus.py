"""GPUs whose speed is known, from NVIDIA's data sheets: for plans on paper, and for the share of it that a run reaches."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class GPU:
    """A machine's GPUs: of each, dense operations a second in bfloat16 and in float32, bytes of memory, bytes a second that it
    receives from others of its machine and from other machines."""

    half: float
    full: float
    memory: float
    near: float
    far: float
    a_machine: int = 8


GPUS = {
    "A100": GPU(312e12, 19.5e12, 80e9, 300e9, 25e9),
    "H100": GPU(989.4e12, 67e12, 80e9, 450e9, 50e9),
    "H200": GPU(989.4e12, 67e12, 141e9, 450e9, 50e9),
}
"""DGX A100, H100 and H200: NVLink in one direction; 200 or 400 Gb/s of InfiniBand to each GPU."""


def peak_of(device: torch.device, dtype: str) -> float | None:
    """Operations a second of a device at its most, in products of `dtype`; None where it is none of `GPUS`."""
    return None if device.type != "cuda" else peak_by_name(torch.cuda.get_device_name(device), dtype)


def peak_by_name(name: str, dtype: str) -> float | None:
    """The same of a GPU with this name. A part of one (MIG), and models with another peak (PCIe, NVL), are not known."""
    words = name.replace("-", " ").split()
    if {"PCIe", "PCIE", "NVL", "MIG"} & set(words):
        return None
    known = next((GPUS[word] for word in words if word in GPUS), None)
    return None if known is None else known.half if dtype == "bfloat16" else known.full
