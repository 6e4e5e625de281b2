"""The tables of docs/lm-eval.md have every option, and are what running each through both adapters gives."""

from __future__ import annotations

import argparse
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from lm_eval._cli.run import Run
from lm_eval.models.huggingface import HFLM

from latentlm_evals.adapter import LatentLM
from latentlm_evals.eval_cli import app
from latentlm_evals.options import ALIASES, NEUTRAL

SCRIPT = Path(__file__).parents[2] / "docs" / "build_lm_eval_options.py"
PAGE = SCRIPT.with_name("lm-eval.md")


def rows(table: str) -> dict[str, list[str]]:
    """First cell of each row -> the others."""
    text = PAGE.read_text(encoding="utf-8").partition(f"<!-- {table}: made by")[2].partition("<!-- end of")[0]
    found = [[cell.strip() for cell in line.split(" | ")] for line in text.splitlines() if line.startswith("| `")]
    return {first.strip("| "): [cell.removesuffix(" |") for cell in rest] for first, *rest in found[1:]}


def named(table: str, pattern: str) -> set[str]:
    """What the first cells of a table name."""
    return set(re.findall(pattern, " ".join(rows(table))))


def of_lm_eval() -> set[str]:
    """The options of `lm_eval run`."""
    parser = Run(argparse.ArgumentParser().add_subparsers())._parser
    return {word for action in parser._actions for word in action.option_strings if word.startswith("--")} - {"--help"}


def of_ours() -> set[str]:
    """The options of `latentlm eval`, with underscores."""
    found = typer.main.get_command(app).params
    return {underscored(word) for each in found for word in [*each.opts, *each.secondary_opts] if word.startswith("--")}


def underscored(option: str) -> str:
    """With lm-eval's underscores."""
    return "--" + option[2:].replace("-", "_")


def test_every_option_of_lm_eval_has_a_row() -> None:
    assert of_lm_eval() == named("harness", r"--\w+")


def test_every_argument_of_hf_and_of_ours_has_a_row() -> None:
    arguments = {name for adapter in (HFLM, LatentLM) for name in inspect.signature(adapter.__init__).parameters}
    assert {*arguments, *NEUTRAL, *ALIASES} - {"self", "kwargs"} <= named("model arguments", r"\w+")


def test_every_row_says_what_is_done_and_whether_hf_does_the_same() -> None:
    for table in ("requests", "model arguments", "harness"):
        for first, (_, equal) in rows(table).items():
            assert re.match("yes$|no$|no: .|not measured: .|neither runs: .", equal), first


def test_latentlm_eval_has_what_lm_eval_has_under_the_same_name_or_the_page_says_otherwise() -> None:
    otherwise = named("latentlm eval", r"--\w+")
    assert otherwise <= of_lm_eval()
    assert of_lm_eval() - otherwise <= of_ours()
    said = {option: rest[0] for options, rest in rows("latentlm eval").items() for option in re.findall(r"--\w+", options)}
    absent = {option for option, what in said.items() if re.match(r"no\b", what)}
    assert not absent & of_ours()
    assert {"--samples", "--seed"} == {option for option, what in said.items() if what.startswith("**another meaning**")}
    for option, what in said.items():  # what it names is there
        assert set(map(underscored, re.findall(r"`(--[\w-]+)", what))) <= of_ours() | of_lm_eval(), option
        assert option in of_ours() | absent or re.search("--|first word", what), option


@pytest.mark.conformance  # minutes: every option is run
@pytest.mark.slow
def test_the_tables_are_current() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--check"], env=environment, capture_output=True, text=True, timeout=1200, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
