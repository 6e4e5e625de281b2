"""Are training steps and generation as fast as at another revision?

The working tree, REV, and REV once more as a control, one process each on the same core, take turns: in every round each takes
a training step and generates with every shipped model, in an order drawn anew. A ratio is the median over the rounds of the
working tree's CPU seconds over REV's, with quartiles; how far the control is from 1 says what a ratio is worth on the machine.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from benchmarks.losses.trees import ROOT, RevisionError, Tree, checked_out
from benchmarks.outputs import writable
from benchmarks.timing import Row, summary

DRIVER = Path(__file__).with_name("driver.py")
EXAMPLES = """examples:
  python -m benchmarks.pace --against HEAD                    what is not committed yet, against the last commit (6 minutes)
  python -m benchmarks.pace --against main --cards 'free-*' --rounds 200 --json pace.json
"""
KINDS = ("training step", "generation")
HERE, CONTROL = "working tree", "control"
WARM_UP = 5
LEAST_ROUNDS = 10


def main() -> None:
    """The command line described above."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pace",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--against", metavar="REV", required=True, help="revision to compare with: a commit, a branch, a tag")
    parser.add_argument("--cards", metavar="GLOB", default="*", help="these shipped models only")
    parser.add_argument("--rounds", metavar="N", type=int, default=100, help="turns of each revision (default: 100)")
    parser.add_argument("--json", metavar="FILE", type=writable, help="write the rows to this file")
    options = parser.parse_args()
    console = Console()
    console.width = max(console.width, 110)  # tables are read in logs too
    if options.rounds < LEAST_ROUNDS:
        parser.error(f"--rounds: at least {LEAST_ROUNDS}; quartiles of fewer say nothing")
    try:
        with tempfile.TemporaryDirectory(prefix="latentlm-pace-") as name:
            folder = Path(name).resolve()
            with checked_out(options.against, folder / "tree") as (before, _):
                rows = measured(before, options.cards, rounds=options.rounds, folder=folder, console=console)
    except RevisionError as error:
        console.print(f"[red]error:[/red] {escape(str(error))}", highlight=False)
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("stopped.")
        sys.exit(130)
    console.print(table(rows, against=options.against))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def measured(before: Tree, cards: str, *, rounds: int, folder: Path, console: Console) -> list[Row]:
    """Rows of benchmarks/timing.py, of the working tree and of the control, for each card that both revisions ship."""
    here = Tree(HERE, ROOT)
    shared = sorted(before.cards(cards).keys() & here.cards(cards).keys())
    if not shared:
        raise RevisionError(f"nothing to compare: no card like {cards!r} is shipped by both revisions.")
    trees = {before.label: before, HERE: here, CONTROL: before}
    rows: list[Row] = []
    with ExitStack() as stack:
        children = {
            label: stack.enter_context(_child(tree, shared, folder=folder / f"side-{number}"))
            for number, (label, tree) in enumerate(trees.items())
        }
        for card, what in track([(card, what) for card in shared for what in KINDS], "taking turns", console=console):
            seconds = _turns(children, card, what, rounds=rounds)
            rows += summary(seconds, reference=before.label, suite="pace", case=f"{card}, {what}", card=card, what=what)
    return [row for row in rows if row["contender"] != before.label]


def _turns(children: Mapping[str, _Child], card: str, what: str, *, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each child in each round."""
    seconds: dict[str, list[float]] = {label: [] for label in children}
    order = list(children)
    for turn in range(-WARM_UP, rounds):
        random.Random(turn).shuffle(order)
        for label in order:
            taken = children[label].ask(card=card, what=what, turn=turn + WARM_UP)
            if turn >= 0:
                seconds[label].append(taken)
    return seconds


class _Child:
    """A revision in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], label: str, complaints: Path) -> None:
        self._process, self._label, self._complaints = process, label, complaints
        self._answer()

    def ask(self, **request: object) -> float:
        """CPU seconds of a request. Raises RevisionError where the process died."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return float(self._answer()["seconds"])

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            said = self._complaints.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise RevisionError(f"{self._label} failed: {said[-1] if said else 'its process ended'}")
        answer: dict[str, float] = json.loads(line)
        return answer


@contextmanager
def _child(tree: Tree, cards: list[str], *, folder: Path) -> Iterator[_Child]:
    """A process that answers for a tree; it is gone afterwards."""
    environment = tree.environment(folder / "metadata", folder / "home")
    paths = {name: str(path) for name, path in tree.cards("*").items() if name in cards}
    (folder / "job.json").write_text(json.dumps({"root": str(tree.root), "cards": paths}), encoding="utf-8")
    command = [sys.executable, "-P", str(DRIVER), str(folder / "job.json")]
    with (folder / "stderr.txt").open("w", encoding="utf-8") as complaints:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints, cwd=folder, env=environment, text=True
        )
        try:
            yield _Child(process, tree.label, folder / "stderr.txt")
        finally:
            process.kill()
            process.communicate()


def table(rows: list[Row], *, against: str) -> Table:
    """A line for each card and kind of work."""
    made = Table(title=f"CPU seconds over those of {against}: median of {rows[0]['runs']} rounds (quartiles)")
    made.add_column("card")
    made.add_column("work")
    for label in (HERE, CONTROL):
        made.add_column(label, justify="right")
    for case in dict.fromkeys(row["case"] for row in rows):
        found = {row["contender"]: row for row in rows if row["case"] == case}
        pair = [found[label] for label in (HERE, CONTROL)]
        cells = [f"{row['ratio']:.3f} ({row['ratio_low']:.3f}-{row['ratio_high']:.3f})" for row in pair]
        made.add_row(pair[0]["card"], pair[0]["what"], *cells)
    return made


if __name__ == "__main__":
    main()
