"""Run the cases: `python -m hostile [PATTERN ...] [--jobs N] [--json FILE]` in tests/, or `make hostile`."""

from __future__ import annotations

import argparse
import fnmatch
import functools
import importlib
import json
import multiprocessing
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from hostile.harness import Case, Outcome, run

KINDS = ("writers", "isolation", "readers", "sizes", "values", "terminals")


def every(kinds: tuple[str, ...] = KINDS) -> Iterator[tuple[str, Case]]:
    """All cases with their kind, each name once."""
    for kind in kinds:
        for case in importlib.import_module(f"hostile.{kind}").cases():
            yield kind, case


def made(folder: Path) -> Path:
    """What cases find in their folders, made by another process: this one stays as it is."""
    subprocess.run([sys.executable, "-m", "hostile.base", str(folder)], check=True, stdout=sys.stderr)
    return folder


def ready() -> None:
    """Import what commands import, so that forks need not."""
    import lm_eval  # noqa: F401

    import latentlm.cli
    import latentlm.likelihood
    import latentlm.training.loop
    import latentlm.zoo
    import latentlm_evals.measure  # noqa: F401


_wanted: list[Case] = []
"""What forks know by number, since functions do not travel between processes."""


def _outcome(number: int, base: Path) -> Outcome:
    return run(_wanted[number], base)


def outcomes(wanted: list[Case], base: Path, jobs: int) -> Iterator[Outcome]:
    """In their order, some at a time."""
    _wanted[:] = wanted
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        yield from pool.imap(functools.partial(_outcome, base=base), range(len(wanted)))


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("patterns", nargs="*", help="of kinds or names, such as readers or '*latents*'")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write every outcome that is not clean")
    options = parser.parse_args()
    wanted = [(kind, case) for kind, case in every() if not options.patterns or any(
        kind == pattern or fnmatch.fnmatch(case.name, pattern) for pattern in options.patterns)]  # fmt: skip
    ready()
    with tempfile.TemporaryDirectory(prefix="hostile-base-") as folder:
        base = made(Path(folder) / "base")
        found = list(zip(wanted, outcomes([case for _, case in wanted], base, options.jobs), strict=True))
    counts: Counter[str] = Counter()
    rows = []
    for (kind, case), outcome in found:
        problems = outcome.problems(case)
        for problem in problems:
            counts[problem.split(":")[0][:40]] += 1
        if problems:
            said = {"output": outcome.output.decode(errors="replace")[-1500:], "errors": outcome.errors.decode(errors="replace")[-3000:]}
            rows.append({"kind": kind, "case": case.name, "problems": problems, **said})
            print(f"{kind}: {case.name}: {'; '.join(problems)}")
    print(f"{len(found) - len(rows)} of {len(found)} clean")
    for what, count in counts.most_common():
        print(f"  {count:4d} {what}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    sys.exit(bool(rows))


if __name__ == "__main__":
    main()
