"""What the intervals of scores are worth on decoders small enough to be summed over all latents: the share of them that
hold the truth, with the decoder's own encoder and under a planted posterior far from the prior.

Run: ``python -m benchmarks.kit_intervals`` (2 minutes on a core) writes docs/numbers/kit-intervals.json, from which
``python docs/build_numbers.py`` fills docs/conformance.md; `make numbers` does both where the rule of intervals has changed.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.coverage import RULE
from latentlm.likelihood import Method
from latentlm.testing import check_coverage
from latentlm.testing.subject import Subject

FILE = Path(__file__).resolve().parent.parent / "docs" / "numbers" / "kit-intervals.json"
TRIALS = 200
DECODERS = ("free", "causal")
CELLS: tuple[tuple[str, Method, int], ...] = (
    ("own", "iwae", 64), ("own", "operational", 64), ("own", "smc", 64),
    ("planted", "iwae", 64), ("planted", "iwae", 256), ("planted", "operational", 128), ("planted", "smc", 64),
)  # fmt: skip
"""Encoder, method, samples."""


def measured(*, trials: int = TRIALS) -> dict[str, Any]:
    """The shares of one text of four tokens."""
    rows = []
    for decoder in DECODERS:
        subject = Subject(decoder)
        for encoder, method, samples in CELLS:
            model = subject.exact if encoder == "own" else subject.planted
            share = check_coverage(model, [0, 1], [1, 1], method=method, samples=samples, trials=trials, at_least=0)
            rows.append({"decoder": decoder, "encoder": encoder, "method": method, "samples": samples, "share": share})
    return {"rule": RULE, "trials": trials, "nominal_error": math.sqrt(0.95 * 0.05 / trials), "rows": rows}


def kept_shares() -> dict[str, Any] | None:
    """What is kept; None where it is not there, or of another rule."""
    found: dict[str, Any] | None = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else None
    return found if found is not None and found["rule"] == RULE else None


def measure_shares(console: Console) -> None:
    """Measure and write."""
    with console.status(f"Scoring a text {TRIALS} times by each estimator"):
        found = measured()
    FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    console.print(f"Wrote {FILE}.")


if __name__ == "__main__":
    measure_shares(Console())
