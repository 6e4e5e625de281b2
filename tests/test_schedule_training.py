"""Schedules with a state in real training runs: resume, accumulation, evaluation."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from latentlm import plugins
from latentlm.config import Recipe, apply_overrides, parse
from latentlm.interface import KLSchedule, Noise
from latentlm.likelihood.bound import elbo
from latentlm.training.data.prepared import prepare
from latentlm.training.evaluation import evaluate, excerpts
from latentlm.training.loop import train
from latentlm.training.record import latest_checkpoint, read_metrics
from latentlm.training.setup import make_model, make_stream, resolve
from latentlm.training.trainer import Trainer
from stumbling import stumbling

STATEFUL = [
    name
    for name in sorted(plugins.names("kl_schedule"))
    if plugins.get("kl_schedule", name).load_state_dict is not KLSchedule.load_state_dict
]
# Gains at which the state moves well within twelve steps.
FAST: dict[str, dict[str, float]] = {
    "minimum_desired_rate": {"rate": 0.5},
    "control_vae": {"integral": 0.3, "bits": 0.01},
    "geco": {"rate": 0.2},
}
Make = Callable[..., Recipe]


@pytest.fixture
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Makes a recipe that trains in a second, on 24 short documents."""
    folder = tmp_path_factory.mktemp("texts")
    draw = random.Random(0)
    for number in range(24):
        (folder / f"{number:02d}.txt").write_text("".join(draw.choices("abcd ", k=draw.randint(20, 90))), encoding="utf-8")

    def make(schedule: str, *overrides: str) -> Recipe:
        data: dict[str, Any] = {
            "name": "tiny",
            "model": {
                "decoder": "free", "event_dims": 4, "backbone": {"width": 16, "blocks": 2, "heads": 2, "context": 32},
                "kl_schedule": {"name": schedule, **FAST.get(schedule, {})},
            },
            "data": {"path": str(folder), "held_out": 0.25},
            "train": {
                "steps": 12, "batch": 2, "accumulate": 2, "warmup": 3, "learning_rate": 0.01, "log_every": 1,
                "eval_every": 5, "save_every": 4, "eval_documents": 4, "device": "cpu", "threads": 1,
            },
        }  # fmt: skip
        return parse(Recipe, apply_overrides(data, list(overrides)), source="tiny recipe")

    return make


def trainer_of(recipe: Recipe) -> Trainer:
    prepared = prepare(recipe.data)
    resolved = resolve(recipe, vocabulary=prepared.tokenizer.vocabulary)
    return Trainer(make_model(resolved, "cpu"), resolved.train, make_stream(resolved, prepared))


def state_of(run: Path) -> dict[str, float]:
    """The schedule's state in the last checkpoint of a run."""
    checkpoint = latest_checkpoint(run / "checkpoints", warn=pytest.fail)
    assert checkpoint is not None
    state: dict[str, float] = checkpoint.state["schedule"]
    return state


def test_there_are_some() -> None:
    assert {"minimum_desired_rate", "control_vae", "geco"} <= set(STATEFUL)


@pytest.mark.parametrize("name", STATEFUL)
def test_a_crashed_run_goes_on_bit_for_bit(recipe: Make, tmp_path: Path, name: str) -> None:
    settings = recipe(name)
    train(settings, out=tmp_path / "whole", progress=False)
    with pytest.raises(RuntimeError, match="crash"), stumbling(at=7, error=RuntimeError("crash")):
        train(settings, out=tmp_path / "crashed", progress=False)
    before = state_of(tmp_path / "crashed")
    train(settings, out=tmp_path / "crashed", resume=True, progress=False)
    assert state_of(tmp_path / "crashed") == state_of(tmp_path / "whole")
    assert before != state_of(tmp_path / "whole"), "the state moved after the crash"
    one, other = (load_file(tmp_path / run / "model.safetensors") for run in ("whole", "crashed"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    lines = [
        [line["schedule"] for line in read_metrics(tmp_path / run / "metrics.jsonl") if line["split"] == "train"]
        for run in ("whole", "crashed")
    ]
    assert lines[0] == lines[1]
    assert len({json.dumps(line) for line in lines[0]}) > 6, "the state moves, or the test shows nothing"


@pytest.mark.parametrize("name", STATEFUL)
def test_accumulation_is_one_batch(recipe: Make, name: str) -> None:
    """Four rows at once and one by one: the same states, to what float32 rounds in the model."""
    whole = trainer_of(recipe(name, "train.batch=4", "train.accumulate=1"))
    split = trainer_of(recipe(name, "train.batch=1", "train.accumulate=4"))
    for _ in range(5):
        one, other = whole.advance(), split.advance()
        assert one.kl == pytest.approx(other.kl, rel=1e-3, abs=1e-6)
        assert one.schedule == pytest.approx(other.schedule, rel=1e-3)
        assert whole.model.kl_schedule is not None
        assert split.model.kl_schedule is not None
        assert whole.model.kl_schedule.state_dict() == pytest.approx(split.model.kl_schedule.state_dict(), rel=1e-3)


@pytest.mark.parametrize("name", STATEFUL)
def test_evaluation_leaves_the_state_alone(recipe: Make, name: str) -> None:
    settings = recipe(name)
    watched, plain = trainer_of(settings), trainer_of(settings)
    prepared = prepare(settings.data)
    texts = excerpts(prepared.held_out, prepared.tokenizer, context=32, count=4)
    for step in range(4):
        watched.advance()
        plain.advance()
        evaluate(watched.model, texts, watched.config)
        batch = watched.stream.batch(step)
        elbo(watched.model, batch, Noise.keyed(0, list(range(batch.inputs.shape[0]))))
    assert watched.model.kl_schedule is not None
    assert plain.model.kl_schedule is not None
    assert watched.model.kl_schedule.state_dict() == plain.model.kl_schedule.state_dict()
    assert watched.model.kl_schedule.state_dict() != type(plain.model.kl_schedule)(plain.model.kl_schedule.config).state_dict()
