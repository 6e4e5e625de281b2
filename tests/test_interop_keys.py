"""config.json of transformers: each key means what it means there, or is refused by its name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from latentlm.errors import UserError
from latentlm.interop import llama_config, load_llama
from latentlm.interop.config_keys import HARMLESS, HONOURED, SERVED
from latentlm.interop.generation_keys import GENERATION
from saved_llamas import SCALED, edit_config, our_logits, saved, their_logits

TOKENS = torch.randint(0, 53, (2, 60), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    saved(folder)
    return folder


@pytest.fixture
def folder(plain_folder: Path, tmp_path: Path) -> Path:
    """A copy to edit."""
    for file in plain_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def without(settings: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in keys}


def forget(folder: Path, *keys: str) -> None:
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(without(settings, *keys)))


@pytest.mark.parametrize("kind", ["Llama", "Mistral"])
def test_every_key_that_transformers_writes_is_known(kind: str) -> None:
    import transformers

    config = getattr(transformers, f"{kind}Config")()
    fields = {*config.to_dict(), *(field.name for field in dataclasses.fields(config))}
    assert fields - HONOURED - SERVED.keys() - HARMLESS.keys() - GENERATION == set()


def test_the_page_names_every_key() -> None:
    page = (Path(__file__).parent.parent / "docs" / "transformers.md").read_text(encoding="utf-8")
    known = {*HONOURED, *SERVED, *HARMLESS, *GENERATION}
    assert {key for key in known if f"`{key}`" not in page} == set()


def test_no_key_is_in_two_lists() -> None:
    lists = [HONOURED, SERVED.keys(), HARMLESS.keys(), GENERATION - {"use_cache", "output_attentions", "output_hidden_states",
             "transformers_version", "_commit_hash"}]  # fmt: skip
    assert sum(map(len, lists)) == len(set().union(*lists))


# What the installed transformers computes from the same file is the right value; sequences are longer than `original` below.
ROTARY: list[dict[str, Any]] = [
    {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_theta": 500.0},
    {"rope_scaling": {"type": "dynamic", "factor": 4.0}},
    {"rope_scaling": SCALED},
    {"rope_scaling": without(SCALED, "rope_theta"), "rope_theta": 300.0},
    {"rope_scaling": {}, "rope_parameters": SCALED},
    {"rope_parameters": {**SCALED, "rope_theta": 300.0}, "rope_theta": 700.0},
    {"rope_parameters": SCALED, "original_max_position_embeddings": 8},
    {"rope_parameters": without(SCALED, "original_max_position_embeddings"), "max_position_embeddings": 64},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 300.0, "factor": 4.0, "beta_fast": 3.0}},
    {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 1.0}},
    {"rope_parameters": None, "rope_theta": 300.0},
]


@pytest.mark.parametrize("changes", ROTARY, ids=lambda changes: json.dumps(changes)[:60])
def test_rotary_positions_are_read_as_transformers_reads_them(folder: Path, changes: dict[str, Any]) -> None:
    before = our_logits(load_llama(folder), TOKENS)
    edit_config(folder, **changes)
    ours, theirs = our_logits(load_llama(folder), TOKENS), their_logits(folder, TOKENS)
    assert (ours - theirs).abs().max() < 1e-4
    plain = changes.get("rope_scaling", {}).get("type") == "dynamic"
    assert plain == bool((ours - before).abs().max() < 1e-2)  # the key is at work


@pytest.mark.parametrize(
    "changes",
    [
        {"pretraining_tp": 2, "attention_dropout": 0.5, "use_cache": False},
        {"torch_dtype": "float32", "id2label": {"0": "a"}, "task_specific_params": {"x": {"max_length": 3}}},
        {"_name_or_path": "elsewhere", "unsloth_version": "2024.9", "bos_token_id": 3, "pad_token_id": 4},
        {"quantization_config": None, "sliding_window": None, "logit_scale": None, "architectures": None},
        {"layer_types": ["full_attention"] * 3, "partial_rotary_factor": 1.0, "pruned_heads": {}},
        {"is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {"a": 1}, "max_sequence_length": 9},
        {"hidden_act": "swish", "temperature": 0.3, "do_sample": True},
    ],
)
def test_keys_that_change_nothing_in_transformers_change_nothing_here(folder: Path, changes: dict[str, Any]) -> None:
    edit_config(folder, **changes)
    assert (our_logits(load_llama(folder), TOKENS) - their_logits(folder, TOKENS)).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"partial_rotary_factor": 0.5}, r"0\.5 of each head is rotated \(partial_rotary_factor\)"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"is_causal": False}, "is_causal"),
        ({"rope_interleaved": True}, "rope_interleaved"),
        ({"per_layer_config": {"1": {"head_dim": 4}}}, "per_layer_config"),
        ({"transformers_weights": "other.safetensors"}, r"the weights lie in other\.safetensors"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "architectures"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling.Mine"}}, "auto_map"),
        ({"prefix": "Say: "}, "prefix"),
        ({"final_logit_softcapping": 30.0}, r'"final_logit_softcapping" is unknown here, .*30\.0'),
        ({"use_qk_norm": False}, '"use_qk_norm" is unknown here'),
        ({"atention_bias": False}, 'Did you mean "attention_bias"'),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, r'"yarn" \(rope_scaling\)'),
        ({"rope_parameters": {"rope_type": "longrope"}}, r'"longrope" \(rope_parameters\)'),
        ({"rope_parameters": {"rope_type": "linear"}}, "lack factor"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "full_attention"),
        ({"rope_scaling": "linear"}, "should hold a mapping"),
    ],
)
def test_what_would_change_the_function_is_refused_by_name(folder: Path, changes: dict[str, Any], words: str) -> None:
    edit_config(folder, **changes)
    with pytest.raises(UserError, match=words):
        load_llama(folder)


def test_an_absent_key_means_what_it_means_in_transformers(tmp_path: Path) -> None:
    import transformers

    saved(tmp_path, kind="Mistral", sliding_window=None, num_attention_heads=8, num_key_value_heads=8)
    forget(tmp_path, "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "head_dim", "tie_word_embeddings")
    theirs, ours = transformers.AutoConfig.from_pretrained(tmp_path), llama_config(tmp_path).backbone
    assert (ours.kv_heads, ours.context) == (theirs.num_key_value_heads, theirs.max_position_embeddings) == (8, 131_072)
    assert (ours.norm_eps, ours.head_dim, ours.tie_embeddings) == (theirs.rms_norm_eps, theirs.head_dim, False)
    forget(tmp_path, "sliding_window")
    assert transformers.AutoConfig.from_pretrained(tmp_path).sliding_window == 4096
    with pytest.raises(UserError, match=r"window of 4096 tokens \(sliding_window\)"):
        llama_config(tmp_path)
