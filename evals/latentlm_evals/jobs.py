"""Training several recipes side by side, each in a process of its own, with one table of progress.

Each process is `latentlm train`, so what it writes is an ordinary run folder, and an interrupted comparison goes on
where it stopped.
Two one-thread processes use two cores better than one process with two threads.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from latentlm.cli.text import escaped
from latentlm.config.writing import check_replaceable, open_to_append
from latentlm.errors import UserError
from latentlm.training.record import METRICS, whole_lines
from latentlm.training.record.reporting import bound_text
from latentlm_evals.outputs import made_folder
from latentlm_evals.progress import Lines

_POLL_SECONDS = 0.5
_ENDING = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
_LOG = "# a log of latentlm\n"


@dataclass
class Job:
    """One recipe to train into one folder."""

    name: str
    recipe: str
    out: Path
    steps: int
    overrides: list[str]

    @property
    def log(self) -> Path:
        """What its process says, beside its folder."""
        return self.out.parent / f"{self.name}.log"

    def has_log(self, path: Path) -> bool:
        """Whether a file is the log of such a job, to which more may be added."""
        with path.open("rb") as file:
            return self.out.exists() or file.read(len(_LOG)) in (b"", _LOG.encode())

    def command(self) -> list[str]:
        """The `latentlm train` call; a run that was begun goes on."""
        resume = ["--resume"] if self.out.exists() else []
        train = [sys.executable, "-m", "latentlm.cli", "train", self.recipe, *self.overrides]
        return [*train, "--out", str(self.out), "--quiet", *resume]


def train_all(
    jobs: list[Job],
    *,
    parallel: int,
    console: Console,
    finished: Callable[[Job, Callable[[str], None]], None] = lambda job, say: None,
) -> None:
    """Train every job, `parallel` at a time. `finished(job, say)` is called for each that is done, while the others go on;
    `say` writes beside its bar. Raises UserError with the job's own message if one fails."""
    for job in jobs:
        check_replaceable(job.log, job.has_log, kind="a log of latentlm")
    waiting, running = list(jobs), dict[str, tuple[Job, subprocess.Popen[str]]]()
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:>5.0f}/{task.total:.0f} steps"),
        TextColumn("{task.fields[numbers]}"), TimeRemainingColumn(),
    )  # fmt: skip
    lines = Lines(console)
    with _terminable(), Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bars = {job.name: progress.add_task(escaped(job.name), total=job.steps, numbers="starting") for job in jobs}
        try:
            while waiting or running:
                while waiting and len(running) < parallel:
                    job = waiting.pop(0)
                    running[job.name] = (job, _start(job, threads=max(1, (os.cpu_count() or 1) // parallel)))
                for job, process in list(running.values()):
                    _show(progress, bars[job.name], job, lines)
                    if process.poll() is not None:
                        del running[job.name]
                        _check(job, process)
                        lines(job.name, "trained", now=True)
                        finished(job, _said(progress, bars[job.name], job, lines))
                time.sleep(_POLL_SECONDS)
        finally:
            for _, process in running.values():
                process.terminate()  # the trainer saves and says how to go on
            for _, process in running.values():  # once all know: a second signal may end the waiting
                process.wait()


@contextmanager
def _terminable() -> Iterator[None]:
    """Within the block SIGTERM and the end of the terminal raise SystemExit, by way of the clean-up: what was started must not
    outlive its starter. What is ignored stays so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = [number for number in _ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda got, _: sys.exit(128 + got)) for number in asked}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _said(progress: Progress, bar: TaskID, job: Job, lines: Lines) -> Callable[[str], None]:
    def say(text: str) -> None:
        progress.update(bar, numbers=text)
        lines(job.name, text)

    return say


def _start(job: Job, *, threads: int) -> subprocess.Popen[str]:
    """What the environment says of threads goes before ours: on a busy machine one is far faster than two."""
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}  # MKL follows it
    made_folder(job.out.parent)
    log = open_to_append(job.log)
    if not log.tell():
        log.write(_LOG)
        log.flush()
    return subprocess.Popen(job.command(), env=environment, stdout=log, stderr=subprocess.STDOUT, text=True)


def _check(job: Job, process: subprocess.Popen[str]) -> None:
    if process.returncode:
        last = job.log.read_text(encoding="utf-8", errors="replace").removeprefix(_LOG).strip().splitlines()[-8:]
        raise UserError(f"training {job.name} failed (whole log: {job.log}):\n" + "\n".join(last))


def _show(progress: Progress, bar: TaskID, job: Job, say: Lines) -> None:
    """Move the job's bar to what its metrics say, or say it by a line."""
    lines = whole_lines(job.out / METRICS)
    training = [line for line in lines if line.get("split", "train") == "train"]
    if training:
        last = training[-1]
        numbers = f"{bound_text(last)}, {last['tokens_per_second']:,.0f} tokens/s"
        progress.update(bar, completed=last["step"], numbers=numbers)
        say(job.name, f"step {last['step']:,} of {job.steps:,}, {numbers}")
