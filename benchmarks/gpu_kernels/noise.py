"""Keyed uniform numbers for 16 rows of 2,048 sites of 16 bits: numpy's, copied to the device, against the same made there."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.gpu_kernels.events import Bench, Step
from latentlm.interface import Noise, philox
from latentlm.interface.moving import moved

EVENTS = 16


def run(bench: Bench) -> None:
    """Times, and whether every number is the CPU's to the bit (`equal`). Offsets before the start are among them."""
    rows, sites = (3, 40) if bench.quick else (16, 2048)
    noise = Noise.keyed(0, range(rows)).at([-5 * row for row in range(rows)])
    expected = noise.uniform(sites, EVENTS).to(bench.device)
    keys, counters = (part.to(bench.device) for part in philox.words(noise.keys, noise.offsets, EVENTS))
    compiled = bench.compiled(philox.draw)

    def measured(step: Step) -> dict[str, Any]:
        found = step()
        assert isinstance(found, torch.Tensor)
        return bench.time(step) | {"equal": torch.equal(found.reshape(expected.shape), expected)}

    contenders: dict[str, Step] = {
        "numpy and a copy": lambda: moved(noise.uniform(sites, EVENTS), bench.device),
        "as the library does": lambda: noise.uniform(sites, EVENTS, device=bench.device),
        "device, eager, keys there": lambda: philox.draw(keys, counters, sites * EVENTS // philox.WORDS),
        "device, compiled, keys there": lambda: compiled(keys, counters, sites * EVENTS // philox.WORDS),
    }
    for name, step in contenders.items():
        bench.row(f"{rows} x {sites} x {EVENTS}", name, lambda step=step: measured(step))
