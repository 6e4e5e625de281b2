"""`latentlm train` as it is typed, the dry run, and the names of recipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

from latentlm.cli.train import app
from latentlm.config import Recipe
from latentlm.errors import UserError
from latentlm.training import plan as plan_module
from latentlm.training.plan import estimate_memory, make_plan
from latentlm.training.recipes import find_recipe, load_recipe, zoo_recipes
from latentlm.training.record.reporting import Reporter, kl_text
from latentlm.training.setup import resolve

Make = Callable[..., Recipe]


@pytest.fixture
def file(recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe file in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.yaml"
    data = recipe().model_dump(mode="json", exclude_unset=True)
    path.write_text(yaml.safe_dump({**data, "name": "mine"}), encoding="utf-8")
    return path


def test_it_trains_into_runs_by_name(file: Path) -> None:
    result = CliRunner().invoke(app, ["mine.yaml", "train.steps=3", "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert (facts["out"], facts["steps"]) == ("runs/mine", 3)
    assert facts["held_out"]["bits_per_byte"] > 0
    assert "step 2/3" in result.stderr
    assert (file.parent / "runs" / "mine" / "card.yaml").exists()


def test_a_run_folder_is_resumed_by_its_name(file: Path) -> None:
    assert CliRunner().invoke(app, ["mine.yaml", "train.steps=2", "--out", "here", "--quiet"]).exit_code == 0
    (file.parent / "here" / "card.yaml").unlink()  # as if it had been stopped just before its end
    result = CliRunner().invoke(app, ["here", "--resume", "--quiet"])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("here: 2 steps")
    assert not (file.parent / "runs").exists()


def test_quiet_says_the_result_only(file: Path) -> None:
    result = CliRunner().invoke(app, ["mine.yaml", "train.steps=3", "--quiet"])
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert result.stdout.startswith("runs/mine: 3 steps")


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_says_the_command_that_goes_on(file: Path) -> None:
    """As a process of its own; the command that it says is the one that is run."""
    train = [sys.executable, "-m", "latentlm.cli", "train"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*train, "mine.yaml", "train.steps=100000"], env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    metrics = file.parent / "runs" / "mine" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text(encoding="utf-8")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in said
    command = said.strip().splitlines()[-1].split()
    assert command[:2] == ["latentlm", "train"]
    assert command[-1] == "--resume"
    refused = CliRunner().invoke(app, [*command[2:], "train.steps=5"])
    assert isinstance(refused.exception, UserError)
    assert "train.steps: 100000 in the run, 5 now" in str(refused.exception)


def test_a_dry_run_writes_nothing(file: Path) -> None:
    result = CliRunner().invoke(app, ["mine.yaml", "--dry-run"])
    assert result.exit_code == 0, result.output
    assert [path.name for path in file.parent.iterdir()] == ["mine.yaml"]
    for word in ("parameters", "encoder", "memory", "estimate" if "estimated" in result.stdout else "measured", "12 of"):
        assert word in result.stdout


def test_a_plan_counts_what_a_run_would_do(recipe: Make) -> None:
    plan = make_plan(recipe())
    assert plan.parameters["total"] == sum(count for socket, count in plan.parameters.items() if socket != "total")
    assert plan.parameters["encoder"] > 0
    assert plan.memory.weights == 4 * plan.parameters["total"]
    assert plan.memory.optimizer == 2 * plan.memory.weights
    assert plan.tokens_per_step == 2 * 2 * 32
    assert plan.measured
    assert 0 < plan.seconds_per_step < 5
    assert json.loads(json.dumps(plan.to_dict()))["seconds"] == pytest.approx(12 * plan.seconds_per_step)


def test_a_model_too_large_to_try_is_planned_from_its_operations(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither built nor stepped, though it would need terabytes."""
    monkeypatch.setattr(plan_module, "Trainer", lambda *arguments: pytest.fail("too large to try"))
    plan = make_plan(recipe("model.backbone.width=16384", "model.backbone.blocks=200", decoder="vanilla"))
    assert not plan.measured
    assert plan.seconds_per_step > 10
    assert plan.memory.total > 2**40


def test_activations_grow_with_the_micro_batch_and_shrink_with_bfloat16(recipe: Make) -> None:
    small, large, half = (
        estimate_memory(resolve(recipe(*overrides), vocabulary=257))
        for overrides in ([], ["train.batch=4", "train.accumulate=1"], ["train.dtype=bfloat16"])
    )
    assert large.activations == 2 * small.activations
    assert half.activations < small.activations
    assert half.weights == small.weights


def test_recipes_of_the_zoo_have_names() -> None:
    assert {"free-tiny", "vanilla-tiny"} <= zoo_recipes().keys()
    recipe = load_recipe("free-tiny", ["train.steps=7"])
    assert (recipe.name, recipe.train.steps) == ("free-tiny", 7)
    with pytest.raises(UserError, match=r'Unknown recipe "free-tinny"\. Did you mean "free-tiny"'):
        find_recipe("free-tinny")


def test_a_recipe_file_that_is_missing_is_named(file: Path) -> None:
    with pytest.raises(UserError, match=r'mine2\.yaml does not exist\. Did you mean "mine"'):
        find_recipe("mine2.yaml")
    with pytest.raises(UserError, match=r"holds no recipe\.yaml"):
        find_recipe(str(file.parent))


def test_a_typo_is_told_with_its_neighbour(file: Path) -> None:
    with pytest.raises(UserError, match=r'unknown key "train\.learning_rat".*Did you mean "learning_rate"'):
        load_recipe("mine.yaml", ["train.learning_rat=1"])


def test_another_tokenizer_brings_its_vocabulary(file: Path) -> None:
    """A recipe that states the bytes' vocabulary does not stand in the way of one option."""
    data = yaml.safe_load(file.read_text(encoding="utf-8"))
    data["model"]["backbone"]["vocabulary"] = 257
    file.write_text(yaml.safe_dump(data), encoding="utf-8")
    changed = load_recipe("mine.yaml", ["data.tokenizer=bpe:300"])
    assert resolve(changed, vocabulary=300).model.backbone.vocabulary == 300
    kept = load_recipe("mine.yaml", ["data.tokenizer=bpe:300", "model.backbone.vocabulary=280"])
    assert resolve(kept, vocabulary=300).model.backbone.vocabulary == 280


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("compiled", ["false", "true"])
def test_a_run_on_a_gpu(recipe: Make, tmp_path: Path, compiled: str) -> None:
    from latentlm.training.loop import train

    asked = recipe("train.device=cuda", "train.dtype=bfloat16", f"train.compile={compiled}")
    result = train(asked, out=tmp_path, progress=False)
    assert result.held_out["bits_per_byte"] < 8


def test_a_kl_without_a_bound_says_what_it_lacks() -> None:
    line = {"split": "held_out", "step": 2, "standard_error": 0.1, "kl_bits_per_token": 1.8772, "bits_per_byte": None}
    assert "no bound, KL 1.877 bits/token up to a constant (the prior is not normalised)" in Reporter("x", steps=2)._plain(line)
    assert kl_text(line | {"bits_per_byte": 2.0}) == "KL 1.877 bits/token"
