"""Gradient estimators of the table's bits: bias and variance, time and memory, and what a short training makes of them.

    bias      every estimator against the enumerated gradient of a small model (benchmarks/estimator_bias.py)
    cost      bit logits to R and back for 2,048 tokens, D = 512, H = 8, 12, 16, full table: CPU time and memory over `exact`'s
    learning  random symbols through the latent, 4 of 8 bits needed: cross-entropy under the posterior after a few hundred steps

Times are CPU seconds of one thread; contenders take turns, ratios are taken turn by turn. Memory is the growth of the peak in a
process of its own. In `cost` the table is fixed, so that the gradient of the logits is timed alone; the last column adds the
table's gradient, which is the same for all (it fills 2^H rows).

Run: ``python -m benchmarks.estimators [--quick] [--only SUITE] [--json FILE] [--markdown]`` (about 10 minutes on an idle core).
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console

from benchmarks import estimator_bias
from benchmarks.outputs import writable
from benchmarks.report import Table
from benchmarks.timing import Row, call, interleaved, summary
from latentlm.interface import Noise
from latentlm.training.record.memory import peak_mib
from latentlm_free.estimators import Estimator
from latentlm_free.table import make_table

CONTENDERS = {
    "exact": Estimator(),
    "sampled, m=1": Estimator("sampled", samples=1),
    "sampled, m=8": Estimator("sampled", samples=8),
    "sampled, m=32": Estimator("sampled", samples=32),
    "reinmax": Estimator("reinmax"),
    "reinmax, m=8": Estimator("reinmax", samples=8),
    "straight_through": Estimator("straight_through"),
    "concrete": Estimator("concrete"),
}
WEIGHED = ("exact", "sampled, m=8", "reinmax", "straight_through")  # memory: the others are of the same kind
LEARNERS = {name: settings for name, settings in estimator_bias.ESTIMATORS.items() if name != "sampled, m=1"}
LN2 = 0.6931471805599453
ROWS = 8  # of a batch, each with its own noise


def cost(*, quick: bool = False) -> list[Row]:
    """A row for each H and estimator: seconds, ratio to `exact` (median, quartiles), whole_ratio, extra_mib of some."""
    tokens, width, sizes, rounds = (64, 16, (4, 10), 2) if quick else (2048, 512, (8, 12, 16), 3)
    rows: list[Row] = []
    for bits in sizes:
        facts = {"suite": "cost", "bits": bits, "width": width, "tokens": tokens}
        alone = {name: _step(name, bits, width, tokens, train_table=False) for name in CONTENDERS}
        found = summary(interleaved(alone, rounds=rounds), reference="exact", **facts)
        whole = {name: _step(name, bits, width, tokens, train_table=True) for name in CONTENDERS}
        for row, other in zip(found, summary(interleaved(whole, rounds=rounds), reference="exact"), strict=True):
            row["whole_ratio"] = other["ratio"]
            if row["contender"] in WEIGHED:
                case = {"name": row["contender"], "bits": bits, "width": width, "tokens": tokens}
                row["extra_mib"] = call("benchmarks.estimators", "--memory", json.dumps(case))
        rows += found
    return rows


def _step(name: str, bits: int, width: int, tokens: int, *, train_table: bool) -> Callable[[], object]:
    """One forward and backward: sampled bits and their logits to R, upstream gradients back to the logits."""
    generator = torch.Generator().manual_seed(0)
    shape = (ROWS, tokens // ROWS)
    logits = torch.randn(*shape, bits, generator=generator).requires_grad_()
    noise = Noise.keyed(0, range(ROWS))
    sampled = (noise.uniform(shape[1], bits) < logits.sigmoid()).float()
    upstream = torch.randn(*shape, width, generator=generator)
    table = make_table("full", bits, width, estimator=CONTENDERS[name])
    table.init_weights(std=0.02, generator=generator)
    table.requires_grad_(train_table)
    wanted = [logits, *(table.parameters() if train_table else ())]
    return lambda: torch.autograd.grad(table(sampled, logits, noise), wanted, upstream)


def memory(case: dict[str, Any]) -> float:
    """MiB by which the peak of this process grows in two steps."""
    torch.set_num_threads(1)
    _step(case["name"], 4, 16, 64, train_table=False)()  # loads the libraries, which are nobody's working set
    step = _step(case["name"], case["bits"], case["width"], case["tokens"], train_table=False)
    before = peak_mib()
    step()
    step()
    return peak_mib() - before


def learning(*, quick: bool = False) -> list[Row]:
    """A row for each table, estimator and seed: cross-entropy under the posterior and KL, bits per token, after training."""
    seeds, steps = (1, 2) if quick else (2, 300)
    rows: list[Row] = []
    for table in ("full", "additive"):
        for name, settings in LEARNERS.items():
            for seed in range(seeds):
                model = estimator_bias.model_of(table, settings, seed=seed, bits=8, symbols=16, free=4.0)
                estimator_bias.train(model, steps=steps, seed=seed, symbols=16)
                batch = estimator_bias.texts(256, 8, seed=10**9, symbols=16)
                with torch.no_grad():
                    loss = model.loss(batch, step=steps, noise=Noise.keyed(seed, range(256)))
                assert loss.kl is not None
                nats = loss.reconstruction.sum() / batch.target_mask.sum()
                kl = loss.kl.sum(-1).mean()
                facts = {"suite": "learning", "table": table, "estimator": name, "seed": seed}
                rows.append({**facts, "cross_entropy": nats.item() / LN2, "kl": kl.item() / LN2})
    return rows


SUITES: dict[str, Callable[..., list[Row]]] = {"bias": estimator_bias.run, "cost": cost, "learning": learning}


def _spread(values: list[float], digits: int) -> str:
    """Median and range."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _grouped(rows: list[Row], *keys: str) -> dict[tuple[Any, ...], list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def bias_table(rows: list[Row]) -> Table:
    """Median and range over the seeds."""
    cells = []
    for (state, table, estimator), group in _grouped(rows, "state", "table", "estimator").items():
        columns = [_spread([row[key] for row in group], 2) for key in ("bias", "cosine", "noise")]
        cells.append([f"{state}, {table}", estimator, *columns])
    note = "Over the length of the true gradient; median and range over the seeds."
    return Table("Bias and noise", note, ["model", "estimator", "bias", "cosine", "noise"], cells)


