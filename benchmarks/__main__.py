"""All benchmarks side by side: tables on the terminal, and docs/benchmarks.md.

Run: ``python -m benchmarks`` (10 minutes; ``make bench`` also installs x-transformers beside the environment), ``--quick``
(small sizes, under a minute, writes no page), ``--large`` (also loads an 8B model, 20 GiB), ``--json FILE``.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

from rich.console import Console

from benchmarks import mapper, report
from benchmarks.outputs import writable
from benchmarks.timing import ROOT, call


def main() -> None:
    """The command line described above."""
    style = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, formatter_class=style)
    parser.add_argument("--quick", action="store_true", help="small sizes; says that everything runs, and nothing about speed")
    parser.add_argument("--large", action="store_true", help="also load free-8b and run it on a few tokens")
    parser.add_argument("--json", type=writable, help="write all results to this file")
    parser.add_argument("--page", type=Path, help="where the page goes (default: docs/benchmarks.md; none with --quick)")
    options = parser.parse_args()
    page = options.page or (None if options.quick else ROOT / "docs" / "benchmarks.md")
    console = Console()
    console.width = max(console.width, 110)  # tables are read in logs too
    flags = "--quick" if options.quick else "--large" if options.large else ""
    results: report.Results = {
        "machine": report.machine(),
        "command": "make bench" + (f" BENCH_OPTIONS={flags}" if flags else ""),
    }
    quick = ["--quick"] if options.quick else []
    suites = {
        "mapper": lambda: mapper.run(quick=options.quick),
        "steps": lambda: call("benchmarks.steps", *quick),
        "ceiling": lambda: call("benchmarks.ceiling", *quick),
        "generation": lambda: call("benchmarks.generation", *quick),
        "scoring": lambda: call("benchmarks.scoring", *quick),
    }
    if options.large:
        suites["large"] = lambda: call("benchmarks.large")
    for suite, run in suites.items():
        console.print(f"[dim]{suite} ...[/dim]")
        results[suite] = run()
        for table in report.tables({suite: results[suite]}):
            console.print(table.rich())
    for aim, said, met in [] if options.quick else report.goals(results):
        console.print(f"{'met    ' if met else 'NOT MET'}  {aim}: {said}", highlight=False)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    if page is not None:
        page.write_text(report.page(results))
        console.print(f"Written: {page}")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
