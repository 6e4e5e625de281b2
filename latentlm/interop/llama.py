"""Llama weights of the transformers library (a folder with config.json and safetensors files) as a vanilla decoder.

    model = load_llama(folder)
    model.generate(["The "], max_tokens=20)         # where the folder has a tokenizer.json

The structure must be the backbone's: RMSNorm before each half, SwiGLU, rotary positions (plain or Llama-3 scaled),
grouped-query attention over the whole context, no biases. Whatever else config.json asks for is refused by name. Weights are
never unpickled.

`generate` and `score` begin every text with the token that tokenizer.json itself puts there (BOS), with end-of-text where it
puts none. A model that was trained to expect another first token is served by lists of tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from latentlm.composed import build
from latentlm.config import BackboneConfig, ModelConfig, parse
from latentlm.errors import CheckpointError, UserError
from latentlm.interface import LatentDecoder

_TYPES = ("llama", "mistral")  # the same structure, as long as there is no sliding window
_CONFIG, _INDEX = "config.json", "model.safetensors.index.json"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_IN_LAYER = {
    "input_layernorm": "attention_norm",
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.o_proj": "attention.output",
    "post_attention_layernorm": "feed_forward_norm",
    "mlp.gate_proj": "feed_forward.gate",
    "mlp.up_proj": "feed_forward.up",
    "mlp.down_proj": "feed_forward.down",
}
_READOUT = "lm_head.weight"


def is_llama_folder(path: str | Path) -> bool:
    """Whether the folder has a config.json of transformers (of any model type; `load_llama` says what it cannot take) and no
    card of ours."""
    folder = Path(path)
    if not (folder / _CONFIG).is_file() or (folder / "card.yaml").is_file():
        return False
    try:
        return "model_type" in json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def llama_config(folder: str | Path) -> ModelConfig:
    """The vanilla decoder that config.json describes. Raises UserError for what the backbone has not."""
    path = Path(folder) / _CONFIG
    settings = _read_json(path)
    if problems := list(_problems(settings)):
        raise UserError(f"{path} describes a model that the vanilla decoder is not: " + "; ".join(problems) + ".")
    base, scaling = _rotary(settings, path)
    backbone = {
        "vocabulary": settings.get("vocab_size"),
        "width": settings.get("hidden_size"),
        "blocks": settings.get("num_hidden_layers"),
        "heads": settings.get("num_attention_heads"),
        "kv_heads": settings.get("num_key_value_heads"),
        "head_dim": settings.get("head_dim"),
        "feed_forward": settings.get("intermediate_size"),
        "context": settings.get("max_position_embeddings", 2048),
        "rope_base": base,
        "rope_scaling": scaling,
        "tie_embeddings": settings.get("tie_word_embeddings", False),
        "norm_eps": settings.get("rms_norm_eps", 1e-6),
        "init_std": settings.get("initializer_range", 0.02),
    }
    return ModelConfig(decoder="vanilla", backbone=parse(BackboneConfig, backbone, source=str(path)))


def load_llama(folder: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> LatentDecoder:
    """A vanilla decoder with the folder's weights, in evaluation mode, with its tokenizer.json where there is one.

    `dtype` None takes that of config.json (float16 becomes float32, which holds it exactly). Raises UserError for another
    architecture, CheckpointError for weights that are missing, damaged or of the wrong shape.
    """
    folder = Path(folder)
    settings = _read_json(folder / _CONFIG)
    config = llama_config(folder)
    said = settings.get("dtype") or settings.get("torch_dtype")
    model = build(config, device=device, dtype=dtype or _DTYPES.get(str(said), torch.float32), init=False)
    _fill(model, folder)
    model.tokenizer = None
    if (folder / "tokenizer.json").is_file():
        from latentlm.tokenizer import LibraryTokenizer, load_tokenizer

        tokenizer = load_tokenizer("tokenizer.json", folder=folder)
        if tokenizer.vocabulary > config.backbone.vocabulary:  # fewer is fine: vocabularies are padded for speed
            raise UserError(
                f"{folder}: the tokenizer has {tokenizer.vocabulary} symbols, but the model has {config.backbone.vocabulary}; "
                "put the tokenizer.json there that the model was trained with."
            )
        leading = tokenizer.leading() if isinstance(tokenizer, LibraryTokenizer) else []
        tokenizer.bos = leading[0] if leading else None
        model.tokenizer = tokenizer
    return model.eval()


# ------------------------------------------------------------------------------------------------------- config.json


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON file whose top level is a mapping."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; a folder of Llama weights has it beside the safetensors files.") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable as JSON: {error}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} should hold a mapping, not {type(data).__name__}.")
    return data


def _problems(settings: dict[str, Any]) -> Iterator[str]:
    """What config.json asks for and the backbone has not."""
    kind = settings.get("model_type")
    if kind not in _TYPES:
        yield f'model_type is "{kind}", and only {" and ".join(_TYPES)} have this structure'
        return  # the other keys may mean anything
    if settings.get("sliding_window") is not None:
        yield f"attention slides over a window of {settings['sliding_window']} tokens (sliding_window)"
    for key in ("attention_bias", "mlp_bias"):
        if settings.get(key):
            yield f"there are biases ({key})"
    if (activation := settings.get("hidden_act", "silu")) not in ("silu", "swish"):
        yield f'the activation is "{activation}" (hidden_act), not silu'
    if settings.get("quantization_config"):
        yield "the weights are quantised (quantization_config)"


def _rotary(settings: dict[str, Any], path: Path) -> tuple[float, dict[str, Any] | None]:
    """Base and Llama-3 scaling, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    base = float(rope.get("rope_theta") or settings.get("rope_theta") or 10_000.0)
    if kind not in ("default", "llama3") or rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(f'{path}: rotary positions of type "{kind}" are not supported; "default" and "llama3" are.')
    if kind == "default":
        return base, None
    original = rope.get("original_max_position_embeddings") or settings.get("original_max_position_embeddings")
    missing = [key for key in ("factor", "low_freq_factor", "high_freq_factor") if key not in rope]
    if missing or original is None:
        raise UserError(f"{path}: llama3 rotary positions lack {', '.join(missing or ['original_max_position_embeddings'])}.")
    scaling = {key: rope[key] for key in ("factor", "low_freq_factor", "high_freq_factor")}
    return base, {**scaling, "original_context": original}


