"""One input, one process with limits on memory and time, and a judgement of what came of it.

    a case       files in an empty folder, and a command line or a few lines of Python that meet them
    bad input    must end with a status of its own, by one message that says what is wrong, with nothing lost
    good input   (an odd name, a damaged neighbour) must do what was asked

What is judged: exit status, traceback, length and form of the message, control characters on either stream, files that changed
or went away, time, memory. The processes are forks of one that has imported the library and done nothing with it.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import multiprocessing
import os
import re
import resource
import select
import shutil
import signal
import stat
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

MEMORY = 8 * 2**30
"""Bytes of address space that a process may take."""
EXTRA_MEMORY = 2**30
"""Bytes above what good input takes (`MODEST`) that bad input may be resident in."""
EXTRA_SECONDS = 20.0
"""Processor seconds above what good input takes."""
MOST_SECONDS = 30
"""Processor seconds after which the system ends it."""
LIMIT_SECONDS = 120.0
"""On the clock, since it may wait; long enough for a machine that is busy with other things."""
MOST_LINES = 12
MOST_LETTERS = 2_500
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Case:
    """An input and what should come of it."""

    name: str
    argv: tuple[str, ...] = ()
    """Of `latentlm`, in the folder of the case."""
    python: str = ""
    """Instead of `argv`: lines that raise UserError, printed as the command line would."""
    files: Mapping[str, bytes | str] = field(default_factory=dict)
    prepare: Callable[[Path], object] | None = None
    """Makes what is no plain file."""
    environment: Mapping[str, str] = field(default_factory=dict)
    stdin: bytes = b""
    plain_user: bool = False
    """Without the rights of root, to whom permissions say nothing."""
    streams: Mapping[int, str] = field(default_factory=dict)
    """Standard streams that are not as a command would like them, by number: see `_STREAMS`."""
    good: bool | None = False
    """None: either will do, by one message or by doing what was asked."""
    says: str = ""
    """What the message, or the output of good input, must contain: a regular expression."""
    may_change: tuple[str, ...] = ()
    """Patterns of files that the command may write; all others must stay as they were prepared."""
    makes: tuple[str, ...] = ()
    """Files that must be there afterwards."""


@dataclass(frozen=True)
class Outcome:
    """What came of a case."""

    status: int
    """Negative: the signal that ended it."""
    output: bytes
    errors: bytes
    seconds: float
    memory: int
    """Bytes resident at most."""
    lost: tuple[str, ...]
    timed_out: bool

    def problems(self, case: Case, *, seconds: float = 5.0, memory: int = 2**30) -> list[str]:
        """What is wrong with it, given what good input takes."""
        return list(self._problems(case, seconds, memory))

    def _problems(self, case: Case, seconds: float, memory: int) -> Iterable[str]:
        encoding = case.environment.get("PYTHONIOENCODING", "utf-8").partition(":")[0]
        errors = self.errors.decode(encoding, errors="replace")
        both = self.output.decode(encoding, errors="replace") + "\n" + errors
        untold = 2 in case.streams or case.streams.get(1) == "gone"  # there is nowhere to say it, or nobody wants to know
        if self.timed_out:
            yield "it did not end"
            return
        if "Traceback (most recent call last)" in both:
            yield f"a traceback: {errors.strip().splitlines()[-1][:160]}"
        elif self.status < 0:
            yield f"ended by {signal.Signals(-self.status).name}"
        elif case.good is True and self.status != 0:
            yield f"good input refused: {errors.strip()[:200]}"
        elif case.good is False and self.status == 0:
            yield f"accepted: {self.output.decode(errors='replace').strip()[:120]}"
        elif self.status != 0 and not untold and not re.search(r"^(error: |│ |╭─ Error|warning: | *Usage: )", both, re.M):
            yield f"no message: {errors.strip()[:120]!r}"
        errors = errors.replace("\r", "\n")  # a bar of progress
        both = self.output.decode(encoding, errors="replace") + "\n" + errors
        kept = self.status == 0 and case.argv[:1] == ("generate",)  # a text goes to a file as it is
        if found := _CONTROL.search(errors if kept else both):
            yield f"control character {found[0]!r}"
        lines = self.errors.decode(encoding, errors="replace").rstrip().split("\n")
        left = [line.rstrip("\r").rpartition("\r")[2] for line in lines]  # bars are drawn over themselves
        if self.status != 0 and (len(left) > MOST_LINES or sum(map(len, left)) > MOST_LETTERS):
            yield f"a message of {len(left)} lines, {sum(map(len, left))} letters"
        if case.says and not re.search(case.says, both, re.S):
            yield f"does not say {case.says!r}: {both.strip()[-200:]!r}"
        if self.lost:
            yield f"lost or changed: {', '.join(self.lost)}"
        if self.seconds > seconds + EXTRA_SECONDS:
            yield f"{self.seconds:.0f} processor seconds"
        if self.memory > memory + EXTRA_MEMORY:
            yield f"{self.memory / 2**30:.1f} GiB"


def run(case: Case, base: Path) -> Outcome:
    """Run a case in a new folder, into which the files of `base` (a model, texts) are copied first."""
    with tempfile.TemporaryDirectory(prefix="hostile-", ignore_cleanup_errors=True) as temporary:
        folder, told = Path(temporary) / "here", Path(temporary)
        shutil.copytree(base, folder, symlinks=True)
        for name, content in case.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode(errors="surrogateescape") if isinstance(content, str) else content)
        if case.prepare is not None:
            case.prepare(folder)
        (told / "in").write_bytes(case.stdin)
        before = _contents(folder)
        child = os.fork()
        if child == 0:
            _become(case, folder, told)
        status, used, timed_out = _wait(child)
        after = _contents(folder)
        lost = tuple(
            name
            for name, content in before.items()
            if after.get(name) != content and not any(Path(name).match(pattern) for pattern in case.may_change)
        ) + tuple(name for name in case.makes if name not in after)
        return Outcome(
            status,
            (told / "out").read_bytes(),
            (told / "err").read_bytes(),
            used.ru_utime + used.ru_stime,
            used.ru_maxrss * 1024,
            lost,
            timed_out,
        )


def _contents(folder: Path) -> dict[str, str]:
    """What a folder holds, by path: a hash for a file, its target for a link, its kind for the rest."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            what = f"link to {os.readlink(path)}"
        elif stat.S_ISREG(mode):
            what = hashlib.sha256(path.read_bytes()).hexdigest() if path.stat().st_size < 2**28 else str(path.stat().st_size)
        else:
            what = str(stat.S_IFMT(mode))
        found[os.fsencode(path.relative_to(folder)).decode(errors="backslashreplace")] = what
    return found


