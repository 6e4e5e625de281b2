"""The xformers backend: memory-efficient attention on CUDA, packed documents without a T x T mask.

Rows are laid end to end and every run of equal document numbers becomes one block of a block-diagonal bias. xformers computes
on CUDA only; on CPU the bias can be built and written out (`materialize`), which is how it is checked against `Mask.allowed`.
Its import is slow, so it is imported when it is first asked for.

Legend: B rows, T tokens, H heads, Hkv key/value heads, dh head width.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor

from latentlm.backbone.attention import Mask
from latentlm.errors import UserError


def refusal(mask: Mask, *, device: torch.device, columns: int) -> str | None:
    """Why this backend cannot serve a request over `columns` key columns, or None if it can."""
    if device.type != "cuda":
        return f"xformers computes on CUDA only, and the model is on {device.type}"
    if mask.prefix_documents is not None:
        return "xformers has no bias for prefix slots in front of packed documents"
    if mask.given is not None:
        return "xformers has no bias for a prompt that is seen both ways"
    if columns != mask.query_documents.shape[1] and not (mask.simple and mask.query_documents.shape[1] == 1):
        return "xformers serves a cache only one token at a time, for rows of equal length"
    return None


def lower(mask: Mask) -> Any:
    """The block-diagonal bias over all rows laid end to end: (B*T) x (B*T), never written out."""
    from xformers.ops import fmha

    lengths = run_lengths(mask.key_documents)
    if not mask.causal:
        return fmha.attn_bias.BlockDiagonalMask.from_seqlens(lengths)
    bias = fmha.attn_bias.BlockDiagonalCausalMask.from_seqlens(lengths)
    return bias if mask.window is None else bias.make_local_attention(mask.window)


def run_lengths(documents: Tensor) -> list[int]:
    """Lengths of the runs of equal document numbers, row after row; a row's end always ends a run."""
    changes = documents[:, 1:] != documents[:, :-1]  # (B, T-1)
    ends = torch.nn.functional.pad(changes, (0, 1), value=True).flatten().nonzero().flatten() + 1
    return torch.diff(ends, prepend=ends.new_zeros(1)).tolist()


def xformers_attend(query: Tensor, key: Tensor, value: Tensor, *, mask: Mask) -> Tensor:
    """query (B, H, T, dh), key and value (B, Hkv, T, dh) -> (B, H, T, dh). Raises UserError where it cannot serve."""
    if why := refusal(mask, device=query.device, columns=key.shape[2]):
        raise UserError(f'{why}; set model.backbone.attention to "sdpa" or "auto".')
    groups = query.shape[1] // key.shape[1]
    if key.shape[2] != query.shape[2]:  # one new token against a cache that all of it may see
        laid = (rearrange(query, "b h t d -> b t h d"), *(_heads(part, groups, "b t h d") for part in (key, value)))
        return rearrange(_attention(*laid), "b t h d -> b h t d")
    flat = rearrange(query, "b h t d -> 1 (b t) h d")
    keys, values = (_heads(part, groups, "1 (b t) h d") for part in (key, value))
    out = _attention(flat, keys, values, _bias(mask))
    return rearrange(out, "1 (b t) h d -> b h t d", b=query.shape[0])


def _attention(query: Tensor, key: Tensor, value: Tensor, bias: Any = None) -> Tensor:
    """xformers' own, (B, T, H, dh). Raises UserError where none of its kernels serves."""
    from xformers.ops import memory_efficient_attention

    try:
        mixed: Tensor = memory_efficient_attention(query, key, value, attn_bias=bias)
    except NotImplementedError as error:  # its message is a page long
        raise UserError(
            "the xformers that is installed has no kernel for this: it was built for another torch or another GPU. Install the "
            'one that was built for yours, or set model.backbone.attention to "sdpa" or "auto".'
        ) from error
    return mixed


def _heads(part: Tensor, groups: int, layout: str) -> Tensor:
    """Key/value heads repeated to the query heads, in the layout asked for."""
    repeated = repeat(part, "b h t d -> b (h g) t d", g=groups) if groups > 1 else part
    return rearrange(repeated, f"b h t d -> {layout}")


def _bias(mask: Mask) -> Any:
    """The lowered bias, made once per mask."""
    if "xformers" not in mask.lowered:
        mask.lowered["xformers"] = lower(mask)
    return mask.lowered["xformers"]
