"""Measure the parts in turn, each in a process of its own, and print one table.

A part that fails, or takes too long, loses its later rows only; the file is written after each row. Parts: ceilings, mapper,
attention, head, noise.

Run: ``python -m benchmarks.gpu_kernels [--json FILE] [--parts NAME ...]`` on a machine with an NVIDIA GPU of 80 GB (some two
minutes), or ``--quick`` on any, for a test of the benchmark itself.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_kernels.events import Bench
from benchmarks.outputs import writable
from benchmarks.report import machine
from benchmarks.timing import ROOT, Row

PARTS = ("ceilings", "mapper", "attention", "head", "noise")
LIMIT = 130  # seconds of one part


def measure(part: str, *, quick: bool) -> Iterator[Row]:
    """The rows of one part, as its process prints them; a last one with the error where it ends badly."""
    command = [sys.executable, "-m", "benchmarks.gpu_kernels", "--part", part, *(["--quick"] if quick else [])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with tempfile.TemporaryFile("w+") as complaints:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaints, text=True, env=environment)
        assert process.stdout is not None
        alarm = threading.Timer(LIMIT, process.kill)
        alarm.start()
        try:
            for line in process.stdout:
                if line.startswith("{"):
                    yield json.loads(line)
            process.wait()  # the alarm sees that it ends
        finally:
            alarm.cancel()
            process.kill()
        if process.wait():
            complaints.seek(0)
            last = (complaints.read().strip().splitlines() or [""])[-1]
            yield {"suite": part, "case": "", "contender": "the rest", "error": f"status {process.returncode}: {last}"}


def lines(rows: list[Row]) -> list[str]:
    """A short table: of a kernel's variants the fastest one that worked, without the quartiles."""
    ceilings = {row["contender"].split(", ")[-1]: row["teraflops"] for row in rows if "teraflops" in row}
    result = [f"{'contender':56}{'ms':>9}{'TFLOP/s':>9}{'share':>6}{'GiB':>6} error"]
    heading = ""
    for row in fastest(rows):
        if (here := f"{row['suite']}: {row['case']}") != heading:
            heading = here
            result.append(heading)
        result.append(f"  {row['contender']:54}{said(row, ceilings)}")
    return result


def fastest(rows: list[Row]) -> list[Row]:
    """Rows without `variant`, and the fastest of each variant in each case (the first, if all failed)."""
    best: dict[tuple[str, str], Row] = {}
    for row in rows:
        if "variant" in row:
            key = row["case"], row["variant"]
            if key not in best or row.get("milliseconds", inf) < best[key].get("milliseconds", inf):
                best[key] = row
    chosen = [id(row) for row in best.values()]
    return [row for row in rows if "variant" not in row or id(row) in chosen]


def rate_of(row: Row) -> float:
    """TFLOP/s; 0 where no operations are counted."""
    found: float = row.get("teraflops") or 1e3 * row.get("teraflop", 0.0) / row["milliseconds"]
    return found


def said(row: Row, ceilings: dict[str, float]) -> str:
    """Milliseconds, rate, share of the measured ceiling, memory, and the error of the result."""
    if "error" in row:
        return f" {row['error'][:70]}"
    if "milliseconds" not in row:
        return " " + ", ".join(f"{name} {value:.4g}" for name, value in row.items() if isinstance(value, int | float))
    rate = rate_of(row)
    ceiling = ceilings.get(row.get("unit", ""))
    speed = f"{row['terabytes_per_second']:.2f}TB/s" if "terabytes_per_second" in row else f"{rate:.0f}" if rate else ""
    share = f"{rate / ceiling:.0%}" if ceiling and rate else ""
    memory = f"{row['extra_gib']:.2f}" if "extra_gib" in row else ""
    found = row.get("error_gradient", row.get("equal", ""))
    error = f"{found:.1e}" if isinstance(found, float) else "equal" if found is True else "NOT EQUAL" if found is False else ""
    return f"{row['milliseconds']:9.3f}{speed:>9}{share:>6}{memory:>6} {error}"


def facts() -> dict[str, Any]:
    """The machine, its GPU among it."""
    if not torch.cuda.is_available():
        return machine()
    properties = torch.cuda.get_device_properties(0)
    return machine() | {"gpu": properties.name, "gib": round(properties.total_memory / 2**30, 1), "cuda": torch.version.cuda}


def main(arguments: list[str] | None = None) -> None:
    """The command line described above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, on a CPU too, for a test of the benchmark itself")
    parser.add_argument("--json", type=writable, help="also write the rows to this file, after each one")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="these only")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not (options.quick or torch.cuda.is_available()):
        parser.error("no CUDA device: run this on a machine with an NVIDIA GPU, or try --quick.")
    if options.part:
        one(options.part, quick=options.quick)
        return
    rows: list[Row] = []
    for part in options.parts:
        started = time.perf_counter()
        for row in measure(part, quick=options.quick):
            rows.append(row)
            if options.json:
                write(options.json, rows)
        print(f"{part}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    print("\n".join(lines(rows)))


def one(part: str, *, quick: bool) -> None:
    """One part in this process; its rows on the standard output."""
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run: Callable[[Bench], None] = importlib.import_module(f"benchmarks.gpu_kernels.{part}").run
    run(Bench(part, device, quick))


def write(path: Path, rows: list[Row]) -> None:
    """The file, whole after each row."""
    results = {"machine": facts(), "command": "python -m benchmarks.gpu_kernels", "rows": rows}
    path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
