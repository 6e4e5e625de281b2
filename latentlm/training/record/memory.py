"""How much memory a process took: on a GPU what torch allocated there, else the resident set."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch


def peak_mib(device: torch.device | str = "cpu") -> float:
    """The most that this process has held so far on the device, MiB.

    On the CPU, Linux's own count is read where there is one: `ru_maxrss` of a process also holds its parent's size when it was
    started."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1]) / 2**10
    import resource  # Windows has none

    unit = 1 if sys.platform == "darwin" else 2**10  # macOS counts bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
