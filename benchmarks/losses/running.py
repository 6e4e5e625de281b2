"""Both revisions at once, one process and one thread each, with a bar for each."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.losses.texts import make_texts
from benchmarks.losses.trees import Tree

DRIVER = Path(__file__).with_name("driver.py")
_Messages = queue.Queue[tuple[str, dict[str, Any] | None]]


@dataclass(frozen=True)
class Case:
    """A recipe to train or a card to use, by its name."""

    kind: str
    """ "recipe" or "card"."""
    name: str

    @property
    def id(self) -> str:
        """Kind and name."""
        return f"{self.kind} {self.name}"


@dataclass
class Reply:
    """What one revision says of one case."""

    numbers: dict[str, str]
    error: str | None = None
    seconds: float = 0.0


def run(trees: Sequence[Tree], cases: Sequence[Case], *, steps: int, folder: Path, console: Console) -> list[dict[Case, Reply]]:
    """Run the cases in every tree at once; one dictionary for each tree. What a process that died did not get to has an error.
    `folder` takes all that is written."""
    make_texts(folder / "texts")
    messages: _Messages = queue.Queue()
    replies: dict[str, dict[Case, Reply]] = {tree.label: {} for tree in trees}
    by_id = {case.id: case for case in cases}
    texts = TextColumn("{task.description}"), TextColumn("{task.fields[at]}")
    columns = texts[0], BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), texts[1]
    with ExitStack() as stack:
        children = {}
        for number, tree in enumerate(trees):
            inside = folder / f"side-{number}"
            children[tree.label] = stack.enter_context(_child(tree, cases, steps=steps, folder=inside, texts=folder / "texts"))
            threading.Thread(target=_listen, args=(tree.label, children[tree.label], messages), daemon=True).start()
        progress = stack.enter_context(Progress(*columns, console=console))
        bars = {tree.label: progress.add_task(tree.label, total=len(cases), at="starting") for tree in trees}
        left = len(trees)
        while left:
            label, message = messages.get()
            if message is None:
                left -= 1
            elif message["case"] is not None:
                case = by_id[message["case"]]
                replies[label][case] = Reply(message["numbers"], message["error"], message["seconds"])
                progress.update(bars[label], advance=1, at=case.id)
        for number, tree in enumerate(trees):
            note_death(children[tree.label], replies[tree.label], cases, folder / f"side-{number}" / "stderr.txt")
    return [replies[tree.label] for tree in trees]


@contextmanager
def _child(
    tree: Tree, cases: Sequence[Case], *, steps: int, folder: Path, texts: Path
) -> Iterator[subprocess.Popen[str]]:
    """A process that runs the cases in a tree; it is gone afterwards."""
    paths = {"recipe": tree.recipes("*"), "card": tree.cards("*")}
    job = {
        "root": str(tree.root),
        "entry_points": tree.entry_points(),
        "texts": str(texts),
        "out": str(folder / "runs"),
        "steps": steps,
        "cases": [{"id": c.id, "kind": c.kind, "name": c.name, "path": str(paths[c.kind][c.name])} for c in cases],
    }
    environment = tree.environment(folder / "metadata", folder / "home")
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    command = [sys.executable, "-P", str(DRIVER), str(folder / "job.json")]
    with (folder / "stderr.txt").open("w", encoding="utf-8") as complaints:
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=complaints, stdin=subprocess.DEVNULL, cwd=texts, env=environment, text=True
        )
        try:
            yield child
        finally:
            child.kill()
            child.wait()


def _listen(label: str, child: subprocess.Popen[str], messages: _Messages) -> None:
    """Pass on what a child says, and None at its end."""
    assert child.stdout is not None
    for line in child.stdout:
        messages.put((label, json.loads(line)))
    messages.put((label, None))


def note_death(child: subprocess.Popen[str], replies: dict[Case, Reply], cases: Sequence[Case], complaints: Path) -> None:
    """An error for every case that a process which failed left open; where it had none left, for the last one."""
    status = child.wait()
    if status == 0:
        return
    lines = complaints.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    reason = lines[-1] if lines else f"the process ended with status {status}"
    for case in [case for case in cases if case not in replies] or cases[-1:]:
        replies[case] = Reply({}, reason)
