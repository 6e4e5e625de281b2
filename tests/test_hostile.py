"""Some of the bad inputs of `make hostile`, and proof that its judge finds fault."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hostile.__main__ import every
from hostile.harness import MOST_LINES, Case, Outcome, run

TESTS = Path(__file__).parent
BAD = Case("bad", ("train", "bad.yaml"))
CLEAN = Outcome(1, b"", b"error: bad.yaml does not exist.\n", 1.0, 2**29, (), timed_out=False)


@pytest.mark.slow
def test_some_of_the_bad_inputs_end_well(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hostile", "--every", "480", "--jobs", "1", "--json", str(tmp_path / "found.json")]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert (tmp_path / "found.json").is_file(), done.stderr
    assert json.loads((tmp_path / "found.json").read_text()) == []


def test_cases_have_names_of_their_own() -> None:
    names = [case.name for _, case in every()]
    assert len(names) == len(set(names)) > 2000


def test_the_judge_takes_one_message() -> None:
    assert CLEAN.problems(BAD) == []


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"status": 0}, "accepted"),
        ({"status": -6}, "SIGABRT"),
        ({"errors": b"error: Traceback (most recent call last):\nKeyError: 'x'\n"}, "traceback"),
        ({"errors": b""}, "no message"),
        ({"errors": b"error: \x1b[31mred\n"}, "control character"),
        ({"output": "\u202eerror".encode()}, "control character"),
        ({"errors": b"error: x\n" * (MOST_LINES + 1)}, "lines"),
        ({"errors": b"error: " + b"x" * 3000}, "letters"),
        ({"lost": ("notes.txt",)}, "notes.txt"),
        ({"seconds": 40.0}, "seconds"),
        ({"memory": 2**33}, "GiB"),
        ({"timed_out": True}, "did not end"),
    ],
)
def test_the_judge_finds_fault(change: dict[str, object], found: str) -> None:
    facts = {name: getattr(CLEAN, name) for name in Outcome.__dataclass_fields__} | change
    (problem,) = Outcome(**facts).problems(BAD)  # type: ignore[arg-type]
    assert found in problem


def test_the_judge_takes_no_longer_for_a_long_line() -> None:
    """A million letters, of which patterns that begin anywhere would make a square."""
    for line in (b"x" * 10**6, b" " * 10**6, b"\r" * 10**6):
        begun = time.process_time()
        Outcome(1, b"", line, 1.0, 2**29, (), timed_out=False).problems(BAD)
        assert time.process_time() - begun < 2


def test_good_input_must_be_served() -> None:
    good = Case("good", ("zoo", "list"), good=True, says="free-8b")
    assert CLEAN.problems(good)[0].startswith("good input refused")
    served = Outcome(0, b"free-8b", b"", 1.0, 2**29, (), timed_out=False)
    assert served.problems(good) == []
    assert "does not say" in Outcome(0, b"nothing", b"", 1.0, 2**29, (), timed_out=False).problems(good)[0]


def test_a_file_that_is_lost_is_seen(tmp_path: Path) -> None:
    """A process of its own, which is why it may do what it likes."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "notes.txt").write_text("mine")
    lines = "import os\nos.remove('notes.txt')\nopen('new', 'w').write('x')\n"
    outcome = run(Case("lost", python=lines, good=True, files={"kept.txt": "x"}), tmp_path / "base")
    assert (outcome.status, outcome.lost) == (0, ("notes.txt",))
    assert run(Case("allowed", python=lines, good=True, may_change=("notes.txt",)), tmp_path / "base").lost == ()
