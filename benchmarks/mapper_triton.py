"""A Triton kernel for the Binary Mapper's exact gradient: scores of all codes on tensor cores, contracted before they leave.

`latentlm_free.mapper` has the equations. With g = dLoss/dR, s_d = <g, W_d>, the code d = (i, j) of a high and a low half and
G_d = a_i b_j, the gradient of bit h's logit is

    (1 - p_h) one_h - p_h zero_h        one_h = sum of G_d s_d over the codes with bit h set, zero_h over the others

A program holds a block of tokens and goes through some high codes i. For each it makes the scores of all low codes j, one
(tokens x J) tile that stays in registers, multiplies it by b, and takes one_l and zero_l of every low bit l by a second, thin
product with the constant (J x 16) matrix of bits and their complements: at width 1536 a hundredth of the first product. Times
a_i and summed over i these are the low bits' sums; their row sum, sum_j b_j s_ij, goes to the high bits that i has set or not.
What leaves a program is (tokens x 32).

Splitting the high codes over programs that run at the same time lets them share g and the table in the second-level cache.

Operands are bfloat16, or float32 taken as TF32; sums are float32. The thin product's operand is bfloat16, or two of them that
add up to float32's 16 leading bits where the operands are TF32.

Letters: T tokens, H bits, D width, I and J the numbers of high and low codes.

Run: ``TRITON_INTERPRET=1 python -m benchmarks.mapper_triton`` compares with dense autograd on a CPU, in Triton's interpreter.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from latentlm_free.mapper import _joint

HALF = 8  # most bits of a half; a half with fewer has bits that are never set
COLUMNS = 2 * HALF  # set, not set
OUTER_BITS = 3


@dataclass(frozen=True)
class Tiling:
    """How the work is cut: what to tune."""

    tokens: int = 128
    width: int = 64
    splits: int = 8
    """Programs among which the high codes of a block of tokens are divided."""
    warps: int = 8
    stages: int = 3
    flatten: bool = False
    """Codes and width as one pipelined loop: the next code's loads run during this one's contraction. But then the scores are
    set to zero between products, for which Triton 3.6 on Hopper waits for every one of them."""

    def __str__(self) -> str:
        loop = "one loop" if self.flatten else "two loops"
        return f"{self.tokens}x{self.width}, {self.splits} splits, {self.warps} warps, {self.stages} stages, {loop}"


@triton.jit
def _sums_kernel(
    g,  # descriptor (T, D)
    table,  # descriptor (I J, D)
    low,  # pointer (T, J / OUTER), probabilities of the low codes without their highest bits
    middle,  # pointer (T, OUTER), probabilities of these highest bits: b is the product of the two
    high,  # pointer (T, I), probabilities a of the high codes
    out,  # pointer (splits, T, 2 COLUMNS), float32: low bits, then high bits
    count,  # T
    WIDTH: tl.constexpr,
    HIGH: tl.constexpr,
    LOW: tl.constexpr,
    HALF: tl.constexpr,
    OUTER: tl.constexpr,
    THIN: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SPLITS: tl.constexpr,
    FLATTEN: tl.constexpr,
    EXACT: tl.constexpr,  # float32 operands: TF32 products, and a thin product of 16 bits
):
    split = tl.program_id(0)
    first = tl.program_id(1) * BLOCK_T
    rows = first + tl.arange(0, BLOCK_T)
    inside = rows < count
    codes = tl.arange(0, LOW)
    column = tl.arange(0, 2 * HALF)
    bit = column % HALF
    wanted = (column < HALF).to(tl.int32)  # 1: codes with the bit set, 0: the others
    ones = (((codes[:, None] >> bit[None, :]) & 1) == wanted[None, :]).to(THIN)  # (J, 16)
    INNER: tl.constexpr = LOW // OUTER
    fine = tl.load(low + rows[:, None] * INNER + tl.arange(0, INNER)[None, :], mask=inside[:, None], other=0.0)
    coarse = tl.load(middle + rows[:, None] * OUTER + tl.arange(0, OUTER)[None, :], mask=inside[:, None], other=0.0)
    low_sums = tl.zeros((BLOCK_T, 2 * HALF), tl.float32)
    high_sums = tl.zeros((BLOCK_T, 2 * HALF), tl.float32)
    share: tl.constexpr = HIGH // SPLITS
    for step in tl.range(0, share, flatten=FLATTEN):
        i = split * share + step
        scores = tl.zeros((BLOCK_T, LOW), tl.float32)
        for k in tl.range(0, WIDTH, BLOCK_D):
            scores = tl.dot(g.load([first, k]), table.load([i * LOW, k]).T, scores, input_precision="tf32")
        # b as an outer product: (BLOCK_T x J) of it would not fit the registers beside the scores.
        weighted = tl.reshape(scores, (BLOCK_T, OUTER, INNER)) * coarse[:, :, None] * fine[:, None, :]
        weighted = tl.reshape(weighted, (BLOCK_T, LOW))
        leading = weighted.to(THIN)
        sums = tl.dot(leading, ones)  # (BLOCK_T, 16)
        if EXACT:
            sums += tl.dot((weighted - leading.to(tl.float32)).to(THIN), ones)
        sums *= tl.load(high + rows * HIGH + i, mask=inside, other=0.0)[:, None]
        low_sums += sums
        # Each bit's two columns add up to the sum over all low codes.
        total = tl.sum(sums, 1) / HALF
        high_sums += total[:, None] * (((i >> bit) & 1) == wanted).to(tl.float32)[None, :]
    place = out + (split * count + rows[:, None]) * (4 * HALF) + column[None, :]
    tl.store(place, low_sums, mask=inside[:, None])
    tl.store(place + 2 * HALF, high_sums, mask=inside[:, None])


def covariance(g: Tensor, logits: Tensor, table: Tensor, tiling: Tiling = Tiling()) -> Tensor:
    """dLoss/dlogits, exact up to the rounding of the operands: (T, D), (T, H) float32, (2^H, D) -> (T, H) float32.

    g and table share a dtype, bfloat16 or float32 (then the product is TF32's), and are contiguous; H is 8 to 16, D a multiple
    of the tiling's width.
    """
    tokens, bits = logits.shape
    low_bits, high_bits = (bits + 1) // 2, bits // 2
    inner_bits = low_bits - OUTER_BITS
    low, middle = _joint(logits[:, :inner_bits]), _joint(logits[:, inner_bits:low_bits])
    high = _joint(logits[:, low_bits:])
    width, low_codes = tiling.width, 2**low_bits
    out = torch.empty(tiling.splits, tokens, 2 * COLUMNS, device=g.device)
    _sums_kernel[tiling.splits, triton.cdiv(tokens, tiling.tokens)](
        TensorDescriptor.from_tensor(g, [tiling.tokens, width]),
        TensorDescriptor.from_tensor(table, [low_codes, width]),
        low,
        middle,
        high,
        out,
        tokens,
        **constants(tiling, g.dtype, g.shape[1], low_codes, high.shape[1]),
        num_warps=tiling.warps,
        num_stages=tiling.stages,
    )
    sums = out.sum(0).view(tokens, 2, 2, HALF)  # which half, set or not, bit
    one = torch.cat([sums[:, 0, 0, :low_bits], sums[:, 1, 0, :high_bits]], dim=1)
    zero = torch.cat([sums[:, 0, 1, :low_bits], sums[:, 1, 1, :high_bits]], dim=1)
    return torch.sigmoid(-logits) * one - torch.sigmoid(logits) * zero


def constants(tiling: Tiling, dtype: torch.dtype, width: int, low: int, high: int) -> dict[str, Any]:
    """The kernel's compile-time arguments."""
    return {
        "WIDTH": width,
        "HIGH": high,
        "LOW": low,
        "HALF": HALF,
        "OUTER": 2**OUTER_BITS,
        "THIN": tl.float32 if triton.knobs.runtime.interpret else tl.bfloat16,  # the interpreter keeps bfloat16 as integers
        "BLOCK_T": tiling.tokens,
        "BLOCK_D": tiling.width,
        "SPLITS": tiling.splits,
        "FLATTEN": tiling.flatten,
        "EXACT": dtype == torch.float32,
    }


def check(tokens: int = 40, bits: int = 9, width: int = 64) -> dict[str, float]:
    """Relative error against dense autograd in float64 on a small case, by the dtype of the operands."""
    from benchmarks.mapper import dense

    generator = torch.Generator().manual_seed(0)
    g, table = torch.randn(tokens, width, generator=generator), torch.randn(2**bits, width, generator=generator)
    logits = 3 * torch.randn(tokens, bits, generator=generator)
    errors = {}
    for dtype in (torch.float16, torch.float32):
        x, w = g.to(dtype), table.to(dtype)
        precise = logits.double().requires_grad_()
        rows = dense(precise, (logits > 0).long(), w.double())
        (exact,) = torch.autograd.grad(rows, precise, x.double())
        ours = covariance(x, logits, w, Tiling(tokens=16, width=32, splits=4))
        errors[str(dtype).removeprefix("torch.")] = float((ours.double() - exact).norm() / exact.norm())
    return errors


if __name__ == "__main__":
    print(json.dumps(check()))
