"""A run that goes on is a model too: that of its newest checkpoint, which says which step it is."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from latentlm import zoo
from latentlm.config import Recipe
from latentlm.errors import UserError
from latentlm.training import train
from latentlm.training.run import Run
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
    assert not (stopped / "unfinished.yaml").exists()
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
