"""Are the losses the same as at another revision, bit for bit? The test of a refactor (torchtitan's `loss_compare` is alike).

The working tree and REV each train every shipped recipe for a few steps (small batches of made-up text) and use every shipped
model that has weights: scores by four methods, greedy and drawn tokens. Every metric, score and token is compared, and the
weights after the last step by their hash. Only the command line is used, so modules may move between the two.

Exit status: 0 where all is the same, 1 where a number differs, 2 where something failed. A recipe or a model that only one of
the two has is listed, and is no difference.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from benchmarks.losses import comparing
from benchmarks.losses.comparing import Verdict
from benchmarks.losses.running import Case, run
from benchmarks.losses.trees import ROOT, RevisionError, Tree, checked_out
from benchmarks.outputs import writable

EXAMPLES = """examples:
  python -m benchmarks.losses --against HEAD                  what is not committed yet, against the last commit (20 seconds)
  python -m benchmarks.losses --against main --json losses.json
  python -m benchmarks.losses --against HEAD~3 --recipes 'chunk-*' --cards chunk-tiny
  python -m benchmarks.losses --against v0.1.0 --steps 10 --cards ''      ('' matches none)
  python -m benchmarks.losses --write-golden                  after a change that was meant: tests/golden_losses.json anew
"""
GOLDEN = ROOT / "tests" / "golden_losses.json"
HERE = "working tree"


def main() -> None:
    """The command line described above."""
    options = _parser().parse_args()
    console = Console()
    console.width = max(console.width, 110)  # tables are read in logs too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of the clean-up
    if options.write_golden:
        _write_golden(console)
        return
    try:
        sys.exit(_against(options, console))
    except RevisionError as error:
        console.print(f"[red]error:[/red] {escape(str(error))}", highlight=False)
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("stopped.")
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.losses",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--against", metavar="REV", help="revision to compare the working tree with: a commit, a branch, a tag")
    task.add_argument("--write-golden", action="store_true", help=f"write {GOLDEN.relative_to(ROOT)} anew")
    parser.add_argument("--recipes", metavar="GLOB", default="*", help="train these shipped recipes only")
    parser.add_argument("--cards", metavar="GLOB", default="*", help="use these shipped models only")
    parser.add_argument("--steps", metavar="N", type=_positive, default=3, help="optimiser steps of each recipe (default: 3)")
    parser.add_argument("--json", metavar="FILE", type=writable, help="write every difference to this file")
    return parser


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("at least one step")
    return number


def _against(options: argparse.Namespace, console: Console) -> int:
    """Compare, print, write; returns the exit status."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="latentlm-losses-") as name:
        folder = Path(name).resolve()
        with checked_out(options.against, folder / "tree") as (before, commit):
            trees = (before, Tree(HERE, ROOT))
            chosen = {"recipes": options.recipes, "cards": options.cards, "steps": options.steps}
            verdicts = compare(trees, **chosen, folder=folder, console=console)
    if all(verdict.status in ("new", "gone") for verdict in verdicts):
        patterns = f"recipe like {options.recipes!r} and no card like {options.cards!r}"
        raise RevisionError(f"nothing to compare: no {patterns} is shipped by both revisions.")
    _print(verdicts, trees, console)
    status, seconds = comparing.exit_status(verdicts), time.perf_counter() - started
    if options.json:
        facts = {"against": options.against, "commit": commit, "status": status, "seconds": round(seconds, 1)}
        written = facts | chosen | {"cases": comparing.as_json(verdicts)}
        options.json.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    words = ("The losses are the same, bit for bit", "Losses differ", "Some cases failed, so nothing is known of them")
    console.print(f"{words[status]} ({HERE} against {options.against} = {commit[:10]}, {seconds:.0f} s).", highlight=False)
    return status


def compare(
    trees: Sequence[Tree], *, recipes: str, cards: str, steps: int, folder: Path, console: Console
) -> list[Verdict]:
    """Run what both trees, the earlier one first, have of these names, and judge it; what one lacks is new or gone."""
    chosen = [
        {Case(kind, name) for kind, found in (("recipe", tree.recipes(recipes)), ("card", tree.cards(cards))) for name in found}
        for tree in trees
    ]
    cases = sorted(chosen[0] | chosen[1], key=lambda case: (case.kind != "recipe", case.name))
    shared = [case for case in cases if case in chosen[0] & chosen[1]]
    verdicts = {case: Verdict(case, "gone" if case in chosen[0] else "new") for case in cases if case not in shared}
    if shared:
        replies = run(trees, shared, steps=steps, folder=folder, console=console)
        labels = [tree.label for tree in trees]
        for case in shared:
            verdicts[case] = comparing.judge(case, {label: found[case] for label, found in zip(labels, replies, strict=True)})
    return [verdicts[case] for case in cases]


def _print(verdicts: list[Verdict], trees: Sequence[Tree], console: Console) -> None:
    """Tables, and the complaints of what failed."""
    labels = [tree.label for tree in trees]
    console.print(comparing.overview(verdicts, title=f"{labels[1]} against {labels[0]}"))
    table = comparing.details(verdicts, labels=labels)
    if table is not None:
        console.print(table)
    for verdict in verdicts:
        for label, error in verdict.errors.items():
            console.print(f"[red]failed[/red] {verdict.case.id} at {label}: {escape(error)}", highlight=False, soft_wrap=True)


def _write_golden(console: Console) -> None:
    """tests/golden_losses.json, for every shipped recipe."""
    from benchmarks.losses import golden  # imports torch

    numbers = golden.all_numbers(Tree(HERE, ROOT).recipes("*"), console=console)
    golden.write(GOLDEN, numbers)
    console.print(f"Written: {GOLDEN}")


if __name__ == "__main__":
    main()
