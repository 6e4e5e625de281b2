"""A run whose data moved goes on where they are now, as one whose data never moved; with other data it does not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from latentlm.config import Recipe
from latentlm.errors import UserError
from latentlm.tokenizer import BPETokenizer
from latentlm.training.loop import InterruptedRun, StopRequest, train
from latentlm.training.recipes import load_recipe
from latentlm.training.record.folder import saved_recipe
from stumbling import stumbling

Make = Callable[..., Recipe]


class Cut(Exception):
    """Stands for kill -9."""


@pytest.fixture
def texts(texts: Path, tmp_path: Path) -> Path:
    """A copy that may be moved."""
    return Path(shutil.copytree(texts, tmp_path / "texts"))


@pytest.fixture
def started(tmp_path: Path) -> Callable[..., Path]:
    """Trains a recipe until after some step, and returns the folder of the run."""

    def start(recipe: Recipe, *, steps: int) -> Path:
        with pytest.raises(Cut), stumbling(at=steps + 1, error=Cut()):
            train(recipe, out=tmp_path / "run", progress=False)
        return tmp_path / "run"

    return start


def moved(recipe: Recipe, path: Path) -> Recipe:
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"path": str(path)})})


def rows(path: Path, texts: Path) -> Path:
    lines = [json.dumps({"text": file.read_text()}) for file in sorted(texts.iterdir())]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("kind", ["folder", "file", "data set"])
@pytest.mark.parametrize("steps", [2, 5], ids=["before a checkpoint", "after one"])
def test_a_run_goes_on_with_data_of_another_place_and_name(
    recipe: Make, texts: Path, tmp_path: Path, started: Callable[..., Path], kind: str, steps: int
) -> None:
    place = texts
    if kind == "file":
        place = rows(tmp_path / "texts.jsonl", texts)
    if kind == "data set":
        from datasets import Dataset

        place = tmp_path / "set"
        Dataset.from_dict({"text": [file.read_text() for file in sorted(texts.iterdir())]}).save_to_disk(str(place))
    settings = moved(recipe("data.tokenizer=bpe:270"), place)
    train(settings, out=tmp_path / "whole", progress=False)
    run = started(settings, steps=steps)
    (tmp_path / "elsewhere").mkdir()
    new = Path(shutil.move(place, tmp_path / "elsewhere" / f"renamed{place.suffix}"))
    result = train(moved(settings, new), out=run, resume=True, progress=False)
    assert result.steps == 12
    whole, again = load_file(tmp_path / "whole" / "model.safetensors"), load_file(run / "model.safetensors")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert saved_recipe(run).data.path == str(place)  # the record of the run does not change


def test_it_may_be_said_at_the_run_folder_more_than_once(
    recipe: Make, texts: Path, tmp_path: Path, started: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = started(recipe(), steps=5)
    first = Path(shutil.move(texts, tmp_path / "first"))

    def asked(request: StopRequest) -> StopRequest:
        request.requested = True
        return request

    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "__enter__", asked)
        with pytest.raises(InterruptedRun):
            train(load_recipe(str(run), [f"data.path={first}"]), out=run, resume=True, progress=False)
    second = Path(shutil.move(first, tmp_path / "second"))
    assert train(load_recipe(str(run), [f"data.path={second}"]), out=run, resume=True, progress=False).steps == 12


def test_data_that_are_gone_are_asked_for(recipe: Make, texts: Path, tmp_path: Path, started: Callable[..., Path]) -> None:
    run = started(recipe(), steps=5)
    shutil.move(texts, tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"does not exist\..* If the data of .*run have moved, .*data\.path=PATH"):
        train(load_recipe(str(run)), out=run, resume=True, progress=False)


@pytest.mark.parametrize("steps", [2, 5], ids=["before a checkpoint", "after one"])
def test_other_data_in_another_place_are_refused(
    recipe: Make, texts: Path, tmp_path: Path, started: Callable[..., Path], steps: int
) -> None:
    run = started(recipe(), steps=steps)
    other = Path(shutil.copytree(texts, tmp_path / "other"))
    (other / "00.txt").write_text("something else")
    with pytest.raises(UserError, match=r"the data in .*other are not those that .*run was started with"):
        train(moved(recipe(), other), out=run, resume=True, progress=False)


def test_a_tokenizer_file_may_move_too_but_not_change(
    recipe: Make, tmp_path: Path, started: Callable[..., Path]
) -> None:
    for name, symbols in (("old", 270), ("other", 265)):
        (tmp_path / name).mkdir()
        BPETokenizer.train(["the red cat sees the blue bird under the tree"], vocabulary=symbols).save(tmp_path / name)
    run = started(recipe(f"data.tokenizer={tmp_path}/old/tokenizer.json"), steps=5)
    shutil.move(tmp_path / "old", tmp_path / "new")
    with pytest.raises(UserError, match=r"data\.tokenizer"):
        train(recipe(f"data.tokenizer={tmp_path}/other/tokenizer.json"), out=run, resume=True, progress=False)
    settings = recipe(f"data.tokenizer={tmp_path}/new/tokenizer.json")
    assert train(settings, out=run, resume=True, progress=False).steps == 12
