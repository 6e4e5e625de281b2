"""The Binary Mapper: bits to one row of a table, with the exact gradient of the product distribution over codes.

Value and gradient (Fleuret 2025, "The Free Transformer", the section on the Binary Mapper). A token has H independent bits
with probabilities p_h = sigmoid(logit_h); its code is d = sum_h 2^(h-1) b_h, and G_d is the product over bits of the
probability of bit h of d. The mapper returns ``(Y + (G - stopgrad(G))) W`` with Y the one-hot of the sampled code:

* value: the row W[d], bit for bit. (Summed from left to right, Y + G - stopgrad(G) is off by an ulp.)
* dLoss/dW: the upstream gradients g added up on the sampled rows. Every other row is exactly zero.
* dLoss/dlogit_h = sum_d G_d (u_h(d) - p_h) s_d, with u_h(d) the bit h of d and s_d = <g, W_d>: a covariance under G.

Nothing of size tokens x 2^H is needed. Cut the code into a high and a low half, d = (i, j), so that G_d = a_i b_j, and let

    M[i, 0] = sum_j s_ij b_j        M[i, l] = sum_j s_ij b_j (u_l(j) - p_l)
    dLoss/dlogit_high,h = sum_i a_i (u_h(i) - p_h) M[i, 0]        dLoss/dlogit_low,l = sum_i a_i M[i, l]

M is filled a few high codes at a time ("blocks"), from one matrix product of g with the rows of these codes; the working
set is tokens x (block + H 2^(H/2)), and the table is read once per chunk of tokens. At small H the same sum over all codes
at once ("dense") is faster. The probabilities are products of float32 sigmoids of both signs, so they neither underflow as in
half precision nor lose the small one of p and 1 - p; infinite logits are allowed.

That gradient is the default. `estimators.py` has others for the same value: they replace the covariance, a chunk of tokens at
a time, and nothing else.

Letters: N tokens (all leading dimensions as one), H bits, D width, I and J the numbers of high and low codes, C tokens in a
chunk, R rows of the table in a block.

Run: ``pytest tests/test_mapper.py``; speed and memory: ``python benchmarks/mapper.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.autograd.function import once_differentiable

from latentlm.backbone.linear import linear

Method = Literal["auto", "dense", "blocks"]
Estimate = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Upstream gradients g (C, D), logits (C, H), sampled codes (C,), table (2^H, D), draws (C, ...) -> dLoss/dlogits (C, H)."""

MAX_BITS = 24  # 2^24 rows; also the largest code that float32 holds exactly
DENSE_UP_TO = 9  # "auto" is dense up to here: at 2,048 tokens, width 256, one core, dense takes 2.5 ms against 3.6 at H=8 and
# 21 against 17 at H=11; they meet at 9 or 10, by the load of the caches (`python benchmarks/mapper.py --crossover`).
# (tokens in a chunk, rows of the table in a block): what fits the second-level cache of a CPU, what fills a GPU.
CPU_SIZES = (512, 2048)
ACCELERATOR_SIZES = (4096, 16384)


def codes(bits: Tensor) -> Tensor:
    """The code of each bit vector, bit index 0 the least significant: (..., H) of zeros and ones -> (...) of int64."""
    weights = 2 ** torch.arange(bits.shape[-1], device=bits.device)
    # Compared, not cast: a straight-through value of 0.99999994 is a one.
    return torch.where(bits > 0.5, weights, 0).sum(-1)


def bits_of(codes: Tensor, bits: int) -> Tensor:
    """The inverse of `codes`: (...) of integers -> (..., bits) of int64 zeros and ones."""
    return codes.long().unsqueeze(-1) >> torch.arange(bits, device=codes.device) & 1


