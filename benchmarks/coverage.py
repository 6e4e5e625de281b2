"""What error bars are worth: how often the interval of a score holds the truth, for the shipped models.

Texts are the beginnings of held-out documents. The truth of each comes from two independent estimates with thousands of
samples, `iwae` and `smc`: their mean by inverse variance where they agree within three of their errors; a text of which they
do not is counted and left out. Then each text is scored again and again by `score_texts` as it is called by default, with
other random numbers, and the intervals that hold the truth are counted:

    error alone     value - 1.96 errors .. value + 1.96 errors
    interval        `Score.interval`: Student's quantile in place of 1.96, and the bias above (latentlm/likelihood/results.py)

Run: ``python -m benchmarks.coverage [MODEL ...]`` (about 5 minutes a model, on one core).
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.outputs import writable
from latentlm import zoo
from latentlm.interface import LatentDecoder
from latentlm.likelihood import Score, score_texts
from latentlm.training.data import load_documents
from latentlm.training.recipes import load_recipe
from latentlm_evals.measure import held_out_texts, tokenized

DATA = "demo-free"
"""The recipe whose held-out documents are scored."""


@dataclass(frozen=True)
class Truth:
    """What is known of a text."""

    value: float
    standard_error: float
    agrees: bool
    """`iwae` and `smc` are within three of their errors."""


def truths(model: LatentDecoder, tokens: Sequence[list[int]], *, samples: int) -> list[Truth]:
    """By two estimators with `samples` samples each."""
    weighted = score_texts(model, tokens, method="iwae", samples=samples, refine=50, seed=1_000_003)
    filtered = score_texts(model, tokens, method="smc", samples=samples // 4, refine=50, seed=1_000_003)
    return [_truth(one, other) for one, other in zip(weighted, filtered, strict=True)]


def _truth(one: Score, other: Score) -> Truth:
    errors = [max(score.standard_error, 1e-6) for score in (one, other)]
    precisions = [error**-2 for error in errors]
    value = (one.value * precisions[0] + other.value * precisions[1]) / sum(precisions)
    agrees = abs(one.value - other.value) <= 3 * math.hypot(*errors)
    return Truth(value, sum(precisions) ** -0.5, agrees)


def covered(score: Score, truth: Truth) -> tuple[bool, bool]:
    """Whether the truth lies in the interval of the error alone, and in that of error and bias."""
    low, high = score.interval
    return abs(score.value - truth.value) <= 1.96 * score.standard_error, low <= truth.value <= high


def run(name: str, *, texts: int, size: int, estimates: int, samples: int, console: Console) -> dict[str, Any]:
    """A row for one model."""
    model = zoo.load(name)
    documents = load_documents(load_recipe(DATA, []).data).held_out
    tokens = [tokenized(model, text) for text in held_out_texts(documents, count=texts, limit=size, seed=0)]
    known = truths(model, tokens, samples=samples)
    used = [number for number, truth in enumerate(known) if truth.agrees]
    alone = within = converged = count = 0
    nats, drawn = 0.0, 0
    for seed in track(range(estimates), f"{name}", console=console, transient=True):
        for number, score in zip(used, score_texts(model, [tokens[n] for n in used], seed=seed), strict=True):
            one, other = covered(score, known[number])
            alone, within, converged, count = alone + one, within + other, converged + score.converged, count + 1
            nats, drawn = nats + score.value - known[number].value, drawn + score.samples
    return {
        "model": name,
        "texts": texts,
        "agreeing": len(used),
        "estimates": estimates,
        "truth_error": sum(known[number].standard_error for number in used) / max(1, len(used)),
        "alone": alone / max(1, count),
        "interval": within / max(1, count),
        "converged": converged / max(1, count),
        "samples": drawn / max(1, count),
        "bias": nats / max(1, count),
    }


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """A line for each model."""
    made = Table(title="Intervals of 95% that hold the truth, scores of texts as they are made by default")
    columns = ("model", "texts (iwae and smc agree)", "error of the truth", "error alone", "interval", "converged", "samples")
    for column in (*columns, "mean of value - truth"):
        made.add_column(column, justify="left" if column == "model" else "right")
    for row in rows:
        made.add_row(
            row["model"], f"{row['texts']} ({row['agreeing']})", f"{row['truth_error']:.3f} nats", f"{row['alone']:.1%}",
            f"{row['interval']:.1%}", f"{row['converged']:.0%}", f"{row['samples']:.0f}", f"{row['bias']:+.3f} nats",
        )  # fmt: skip
    return made


def main() -> None:
    """The command line described above."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.coverage", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shipped = [card.name for card in zoo.list() if card.status == "trained" and not card.name.startswith("vanilla")]
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"default: {', '.join(shipped)}")
    parser.add_argument("--texts", type=int, default=20, help="default: 20")
    parser.add_argument("--bytes", type=int, default=64, help="of each text; default: 64")
    parser.add_argument("--estimates", type=int, default=50, help="independent scores of each text; default: 50")
    parser.add_argument("--samples", type=int, default=2048, help="of the truth; default: 2048")
    parser.add_argument("--json", type=writable, help="write the rows to this file, after each model")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    console = Console()
    console.width = max(console.width, 128)  # tables are read in logs too
    rows = []
    for name in options.models or shipped:
        rows.append(
            run(
                name,
                texts=options.texts,
                size=options.bytes,
                estimates=options.estimates,
                samples=options.samples,
                console=console,
            )
        )
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        console.print(table(rows))


if __name__ == "__main__":
    main()
