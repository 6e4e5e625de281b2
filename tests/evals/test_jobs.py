"""Training side by side: what ends with its starter."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from latentlm.errors import CheckpointError
from latentlm_evals.jobs import Job, train_all


@dataclass
class Sleeper(Job):
    """A training that writes its number and then takes a minute."""

    def command(self) -> list[str]:
        said = f"import os, time; print(os.getpid(), flush=True); time.sleep({self.steps}); print('to the end')"
        return [sys.executable, "-c", said]


def sleeper(folder: Path, name: str, seconds: int) -> Sleeper:
    return Sleeper(name, "", folder / name, seconds, [])


def number_in(log: Path) -> int:
    """What was said, below the line that says what the file is."""
    return int(log.read_text(encoding="utf-8").splitlines()[-1])


def test_a_file_of_another_kind_gets_no_log(tmp_path: Path) -> None:
    log = tmp_path / "long.log"
    log.write_text("mine", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"long\.log is not a log of latentlm"):
        train_all([sleeper(tmp_path, "long", 0)], parallel=1, console=Console(quiet=True))
    assert log.read_text(encoding="utf-8") == "mine"
    log.unlink()
    for _ in range(2):  # its own is taken again
        train_all([sleeper(tmp_path, "long", 0)], parallel=1, console=Console(quiet=True))
    assert log.read_text(encoding="utf-8").count("to the end") == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_terminated_it_leaves_no_training_behind(number: signal.Signals, tmp_path: Path) -> None:
    log = tmp_path / "long.log"

    def terminate() -> None:
        while not (log.is_file() and log.read_text(encoding="utf-8").count("\n") > 1):
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    outside = signal.signal(number, signal.SIG_DFL)  # the tests may run where it is ignored (nohup)
    before = signal.getsignal(number)
    threading.Thread(target=terminate, daemon=True).start()
    with pytest.raises(SystemExit) as stopped:
        train_all([sleeper(tmp_path, "long", 20)], parallel=1, console=Console(quiet=True))
    assert stopped.value.code == 128 + number
    assert "to the end" not in log.read_text(encoding="utf-8")
    with pytest.raises(ProcessLookupError):
        os.kill(number_in(log), 0)
    assert signal.getsignal(number) is before
    signal.signal(number, outside)


def test_what_is_ignored_stays_so(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGHUP)).start()
        train_all([sleeper(tmp_path, "short", 1)], parallel=1, console=Console(quiet=True))
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_each_is_told_of_when_it_is_done_and_not_when_all_are(tmp_path: Path) -> None:
    log, told = tmp_path / "long.log", list[str]()

    def finished(job: Job, say: object) -> None:
        told.append(job.name)
        if job.name == "short":
            os.kill(number_in(log), 0)  # the other still runs
            os.kill(number_in(log), signal.SIGTERM)

    long, short = sleeper(tmp_path, "long", 60), sleeper(tmp_path, "short", 1)
    with pytest.raises(Exception, match="training long failed"):
        train_all([long, short], parallel=2, console=Console(quiet=True), finished=finished)
    assert told == ["short"]


def test_a_line_of_metrics_without_its_numbers_ends_no_training(tmp_path: Path) -> None:
    odd = [{"step": 1}, {"split": "train", "step": 1, "bits_per_byte": "x"}, {"step": 1, "tokens_per_second": []}]
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in odd), encoding="utf-8")
    train_all([sleeper(tmp_path, "short", 1)], parallel=1, console=Console(quiet=True))
    assert (tmp_path / "short.log").read_text(encoding="utf-8").endswith("to the end\n")


@dataclass
class Threads(Job):
    """A training that writes what it was told of threads."""

    def command(self) -> list[str]:
        return [sys.executable, "-c", "import os; print(os.environ['OMP_NUM_THREADS'], os.environ.get('MKL_NUM_THREADS'))"]


@pytest.mark.parametrize(("set_by_user", "told"), [("3", "3 None"), (None, "4 None")])
def test_threads_are_the_users_word_or_the_cores_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_by_user: str | None, told: str
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if set_by_user:
        monkeypatch.setenv("OMP_NUM_THREADS", set_by_user)
    train_all([Threads("one", "", tmp_path / "one", 1, [])], parallel=2, console=Console(quiet=True))
    assert (tmp_path / "one.log").read_text(encoding="utf-8").splitlines()[-1] == told