def lookup(
    logits: Tensor | None,
    bits: Tensor,
    table: Tensor,
    *,
    method: Method = "auto",
    block_size: int | None = None,
    token_chunk: int | None = None,
    estimate: Estimate | None = None,
    draws: Tensor | None = None,
    half: bool = False,
    backend: str | None = None,
) -> Tensor:
    """The rows of the sampled codes, with the gradient of the whole product distribution.

    Args:
        logits: (..., H), float32 or float64 (half precision is raised to float32). None: no
            gradient but the table's.
        bits: (..., H), the zeros and ones drawn from them, of any dtype. No gradient flows here.
        table: (2^H, D), any floating dtype. All arithmetic is done in float32, or in float64 if logits or table are.
        method: how the gradient of the logits is computed; the result is the same. "auto" takes the faster by H.
        block_size: rows of the table in a block, rounded up to whole high codes; used by "blocks" only.
        token_chunk: tokens treated at a time.
        estimate: another gradient of the logits (see `latentlm_free.estimators`); `method` and `block_size` then say nothing.
        draws: (..., any), what that estimate has drawn for each token beyond the bits.
        half: the scores <g, W_d>, from operands in bfloat16, are rounded to it; sums stay in float32. Without an estimate only.
        backend: of torch.compile, which the "blocks" go through; rounding changes. None: they are not compiled.

    Returns:
        (..., D) in the table's dtype, equal to ``table[codes(bits)]`` in every bit.

    Raises:
        ValueError: shapes that do not fit, H outside 1..24, an unknown method, a size below one.

    Source: the formulas at the head of this file. Differentiable once.
    """
    _check(logits, bits, table, method, block_size, token_chunk)
    index = codes(bits)
    wants_gradient = table.requires_grad or (logits is not None and logits.requires_grad)
    if not (wants_gradient and torch.is_grad_enabled()):
        return F.embedding(index, table)
    if method == "auto":
        method = "dense" if bits.shape[-1] <= DENSE_UP_TO else "blocks"
    sizes = CPU_SIZES if table.device.type == "cpu" else ACCELERATOR_SIZES
    exact = _exact(method == "dense", block_size or sizes[1], half=half, backend=backend)
    rows = _Lookup.apply(logits, index, table, draws, estimate or exact, token_chunk or sizes[0], half)
    assert isinstance(rows, Tensor)
    return rows


class _Lookup(torch.autograd.Function):
    """Gather forward; scatter-add and covariance backward. Saves the logits, the codes and the draws, if any."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor | None,
        index: Tensor,
        table: Tensor,
        draws: Tensor | None,
        estimate: Estimate,
        token_chunk: int,
        half: bool,
    ) -> Tensor:
        ctx.save_for_backward(logits, index, table, draws)
        ctx.estimate, ctx.token_chunk, ctx.half = estimate, token_chunk, half
        return F.embedding(index, table)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        logits, index, table, draws = ctx.saved_tensors
        g, index = gradient.reshape(-1, table.shape[1]), index.reshape(-1)  # (N, D), (N,)
        grad_logits = grad_table = None
        with torch.autocast(table.device.type, enabled=False):  # the matrix products stay in float32
            if ctx.needs_input_grad[0]:
                flat = logits.reshape(-1, logits.shape[-1])  # (N, H)
                drawn = None if draws is None else draws.reshape(len(flat), *draws.shape[logits.dim() - 1 :])
                scored = table.bfloat16() if ctx.half else table  # once for all chunks
                grad_logits = _grad_logits(g, flat, index, scored, drawn, ctx.estimate, ctx.token_chunk)
                grad_logits = grad_logits.view(logits.shape).to(logits.dtype)
            if ctx.needs_input_grad[2]:
                grad_table = _grad_table(g, index, table)
        return grad_logits, None, grad_table, None, None, None, None


def _grad_logits(
    g: Tensor, logits: Tensor, index: Tensor, table: Tensor, draws: Tensor | None, estimate: Estimate, token_chunk: int
) -> Tensor:
    """The estimate for all tokens, chunk by chunk: (N, D), (N, H), (N,), (2^H, D), (N, ...) -> (N, H)."""
    dtype = torch.promote_types(torch.promote_types(logits.dtype, table.dtype), torch.float32)
    result = torch.empty(logits.shape, dtype=dtype, device=logits.device)
    for start in range(0, len(g), token_chunk):
        chunk = slice(start, start + token_chunk)
        g_chunk, logits_chunk = g[chunk].to(dtype).contiguous(), logits[chunk].to(dtype)
        drawn = None if draws is None else draws[chunk]
        result[chunk] = estimate(g_chunk, logits_chunk, index[chunk], table, drawn)
    return result


def _exact(dense: bool, block_size: int, *, half: bool = False, backend: str | None = None) -> Estimate:
    """Cov_{d~G}(u_h(d), <g, W_d>)."""

    def exact(g: Tensor, logits: Tensor, index: Tensor, table: Tensor, draws: Tensor | None) -> Tensor:
        if dense:
            return _covariance_dense(g, logits, table, half=half)[0]
        blocks = _covariance_blocks if backend is None else _compiled_blocks(backend)
        return blocks(g, logits, table, block_size, half=half)[0]

    return exact


def moments(g: Tensor, logits: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Cov_{d~G}(u_h(d), s_d) and E_{d~G} s_d of one chunk: (C, D), (C, H), (2^H, D) -> (C, H), (C,).

    In the dtype of g, which logits share; the mean costs nothing beside the covariance."""
    if logits.shape[1] <= DENSE_UP_TO:
        return _covariance_dense(g, logits, table)
    return _covariance_blocks(g, logits, table, (CPU_SIZES if table.device.type == "cpu" else ACCELERATOR_SIZES)[1])


