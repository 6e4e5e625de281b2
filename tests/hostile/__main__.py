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
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import track

from hostile.harness import Case, Outcome, run
from latentlm.errors import shown

KINDS = ("writers", "isolation", "readers", "sizes", "values", "terminals", "streams", "records", "large", "token_shards",
         "lines_of_studies", "tasks", "unfinished")  # fmt: skip


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

    import latentlm_evals.measure  # noqa: F401


_wanted: list[Case] = []
"""What forks know by number, since functions do not travel between processes."""


def _outcome(number: int, base: Path) -> Outcome:
    return run(_wanted[number], base)


def outcomes(wanted: list[Case], base: Path, jobs: int) -> Iterator[Outcome]:
    """In their order, some at a time. Each has a process of its own from the start: what one has prepared would count as memory
    of the next."""
    _wanted[:] = wanted
    with multiprocessing.get_context("fork").Pool(jobs, maxtasksperchild=1) as pool:
        yield from pool.imap(functools.partial(_outcome, base=base), range(len(wanted)))


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("patterns", nargs="*", help="of kinds or names, such as readers or '*latents*'")
    parser.add_argument("--every", type=int, default=1, help="only every so many-th case of those chosen")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write every outcome that is not clean")
    options = parser.parse_args()
    wanted = [
        (kind, case)
        for kind, case in every()
        if not options.patterns or any(kind == pattern or fnmatch.fnmatch(case.name, pattern) for pattern in options.patterns)
    ]
    wanted = wanted[:: options.every]
    ready()
    rows: list[dict[str, object]] = []
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="hostile-base-") as folder:
        found = outcomes([case for _, case in wanted], made(Path(folder) / "base"), options.jobs)
        for (kind, case), outcome in track(zip(wanted, found, strict=True), "Bad inputs", total=len(wanted), console=console):
            if problems := outcome.problems(case):
                said = {name: getattr(outcome, name).decode(errors="replace")[-3000:] for name in ("output", "errors")}
                rows.append({"kind": kind, "case": case.name, "problems": problems, **said})
                print(shown(f"{kind}: {case.name}: {'; '.join(problems)}"), flush=True)
    print(f"{len(wanted) - len(rows)} of {len(wanted)} clean")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    sys.exit(bool(rows))


if __name__ == "__main__":
    main()