# ----------------------------------------------------------------------------------------------------------- weights


def _our_name(theirs: str) -> str | None:
    """Our parameter's name, None for tensors that hold no parameter (the tables of old rotary embeddings)."""
    if theirs.endswith("rotary_emb.inv_freq"):
        return None
    whole = {
        "model.embed_tokens.weight": "backbone.embedding.weight",
        "model.norm.weight": "backbone.norm.weight",
        _READOUT: "backbone.readout.weight",
    }
    if theirs in whole:
        return whole[theirs]
    head, _, rest = theirs.removeprefix("model.layers.").partition(".")
    inner = _IN_LAYER.get(rest.removesuffix(".weight"))
    if not (theirs.startswith("model.layers.") and head.isdigit() and inner and rest.endswith(".weight")):
        raise CheckpointError(f'the weights have "{theirs}", which a Llama without biases has not.')
    return f"backbone.blocks.{head}.{inner}.weight"


@torch.no_grad()
def _fill(model: LatentDecoder, folder: Path) -> None:
    """Copy every tensor of the folder into its parameter, file by file. Raises CheckpointError."""
    wanted = dict(model.named_parameters())
    unset = set(wanted)
    tied = model.config.backbone.tie_embeddings
    for file in _files(folder):
        for theirs, tensor in _tensors(file):
            if tied and theirs == _READOUT:  # saved twice; the embedding is the one that counts
                continue
            name = _our_name(theirs)
            if name is None:
                continue
            if name not in wanted:
                raise CheckpointError(f'{file} has "{theirs}", but config.json describes no such part.')
            if tensor.shape != wanted[name].shape:
                raise CheckpointError(
                    f'{file}: "{theirs}" has shape {tuple(tensor.shape)}, config.json asks for {tuple(wanted[name].shape)}.'
                )
            wanted[name].copy_(tensor)
            unset.discard(name)
    if unset:
        raise CheckpointError(f"{folder} lacks {len(unset)} weights, {sorted(unset)[0]} among them; download it again.")


def _files(folder: Path) -> list[Path]:
    """The safetensors files, by the index where there is one."""
    if (folder / _INDEX).is_file():
        names = _read_json(folder / _INDEX).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise CheckpointError(f"{folder / _INDEX} has no weight_map; download it again.")
        # A name that leads out of the folder is cut down to its last part.
        files = [folder / Path(str(name)).name for name in sorted(set(names.values()))]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = ", ".join(sorted(path.name for path in folder.glob("*.bin")))
        hint = f" It has {pickled}, which only unpickling could read: save it as safetensors." if pickled else ""
        raise CheckpointError(f"{folder} has no safetensors file.{hint}")
    if absent := [file.name for file in files if not file.is_file()]:
        raise CheckpointError(f"{folder} lacks {', '.join(absent)}, which its index names; download it again.")
    return files


def _tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a file, one in memory at a time."""
    try:
        with safe_open(str(file), framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                yield name, opened.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} is damaged ({error}); download it again.") from None