def _covariance_dense(g: Tensor, logits: Tensor, table: Tensor, *, half: bool = False) -> tuple[Tensor, Tensor]:
    """All codes at once: (C, D), (C, H), (2^H, D) -> (C, H) and the mean (C,), through a (C, 2^H) matrix."""
    count = logits.shape[1]
    ones = bits_of(torch.arange(2**count, device=g.device), count).to(g.dtype)  # (2^H, H)
    weighted = _joint(logits) * _scores(g, table, half=half)  # (C, 2^H)
    if_one, if_zero = (weighted @ torch.cat([ones, 1 - ones], dim=1)).chunk(2, dim=1)  # (C, H) each
    covariance = torch.sigmoid(-logits) * if_one - torch.sigmoid(logits) * if_zero
    return covariance, if_one[:, 0] + if_zero[:, 0]


def _covariance_blocks(
    g: Tensor, logits: Tensor, table: Tensor, block_size: int, *, half: bool = False
) -> tuple[Tensor, Tensor]:
    """Blocks of high codes: (C, D), (C, H), (2^H, D) -> (C, H) and the mean (C,), through a (C, block) matrix."""
    low_bits = (logits.shape[1] + 1) // 2
    low = _centred(logits[:, :low_bits])  # (C, 1 + H_low, J)
    high = _centred(logits[:, low_bits:])  # (C, 1 + H_high, I)
    low_codes, high_codes = low.shape[2], high.shape[2]
    step = -(-block_size // low_codes)
    weights = low.bfloat16() if half else low
    moments = g.new_empty(len(g), low.shape[1], high_codes)  # (C, 1 + H_low, I), the M above
    for i in range(0, high_codes, step):
        scores = _scores(g, table[i * low_codes : (i + step) * low_codes], half=half)  # (C, R)
        scores = rearrange(scores, "c (i j) -> c j i", j=low_codes)
        moments[:, :, i : i + step] = torch.bmm(weights, scores)
    # Only the first row and column of (1 + H_low) x (1 + H_high) are used; two thin products would be slower.
    both = torch.bmm(moments, high.transpose(1, 2))
    return torch.cat([both[:, 1:, 0], both[:, 0, 1:]], dim=1), both[:, 0, 0]


@cache
def _compiled_blocks(backend: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """`_covariance_blocks` as one graph for chunks of any size: the last one of a batch has one of its own."""
    return torch.compile(_covariance_blocks, backend=backend, dynamic=True)


def _joint(logits: Tensor) -> Tensor:
    """The product distribution over the codes of these bits: (C, h) -> (C, 2^h). No bits: one code, of probability 1."""
    one, zero = torch.sigmoid(logits), torch.sigmoid(-logits)
    joint = logits.new_ones(len(logits), 1)
    for h in range(logits.shape[1]):  # each bit doubles the codes: those without it first, since it is the highest so far
        joint = torch.cat([joint * zero[:, h : h + 1], joint * one[:, h : h + 1]], dim=1)
    return joint


def _centred(logits: Tensor) -> Tensor:
    """Row 0: P(code). Row 1 + h: P(code) (u_h(code) - p_h), exact for p near 0 and near 1. (C, h) -> (C, 1 + h, 2^h)."""
    count = logits.shape[1]
    ones = bits_of(torch.arange(2**count, device=logits.device), count).T.bool()  # (h, 2^h)
    p = logits.unsqueeze(-1)  # (C, h, 1)
    deviation = torch.where(ones, torch.sigmoid(-p), -torch.sigmoid(p))  # (C, h, 2^h)
    joint = _joint(logits).unsqueeze(1)  # (C, 1, 2^h)
    return torch.cat([joint, joint * deviation], dim=1)


def _scores(g: Tensor, rows: Tensor, *, half: bool = False) -> Tensor:
    """<g, W_d> for these rows of the table: (C, D), (R, D) -> (C, R). The one large matrix product of the mapper."""
    if half:
        return g.bfloat16() @ rows.bfloat16().T
    return linear(g, rows.to(g.dtype))


def _grad_table(g: Tensor, index: Tensor, table: Tensor) -> Tensor:
    """The sum of g over the tokens of each code: (N, D), (N,) -> (2^H, D), zero on the rows that nobody drew."""
    result = torch.zeros_like(table)
    if table.dtype in (torch.float32, torch.float64):
        return result.index_add_(0, index, g.to(table.dtype))
    # Half precision: sums are taken in float32, on compact rows, so that no second table is needed. (On a GPU index_add_
    # would round after each addition.)
    ordered, order = index.sort()
    group = F.pad(ordered.diff() != 0, (1, 0)).cumsum(0)  # (N,) 0, 0, 1, 2, 2, ...
    sums = torch.zeros(g.shape, dtype=torch.float32, device=g.device).index_add_(0, group, g[order].float())
    return result.index_copy_(0, ordered, sums[group].to(table.dtype))  # equal codes write equal rows


def _check(
    logits: Tensor | None,
    bits: Tensor,
    table: Tensor,
    method: str,
    block_size: int | None,
    token_chunk: int | None,
) -> None:
    """Refuse what does not fit, with the remedy."""
    count = bits.shape[-1]
    if not 1 <= count <= MAX_BITS:
        raise ValueError(
            f"{count} bits need a table of 2^{count} rows; at most {MAX_BITS} are supported. "
            "Use fewer bits, or a grouped or additive table."
        )
    if table.shape[0] != 2**count:
        raise ValueError(f"{count} bits need a table of {2**count} rows, but it has {table.shape[0]}.")
    if logits is not None and logits.shape != bits.shape:
        raise ValueError(
            f"logits {tuple(logits.shape)} and bits {tuple(bits.shape)} must have one shape: expand one to the other."
        )
    if method not in ("auto", "dense", "blocks"):
        raise ValueError(f"Unknown method {method!r}: choose 'auto', 'dense' or 'blocks'.")
    for name, size in (("block_size", block_size), ("token_chunk", token_chunk)):
        if size is not None and size < 1:
            raise ValueError(f"{name} must be at least 1, not {size}. Leave it out for the default.")
