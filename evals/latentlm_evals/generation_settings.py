"""lm-eval's generation arguments (a task's `generation_kwargs`, `--gen_kwargs`) in the terms of `latentlm.generation`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lm_eval.models.utils import normalize_gen_kwargs

from latentlm.errors import UserError, did_you_mean

SERVED = ("until", "do_sample", "temperature", "top_p", "top_k", "max_gen_toks", "max_new_tokens", "max_tokens")
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
        unknown = [name for name in given if name not in SERVED]
        if unknown:
            hint = did_you_mean(unknown[0], SERVED)
            raise UserError(f'generation argument "{unknown[0]}" is not served.{hint} Served: {", ".join(SERVED)}.')
        plain = normalize_gen_kwargs(dict(given), min(_LONGEST, max(1, max_length // 2)))
        samples = bool(plain["do_sample"])
        if plain["max_gen_toks"] >= max_length:
            raise UserError(
                f"max_gen_toks={plain['max_gen_toks']} leaves no room for a prompt in the {max_length} tokens that the model "
                "can see; lower it with --gen_kwargs max_gen_toks=..."
            )
        return cls(
            max_tokens=plain["max_gen_toks"],
            temperature=float(given.get("temperature", 1.0)) if samples else 0.0,
            top_p=given.get("top_p") if samples else None,
            top_k=given.get("top_k") if samples else None,
            stop=tuple(text for text in plain["until"] if text),
        )
