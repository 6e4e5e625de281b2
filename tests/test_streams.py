"""Standard streams that are closed or full, and Ctrl-C before a command has begun."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from zoo_models import make_run


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", "-c", f"{sys.executable} -m latentlm.cli {line}"], capture_output=True, text=True, cwd=folder)


@pytest.mark.parametrize(("stream", "reason"), [(">&-", "Bad file descriptor"), (">/dev/full", "No space left on device")])
def test_output_that_takes_nothing_is_one_message(tmp_path: Path, stream: str, reason: str) -> None:
    for command in ("zoo list", "zoo list --json", "--help"):
        done = shell(f"{command} {stream}", tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert done.stderr.startswith(f"error: standard output cannot be written: {reason}.")


def test_what_standard_error_does_not_take_is_not_said(tmp_path: Path) -> None:
    assert shell("zoo list 2>/dev/full", tmp_path).stdout == shell("zoo list 2>&- <&-", tmp_path).stdout != ""
    assert shell("zoo describe nothing 2>/dev/full", tmp_path).returncode == 1


def test_closed_input_is_empty(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    assert shell("score run - <&-", tmp_path).stderr.startswith("error: Standard input is empty")
    assert shell("score run - 0>/dev/null", tmp_path).stderr.startswith("error: standard input cannot be read")


def test_latents_are_saved_before_the_text_is_printed(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    assert shell("generate run x --max-tokens 2 --save-latents z.safetensors >/dev/full", tmp_path).returncode == 1
    assert (tmp_path / "z.safetensors").is_file()


def test_ctrl_c_in_the_middle_of_an_import_is_one_word(tmp_path: Path) -> None:
    lines = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background inherits that it is ignored
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
from latentlm.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped.\n")
