"""``zoo.load("free-8b")``: seconds to load, peak memory, and a forward pass on a few tokens. Needs 20 GiB of free memory.

Run: ``python -m benchmarks.large`` (minutes); prints one row as JSON.
"""

from __future__ import annotations

import json
import time
import warnings

import torch

from benchmarks.timing import Row
from latentlm import zoo
from latentlm.config import memory
from latentlm.interface import Batch, Noise
from latentlm.training.record.memory import peak_mib

NAME, NEEDED_GIB, TOKENS = "free-8b", 20, 8


def refusal() -> str | None:
    """Why this machine cannot run it, None where it can."""
    free = memory.available(torch.device("cpu"))
    if free is None or free >= NEEDED_GIB * 2**30:
        return None
    return f"skipped: {free / 2**30:.1f} GiB of memory are free, {NEEDED_GIB} are needed"


def run() -> list[Row]:
    """Load, draw latents from the encoder, and compute logits; wall seconds, all threads."""
    row: Row = {"suite": "large", "case": NAME, "contender": NAME, "tokens": TOKENS}
    if reason := refusal():
        return [row | {"note": reason}]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", zoo.RandomWeightsWarning)  # speed does not depend on the weights
        start = time.perf_counter()
        model = zoo.load(NAME)
        row["load_seconds"] = time.perf_counter() - start
    batch = Batch.of([list(range(TOKENS))])
    with torch.no_grad():
        start = time.perf_counter()
        context = model.context(batch)
        latent = model.posterior(context).sample(Noise.keyed(0, [0]))
        logits = model.logits(model.hidden(context, latent))
        row["forward_seconds"] = time.perf_counter() - start
    assert bool(torch.isfinite(logits).all())
    row |= {"peak_gib": peak_mib() / 2**10, "parameters": sum(parameter.numel() for parameter in model.parameters())}
    return [row]


def main() -> None:
    """The command line described above."""
    print(json.dumps(run()))


if __name__ == "__main__":
    main()
