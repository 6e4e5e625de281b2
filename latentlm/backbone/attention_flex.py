"""The FlexAttention backend (torch.nn.attention.flex_attention): packed documents, windows and prompts without a T x T bias.

The mask is a function of two columns, of which torch keeps the blocks of 128 x 128 that hold something; what a document does
not see is not computed. The kernel is compiled (Triton on a GPU). On a CPU it has no backward pass, and gradients are refused.

Legend: B rows, H heads, Hkv key/value heads, Tq queries, Tk keys, dh head width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from latentlm.backbone.attention import Mask, sdpa
from latentlm.errors import UserError
from latentlm.interface.moving import compiled_all_the_same


def flex_attend(query: Tensor, key: Tensor, value: Tensor, *, mask: Mask) -> Tensor:
    """query (B, H, Tq, dh), key and value (B, Hkv, Tk, dh) -> (B, H, Tq, dh). `sdpa` serves where nothing is to be left out,
    passes that continue a cache, whose few queries make no large mask, and prefixes. Raises UserError for gradients on a CPU.
    """
    if mask.simple or mask.start or mask.prefix_documents is not None:
        return sdpa(query, key, value, mask=mask)
    learning = torch.is_grad_enabled() and any(part.requires_grad for part in (query, key, value))
    if query.device.type == "cpu" and learning:
        raise UserError('FlexAttention has no backward pass on a CPU: set model.backbone.attention to "auto" to train there.')
    if "flex" not in mask.lowered:
        mask.lowered["flex"] = lower(mask)
    options = {"block_mask": mask.lowered["flex"], "enable_gqa": query.shape[1] != key.shape[1]}
    with compiled_all_the_same():
        mixed: Tensor = _kernel()(query, key, value, **options)
    return mixed


@torch.compiler.disable
def lower(mask: Mask) -> Any:
    """The blocks of a mask that hold something. On a GPU it is compiled, and makes no mask that is written out."""
    from torch.nn.attention.flex_attention import create_block_mask

    queries, keys, given, window = mask.query_documents, mask.key_documents, mask.given, mask.window

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """`Mask.allowed` of a row, a query's column and a key's."""
        seen = queries[row, query] == keys[row, key]
        if not mask.causal:
            return seen
        order = key <= query
        if window is not None:
            order = order & (key > query - window)
        if given is not None:
            order = order | ((query < given[row]) & (key < given[row]))
        return seen & order

    sizes = (len(queries), None, queries.shape[1], keys.shape[1])
    return create_block_mask(sees, *sizes, device=queries.device, _compile=queries.device.type != "cpu")


@cache
def _kernel() -> Callable[..., Any]:
    """Compiled: without, it would write all scores out."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)
