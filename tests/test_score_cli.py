"""`latentlm score`: what it prints and refuses."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from latentlm import zoo
from latentlm.cli.score import app
from latentlm.composed import build
from latentlm.errors import UserError
from latentlm.interface import LatentDecoder
from latentlm.likelihood import score_continuations, score_texts
from latentlm.tokenizer import load_tokenizer
from samples import small_config

Run = Callable[..., str]


def bytes_model(decoder: str) -> LatentDecoder:
    model = build(small_config(decoder, vocabulary=257)).eval()
    model.tokenizer = load_tokenizer("bytes")
    return model


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Calls the command on fresh small models named "free" and "vanilla"."""
    monkeypatch.setattr(zoo, "load", lambda name, device=None: bytes_model(name))

    def call(*arguments: str, text: str | None = None) -> str:
        result = CliRunner().invoke(app, list(arguments), input=text)
        if result.exception is not None:
            raise result.exception
        return result.stdout

    return call


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("def f(x):\n    return x\n" * 4)
    return path


def test_json_has_the_library_s_numbers(run: Run, file: Path) -> None:
    found = json.loads(run("free", str(file), "--samples", "4", "--seed", "3", "--json"))
    model, data = bytes_model("free"), file.read_bytes()
    score = score_texts(model, [[256, *data, 256]], samples=4, seed=3)[0]
    (row,) = found["files"]
    assert row["nats"] == pytest.approx(score.value, abs=1e-3)
    assert row["bytes"] == len(data)
    assert row["tokens"] == len(data) + 1
    assert row["bits_per_byte"] == pytest.approx(-score.value / len(data) / math.log(2), abs=1e-4)
    assert row["posterior_cross_entropy_not_a_likelihood"] > 0


def test_table_names_the_posterior_cross_entropy_as_what_it_is(run: Run, file: Path) -> None:
    printed = run("free", str(file), "--samples", "4")
    assert "posterior cross-entropy (not a likelihood)" in printed
    assert "iwae: importance-weighted bound" in printed
    assert "bits per byte" in printed


@pytest.mark.parametrize(
    ("method", "remedy"), [("iwae", "take more samples, or --method auto\n"), ("auto", "take more samples\n")]
)
def test_what_has_not_converged_is_told_what_may_help(run: Run, file: Path, method: str, remedy: str) -> None:
    printed = run("free", str(file), "--method", method, "--samples", "4", "--tolerance", "1e-9")
    assert remedy in printed


def test_vanilla_is_exact_and_says_so(run: Run, file: Path) -> None:
    printed = run("vanilla", str(file))
    assert "exact: this decoder has no latents" in printed
    assert "+- 0.00 nats" in printed
    assert "posterior" not in printed


def test_several_files_and_standard_input(run: Run, file: Path) -> None:
    printed = run("vanilla", str(file), "-", text="x = 1\n")
    assert "-: 6 bytes, 7 target tokens" in printed
    assert "all 2 files" in printed


def test_given_text_makes_it_a_continuation(run: Run, file: Path) -> None:
    found = json.loads(run("free", "-", "--given", "def ", "--samples", "4", "--json", text="f(x):"))
    request = ([256, *b"def"], [*b" f(x):", 256])  # the blank is the continuation's, as in lm-eval
    score = score_continuations(bytes_model("free"), [request], samples=4)[0]
    assert found["files"][0]["nats"] == pytest.approx(score.value, abs=1e-4)
    assert found["files"][0]["method"] == "operational"


def test_blanks_that_the_continuation_takes_over_are_among_its_bytes(run: Run) -> None:
    asked = (("def f(x): ", "return x\n"), ("def f(x):", " return x\n"))
    one, other = (
        json.loads(run("vanilla", "-", "--given", given, "--json", text=text))["files"][0] for given, text in asked
    )
    assert one.pop("nats") == pytest.approx(other.pop("nats"))
    assert (one["bytes"], one["bits_per_byte"]) == (10, pytest.approx(other["bits_per_byte"]))


def test_context_and_continuation_are_read_as_lm_eval_s_adapter_reads_them(run: Run, tmp_path: Path) -> None:
    def nats(given: str, data: bytes) -> float:
        (tmp_path / "text.txt").write_bytes(data)
        printed = run("vanilla", str(tmp_path / "text.txt"), "--given", given, "--json")
        return float(json.loads(printed)["files"][0]["nats"])

    def expected(given: list[int], continued: list[int]) -> float:
        return score_continuations(bytes_model("vanilla"), [(given, continued)])[0].value

    assert nats(" ", b"x") == pytest.approx(expected([256], [*b" x", 256]), abs=1e-4)
    argument = os.fsdecode(b"caf\xe9")  # an argument that is no UTF-8
    assert nats(argument, b"\xff") == pytest.approx(expected([256, *b"caf\xe9"], [0xFF, 256]), abs=1e-4)


def test_one_sample_gives_null_for_its_error(run: Run, file: Path) -> None:
    found = json.loads(run("free", str(file), "--samples", "1", "--json"))
    assert found["files"][0]["standard_error"] is None


def test_a_bound_is_said_to_be_one(run: Run, file: Path) -> None:
    printed = run("free", str(file), "--method", "elbo", "--samples", "8")
    assert "unknown: a bound" in printed
    assert "at K/4, K/16     –, –" in printed
    assert "nan" not in printed


def test_bad_input_is_refused_with_a_remedy(run: Run, file: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.touch()
    for arguments, words in [
        ((str(empty),), "is empty"),
        ((str(tmp_path / "none.txt"),), "does not exist"),
        ((str(file), "--method", "perplexity"), "Unknown scoring method"),
        ((str(file), "--context", "0"), "at least 1"),
        ((str(file), "--given", "x"), "does not fit"),
        ((str(file), "--given", "x", "--context", "8"), "leave one out"),
    ]:
        with pytest.raises(UserError, match=words):
            run("free", *arguments)


@pytest.mark.parametrize("method", ["operational", "joint"])
def test_a_method_that_is_another_without_a_context_is_said_to_be(run: Run, file: Path, method: str) -> None:
    assert f"({method} differs from it where there is a context: without --given, iwae is meant)" in run(
        "free", str(file), "--method", method, "--samples", "4"
    )
    assert "is meant" not in run("free", str(file), "--samples", "4")
