"""Fair timing on a machine that others use too: contenders take turns, and ratios are taken turn by turn.

One thread, CPU seconds: the time that a process is kept waiting does not count. What remains is the state of the shared caches,
which contenders of one round meet alike. Memory is measured in a process of its own for each contender.

A result row is a dictionary: suite, case, contender, reference, seconds (median), ratio (median over the rounds of its seconds
over the reference's), ratio_low and ratio_high (quartiles), runs; `extra_mib` where memory is measured.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]
ROOT = Path(__file__).resolve().parent.parent


def interleaved(contenders: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each contender in each round, after one warm-up each; every round begins with another one."""
    torch.set_num_threads(1)
    names = list(contenders)
    for name in names:
        contenders[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            gc.collect()
            start = time.process_time()
            contenders[name]()
            seconds[name].append(time.process_time() - start)
    return seconds


def summary(seconds: Mapping[str, list[float]], *, reference: str, **facts: Any) -> list[Row]:
    """One row per contender: median seconds, and its ratio to the reference with quartiles. `facts` go into every row."""
    rows = []
    for name, times in seconds.items():
        ratios = [mine / other for mine, other in zip(times, seconds[reference], strict=True)]
        low, middle, high = quartiles(ratios)
        rows.append(
            {
                **facts,
                "contender": name,
                "reference": reference,
                "seconds": statistics.median(times),
                "ratio": middle,
                "ratio_low": low,
                "ratio_high": high,
                "runs": len(times),
            }
        )
    return rows


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile; all the same for one value."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def command(doc: str | None, run: Callable[..., list[Row]]) -> None:
    """The command line of a benchmark: its rows as JSON."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, for a test of the benchmark itself")
    print(json.dumps(run(quick=parser.parse_args().quick)))


def call(module: str, *arguments: str) -> Any:
    """Run ``python -m module arguments`` on one thread and return what its last line says, read as JSON.

    Raises RuntimeError with the last line of its complaint."""
    command = [sys.executable, "-m", module, *arguments]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise RuntimeError(f"{' '.join(command[1:])} failed: {reason}")
    return json.loads(done.stdout.splitlines()[-1])
