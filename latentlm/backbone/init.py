"""Normal initialisation that fills gigabytes in seconds: large CPU tensors in chunks, by several threads, in float32.

A chunk's numbers depend on the generator and on the chunk's place alone, so the number of threads changes nothing.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

_CHUNK = 1 << 18  # elements: 1 MiB of float32, which a core's cache holds


@torch.no_grad()
def normal_(tensor: Tensor, *, std: float, generator: torch.Generator | None = None) -> None:
    """Fill with normal(0, std) numbers, in place; nothing to do on the meta device."""
    if tensor.is_meta:
        return
    if tensor.device.type != "cpu" or tensor.numel() <= _CHUNK or not tensor.is_contiguous():
        tensor.normal_(0.0, std, generator=generator)
        return
    chunks = tensor.detach().view(-1).split(_CHUNK)  # detached: `no_grad` does not reach the threads
    seeds = torch.randint(2**62, (len(chunks),), generator=generator).tolist()

    buffers = threading.local()

    def fill(chunk: Tensor, seed: int) -> None:
        if not hasattr(buffers, "drawn"):
            buffers.drawn = torch.empty(_CHUNK, dtype=torch.float32)
        drawn = buffers.drawn[: chunk.numel()]
        chunk.copy_(drawn.normal_(0.0, std, generator=torch.Generator().manual_seed(seed)))

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(fill, chunks, seeds))
