"""`train.profile`: a trace of some steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from latentlm.config import Recipe
from latentlm.errors import UserError
from latentlm.training import train
from latentlm.training.profiling import StepProfiler

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


def test_steps_beyond_the_run_are_refused_and_steps_of_before_are_told(
    recipe: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    with pytest.raises(UserError, match=r"steps 2 to 3, counted from 0, of a run of 3"):
        train(recipe("train.steps=3", "train.profile.start=2", "train.profile.steps=2"), out=out, progress=False)
    mine = ["train.profile.start=2", "train.profile.steps=2"]
    train(recipe(*mine), out=out, progress=False)
    for name in ("card.yaml", "model.safetensors"):
        (out / name).unlink()
    train(recipe(*mine), out=out, resume=True, progress=False)
    assert "train.profile begins at step 2, which is past" in capsys.readouterr().err


@pytest.mark.parametrize("setting", ["start=-1", "steps=0", "steps=1000"])
def test_steps_that_are_none(recipe: Make, setting: str) -> None:
    with pytest.raises(Exception, match=r"train\.profile"):
        recipe(f"train.profile.{setting}")


@pytest.mark.parametrize("mine_is", ["thesis", '{"schemaVersion": 2, "mine": 1}'])
def test_what_is_no_trace_stays_and_is_looked_at_before_the_work(mine_is: str, recipe: Make, tmp_path: Path) -> None:
    mine = ["train.profile.start=1", "train.profile.steps=1"]
    train(recipe(*mine), out=tmp_path / "run", progress=False)
    for name in ("card.yaml", "model.safetensors", "profile/steps-1-1.json"):
        (tmp_path / "run" / name).unlink()
    (tmp_path / "run" / "profile" / "steps-1-1.json").write_text(mine_is)
    with pytest.raises(UserError, match=r"steps-1-1\.json is not a trace.*another train\.profile\.start"):
        train(recipe(*mine), out=tmp_path / "run", resume=True, progress=False)
    assert (tmp_path / "run" / "profile" / "steps-1-1.json").read_text() == mine_is


@pytest.mark.parametrize("mine_is", ["a file", "a folder"])
def test_a_trace_that_cannot_be_written_loses_no_step(
    mine_is: str, recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "run" / "profile" / "steps-1-1.json"
    monkeypatch.setattr("latentlm.training.profiling.StepProfiler.before", _before(place, mine_is))
    train(recipe("train.steps=3", "train.profile.start=1", "train.profile.steps=1"), out=tmp_path / "run")
    assert "train.profile: " in capsys.readouterr().err
    assert place.is_dir() if mine_is == "a folder" else place.read_text() == "mine"
    assert (tmp_path / "run" / "card.yaml").exists()


def _before(place: Path, mine_is: str) -> Callable[[StepProfiler, int], None]:
    """As the profiler's own; something comes to stand where the trace is to go."""
    own = StepProfiler.before

    def before(self: StepProfiler, step: int) -> None:
        own(self, step)
        if step == 1:
            place.parent.mkdir(exist_ok=True)
            place.mkdir() if mine_is == "a folder" else place.write_text("mine")

    return before