def _wait(child: int) -> tuple[int, resource.struct_rusage, bool]:
    """Wait for a child and whatever it started, which is one process group."""
    descriptor = os.pidfd_open(child)
    ready, _, _ = select.select([descriptor], [], [], LIMIT_SECONDS)
    os.close(descriptor)
    if not ready:
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    _, status, used = os.wait4(child, 0)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(status), used, not ready


def _become(case: Case, folder: Path, told: Path) -> None:
    """In the child: turn into the command of a case, and end as it ends."""
    code = 70
    try:
        os.setpgid(0, 0)
        atexit._clear()  # what this process has promised to remove at its end is not the child's to remove
        multiprocessing.current_process()._config["daemon"] = False  # else it could start no others
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (MOST_SECONDS, MOST_SECONDS))
        if case.plain_user:
            ctypes.CDLL(None).capset(struct.pack("Ii", 0x20080522, 0), bytes(24))  # the header's third version: no capability
        for number, (name, flags) in enumerate(
            (("in", os.O_RDONLY), *((out, os.O_WRONLY | os.O_CREAT) for out in ("out", "err")))
        ):
            os.dup2(os.open(told / name, flags, 0o600), number)
        encoding, _, errors = case.environment.get("PYTHONIOENCODING", "utf-8").partition(":")
        sys.stdin = sys.__stdin__ = open(0, encoding=encoding, errors="surrogateescape", closefd=False)  # noqa: SIM115
        sys.stdout = sys.__stdout__ = open(1, "w", encoding=encoding, errors=errors or "strict", closefd=False)  # noqa: SIM115
        sys.stderr = sys.__stderr__ = open(  # noqa: SIM115
            2, "w", encoding=encoding, errors="backslashreplace", buffering=1, closefd=False
        )
        for number, how in case.streams.items():
            _STREAMS[how](number)
        os.chdir(folder)
        os.environ.update({"XDG_DATA_HOME": str(folder / "home"), "COLUMNS": "200", **case.environment})
        sys.path[:0] = [path for path in case.environment.get("PYTHONPATH", "").split(os.pathsep) if path]
        sys.argv = ["latentlm", *case.argv]
        code = _ended(case)
    finally:
        os._exit(code)


def _close(number: int) -> None:
    os.close(number)
    name = ("stdin", "stdout", "stderr")[number]
    for each in (name, f"__{name}__"):  # as Python finds it at its start
        setattr(sys, each, None)


def _gone(number: int) -> None:
    """A pipe that nobody reads."""
    reading, writing = os.pipe()
    os.dup2(writing, number)
    os.close(reading)
    os.close(writing)


def _stuck(number: int) -> None:
    """A pipe that does not wait, is full, and has a reader that is late."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, b"." * 4096)
    os.dup2(writing, number)
    os.close(writing)
    if os.fork() == 0:
        os.close(number)
        time.sleep(0.5)
        while os.read(reading, 2**16):
            pass
        os._exit(0)
    os.close(reading)


def _leads_to(path: str, flags: int) -> Callable[[int], None]:
    return lambda number: os.dup2(os.open(path, flags), number) and None


_STREAMS: dict[str, Callable[[int], None]] = {
    "closed": _close,
    "full": _leads_to("/dev/full", os.O_WRONLY),
    "unreadable": _leads_to(os.devnull, os.O_WRONLY),
    "gone": _gone,
    "stuck": _stuck,
}


def _ended(case: Case) -> int:
    """The exit status that Python would give."""
    import traceback

    from latentlm.cli import main

    try:
        if case.python:
            _python(case.python)
        else:
            main()
        code: object = 0
    except SystemExit as stop:
        code = stop.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:  # what Python prints at its end
        traceback.print_exc()
        code = 1
    with suppress(Exception):
        atexit._run_exitfuncs()  # type: ignore[attr-defined]
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except Exception:  # as at Python's end
            code = 120
            with suppress(Exception):
                traceback.print_exc()
    return code if isinstance(code, int) else 0 if code is None else 1


def _python(lines: str) -> None:
    """Run lines; errors that a caller is meant to catch are printed as the command line prints them."""
    from latentlm.errors import UserError

    try:
        exec(compile(lines, "<case>", "exec"), {"__name__": "case"})
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
