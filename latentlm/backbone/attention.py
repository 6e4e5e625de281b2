"""Attention under one description of the mask, lowered by each backend.

A mask says who may see whom: documents (never across, never into padding), causal or not, a window, a prompt seen both ways,
and prefix slots that a document sees, all of it or from a column on. Columns count positions of a row, cached ones included, so
causality holds for rows padded on the right and continued after the padding.

Legend: B rows, H heads, Hkv key/value heads, Tq queries, Tk keys, M prefix slots, dh head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from latentlm.interface import Prefix

_Seen: TypeAlias = tuple[tuple[Tensor, Tensor | None], ...]
"""Of each prefix: documents (B, M) and since (B, M)."""


@dataclass(frozen=True)
class Mask:
    """Who sees whom. Query i of a row stands in column start + i; key j in column j."""

    query_documents: Tensor
    """(B, Tq) long."""
    key_documents: Tensor
    """(B, Tk) long. Padding (-1) sees padding only."""
    causal: bool = True
    start: int = 0
    window: int | None = None
    """A query sees at most the `window` columns that end with its own (causal masks only)."""
    given: Tensor | None = None
    """(B,) columns at the start of each row that see one another both ways (causal masks only)."""
    prefix_documents: Tensor | None = None
    """(B, M) document that sees each prefix slot."""
    prefix_since: Tensor | None = None
    """(B, M) first column that sees each prefix slot; None: every one."""
    plain: bool = False
    """Every row is one document without padding: the document comparison can be left out."""
    lowered: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """What backends made of the mask, by backend, so that all blocks share it."""
    _prefixed: dict[tuple[int, ...], tuple[Mask, _Seen]] = field(default_factory=dict, repr=False, compare=False)

    def with_prefix(self, documents: Tensor | None, since: Tensor | None = None) -> Mask:
        """The same mask with prefix slots in front of the keys: the documents (B, M) that see them, from columns `since` on."""
        return self if documents is None else self._with(((documents, since),))

    def with_prefixes(self, prefixes: Sequence[Prefix]) -> Mask:
        """The same mask with the slots of several prefixes, side by side, in front of the keys."""
        return self._with(tuple((prefix.documents, prefix.since) for prefix in prefixes)) if prefixes else self

    def _with(self, seen: _Seen) -> Mask:
        # Blocks share the tensors that say who sees a prefix, so they share the mask. Tensors are kept with what is found by
        # their identity: a freed one could leave it to another.
        key = tuple(id(tensor) for pair in seen for tensor in pair)
        if key not in self._prefixed:
            documents, since = seen[0]
            if len(seen) > 1:
                documents = torch.cat([one for one, _ in seen], dim=1)
                since = _joined_since(seen)
            mask = replace(self, prefix_documents=documents, prefix_since=since, plain=False, lowered={}, _prefixed={})
            self._prefixed[key] = (mask, seen)
        return self._prefixed[key][0]

    def repeat(self, times: int) -> Mask:
        """Each row `times` times in succession."""
        if times == 1:
            return self

        def rows(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.repeat_interleave(times, dim=0)

        return replace(
            self,
            query_documents=self.query_documents.repeat_interleave(times, dim=0),
            key_documents=self.key_documents.repeat_interleave(times, dim=0),
            given=rows(self.given),
            prefix_documents=rows(self.prefix_documents),
            prefix_since=rows(self.prefix_since),
            lowered={},
            _prefixed={},
        )

    @property
    def simple(self) -> bool:
        """Nothing but causality (or nothing at all) restricts attention."""
        return self.plain and self.window is None and self.given is None and self.prefix_documents is None

    @cached_property
    def allowed(self) -> Tensor:
        """(B, Tq, M + Tk) bool: the whole mask, written out."""
        device = self.query_documents.device
        seen = self.query_documents[:, :, None] == self.key_documents[:, None, :]
        query = self.start + torch.arange(self.query_documents.shape[1], device=device)[:, None]  # (Tq, 1)
        if self.causal:
            key = torch.arange(self.key_documents.shape[1], device=device)[None, :]
            order = key <= query
            if self.window is not None:
                order = order & (key > query - self.window)
            if self.given is not None:
                inside = self.given[:, None, None]
                order = order[None] | ((query[None] < inside) & (key[None] < inside))
            seen = seen & order
        if self.prefix_documents is not None:
            slots = self.query_documents[:, :, None] == self.prefix_documents[:, None, :]
            slots = slots & (self.prefix_documents >= 0)[:, None, :]
            if self.prefix_since is not None:
                slots = slots & (self.prefix_since[:, None, :] <= query)
            seen = torch.cat((slots, seen), dim=-1)
        return seen

    @cached_property
    def bias(self) -> Tensor:
        """(B, 1, Tq, M + Tk) float32: 0 where allowed, -inf elsewhere. Written once and shared by all blocks."""
        bias = torch.zeros(self.allowed.shape, device=self.allowed.device)
        return bias.masked_fill_(~self.allowed, float("-inf"))[:, None]


def _joined_since(seen: _Seen) -> Tensor | None:
    """(B, M) of several prefixes side by side; 0, the first column, for slots that every position sees."""
    if all(since is None for _, since in seen):
        return None
    return torch.cat([torch.zeros_like(documents) if since is None else since for documents, since in seen], dim=1)


def attend(query: Tensor, key: Tensor, value: Tensor, *, mask: Mask, backend: str = "auto") -> Tensor:
    """Attention of query (B, H, Tq, dh) over key and value (B, Hkv, M + Tk, dh): (B, H, Tq, dh).

    `auto` takes the first backend that serves the request; `sdpa` serves them all, so `xformers` and `flex` are taken by name
    only. Raises UserError where a named backend cannot serve, with the reason.
    """
    if backend == "flex":
        from latentlm.backbone.attention_flex import flex_attend  # its kernels are compiled

        return flex_attend(query, key, value, mask=mask)
    if backend == "xformers":
        from latentlm.backbone.attention_xformers import xformers_attend  # slow and loud to import

        return xformers_attend(query, key, value, mask=mask)
    return sdpa(query, key, value, mask=mask)


def sdpa(query: Tensor, key: Tensor, value: Tensor, *, mask: Mask) -> Tensor:
    """PyTorch's scaled dot product attention; the mask is dropped where causality alone says it all."""
    grouped = query.shape[1] != key.shape[1]
    if mask.simple and (not mask.causal or query.shape[2] == 1):
        return F.scaled_dot_product_attention(query, key, value, enable_gqa=grouped)
    if mask.simple and mask.start == 0:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)
    bias = mask.bias.to(query.dtype)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, enable_gqa=grouped)
