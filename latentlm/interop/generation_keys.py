"""What a folder of transformers says of generation: which tokens end a text, and what its own `generate` does besides.

transformers reads generation_config.json or, where there is none, the same keys of config.json. Of these `eos_token_id` is
honoured: a token or a list, any of which ends a text. How tokens are drawn is the caller's choice (`temperature`, `top_k`,
`top_p`, `max_tokens` and `stop` of `generate`); what a folder asks for beyond that is not done, and said in a warning.
"""

from __future__ import annotations

import warnings
from typing import Any

from latentlm.errors import CheckpointError

_CALLERS = frozenset({
    "max_length", "max_new_tokens", "max_time", "do_sample", "temperature", "top_k", "top_p", "num_return_sequences",
})  # fmt: skip
"""Settings that our `generate` has as arguments of its own."""

_NO_EFFECT = frozenset({
    # how the same text is computed, and what is returned beside it
    "use_cache", "cache_implementation", "cache_config", "max_cache_len", "compile_config", "disable_compile", "use_mtp",
    "prefill_chunk_size", "low_memory", "return_legacy_cache", "output_attentions", "output_hidden_states", "output_scores",
    "output_logits", "return_dict_in_generate", "remove_invalid_values", "renormalize_logits", "continuous_batching_config",
    # speculative decoding, which draws from the same distribution
    "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
    "prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind",
    "target_lookbehind", "speculation_type",
    # of beams, which are counted by num_beams
    "early_stopping", "length_penalty",
    # tokens that no text of ours holds: padding is masked, and a text begins as the tokenizer says
    "pad_token_id", "bos_token_id", "decoder_start_token_id",
    # notes
    "transformers_version", "_from_model_config", "_commit_hash", "_original_object_hash", "generation_kwargs",
})  # fmt: skip

_OFF: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,), "num_beam_groups": (1,), "diversity_penalty": (0.0,), "constraints": ([],), "force_words_ids": ([],),
    "penalty_alpha": (0.0,), "dola_layers": (), "min_length": (0,), "min_new_tokens": (0,), "stop_strings": ([], ""),
    "min_p": (0.0,), "top_h": (1.0,), "typical_p": (1.0,), "epsilon_cutoff": (0.0,), "eta_cutoff": (0.0,),
    "repetition_penalty": (1.0,), "encoder_repetition_penalty": (1.0,), "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,), "bad_words_ids": ([],), "forced_bos_token_id": (), "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (), "suppress_tokens": ([],), "begin_suppress_tokens": ([],), "sequence_bias": ({}, []),
    "token_healing": (False,), "guidance_scale": (1.0,), "watermarking_config": ({},), "assistant_ensemble_weight": (),
}  # fmt: skip
"""Settings that change the text and that our `generate` lacks, with the values that leave it as it is (null always does)."""

_EOS = "eos_token_id"
GENERATION = frozenset({_EOS}) | _CALLERS | _NO_EFFECT | _OFF.keys()
"""Every key of a generation_config.json that is known."""


class GenerationWarning(UserWarning):
    """A folder of transformers asks for texts to be drawn in a way that `generate` does not know."""


def end_tokens(settings: dict[str, Any], *, source: str) -> frozenset[int] | None:
    """The tokens that end a text, None where the settings name none. Raises CheckpointError for what is no token."""
    said = settings.get(_EOS)
    tokens = said if isinstance(said, list) else [] if said is None else [said]
    if any(isinstance(token, bool) or not isinstance(token, int) for token in tokens):
        raise CheckpointError(f"{source}: {_EOS} is {said!r}; it should be a token's number, or a list of such.")
    return frozenset(tokens) or None


def warn_of_unserved(settings: dict[str, Any], *, source: str, every_key: bool) -> None:
    """One warning that names what the settings ask for and `generate` does not do. With `every_key` also unknown keys (a
    config.json has keys for other ends)."""
    asked = {key: value for key, value in settings.items() if value is not None and _is_unserved(key, value, every_key)}
    if asked:
        listed = ", ".join(f"{key}={value!r}" for key, value in asked.items())
        warnings.warn(
            f"{source} asks for {listed}, which `generate` does not do: its texts are not those of transformers' own. "
            "Likelihoods are not affected.",
            GenerationWarning,
            stacklevel=3,
        )


def _is_unserved(key: str, value: Any, every_key: bool) -> bool:
    return value not in _OFF[key] if key in _OFF else every_key and key not in GENERATION
