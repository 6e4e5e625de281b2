"""lm-eval's generation arguments (a task's `generation_kwargs`, `--gen_kwargs`) in the terms of `latentlm.generation`.

Every argument that transformers' `generate` knows is served, or neutral (it has the value that changes nothing), or refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lm_eval.models.utils import normalize_gen_kwargs

from latentlm.errors import UserError, did_you_mean
from latentlm.generation.sampling import TokenSampling

LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
SERVED = ("until", "stop", "do_sample", "temperature", "top_p", "top_k", *LENGTHS)
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "n": (1,),
    "best_of": (1,),
    "length_penalty": (1.0,),
    "early_stopping": (False,),
    "diversity_penalty": (0.0,),
    "repetition_penalty": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "min_tokens": (0,),
    "min_p": (0.0,),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "guidance_scale": (1.0,),
    "renormalize_logits": (True, False),
    "use_cache": (True, False),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True, False),
    "output_scores": (False,),
    "output_logits": (False,),
    "output_attentions": (False,),
    "output_hidden_states": (False,),
    "return_dict_in_generate": (False,),
    "remove_invalid_values": (True, False),
    "token_healing": (False,),
}
"""Arguments that are served at these values only, at which they change nothing. None is neutral for every argument."""
_LONGEST = 256  # lm-eval's own default of max_gen_toks


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """How one request is continued; equal settings can share a batch."""

    max_tokens: int
    temperature: float
    top_p: float | None
    top_k: int | None
    stop: tuple[str, ...]

    @classmethod
    def of(cls, given: Mapping[str, Any], max_length: int) -> GenerationSettings:
        """Greedy unless `do_sample` is true or a temperature is given. Without a length, `_LONGEST` tokens or half of what the
        model can see. Raises UserError for arguments that cannot be served."""
        wanted = {name: value for name, value in given.items() if value is not None}
        for name, value in wanted.items():
            _check(name, value)
        try:
            plain = normalize_gen_kwargs(
                {name: wanted[name] for name in SERVED if name in wanted and name not in ("stop", "until")},
                min(_LONGEST, max(1, max_length // 2)),
            )
            samples, length = bool(plain["do_sample"]), int(plain["max_gen_toks"])
            top_k = int(wanted.get("top_k", 0))
            sampling = TokenSampling(
                temperature=float(wanted.get("temperature", 1.0)) if samples else 0.0,
                top_p=float(wanted["top_p"]) if samples and "top_p" in wanted else None,
                top_k=top_k if samples and top_k != 0 else None,
            )
        except (TypeError, ValueError, OverflowError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"generation arguments {dict(given)} are not numbers where numbers are wanted: {error}.") from None
        if not 1 <= length < max_length:
            raise UserError(
                f"max_gen_toks={length} leaves no room for a prompt or a text in the {max_length} tokens that the model sees; "
                f"choose 1 to {max_length - 1} with --gen_kwargs max_gen_toks=..."
            )
        stop = (*_texts("until", wanted.get("until")), *_texts("stop", wanted.get("stop")))
        return cls(
            max_tokens=length,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            stop=tuple(dict.fromkeys(stop)),
        )


def _check(name: str, value: Any) -> None:
    """Refuse what is neither served nor neutral."""
    if name == "do_sample" and not isinstance(value, bool | int):  # "false" would be true
        raise UserError(f"generation argument do_sample={value!r} is neither true nor false.")
    if name in SERVED:
        return
    if name not in NEUTRAL:
        hint = did_you_mean(name, [*SERVED, *NEUTRAL])
        raise UserError(f'generation argument "{name}" is not served.{hint} Served: {", ".join(SERVED)}.')
    if value not in NEUTRAL[name]:
        neutral = " or ".join(str(each) for each in NEUTRAL[name])
        raise UserError(f"generation argument {name}={value} is not served; {name}={neutral}, which changes nothing, is.")


def _texts(name: str, given: Any) -> list[str]:
    """Stop strings from one or several; an empty one, which some tasks have, stops nothing."""
    several = [given] if isinstance(given, str) else [] if given is None else given
    if not isinstance(several, list | tuple) or not all(isinstance(text, str) for text in several):
        raise UserError(f"generation argument {name}={given!r} is no text and no list of texts.")
    return [text for text in several if text]
