"""What error bars are worth: how often the interval of a score holds the truth, for the shipped models.

Texts are the beginnings of held-out documents (benchmarks/texts.py). The truth of each comes from two independent estimates
with thousands of samples, `iwae` and `smc`: their mean by inverse variance where they agree within three of their errors; a
text of which they do not is counted and left out. Then each text is scored again and again by `score_texts` as it is called by
default, with other random numbers, and the intervals that hold the truth are counted:

    error alone     value - 1.96 errors .. value + 1.96 errors
    interval        `Score.interval`: Student's quantile in place of 1.96, and the bias above (latentlm/likelihood/results.py);
                    of scores that are settled, since the interval of any other has no upper end

All estimates of all texts are one call, in as large batches as fit.

Run: ``python -m benchmarks.coverage [MODEL ...] [--device cuda]`` (about 5 minutes a model, on one core).
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
from rich.table import Table

from benchmarks.outputs import writable
from benchmarks.texts import published_texts, trained_cards
from latentlm import zoo
from latentlm.interface import LatentDecoder
from latentlm.likelihood import Score, score_texts
from latentlm_evals.measure import tokenized

TRUTH_ERROR = 0.03
"""Nats that the truths are to be good to, on the mean."""
RULE = 3
"""Raised where `Score.interval` says something else: what was measured before is then no longer kept."""
MOST = 8_192
"""Samples of a truth."""


@dataclass(frozen=True)
class Truth:
    """What is known of a text."""

    value: float
    standard_error: float
    agrees: bool
    """`iwae` and `smc` are within three of their errors."""


def truths(model: LatentDecoder, tokens: Sequence[list[int]], *, samples: int) -> list[Truth]:
    """By two estimators, first with `samples` samples each, then with four times as many while the mean error is above
    `TRUTH_ERROR` and `MOST` allows: what is known badly would be missed by good intervals too."""
    while True:
        weighted = score_texts(model, tokens, method="iwae", samples=samples, refine=50, seed=1_000_003)
        filtered = score_texts(model, tokens, method="smc", samples=samples // 4, refine=50, seed=1_000_003)
        found = [_truth(one, other) for one, other in zip(weighted, filtered, strict=True)]
        if samples >= MOST or sum(truth.standard_error for truth in found) <= TRUTH_ERROR * len(found):
            return found
        samples *= 4


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


def run(
    name: str, *, texts: int, size: int, estimates: int, samples: int, console: Console, device: str = "cpu"
) -> dict[str, Any]:
    """A row for one model. Raises UserError for a model or a device that is not there."""
    model = zoo.load(name, device=device)
    tokens = [tokenized(model, text) for text in published_texts(texts, size)]
    with console.status(f"{name}: the truth") as status:
        known = truths(model, tokens, samples=samples)
        used = [number for number, truth in enumerate(known) if truth.agrees]
        keys = [(number, estimate) for number in used for estimate in range(estimates)]
        scores = score_texts(
            model, [tokens[number] for number, _ in keys], keys=keys,
            progress=lambda done, total: status.update(f"{name}: {done} of {total} estimates"),
        )  # fmt: skip
    found = [(*covered(score, known[number]), score) for (number, _), score in zip(keys, scores, strict=True)]
    count, settled = max(1, len(scores)), [within for _, within, score in found if score.known]
    return {
        "model": name,
        "texts": texts,
        "agreeing": len(used),
        "estimates": estimates,
        "truth_error": sum(known[number].standard_error for number in used) / max(1, len(used)),
        "alone": sum(alone for alone, *_ in found) / count,
        "settled": len(settled) / count,
        "interval": sum(settled) / max(1, len(settled)),
        "by_filter": sum(score.method == "smc" for score in scores) / count,
        "converged": sum(score.converged for score in scores) / count,
        "samples": sum(score.samples for score in scores) / count,
        "bias": sum(score.value - known[number].value for (number, _), score in zip(keys, scores, strict=True)) / count,
    }


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """A line for each model."""
    made = Table(title="Intervals of 95% that hold the truth, scores of texts as they are made by default")
    columns = ("model", "texts (iwae and smc agree)", "error of the truth", "error alone", "settled", "interval of these",
               "converged", "by smc", "samples")  # fmt: skip
    for column in (*columns, "mean of value - truth"):
        made.add_column(column, justify="left" if column == "model" else "right")
    for row in rows:
        made.add_row(
            row["model"], f"{row['texts']} ({row['agreeing']})", f"{row['truth_error']:.3f} nats", f"{row['alone']:.1%}",
            f"{row['settled']:.0%}", f"{row['interval']:.1%}", f"{row['converged']:.0%}", f"{row['by_filter']:.0%}",
            f"{row['samples']:.0f}", f"{row['bias']:+.3f} nats",
        )  # fmt: skip
    return made


def main() -> None:
    """The command line described above."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.coverage", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shipped = [name for name in trained_cards() if not name.startswith("vanilla")]
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"default: {', '.join(shipped)}")
    parser.add_argument("--texts", type=int, default=20, help="default: 20")
    parser.add_argument("--bytes", type=int, default=64, help="of each text; default: 64")
    parser.add_argument("--estimates", type=int, default=50, help="independent scores of each text; default: 50")
    parser.add_argument("--samples", type=int, default=2048, help="of the truth; default: 2048")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
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
                device=options.device,
            )
        )
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        console.print(table(rows))


if __name__ == "__main__":
    main()
