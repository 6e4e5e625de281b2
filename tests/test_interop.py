"""Llama weights of transformers: the same logits, the same greedy texts, and refusals of everything that is not a Llama."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from latentlm.errors import CheckpointError, UserError
from latentlm.interface import LatentDecoder
from latentlm.interop import is_llama_folder, llama_config, load_llama
from saved_llamas import SCALED, edit_config, our_logits, saved


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    saved(folder)
    return folder


@pytest.fixture
def folder(plain_folder: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    for file in plain_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.mark.parametrize(
    "settings",
    [
        {"tie_word_embeddings": False},
        {"tie_word_embeddings": True},
        {"num_key_value_heads": 6},
        {"num_key_value_heads": 1, "head_dim": 16, "rms_norm_eps": 1e-3},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        {"rope_parameters": SCALED},
        {"rope_parameters": SCALED, "tie_word_embeddings": True, "shard": "20KB"},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}},
        {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 500.0}},
        {"kind": "Mistral", "sliding_window": None},
    ],
    ids=[
        "untied", "tied", "multi-head", "one key head of its own width", "rope base", "llama3 rope", "tied shards",
        "linear rope", "dynamic rope", "mistral",
    ],
)
def test_logits_and_greedy_texts_are_those_of_transformers(tmp_path: Path, settings: dict[str, Any]) -> None:
    theirs = saved(tmp_path, **settings)
    ours = load_llama(tmp_path)
    tokens = torch.randint(0, 53, (2, 100), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(tokens).logits
    assert (our_logits(ours, tokens) - expected).abs().max() < 1e-4
    prompt = tokens[:, :7]
    continued = theirs.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=25, do_sample=False, pad_token_id=0
    )
    found = [made.tokens for made in ours.generate(prompt.tolist(), max_tokens=25, temperature=0)]
    assert found == continued[:, 7:].tolist()
    assert "shard" not in settings or len(list(tmp_path.glob("model-*.safetensors"))) > 2


def test_the_configuration_of_older_releases_is_read_alike(folder: Path) -> None:
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    settings["rope_parameters"] = SCALED
    path.write_text(json.dumps(settings))
    new = llama_config(folder)
    del settings["rope_parameters"]
    scaling = {key: value for key, value in SCALED.items() if key != "rope_theta"}
    path.write_text(json.dumps({**settings, "rope_theta": 5000.0, "rope_scaling": scaling}))
    assert llama_config(folder) == new
    assert new.backbone.rope_base == 5000
    assert new.backbone.rope_scaling is not None
    path.write_text(json.dumps({**settings, "rope_theta": 5000.0, "rope_scaling": None}))
    assert llama_config(folder).backbone.rope_scaling is None


def test_weights_are_loaded_in_the_dtype_asked_for(folder: Path) -> None:
    def dtype_of(model: LatentDecoder) -> torch.dtype:
        return next(model.parameters()).dtype

    assert dtype_of(load_llama(folder)) == torch.float32
    assert dtype_of(load_llama(folder, dtype=torch.bfloat16)) == torch.bfloat16
    edit_config(folder, dtype="bfloat16")
    assert dtype_of(load_llama(folder)) == torch.bfloat16
    edit_config(folder, dtype="float16")
    assert dtype_of(load_llama(folder)) == torch.float32


def test_the_tokenizer_of_the_folder_comes_along(tmp_path: Path) -> None:
    from latentlm.tokenizer import BPETokenizer

    tokenizer = BPETokenizer.train(["some text to learn from, some text"] * 3, vocabulary=265)
    saved(tmp_path, vocab_size=272)  # padded
    tokenizer.save(tmp_path)
    made = load_llama(tmp_path).generate(["some text"], max_tokens=5)[0]
    assert made.prompt == tokenizer.encode("some text"), "no BOS by its rule, as in transformers"
    assert made.text is not None
    saved(tmp_path, vocab_size=200)
    with pytest.raises(UserError, match="but the model has 200"):
        load_llama(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gpt2"}, 'model_type is "gpt2"'),
        ({"model_type": "mistral", "sliding_window": 4096}, "window of 4096"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor"),
        ({"hidden_size": None}, "width"),
        ({"num_key_value_heads": 4}, "multiple of kv_heads"),
    ],
)
def test_what_the_backbone_has_not_is_refused_by_name(folder: Path, changes: dict[str, Any], words: str) -> None:
    edit_config(folder, **changes)
    with pytest.raises(UserError, match=words):
        load_llama(folder)


def test_weights_that_do_not_belong_are_refused(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    bias = {**weights, "model.layers.0.self_attn.q_proj.bias": torch.zeros(48)}
    missing = {name: tensor for name, tensor in weights.items() if "layers.1.mlp.up_proj" not in name}
    small = {**weights, "model.norm.weight": torch.ones(47)}
    surplus = {**weights, "model.layers.7.mlp.up_proj.weight": torch.zeros(80, 48)}
    for tensors, words in [
        (bias, "q_proj.bias"),
        (missing, r"lacks 1 weights, backbone.blocks.1.feed_forward.up"),
        (small, r"shape \(47,\)"),
        (surplus, "no such part"),
    ]:
        save_file(tensors, folder / "model.safetensors")
        with pytest.raises(CheckpointError, match=words):
            load_llama(folder)


def test_damaged_and_missing_files_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        load_llama(folder)
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="save it as safetensors"):
        load_llama(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../one.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"lacks one\.safetensors"):
        load_llama(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="JSON"):
        load_llama(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="does not exist"):
        load_llama(folder)


def test_folders_are_told_apart(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert is_llama_folder(folder)
    assert not is_llama_folder(tmp_path_factory.mktemp("empty"))
    assert not is_llama_folder(folder / "config.json")
    (folder / "card.yaml").write_text("name: ours")
    assert not is_llama_folder(folder)


def test_the_zoo_loads_such_a_folder_by_its_path(folder: Path) -> None:
    from latentlm import zoo

    tokens = torch.arange(20)[None]
    assert torch.equal(our_logits(zoo.load(str(folder)), tokens), our_logits(load_llama(folder), tokens))
