"""Which files of a folder are its weights, and embeddings that are tied or not: as transformers decides."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentlm.errors import CheckpointError, UserError
from latentlm.interop import load_llama
from saved_llamas import edit_config, our_logits, saved, their_logits

TOKENS = torch.arange(30)[None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    saved(tmp_path, initializer_range=0.1)
    return tmp_path


def scaled(folder: Path, name: str) -> None:
    """The weights once more under another name, all doubled."""
    save_file({key: 2 * tensor for key, tensor in load_file(folder / "model.safetensors").items()}, folder / name)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "consolidated.safetensors", "zz.safetensors"])
def test_a_second_file_beside_the_weights_is_not_read(folder: Path, name: str) -> None:
    alone = our_logits(load_llama(folder), TOKENS)
    scaled(folder, name)
    assert torch.equal(our_logits(load_llama(folder), TOKENS), alone)
    assert (alone - their_logits(folder, TOKENS)).abs().max() < 1e-4


def test_the_whole_file_goes_before_the_index(folder: Path) -> None:
    alone = our_logits(load_llama(folder), TOKENS)
    scaled(folder, "model-00001-of-00001.safetensors")
    names = dict.fromkeys(load_file(folder / "model.safetensors"), "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    assert torch.equal(our_logits(load_llama(folder), TOKENS), alone)
    assert (alone - their_logits(folder, TOKENS)).abs().max() < 1e-4
    (folder / "model.safetensors").unlink()
    doubled = our_logits(load_llama(folder), TOKENS)
    assert (doubled - alone).abs().max() > 0.1
    assert (doubled - their_logits(folder, TOKENS)).abs().max() < 1e-4


def test_several_files_that_nothing_tells_apart_are_refused(folder: Path) -> None:
    scaled(folder, "b.safetensors")
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"several safetensors files \(a\.safetensors, b\.safetensors\)"):
        load_llama(folder)
    (folder / "b.safetensors").unlink()
    assert load_llama(folder).config.backbone.blocks == 3


def test_a_tensor_in_two_shards_is_refused(folder: Path) -> None:
    shutil.move(folder / "model.safetensors", folder / "one.safetensors")
    save_file({"model.norm.weight": torch.ones(48)}, folder / "two.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r'"model\.norm\.weight" is in .*two\.safetensors and in another'):
        load_llama(folder)


def test_an_adapter_that_transformers_would_put_on_top_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"adapter \(adapter_config\.json\).*merge"):
        load_llama(folder)


def test_weights_that_are_no_floats_are_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(48, dtype=torch.int8)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r'"model\.norm\.weight" holds torch\.int8'):
        load_llama(folder)


def test_float64_weights_keep_their_precision(folder: Path) -> None:
    edit_config(folder, dtype="float64")
    assert next(load_llama(folder).parameters()).dtype == torch.float64


def test_a_readout_that_differs_from_the_embedding_is_not_tied(folder: Path) -> None:
    edit_config(folder, tie_word_embeddings=True)  # the file holds two different ones
    ours = load_llama(folder)
    assert not ours.config.backbone.tie_embeddings
    assert (our_logits(ours, TOKENS) - their_logits(folder, TOKENS)).abs().max() < 1e-4


@pytest.mark.parametrize("absent", ["lm_head.weight", "model.embed_tokens.weight", None])
def test_tied_weights_may_be_saved_once_or_twice(folder: Path, absent: str | None) -> None:
    edit_config(folder, tie_word_embeddings=True)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file({key: tensor for key, tensor in weights.items() if key != absent}, folder / "model.safetensors")
    ours = load_llama(folder)
    assert ours.config.backbone.tie_embeddings
    assert (our_logits(ours, TOKENS) - their_logits(folder, TOKENS)).abs().max() < 1e-4


def test_weights_that_are_a_pipe_are_refused_and_not_waited_for(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is no plain file but a pipe"):
        load_llama(folder)
