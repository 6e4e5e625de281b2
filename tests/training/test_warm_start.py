"""`train.init`: a run begins with the weights of another model, where they fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from latentlm import zoo
from latentlm.config import Recipe
from latentlm.errors import UserError
from latentlm.interface import Batch, Noise
from latentlm.training import train
from latentlm.training.plan import make_plan
from latentlm.training.record.reporting import Reporter
from latentlm.training.setup import make_model, resolve
from latentlm.training.warm import WarmStart, begin_with
from llama_folders import llama_folder

Make = Callable[..., Recipe]


@pytest.fixture
def source(recipe: Make, tmp_path: Path) -> Path:
    """A vanilla decoder of two steps."""
    out = tmp_path / "source"
    train(recipe("train.steps=2", decoder="vanilla"), out=out, progress=False)
    return out


def begun(recipe: Recipe, source: Path) -> tuple[torch.nn.Module, WarmStart]:
    model = make_model(resolve(recipe, vocabulary=257), "cpu")
    other = zoo.load(source)
    assert other.tokenizer is not None
    return model, begin_with(model, str(source), other.tokenizer, Reporter("x", steps=1, quiet=True))


def loss(model: torch.nn.Module) -> torch.Tensor:
    batch = Batch.of([[256, 72, 105, 33], [256, 72]])
    return model.loss(batch, step=0, noise=Noise.keyed(0, [0, 1])).total.detach()  # type: ignore[operator]


def test_the_same_model_begins_as_the_same_function(recipe: Make, source: Path) -> None:
    model, said = begun(recipe("train.seed=5", decoder="vanilla"), source)
    assert torch.equal(loss(model), loss(zoo.load(source)))
    assert said.warnings() == []
    assert said.note() == f"{said.taken} of {said.taken} tensors are those of {source}"


def test_what_fits_is_taken_and_the_rest_is_named(recipe: Make, source: Path) -> None:
    model, said = begun(recipe(decoder="free"), source)
    fresh = make_model(resolve(recipe(decoder="free"), vocabulary=257), "cpu").state_dict()
    there = zoo.load(source).state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, there.get(name, fresh[name])), name
    assert "encoder.zeta" in said.fresh
    assert not said.left
    assert said.note().startswith(f"{len(there)} of ")
    assert "fresh: " in said.note()


def test_other_shapes_and_other_settings_are_named(recipe: Make, source: Path) -> None:
    larger = recipe("model.backbone.feed_forward=96", "model.backbone.blocks=3", decoder="vanilla")
    _, said = begun(larger, source)
    assert "backbone.blocks.0.feed_forward.down.weight" in said.other_shape
    assert "backbone.blocks.2.feed_forward.down.weight" in said.fresh
    _, said = begun(recipe("model.backbone.heads=4", decoder="vanilla"), source)
    assert "heads 2 there, 4 here" in said.warnings()[0]


def test_an_untied_readout_begins_as_the_embedding_that_it_was(recipe: Make, source: Path) -> None:
    model, said = begun(recipe("model.backbone.tie_embeddings=false", decoder="vanilla"), source)
    assert torch.equal(loss(model), loss(zoo.load(source)))
    assert not said.fresh


def test_a_run_says_what_it_took_and_goes_on_without_its_source(recipe: Make, source: Path, tmp_path: Path) -> None:
    mine = recipe(f"train.init={source}", "train.steps=8", decoder="free")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(mine, out=whole, progress=False)
    shutil.copytree(whole, stopped)
    for name in ("card.yaml", "model.safetensors", "checkpoints/step-00000008"):
        path = stopped / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(source)
    train(mine, out=stopped, resume=True, progress=False)
    assert (stopped / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    facts = json.loads((whole / "manifest.json").read_text())["init"]
    assert facts["source"] == str(source)
    assert "encoder.zeta" in facts["fresh"]
    for out in (whole, stopped):
        card = zoo.load(out).card
        assert card is not None
        assert card.training["init"] == {key: facts[key] for key in ("source", "sha256", "taken")}


def test_a_llama_of_transformers(recipe: Make, tmp_path: Path) -> None:
    folder = llama_folder(tmp_path / "llama", bos=False)
    llama = zoo.load(folder)
    assert llama.tokenizer is not None
    sizes = {"width": 32, "heads": 4, "kv_heads": 2, "feed_forward": 64, "norm_eps": 1e-6, "tie_embeddings": "false"}
    mine = recipe(*(f"model.backbone.{key}={value}" for key, value in sizes.items()), decoder="vanilla")
    model = make_model(resolve(mine, vocabulary=llama.tokenizer.vocabulary), "cpu")
    said = begin_with(model, str(folder), llama.tokenizer, Reporter("x", steps=1, quiet=True))
    assert said.warnings() == []
    assert said.note() == f"{said.taken} of {said.taken} tensors are those of {folder}"
    assert torch.equal(loss(model), loss(llama.float()))


def test_what_cannot_be_a_source_is_refused_before_the_data_are_read(recipe: Make, tmp_path: Path) -> None:
    for source, match in (("vanila-tiny", "vanilla-tiny"), ("free-8b", "without trained weights"), (str(tmp_path), "card")):
        mine = recipe(f"train.init={source}", "data.path=/nowhere/at/all")
        with pytest.raises(UserError, match=match):
            train(mine, out=tmp_path / "out", progress=False)
        with pytest.raises(UserError, match=match):
            make_plan(mine)


def test_a_source_of_which_nothing_fits_is_refused(recipe: Make, source: Path) -> None:
    with pytest.raises(UserError, match=r"no tensor of train\.init"):
        begun(recipe("model.backbone.width=32", "model.backbone.tie_embeddings=false", decoder="vanilla"), source)


def test_a_readout_of_its_own_that_is_not_taken_is_named(recipe: Make, tmp_path: Path) -> None:
    out = tmp_path / "untied"
    train(recipe("train.steps=2", "model.backbone.tie_embeddings=false", decoder="vanilla"), out=out, progress=False)
    assert begun(recipe(decoder="vanilla"), out)[1].left == ("backbone.readout.weight",)


def test_settings_of_parts_that_differ_are_named(recipe: Make, tmp_path: Path) -> None:
    out = tmp_path / "free"
    train(recipe("train.steps=2"), out=out, progress=False)
    assert begun(recipe("model.kl_schedule={name: free_bits, bits: 3}"), out)[1].warnings() == []
    (said,) = begun(recipe("model.injection.residual=true"), out)[1].warnings()
    assert "injection.residual False there, True here" in said
