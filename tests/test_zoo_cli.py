"""`latentlm zoo list`, `describe` and `add`, as typed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from latentlm import plugins
from latentlm.cli.zoo import app
from zoo_models import architecture, make_run


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("LATENTLM_ZOO_PATH", raising=False)


def typed(*words: str) -> str:
    """What `latentlm zoo WORDS` prints; it must end well."""
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_list_shows_names_and_status() -> None:
    output = typed("list", "*-8b")
    assert "free-8b" in output
    assert "architecture" in output
    assert "tiny" not in output


def test_list_says_where_nothing_matches() -> None:
    assert 'No model matches "nothing"' in typed("list", "nothing")


def test_list_prints_json() -> None:
    assert [card["name"] for card in json.loads(typed("list", "*-8b", "--json"))] == ["free-8b", "vanilla-8b"]


def test_describe_shows_parameters_and_both_overheads() -> None:
    output = typed("describe", "free-8b")
    for words in ("8,539,951,104", "3.1% the paper's way", "6.0% counting all parameters", "128 KiB per token"):
        assert words in " ".join(output.replace("│", " ").split()), words


def test_describe_spells_out_scores_of_several_runs() -> None:
    said = " ".join(typed("describe", "free-synthetic-full-1-8").replace("│", " ").split())
    assert "synthetic seed 0, excess_nats 0.0" in said
    assert "cross_entropy (posterior 0." in said
    assert "{" not in said


def test_describe_prints_json() -> None:
    assert json.loads(typed("describe", "free-1.5b", "--json"))["cost"]["parameters"] == 1_659_096_576


def test_add_makes_a_model_of_a_run(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    assert 'Added "yours"' in typed("add", str(tmp_path / "run"), "--name", "yours")
    assert "yours" in typed("list")


def test_add_says_when_the_shelf_is_not_looked_at(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    output = typed("add", str(tmp_path / "run"), "--to", str(tmp_path / "shelf"))
    assert f"LATENTLM_ZOO_PATH={tmp_path / 'shelf'}" in output


def test_a_plugins_architecture_gets_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = architecture(tmp_path / "cards", name="mine")
    monkeypatch.setattr(plugins, "cards", lambda: [card])
    make_run(tmp_path / "run")
    output = typed("add", str(tmp_path / "run"), "--to", str(tmp_path / "cards"), "--replace")
    assert "LATENTLM_ZOO_PATH" not in output
    assert not card.exists()
    assert (tmp_path / "cards" / "mine" / "model.safetensors").is_file()


def test_help_has_examples() -> None:
    for command in ("list", "describe", "add"):
        assert f"latentlm zoo {command}" in typed(command, "--help")


def test_a_wrong_name_is_one_line_and_status_1() -> None:
    words = [sys.executable, "-m", "latentlm.cli", "zoo", "describe", "fre-8b"]
    result = subprocess.run(words, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith('error: Unknown model "fre-8b". Did you mean "free-8b"?')
    assert len(result.stderr.splitlines()) == 1


def test_describe_leaves_what_lies_deep_to_json_and_says_in_words_that_z_is_not_used() -> None:
    said = typed("describe", "free-synthetic-full-1-8")
    assert "near_within" not in said
    assert "groups (see --json)" in " ".join(said.replace("│", " ").split())
    words = " ".join(typed("describe", "della-tiny").replace("│", " ").split())
    assert "z is not used" in words
    assert "z_used" not in words
    assert "False" not in words.partition("held_out_bound")[2]
