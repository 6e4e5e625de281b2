"""What the card can do: copies and matrix products of random numbers, through PyTorch."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.gpu_kernels.events import Bench


def run(bench: Bench) -> None:
    """Rows with a rate: TB/s (bytes read and written) and TFLOP/s."""
    size = 256 if bench.quick else 8192
    bench.row("1 GiB", "copy", lambda: _copy(bench, 2**20 if bench.quick else 2**30))
    for name in ("bf16", "tf32", "float32"):
        bench.row(f"{size}^3", f"product, {name}", lambda name=name: _product(bench, size, name))


def _copy(bench: Bench, count: int) -> dict[str, Any]:
    source = torch.randint(0, 255, (count,), dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    found = bench.time(lambda: target.copy_(source))
    return found | {"terabytes_per_second": 2 * count / found["milliseconds"] / 1e9}


def _product(bench: Bench, size: int, unit: str) -> dict[str, Any]:
    dtype = torch.bfloat16 if unit == "bf16" else torch.float32
    left, right = bench.random(size, size, dtype=dtype), bench.random(size, size, dtype=dtype)
    torch.backends.cuda.matmul.allow_tf32 = unit == "tf32"
    try:
        found = bench.time(lambda: left @ right)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    return found | {"teraflops": 2 * size**3 / found["milliseconds"] / 1e9}
