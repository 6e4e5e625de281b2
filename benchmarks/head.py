"""Memory and time of the readout with its cross-entropy, there and back: all logits at once, or some positions at a time
(`train.head_chunk`).

Run: ``python -m benchmarks.head`` (a minute, one thread); prints a line for each, measured in a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time

import torch

from latentlm.composed import ComposedDecoder, build
from latentlm.config import ModelConfig
from latentlm.interface import Batch
from latentlm.training.recomputing import chunk_head

POSITIONS, WIDTH, VOCABULARY = 2048, 256, 32768
CHUNKS = (None, 1024, 256, 64)


def measured(chunk: int | None) -> tuple[float, float]:
    """MiB beyond what the model takes, at most, and seconds of the second and third time."""
    torch.set_num_threads(1)
    backbone = {"width": WIDTH, "blocks": 1, "vocabulary": VOCABULARY, "context": POSITIONS}
    model = build(ModelConfig.model_validate({"decoder": "vanilla", "backbone": backbone}), seed=0)
    assert isinstance(model, ComposedDecoder)
    if chunk is not None:
        chunk_head(model, chunk)
    generator = torch.Generator().manual_seed(0)
    batch = Batch.of([torch.randint(VOCABULARY, (POSITIONS,), generator=generator).tolist()])
    hidden = torch.randn(1, POSITIONS, WIDTH, generator=generator, requires_grad=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        model._cross_entropy(hidden, batch).sum().backward()
        seconds.append(time.perf_counter() - start)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, sum(seconds[1:]) / 2


def main() -> None:
    """The command line described above."""
    argparse.ArgumentParser(prog="python -m benchmarks.head", description=__doc__).parse_args()
    for chunk in CHUNKS:
        with multiprocessing.get_context("spawn").Pool(1) as alone:
            mib, seconds = alone.apply(measured, (chunk,))
        print(f"{'all' if chunk is None else chunk} positions at a time: {mib:,.0f} MiB, {seconds:.2f} s")


if __name__ == "__main__":
    main()
