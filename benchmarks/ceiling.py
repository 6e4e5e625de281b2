"""A training step against one large matrix product, and where the rest of its time goes.

    a large product      2048 x 2048 by 2048 x 2048 in float32, by torch.matmul and by oneDNN where PyTorch has it; the faster
                         of the two is the peak
    vanilla, free, ...   the steps of benchmarks/steps.py: operations as `latentlm zoo show` counts them, a causal block
                         seeing half its context

Below each step stand the operators that take most of it, from PyTorch's profiler, and of matrix products the speed.

Run: ``python -m benchmarks.ceiling [--quick]`` (about 2 minutes); prints rows of benchmarks/timing.py as JSON.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from benchmarks.contenders import FULL, QUICK, Size, free, vanilla
from benchmarks.steps import Step, make
from benchmarks.timing import Row, command, interleaved, summary
from latentlm.zoo.accounting import cost_of

EDGE = 2048
ONE_DNN = "mkldnn::_linear_pointwise"
COUNTED = ("aten::mm", "aten::addmm", "aten::bmm", ONE_DNN)
PROFILED = 5  # steps
SHOWN = 0.02  # operators below this share of a step are taken together


def names(size: Size) -> list[str]:
    """The steps, the reference first."""
    frees = [f"free H={bits}" for bits in size.bits]
    return ["vanilla", "transformers Llama", *frees, f"{frees[-1]}, additive table"]


def run(*, quick: bool = False) -> list[Row]:
    """A row for each product and each step; the steps' with their operators."""
    size, edge = (QUICK, 256) if quick else (FULL, EDGE)
    jobs: dict[str, Step] = {name: make(name, size)[1] for name in names(size)}
    products = _products(edge)
    rows = summary(interleaved(jobs | products, rounds=size.rounds), reference="vanilla", suite="ceiling", case=str(size))
    for row in rows:
        name = row["contender"]
        row["gigaflop"] = 2 * edge**3 / 1e9 if name in products else _gigaflop(name, size)
        row["operators"] = [] if name in products else _operators(jobs[name])
    peak = max(row["gigaflop"] / row["seconds"] for row in rows if row["contender"] in products)
    for row in rows:
        row["peak"] = peak  # in gigaflop per second
    return rows


def _products(edge: int) -> dict[str, Step]:
    a, b = torch.randn(edge, edge), torch.randn(edge, edge)
    products: dict[str, Step] = {"a large product, torch.matmul": lambda: a @ b}
    if torch.backends.mkldnn.is_available():
        products["a large product, oneDNN"] = lambda: torch.ops.latentlm.linear(a, b)
    return products


def _gigaflop(name: str, size: Size) -> float:
    """Of a step. The Llama has the shape of vanilla."""
    if not name.startswith("free"):
        model = vanilla(size)
    else:
        bits = int(name.split("=")[1].split(",")[0])
        model = free(size, bits, table="additive" if name.endswith("additive table") else "full")
    return size.rows * size.tokens * cost_of(model, dtype=torch.float32).training_flops_per_token / 1e9


def _operators(step: Step) -> list[dict[str, Any]]:
    """The operators that take most of a step: name, calls, share of its time, gigaflop per second (None: not known). Times are
    medians over steps, for the profiler's clock goes on where the process is kept waiting."""
    step()
    times: dict[str, list[float]] = {}
    for _ in range(PROFILED):
        with profile(activities=[ProfilerActivity.CPU], with_flops=True, record_shapes=True) as seen:
            step()
        events: dict[str, list[FunctionEvent]] = {}
        for event in seen.events() or ():
            events.setdefault(event.name, []).append(event)
        for name, found in events.items():
            times.setdefault(name, []).append(sum(event.self_cpu_time_total for event in found))
    microseconds = {name: statistics.median(each) for name, each in times.items()}
    total = sum(microseconds.values())
    shown = [name for name in sorted(events, key=lambda name: -microseconds[name]) if microseconds[name] >= SHOWN * total]
    rows: list[dict[str, Any]] = []
    for name in shown:
        speed = sum(map(_operations, events[name])) / microseconds[name] / 1e3 if name in COUNTED else None
        share = microseconds[name] / total
        rows.append({"operator": name, "calls": len(events[name]), "share": share, "gigaflops": speed})
    others = [name for name in events if name not in shown]
    rest = 1.0 - sum(row["share"] for row in rows)
    calls = sum(len(events[name]) for name in others)
    return [*rows, {"operator": f"{len(others)} other operators", "calls": calls, "share": rest, "gigaflops": None}]


def _operations(event: FunctionEvent) -> float:
    """Of a matrix product; oneDNN's is unknown to the profiler."""
    if event.name != ONE_DNN:
        return float(event.flops or 0)
    (rows, inputs), (outputs, _), *_ = event.input_shapes
    return 2.0 * rows * inputs * outputs


if __name__ == "__main__":
    command(__doc__, run)
