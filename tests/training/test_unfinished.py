"""A run that goes on is a model too: that of its newest checkpoint, which says which step it is."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from latentlm import zoo
from latentlm.config import Recipe
from latentlm.config.hashed import with_hash
from latentlm.errors import CheckpointError, UserError
from latentlm.training import train
from latentlm.training.run import Run
from latentlm.zoo import weights
from latentlm.zoo.loading import UnfinishedWarning
from latentlm.zoo.shelves import add_run

Make = Callable[..., Recipe]


class Stop(Exception):
    """Where the run is left."""


@pytest.fixture
def stopped(recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of 12 steps that ends after step 9, and saved at 4 and 8."""
    out, before = tmp_path / "run", Run.step

    def step(run: Run) -> None:
        before(run)
        if run.trainer.step == 9:
            raise Stop

    with monkeypatch.context() as patched:
        patched.setattr(Run, "step", step)
        with pytest.raises(Stop):
            train(recipe(), out=out, progress=False)
    return out


def test_a_run_that_goes_on_is_the_model_of_its_newest_checkpoint(recipe: Make, stopped: Path) -> None:
    with pytest.warns(UnfinishedWarning, match=r"run is not finished: this is its model after step 8 of 12\."):
        model = zoo.load(stopped)
    saved = load_file(stopped / "checkpoints" / "step-00000008" / "model.safetensors")
    there = model.state_dict()
    assert all(torch.equal(there[name], tensor) for name, tensor in saved.items())
    assert model.generate(["a"], max_tokens=3, seed=0)[0].text is not None
    with pytest.raises(UserError, match="no finished run"):
        add_run(stopped)
    train(recipe(), out=stopped, resume=True, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert zoo.load(stopped).card.training["steps"] == 12  # type: ignore[union-attr]


def test_a_checkpoint_that_was_changed_is_refused(stopped: Path) -> None:
    file = stopped / "checkpoints" / "step-00000008" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match="do not match their card"):
        zoo.load(stopped)


def rewrite(checkpoint: Path, **changed: Any) -> None:
    """Its record with something changed, and the hash that goes with it."""
    record = {**json.loads((checkpoint / "state.json").read_text()), **changed}
    del record["sha256"]
    (checkpoint / "state.json").write_text(with_hash(record))


def test_a_run_that_deletes_what_is_being_opened_is_read_again(
    stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest checkpoint may be gone, and a newer one there, before it was opened."""
    newest, before = stopped / "checkpoints" / "step-00000008", weights.hold

    def hold(path: Path) -> Any:
        if newest.exists():
            newest.rename(newest.with_name("step-00000012"))
            rewrite(newest.with_name("step-00000012"), step=12)
        return before(path)

    monkeypatch.setattr(weights, "hold", hold)
    with pytest.warns(UnfinishedWarning, match=r"after step 12 of 12\."):
        zoo.load(stopped)


def test_checkpoints_may_lie_on_another_disk(stopped: Path, tmp_path: Path) -> None:
    (stopped / "checkpoints").rename(tmp_path / "elsewhere")
    (stopped / "checkpoints").symlink_to(tmp_path / "elsewhere")
    with pytest.warns(UnfinishedWarning, match="after step 8"):
        zoo.load(stopped)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"files": [1]}, "is damaged: .*files"),
        ({"files": {}}, "does not say what its weights are"),
        ({"format": 99}, "has format 99"),
        ({"step": 4}, "is that of step 4"),
    ],
)
def test_a_damaged_state_is_one_message(stopped: Path, changed: dict[str, Any], says: str) -> None:
    newest = stopped / "checkpoints" / "step-00000008"
    rewrite(newest, **changed)
    with pytest.raises(CheckpointError, match=f"{says}.*--resume` goes on from the one before it"):
        zoo.load(stopped)


def test_a_state_without_its_own_hash_is_not_believed(stopped: Path) -> None:
    state = stopped / "checkpoints" / "step-00000008" / "state.json"
    state.write_text(state.read_text().replace('"step": 8', '"step": 9'))
    with pytest.raises(CheckpointError, match="has been changed"):
        zoo.load(stopped)
