"""Model arguments: ours, checked, and those of lm-eval's `hf`: other names, values that change nothing, what is refused.

    ours({"pretrained": "free-tiny", "parallelize": False})         # {"model": "free-tiny"}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any

import torch

from latentlm.errors import UserError, short, unknown_name

_ON_CPU = 8  # requests in a batch there: of more, what a layer leaves no longer fits the caches

ALIASES = {"pretrained": "model", "model_name_or_path": "model"}
"""hf's name -> ours."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "backend": ("default", "causal"),
    "revision": ("main",),
    "subfolder": ("",),
    "truncation": (False,),
    "logits_cache": (True, False),
    "softmax_dtype": (),
    "mixed_precision_dtype": (),
    "use_fast_tokenizer": (True,),
    "trust_remote_code": (True, False),  # code of a folder is never run
    "parallelize": (False,),
    "max_memory_per_gpu": (),
    "max_cpu_memory": (),
    "offload_folder": ("./offload",),
    "tp_plan": (),
    "peft": (),
    "delta": (),
    "autogptq": (False,),
    "gptqmodel": (False,),
    "gguf_file": (),
    "load_in_8bit": (False,),
    "load_in_4bit": (False,),
    "low_cpu_mem_usage": (True, False),
    "attn_implementation": ("eager", "sdpa"),
}
"""hf's arguments that are served at these values only, which change nothing here. None is neutral for every argument."""


def ours(given: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """`given` in our names, without what is neutral. Raises UserError for what is neither served nor neutral."""
    names = list(known)
    found: dict[str, Any] = {}
    for said, value in given.items():
        name = ALIASES.get(said, said)
        if name in NEUTRAL:
            _check(name, value)
            continue
        if name not in names:
            raise unknown_name("model_args key", said, names)
        if name in found and found[name] != value:
            raise UserError(f"{name} and its other name {said} are given with two values: say one of them.")
        found[name] = value
    return found


def _check(name: str, value: Any) -> None:
    if value is not None and value not in NEUTRAL[name]:
        neutral = " or ".join(repr(each) for each in NEUTRAL[name]) or "None"
        raise UserError(f"--model_args {name}={value} of lm-eval's hf is not served; {name}={neutral}, or leaving it out, is.")


def count(name: str, given: Any, *, least: int | None = None) -> int:
    """A whole number. Raises UserError."""
    try:
        number = int(str(given))  # as text, since int() would round 1.5 and count True
    except ValueError:
        raise UserError(f"{name}={given} is not a whole number.") from None
    if least is not None and number < least:
        raise UserError(f"{name}={given} is less than {least}.")
    return number


def flag(name: str, given: Any) -> None:
    """Raise UserError for what is neither true, false nor left out: any text would count as true."""
    if not (given is None or isinstance(given, bool)):
        raise UserError(f"{name}={given} is neither true nor false.")


def words(**given: Any) -> None:
    """Raise UserError for what is neither text, a path nor left out: lm-eval makes numbers of what looks like them."""
    for name, value in given.items():
        if not (value is None or isinstance(value, str | PathLike)):
            raise UserError(f"{name}={short(str(value))} is no text.")


def amount(name: str, given: Any) -> float:
    """A number. Raises UserError."""
    try:
        return float(given)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{name}={given} is not a number.") from None


def batch_rows(given: int | str | None, largest: int | None, device: torch.device) -> int | None:
    """Requests per forward pass; None = as many as fit a fixed number of latent tokens ("auto" beside a CPU)."""
    kind, _, often = str(given).partition(":")
    largest = None if largest is None else count("max_batch_size", largest, least=1)
    if given is None or (kind == "auto" and (not often or often.replace(".", "", 1).isdigit())):
        return min(_ON_CPU, largest or _ON_CPU) if device.type == "cpu" else largest
    try:
        size = int(given)
    except (TypeError, ValueError, OverflowError):
        size = 0
    if size < 1:
        raise UserError(f'batch_size={given} is neither a number of requests nor "auto".')
    return size


def seen_tokens(given: int | None, context: int) -> int:
    """Tokens that the model is shown at most."""
    if given is None:
        return context
    given = count("max_length", given)
    if not 2 <= given <= context:
        raise UserError(f"max_length={given} is not between 2 and the model's context of {context} tokens.")
    return given
