"""How estimators converge: what a defensive share and a refined proposal are worth, for the shipped models.

    bias     of 16 importance samples, by their defensive share (that of paths drawn from the prior): for each text a pool of
             samples of either kind, from which 16 are drawn anew, with their stratified counts, again and again; the truth is
             the estimate of the whole pool. Nats of a text, and bits per byte
    vector   effective samples of a document's vector before and after 50 refining steps, and the nats that these gained

Texts are the beginnings of held-out documents (benchmarks/texts.py).

Run: ``python -m benchmarks.convergence [--only SUITE] [--device cuda] [--json FILE] [--quick]`` (about an hour on one core).

Legend: B texts, K samples of a pool, R repetitions.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.outputs import writable
from benchmarks.texts import published_texts
from latentlm import zoo
from latentlm.interface import LatentDecoder, Noise
from latentlm.likelihood import log_mean_exp, log_weights, score_texts
from latentlm.likelihood.paths import from_target, mixture
from latentlm.likelihood.texts import Texts
from latentlm.likelihood.weights import Weights
from latentlm_evals.measure import tokenized

SHARES = (0.1, 0.25, 0.5)
SAMPLES = 16
BITS = ("free-tiny", "causal-tiny", "chunk-tiny")
VECTORS = ("gaussian-tiny", "ltm-tiny")
Row = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    texts: int = 20
    bytes: int = 64
    """Of a text of `bias`."""
    pool: int = 8192
    """Samples of a text, half of either kind."""
    repetitions: int = 4096
    window: int = 256
    """Bytes of a text of `vector`."""
    samples: int = 256
    refine: int = 50


QUICK = Sizes(texts=2, bytes=16, pool=64, repetitions=16, window=16, samples=8, refine=2)


def bias(name: str, sizes: Sizes, device: str) -> list[Row]:
    """A row for each share."""
    model = zoo.load(name, device=device)
    texts = published_texts(sizes.texts, sizes.bytes)
    found: list[list[Tensor]] = [[] for _ in SHARES]
    for number, text in enumerate(texts):
        pool = _pool(model, tokenized(model, text), number, sizes.pool)
        truth, _ = log_mean_exp(pool.log_weights)
        generator = torch.Generator().manual_seed(number)
        for errors, share in zip(found, SHARES, strict=True):
            errors.append(resampled(pool, share, sizes.repetitions, generator) - truth)
    rows = []
    for share, errors in zip(SHARES, found, strict=True):
        nats = torch.stack(errors)  # (B, R)
        each = nats.mean(1)  # the texts' biases
        per_byte = math.log(2) * sum(len(text.data) for text in texts) / len(texts)
        rows.append({
            "suite": "bias", "model": name, "share": share, "samples": SAMPLES, "pool": sizes.pool, "texts": len(texts),
            "bias": float(each.mean()), "bias_bits_per_byte": float(each.mean()) / per_byte,
            "standard_error": float(each.std() / math.sqrt(len(each))), "error": float(nats.square().mean().sqrt()),
        })  # fmt: skip
    return rows


def _pool(model: LatentDecoder, tokens: list[int], number: int, count: int) -> Weights:
    """Samples of one text, every other one from the prior."""
    noise = Noise.keyed(0, [("convergence", number)], samples=count)
    with torch.no_grad():
        found = log_weights(model, Texts.of(model, [tokens], [1]), noise, target="prior", proposal="posterior", defensive=0.5)
    return found.cpu()


def resampled(pool: Weights, share: float, repetitions: int, generator: torch.Generator) -> Tensor:
    """(R,) nats: estimates by 16 samples of a pool, of which the share's count comes from the target itself."""
    from_prior, prior = pool.strata(), len(from_target(share, 0, SAMPLES))
    assert from_prior is not None
    parts = []
    for kind, count in ((from_prior, prior), (~from_prior, SAMPLES - prior)):
        numbers = kind.nonzero()[:, 0]
        parts.append(numbers[torch.randint(len(numbers), (repetitions, count), generator=generator)])
    picked = torch.cat(parts, dim=1)  # (R, 16)
    nats, log_target, log_proposal = (of[0][picked] for of in (pool.nats, pool.log_target, pool.log_proposal))
    return log_mean_exp(nats + log_target - mixture(log_proposal, log_target, prior / SAMPLES))[0]


def vector(name: str, sizes: Sizes, device: str) -> list[Row]:
    """A row: medians over the texts."""
    model = zoo.load(name, device=device)
    tokens = [tokenized(model, text) for text in published_texts(sizes.texts, sizes.window)]
    plain, refined = (
        score_texts(model, tokens, samples=sizes.samples, refine=steps) for steps in (0, sizes.refine)
    )
    gained = sorted(after.value - before.value for before, after in zip(plain, refined, strict=True))
    effective = [statistics.median(score.effective_samples for score in scores) for scores in (plain, refined)]
    return [{
        "suite": "vector", "model": name, "samples": sizes.samples, "steps": sizes.refine, "texts": len(tokens),
        "before": effective[0], "after": effective[1],
        "gained": statistics.median(gained), "gained_least": gained[0], "gained_most": gained[-1],
    }]  # fmt: skip


SUITES: dict[str, tuple[Callable[[str, Sizes, str], list[Row]], tuple[str, ...]]] = {
    "bias": (bias, BITS),
    "vector": (vector, VECTORS),
}


def table(suite: str, rows: list[Row]) -> Table:
    """A line for each row of one suite."""
    if suite == "bias":
        made = Table("model", "share", "bias, nats", "bits per byte", "root mean square error, nats")
        made.title = f"Bias of {SAMPLES} samples by their defensive share"
        for row in rows:
            nats = f"{row['bias']:+.3f} ± {row['standard_error']:.3f}"
            made.add_row(row["model"], f"{row['share']:g}", nats, f"{row['bias_bits_per_byte']:+.4f}", f"{row['error']:.3f}")
        return made
    made = Table("model", "effective samples, as encoded", "refined", "nats gained, median", "least to most")
    made.title = "A document's vector before and after refining"
    for row in rows:
        spread = f"{row['gained_least']:+.1f} to {row['gained_most']:+.1f}"
        made.add_row(row["model"], f"{row['before']:.1f}", f"{row['after']:.1f}", f"{row['gained']:+.2f}", spread)
    return made


def main() -> None:
    """The command line described above."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.convergence", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=sorted(SUITES), help="one suite")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    parser.add_argument("--quick", action="store_true", help="small sizes, for a test of the benchmark itself")
    parser.add_argument("--json", type=writable, help="write the rows to this file, after each model")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    console = Console()
    console.width = max(console.width, 128)  # tables are read in logs too
    every: list[Row] = []
    for suite in [options.only] if options.only else SUITES:
        measured, names = SUITES[suite]
        rows = []
        for name in names:
            with console.status(f"{suite} of {name}"):
                rows += measured(name, QUICK if options.quick else Sizes(), options.device)
            if options.json:
                options.json.write_text(json.dumps(every + rows, indent=1) + "\n", encoding="utf-8")
        every += rows
        console.print(table(suite, rows))


if __name__ == "__main__":
    main()
