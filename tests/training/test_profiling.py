"""`train.profile`: a trace of some steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from latentlm.config import Recipe
from latentlm.training import train

Make = Callable[..., Recipe]


def test_the_steps_that_were_asked_for_are_traced(recipe: Make, tmp_path: Path) -> None:
    train(recipe("train.steps=4", "train.profile.start=1", "train.profile.steps=2"), out=tmp_path / "run", progress=False)
    trace = json.loads((tmp_path / "run" / "profile" / "steps-1-2.json").read_text(encoding="utf-8"))
    names = [event.get("name", "") for event in trace["traceEvents"]]
    assert sum("AdamW" in name and "step" in name for name in names) == 2
    plain = train(recipe("train.steps=4"), out=tmp_path / "plain", progress=False)
    weights = [(each / "model.safetensors").read_bytes() for each in (tmp_path / "run", plain.out)]
    assert weights[0] == weights[1]
    assert not (tmp_path / "plain" / "profile").exists()


def test_a_trace_that_was_not_finished_is_not_written(recipe: Make, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(recipe("train.steps=3", "train.profile.start=2", "train.profile.steps=9"), out=out, progress=False)
    assert not (out / "profile").exists()


@pytest.mark.parametrize("setting", ["start=-1", "steps=0", "steps=1000"])
def test_steps_that_are_none(recipe: Make, setting: str) -> None:
    with pytest.raises(Exception, match=r"train\.profile"):
        recipe(f"train.profile.{setting}")