def cost_table(rows: list[Row]) -> Table:
    """Ratios to `exact` at the same H."""
    cells = []
    for row in rows:
        ratio = f"{row['ratio']:.3f} ({row['ratio_low']:.3f}-{row['ratio_high']:.3f})"
        mib = f"{row['extra_mib']:.0f}" if "extra_mib" in row else ""
        numbers = [f"{1e3 * row['seconds']:.1f}", ratio, mib, f"{row['whole_ratio']:.3f}"]
        cells.append([f"H={row['bits']}", row["contender"], *numbers])
    note = "Time over `exact`'s at the same H (median, quartiles); memory is the growth of the peak."
    return Table("Cost", note, ["size", "estimator", "CPU ms", "time ratio", "MiB", "ratio, table trained"], cells)


def learning_table(rows: list[Row]) -> Table:
    """Median and range over the seeds."""
    cells = []
    for (table, estimator), group in _grouped(rows, "table", "estimator").items():
        columns = [_spread([row[key] for row in group], 2) for key in ("cross_entropy", "kl")]
        cells.append([table, estimator, *columns])
    note = "Bits per token; 4 bits is what nobody who ignores the latent can beat."
    return Table("Learning", note, ["table", "estimator", "cross-entropy", "KL"], cells)


TABLES = {"bias": bias_table, "cost": cost_table, "learning": learning_table}


def main() -> None:
    """The command line described above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, for a test of the benchmark itself")
    parser.add_argument("--only", choices=sorted(SUITES), help="one suite")
    parser.add_argument("--json", type=writable, help="also write the results to this file")
    parser.add_argument("--markdown", action="store_true", help="print the tables as on the page")
    parser.add_argument("--memory", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print(json.dumps(memory(options.memory)))
        return
    torch.set_num_threads(1)
    console = Console(width=110)
    results = {}
    for suite in [options.only] if options.only else SUITES:
        results[suite] = SUITES[suite](quick=options.quick)
        table = TABLES[suite](results[suite])
        if options.markdown:
            print(table.markdown())
        else:
            console.print(table.rich())
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
