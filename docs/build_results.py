"""The tables of docs/results.md and docs/alive.md, from the lines that the studies keep beside them.

    python docs/build_results.py            write the tables
    python docs/build_results.py --check    exit with 1 if a page is not what would be written

In a page a table stands between the lines <!-- numbers: NAME --> and <!-- end of numbers -->, NAME a study of studies/, with
-latents behind it for what z carries.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.pages import filled, markdown
from latentlm_evals.study.plan import Study, read_study, runs_of
from latentlm_evals.study.results import ArmResult, finished, read_lines, tabulated
from latentlm_evals.study.table import LATENTS, SCORES, latents, scores

ROOT = Path(__file__).resolve().parent.parent
STUDIES = ROOT / "studies"
PAGES = (ROOT / "docs" / "results.md", ROOT / "docs" / "alive.md")


@functools.cache
def results(name: str) -> tuple[Study, int, int, list[ArmResult]]:
    """A study, its runs, how many of them are finished, and what they say."""
    path = STUDIES / f"{name}.yaml"
    study = read_study(path)
    runs = runs_of(study, path.parent)
    lines = finished(runs, read_lines(path.with_suffix(".jsonl")))
    return study, len(runs), len(lines), tabulated(study, lines)


def predicted(name: str) -> str:
    """How well each arm predicts; above the table how much of the study is done, and where."""
    study, runs, done, found = results(name)
    left = "" if done == runs else f"; **{runs - done} of {runs} runs are not made yet**"
    alone = sum(one.runs == 1 for one in found)
    seeds = f"{alone} arms have one seed: no ranking" if alone else "intervals cover texts and seeds"
    about = study.description.rstrip(".")
    head = f"`latentlm study studies/{name}.yaml --table`: {about} ({seeds}{left})."
    return f"{head}\n\n{_table(SCORES, scores(found), found, study)}"


def carried(name: str) -> str:
    """What z carries in each arm that has one."""
    study, _, _, found = results(name)
    latent = [one for one in found if "ce_posterior" in one.means]
    return _table(LATENTS, latents(latent), latent, study)


def _table(head: Sequence[str], cells: Sequence[Sequence[str]], found: Sequence[ArmResult], study: Study) -> str:
    """Without columns that say nothing; behind each arm's name what it is for."""
    kept = [number for number in range(1, len(head)) if any(row[number] != "–" for row in cells)]
    says = [f"`{one.arm}`" + (f": {study.arms[one.arm].says}" if study.arms[one.arm].says else "") for one in found]
    rows = [[said, *(row[number] for number in kept)] for said, row in zip(says, cells, strict=True)]
    return markdown([head[0], *(head[number] for number in kept)], rows)


def blocks() -> dict[str, Callable[[], str]]:
    """A table for each study that has lines."""
    made: dict[str, Callable[[], str]] = {}
    for path in sorted(STUDIES.glob("*.jsonl")):
        made[path.stem] = functools.partial(predicted, path.stem)
        made[f"{path.stem}-latents"] = functools.partial(carried, path.stem)
    return made


def main() -> None:
    """The command line described above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a page is out of date")
    check = parser.parse_args().check
    stale = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        new = filled(text, blocks())
        if new != text:
            stale.append(page.name)
            if not check:
                page.write_text(new, encoding="utf-8")
    if check and stale:
        sys.exit(f"Out of date: {', '.join(stale)}. Run: python docs/build_results.py")


if __name__ == "__main__":
    main()
