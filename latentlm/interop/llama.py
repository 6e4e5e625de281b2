"""Llama weights of the transformers library (a folder with config.json and safetensors files) as a vanilla decoder.

    model = load_llama(folder)
    model.generate(["The "], max_tokens=20)         # where the folder has a tokenizer.json

The structure must be the backbone's: RMSNorm before each half, SwiGLU, rotary positions (plain, linear or Llama-3 scaled),
grouped-query attention over the whole context, no biases. Whatever else config.json asks for is refused by name
(config_keys.py). Of several ways to read a folder, transformers' own is taken: which files hold the weights, what an absent key
means, whether embeddings are tied. Weights are never unpickled.

Prompts begin with the token that tokenizer.json itself puts there (BOS), if it puts one; whole texts, and an empty prompt, with
it too, else with the BOS that tokenizer_config.json names, else with end-of-text. A model that was trained to expect another
first token is served by lists of tokens. A generated text ends where transformers ends it (generation_keys.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from latentlm.composed import build
from latentlm.config import BackboneConfig, ModelConfig, parse, read_json
from latentlm.errors import CheckpointError, UserError
from latentlm.interface import LatentDecoder
from latentlm.interop.config_keys import problems
from latentlm.interop.generation_keys import end_tokens, warn_of_unserved
from latentlm.interop.rotary import rotary
from latentlm.interop.weight_files import read_mapping, tensor_of, tensors, weight_files

_ABSENT: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {"max_position_embeddings": 131_072, "num_key_value_heads": 8, "sliding_window": 4096},
}
"""The model types that have this structure, and what transformers takes for the keys that config.json leaves out."""
_CONFIG, _GENERATION = "config.json", "generation_config.json"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
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
_EMBEDDING, _READOUT = "model.embed_tokens.weight", "lm_head.weight"


def is_llama_folder(path: str | Path) -> bool:
    """Whether the folder has a config.json of transformers (of any model type; `load_llama` says what it cannot take) and no
    card of ours."""
    folder = Path(path)
    if not (folder / _CONFIG).is_file() or (folder / "card.yaml").is_file():
        return False
    try:
        said = read_json(folder / _CONFIG)
    except UserError:
        return False
    return isinstance(said, dict) and "model_type" in said


def llama_config(folder: str | Path) -> ModelConfig:
    """The vanilla decoder that config.json describes. Raises UserError for what the backbone has not."""
    path = Path(folder) / _CONFIG
    settings = read_mapping(path)
    kind = settings.get("model_type")
    if not isinstance(kind, str) or kind not in _ABSENT:
        known = " and ".join(_ABSENT)
        raise UserError(f'{path}: model_type is "{kind}", and only {known} have the structure of the vanilla decoder.')
    settings = {**_ABSENT[kind], **settings}
    if found := list(problems(settings)):
        raise UserError(
            f"{path} describes a model that the vanilla decoder is not: {'; '.join(found)}. Where a key is without meaning for "
            "these weights, take it out of the file."
        )
    base, scaling = rotary(settings, path)
    backbone = {
        "vocabulary": settings.get("vocab_size"),
        "width": settings.get("hidden_size"),
        "blocks": settings.get("num_hidden_layers"),
        "heads": settings.get("num_attention_heads"),
        "kv_heads": settings.get("num_key_value_heads"),
        "head_dim": settings.get("head_dim"),
        "feed_forward": settings.get("intermediate_size"),
        "context": settings.get("max_position_embeddings"),
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
    architecture, CheckpointError for weights that are missing, damaged or of the wrong shape. Warns of what the folder asks of
    generation and `generate` does not do.
    """
    folder = Path(folder)
    settings = read_mapping(folder / _CONFIG)
    config, files = llama_config(folder), weight_files(folder)
    config = _untied_where_they_differ(config, files)
    said = settings.get("dtype") or settings.get("torch_dtype")
    model = build(config, device=device, dtype=dtype or _DTYPES.get(str(said), torch.float32), init=False)
    _fill(model, files, folder)
    model.tokenizer = None
    if (folder / "tokenizer.json").is_file():
        from latentlm.interop.folder_tokenizer import folder_tokenizer

        tokenizer = folder_tokenizer(folder)
        if tokenizer.vocabulary > config.backbone.vocabulary:  # fewer is fine: vocabularies are padded for speed
            raise UserError(
                f"{folder}: the tokenizer has {tokenizer.vocabulary} symbols, but the model has {config.backbone.vocabulary}; "
                "put the tokenizer.json there that the model was trained with."
            )
        model.tokenizer = tokenizer
    own = (folder / _GENERATION).is_file()
    source = folder / (_GENERATION if own else _CONFIG)
    generation = read_mapping(source) if own else settings
    model.end_tokens = end_tokens(generation, source=str(source))
    warn_of_unserved(generation, source=str(source), every_key=own)
    return model.eval()


# ----------------------------------------------------------------------------------------------------------- weights


def _our_name(theirs: str) -> str | None:
    """Our parameter's name, None for tensors that hold no parameter (the tables of old rotary embeddings)."""
    if theirs.endswith("rotary_emb.inv_freq"):
        return None
    whole = {
        _EMBEDDING: "backbone.embedding.weight",
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


def _untied_where_they_differ(config: ModelConfig, files: list[Path]) -> ModelConfig:
    """The configuration without tied embeddings where the files hold two different ones: transformers believes the files."""
    if not config.backbone.tie_embeddings:
        return config
    embedding, readout = tensor_of(files, _EMBEDDING), tensor_of(files, _READOUT)
    if embedding is None or readout is None or torch.equal(embedding, readout):
        return config
    return config.model_copy(update={"backbone": config.backbone.model_copy(update={"tie_embeddings": False})})


@torch.no_grad()
def _fill(model: LatentDecoder, files: list[Path], folder: Path) -> None:
    """Copy every tensor of the files into its parameter, file by file. Raises CheckpointError."""
    wanted = dict(model.named_parameters())
    unset, seen = set(wanted), set[str]()
    for file in files:
        for theirs, tensor in tensors(file):
            # A tied readout is the embedding's twin, or was saved in its place.
            tied = theirs == _READOUT and model.config.backbone.tie_embeddings
            name = _our_name(_EMBEDDING if tied else theirs)
            if name is None:
                continue
            if name not in wanted:
                raise CheckpointError(f'{file} has "{theirs}", but config.json describes no such part.')
            if theirs in seen:
                raise CheckpointError(f'"{theirs}" is in {file} and in another file as well; one of them is not the model\'s.')
            seen.add(theirs)
            if tensor.shape != wanted[name].shape:
                raise CheckpointError(
                    f'{file}: "{theirs}" has shape {tuple(tensor.shape)}, config.json asks for {tuple(wanted[name].shape)}.'
                )
            wanted[name].copy_(tensor)
            unset.discard(name)
    if unset:
        raise CheckpointError(f"{folder} lacks {len(unset)} weights, {sorted(unset)[0]} among them; download it again.")
