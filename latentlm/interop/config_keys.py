"""Which keys of a config.json of transformers change what a Llama computes, and what becomes of each.

    honoured    read by `latentlm.interop.llama`
    served      the backbone computes one value of the key and no other: any other is refused by name
    harmless    changes no logits, for the reason given beside it
    generation  how transformers' `generate` draws by default (see `latentlm.interop.generation_keys`)

A key that is none of these is refused by name unless it is null: nobody knows what it does to the function.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from latentlm.errors import did_you_mean
from latentlm.interop.generation_keys import GENERATION

HONOURED = frozenset({
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "initializer_range",
    "rope_parameters", "rope_scaling", "rope_theta", "original_max_position_embeddings", "dtype", "torch_dtype",
})  # fmt: skip


@dataclass(frozen=True)
class Served:
    """The values of a key that the backbone computes, besides null, and what any other one asks for ({} is the value)."""

    values: tuple[Any, ...]
    otherwise: str


_ARCHITECTURES = ("LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM")  # the second is what Llama 1 was saved as
SERVED = {
    "hidden_act": Served(("silu", "swish"), 'the activation is "{}", not silu'),
    "attention_bias": Served((False,), "there are biases"),
    "mlp_bias": Served((False,), "there are biases"),
    "sliding_window": Served((), "attention slides over a window of {} tokens"),
    "layer_types": Served(("full_attention",), "some layers are not of full attention: {}"),
    "is_causal": Served((True,), "attention is not causal"),
    "is_encoder_decoder": Served((False,), "there is an encoder"),
    "add_cross_attention": Served((False,), "there is cross-attention"),
    "cross_attention_hidden_size": Served((), "there is cross-attention"),
    "rope_interleaved": Served((False,), "rotary positions turn neighbours"),
    "partial_rotary_factor": Served((1.0,), "a share of {} of each head is rotated"),
    "quantization_config": Served(({},), "the weights are quantised"),
    "per_layer_config": Served(({},), "layers differ from each other"),
    "pruned_heads": Served(({},), "heads were taken out"),
    "transformers_weights": Served((), "the weights lie in {}"),
    "architectures": Served(_ARCHITECTURES, "the class of the model is {}"),
    "auto_map": Served(({},), "the model brings code of its own, which is never run"),
    "prefix": Served(("",), "every text begins with {}"),
}
"""Lists are served where each of their elements is."""

_IN_TRAINING, _OUTPUT = "at work in training only", "what a call returns"
_CLASSIFIER, _HOW = "of classifiers", "how the same numbers are computed"
_NOTE = "a note of the program that wrote the file"
_OTHERS = "of models of other kinds"
HARMLESS = {
    **dict.fromkeys(("attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop"), _IN_TRAINING),
    "gradient_checkpointing": _IN_TRAINING,
    **dict.fromkeys(("use_cache", "chunk_size_feed_forward", "pretraining_tp"), _HOW),
    **dict.fromkeys(("attn_implementation", "_attn_implementation", "_attn_implementation_autoset"), _HOW),
    **dict.fromkeys(("_flash_attn_2_enabled", "experts_implementation", "torchscript", "use_bfloat16"), _HOW),
    **dict.fromkeys(("output_attentions", "output_hidden_states", "return_dict", "tie_last_hidden_states"), _OUTPUT),
    **dict.fromkeys(("id2label", "label2id", "num_labels", "problem_type", "finetuning_task"), _CLASSIFIER),
    **dict.fromkeys(("is_decoder", "tie_encoder_decoder", "tf_legacy_loss", "sep_token_id"), _OTHERS),
    **dict.fromkeys(("transformers_version", "_name_or_path", "name_or_path", "_commit_hash"), _NOTE),
    **dict.fromkeys(("unsloth_version", "unsloth_fixed", "is_llama_config", "transformers.js_config"), _NOTE),
    **dict.fromkeys(("max_sequence_length", "model_max_length"), "a bound for others; max_position_embeddings counts"),
    "tokenizer_class": "the tokenizer is that of tokenizer.json",
    "task_specific_params": "read by pipelines, not by `generate`",
}


def problems(settings: dict[str, Any]) -> Iterator[str]:
    """What the keys of config.json ask for and the backbone has not, each with the key's name."""
    for key, value in settings.items():
        if value is None or key in HONOURED or key in HARMLESS or key in GENERATION:
            continue
        if key not in SERVED:
            near = did_you_mean(key, [*HONOURED, *SERVED])
            yield f'"{key}" is unknown here, and may change what the model computes (its value: {value!r}).{near}'
        elif not _is_served(value, SERVED[key].values):
            yield f"{SERVED[key].otherwise.format(value)} ({key})"


def _is_served(value: Any, served: tuple[Any, ...]) -> bool:
    return all(item in served for item in value) if isinstance(value, list) else value in served
