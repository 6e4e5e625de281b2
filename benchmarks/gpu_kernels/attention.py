"""Causal attention over packed documents, forward and backward, in bfloat16.

Tensors lie as a projection leaves them, (B, T, H, dh): SDPA and FlexAttention see a transposed view, varlen and xformers rows
laid end to end. Nothing is copied for either.

Letters: B rows, T tokens, H heads, Hkv key/value heads, dh head width.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_kernels.events import Bench, relative
from latentlm.backbone.attention import Mask, sdpa
from latentlm.backbone.attention_xformers import run_lengths

MEAN = 600  # tokens of a document
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # (B, T, H, dh), twice (B, T, Hkv, dh) -> (B, T, H, dh)


def run(bench: Bench) -> None:
    """Rows for two sizes; errors are those of row 0 against float32, output and queries' gradient."""
    sizes = ((8, 2048, 16, 16, 64), (4, 8192, 12, 2, 128))
    for rows, tokens, heads, kv_heads, width in ((2, 64, 4, 4, 16), (2, 64, 4, 2, 16)) if bench.quick else sizes:
        documents = random_documents(rows, tokens, mean=20 if bench.quick else MEAN).to(bench.device)
        _case(bench, documents, heads, kv_heads, width)


def random_documents(rows: int, tokens: int, *, mean: int) -> Tensor:
    """(B, T) document numbers; lengths are geometric, cut at a row's end."""
    generator = torch.Generator().manual_seed(0)
    ends = torch.rand(rows, tokens, generator=generator) < 1 / mean
    return F.pad(ends.long().cumsum(1)[:, :-1], (1, 0))


def _case(bench: Bench, documents: Tensor, heads: int, kv_heads: int, width: int) -> None:
    rows, tokens = documents.shape
    case = f"{rows} x {tokens}, {heads} heads of {width}, {kv_heads} for keys"
    q, k, v = (bench.random(rows, tokens, n, width, dtype=torch.bfloat16).requires_grad_() for n in (heads, kv_heads, kv_heads))
    upstream = bench.random(rows, tokens, heads, width, dtype=torch.bfloat16)
    lengths = run_lengths(documents)
    pairs = sum(n * (n + 1) // 2 for n in lengths)
    work = 14 * pairs * heads * width  # two products forward, five backward
    exact = _exact(q, k, v, upstream, documents)

    def measured(attend: Attend, *, checked: bool = True) -> dict[str, Any]:
        def step() -> tuple[Tensor, ...]:
            out = attend(q, k, v)
            return out, *torch.autograd.grad(out, (q, k, v), upstream)

        out, gradient, *_ = step()
        errors = [relative(found[0], truth) for found, truth in zip((out, gradient), exact, strict=True)]
        del out, gradient
        found = bench.time(step) | {"teraflop": work / 1e12, "unit": "bf16"}
        return found | ({"error_output": errors[0], "error_gradient": errors[1]} if checked else {})

    mask = Mask(documents, documents)
    groups = heads // kv_heads

    def dense(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return _swap(sdpa(*map(_swap, (x, y, z)), mask=mask))

    def dense_repeated(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return dense(x, y.repeat_interleave(groups, 2), z.repeat_interleave(groups, 2))

    def plain(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return _swap(F.scaled_dot_product_attention(*map(_swap, (x, y, z)), is_causal=True, enable_gqa=groups > 1))

    bench.row(case, "least work", lambda: {"teraflop": work / 1e12, "documents": len(lengths), "longest": max(lengths)})
    bench.row(case, "the mask, dense", lambda: bench.time(lambda: Mask(documents, documents).bias.to(q.dtype)))
    bench.row(case, "SDPA, dense bias", lambda: measured(dense))
    if groups > 1:
        bench.row(case, "SDPA, dense bias, keys repeated", lambda: measured(dense_repeated))
    bench.row(case, "SDPA, causal, no documents", lambda: measured(plain, checked=False))
    bench.row(case, "varlen_attn", lambda: measured(_varlen(lengths, groups, bench.device)))
    bench.row(case, "FlexAttention, its mask", lambda: bench.time(lambda: _block_mask(documents, bench.quick)))
    bench.row(case, "FlexAttention", lambda: measured(_flex(bench, documents, groups)))
    if importlib.util.find_spec("xformers") is not None:
        bench.row(case, "xformers", lambda: measured(_xformers(lengths, groups)))


def _swap(x: Tensor) -> Tensor:
    return x.transpose(1, 2)


def _varlen(lengths: list[int], groups: int, device: torch.device) -> Attend:
    """torch's own, whatever its signature: the causal switch and grouped heads came and went between versions."""
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters
    options: dict[str, Any] = {"is_causal": True} if "is_causal" in known else {"window_size": (-1, 0)}
    grouped = groups > 1 and "enable_gqa" in known
    if grouped:
        options["enable_gqa"] = True
    repeats = 1 if grouped else groups
    ends = F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).to(device, torch.int32)
    longest = max(lengths)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if repeats > 1:
            k, v = k.repeat_interleave(repeats, 2), v.repeat_interleave(repeats, 2)
        out = varlen_attn(*(x.flatten(0, 1) for x in (q, k, v)), ends, ends, longest, longest, **options)
        return out.view_as(q)

    return attend


def _block_mask(documents: Tensor, eager: bool) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def allowed(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (documents[row, query] == documents[row, key])

    rows, tokens = documents.shape
    return create_block_mask(allowed, rows, None, tokens, tokens, device=documents.device, _compile=not eager)


def _flex(bench: Bench, documents: Tensor, groups: int) -> Attend:
    from torch.nn.attention.flex_attention import flex_attention

    function = flex_attention if bench.quick else torch.compile(flex_attention, dynamic=False)
    mask = _block_mask(documents, bench.quick)
    return lambda q, k, v: _swap(function(*map(_swap, (q, k, v)), block_mask=mask, enable_gqa=groups > 1))


def _xformers(lengths: list[int], groups: int) -> Attend:
    from xformers.ops import fmha, memory_efficient_attention

    bias = fmha.attn_bias.BlockDiagonalCausalMask.from_seqlens(lengths)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = k.repeat_interleave(groups, 2), v.repeat_interleave(groups, 2)
        return memory_efficient_attention(*(x.flatten(0, 1)[None] for x in (q, k, v)), attn_bias=bias).view_as(q)

    return attend


def _exact(q: Tensor, k: Tensor, v: Tensor, upstream: Tensor, documents: Tensor) -> tuple[Tensor, Tensor]:
    """Output and queries' gradient of row 0 in float32: (T, H, dh) each."""
    groups = q.shape[2] // k.shape[2]
    first = [x.detach()[:1].float().transpose(1, 2).contiguous() for x in (q, k, v)]
    query = first[0].requires_grad_()
    keys, values = (x.repeat_interleave(groups, 1) for x in first[1:])
    mask = Mask(documents[:1], documents[:1])
    out = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask.bias)
    (gradient,) = torch.autograd.grad(out, query, _swap(upstream[:1].float()))
    return _swap(out.detach())[0], _swap(gradient)[0]
