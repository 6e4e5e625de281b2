"""The Binary Mapper at H=16: the gather and the exact gradient of the bit logits, by every path at hand.

    blocks          latentlm_free.mapper as it is: one matrix product for each block of codes, then thin ones
    dense autograd  the definition over all codes, where it fits
    sampled         the estimate from 8 drawn codes, for scale
    fused           benchmarks.mapper_triton, with several tilings

The least work is one product g W^T, 2 T 2^H D operations; the least traffic is g and W once, and the rows.

Letters: T tokens, H bits, D width.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from operator import itemgetter
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_kernels.events import Bench, Step, relative
from benchmarks.mapper import dense
from benchmarks.timing import Row
from latentlm_free import mapper
from latentlm_free.estimators import _sampled

CHECKED = 64  # tokens compared with float64
SAMPLES = 8
WRONG = 0.05  # bfloat16 operands give some thousandths
KEPT = 3  # tilings that go on from the first size to the others
BF16 = torch.bfloat16
Tilings = dict[str, list[Any]]  # by the operands' dtype


class Case:
    """The tensors of one size, and the gradient of its first tokens in float64."""

    def __init__(self, bench: Bench, tokens: int, bits: int, width: int, sizes: tuple[int, int]) -> None:
        self.bench, self.sizes = bench, sizes  # (tokens in a chunk, rows in a block)
        self.name = f"T={tokens}, D={width}"
        self.logits = bench.random(tokens, bits, scale=2.0)
        self.bits = (torch.rand_like(self.logits) < self.logits.sigmoid()).long()
        self.index = mapper.codes(self.bits)
        self.draws = torch.randint(2**bits, (tokens, SAMPLES), device=bench.device)
        self.g, self.table = bench.random(tokens, width), bench.random(2**bits, width)
        self.half_g, self.half_table = self.g.to(BF16), self.table.to(BF16)
        first = slice(0, CHECKED)
        self.exact = mapper._covariance_blocks(self.g[first].double(), self.logits[first].double(), self.table, sizes[1])[0]
        self.facts = {"teraflop": 2 * tokens * 2**bits * width / 1e12}
        self.gigabytes = {size: size * width * (2**bits + 2 * tokens) / 1e9 for size in (2, 4)}

    def row(self, name: str, gradient: Callable[[], Tensor], unit: str, *, checked: bool = True, **facts: Any) -> Row:
        """A row for the gather and this gradient (T, H); the error is relative, over the checked tokens."""
        table = self.half_table if unit == "bf16" else self.table

        def step() -> tuple[Tensor, Tensor]:
            return F.embedding(self.index, table), gradient()

        def make() -> dict[str, Any]:
            error = relative(gradient()[:CHECKED], self.exact)
            if not error < WRONG:
                raise ValueError(f"wrong: the relative error is {error:.1e}")
            return self.bench.time(step) | self.facts | {"error_gradient": error}

        return self.bench.row(self.name, name, make if checked else lambda: self.bench.time(step), unit=unit, **facts)

    def chunks(self, estimate: mapper.Estimate, g: Tensor, table: Tensor, chunk: int | None = None) -> Tensor:
        """The plugin's own loop over chunks of tokens."""
        return mapper._grad_logits(g, self.logits, self.index, table, self.draws, estimate, chunk or self.sizes[0])


def run(bench: Bench) -> None:
    """Rows for T=8,192 and 32,768, D=1536 and 4096."""
    tokens, widths, bits = ((8192, 32768), (1536, 4096), 16) if not bench.quick else ((128,), (64,), 10)
    sizes = mapper.ACCELERATOR_SIZES if not bench.quick else (64, 256)
    products = Compiled(bench, sizes[1])
    tilings: Tilings = {}
    for width in widths:
        for count in tokens:
            case = Case(bench, count, bits, width, sizes)
            _parts(bench, case)
            _blocks(case, products)
            tilings = _fused(case, tilings)
            _dense(case)
            del case


def _parts(bench: Bench, case: Case) -> None:
    """What belongs to every path: the gather, the table's gradient, the cast; and the product alone."""
    steps: dict[str, Step] = {
        "gather, float32": lambda: F.embedding(case.index, case.table),
        "gather, bf16": lambda: F.embedding(case.index, case.half_table),
        "table's gradient, float32": lambda: mapper._grad_table(case.g, case.index, case.table),
        "table's gradient, bf16": lambda: mapper._grad_table(case.half_g, case.index, case.half_table),
        "table and g to bf16": lambda: (case.table.to(BF16), case.g.to(BF16)),
    }
    for name, step in steps.items():
        bench.row(case.name, name, lambda step=step: bench.time(step))
    traffic = {"gigabytes": case.gigabytes[2], "gigabytes_float32": case.gigabytes[4]}
    bench.row(case.name, "least work", lambda: case.facts | traffic)
    unit = case.facts | {"unit": "bf16"}
    bench.row(case.name, "the product alone, bf16", lambda: bench.time(lambda: case.half_g @ case.half_table.T) | unit)


class Compiled:
    """The blocked path through `torch.compile`, compiled once for a width; both as estimates, and the second one eager too."""

    def __init__(self, bench: Bench, block_size: int) -> None:
        self._single = bench.compiled(lambda g, logits, table: mapper._covariance_blocks(g, logits, table, block_size)[0])
        self._half = bench.compiled(
            lambda g, logits, table: mapper._covariance_blocks(g, logits, table, block_size, half=True)[0]
        )
        self.block_size = block_size

    def single(self, g: Tensor, logits: Tensor, index: Tensor, table: Tensor, draws: Tensor | None) -> Tensor:
        return self._single(g, logits, table)

    def half(self, g: Tensor, logits: Tensor, index: Tensor, table: Tensor, draws: Tensor | None) -> Tensor:
        return self._half(g, logits, table)

    def half_eager(self, g: Tensor, logits: Tensor, index: Tensor, table: Tensor, draws: Tensor | None) -> Tensor:
        return mapper._covariance_blocks(g, logits, table, self.block_size, half=True)[0]


def _blocks(case: Case, compiled: Compiled) -> None:
    exact = mapper._exact(False, case.sizes[1])

    def full(estimate: mapper.Estimate) -> Callable[[], Tensor]:
        return lambda: case.chunks(estimate, case.g, case.table)

    def halved(estimate: mapper.Estimate) -> Callable[[], Tensor]:
        return lambda: case.chunks(estimate, case.half_g, case.half_table)

    case.row("blocks, float32", full(exact), "float32")
    with tf32():
        case.row("blocks, tf32", full(exact), "tf32")
        case.row("blocks, tf32, compiled", full(compiled.single), "tf32")
    with mock.patch.object(mapper, "_scores", _half_product):
        case.row("blocks, bf16, float32 scores", halved(exact), "bf16")
    case.row("blocks, bf16 scores", halved(compiled.half_eager), "bf16")
    case.row("blocks, bf16 scores, compiled", halved(compiled.half), "bf16")
    rows = max(1, 2**26 // ((SAMPLES + 1) * case.g.shape[1]))  # the estimators' own chunk
    case.row("sampled, 8 codes, float32", lambda: case.chunks(_sampled, case.g, case.table, rows), "float32", checked=False)


def _dense(case: Case) -> None:
    def gradient() -> Tensor:
        logits = case.logits.detach().requires_grad_()
        with torch.device(case.bench.device):
            return torch.autograd.grad(dense(logits, case.bits, case.table), logits, case.g)[0]

    case.row("dense autograd, float32", gradient, "float32")
    with tf32():
        case.row("dense autograd, tf32", gradient, "tf32")


def _fused(case: Case, tilings: Tilings) -> Tilings:
    """Every tiling on the first size, the fastest ones of it on the others; these are returned."""
    if importlib.util.find_spec("triton") is None:
        case.bench.row(case.name, "fused", lambda: {"error": "triton is not installed"})
        return tilings
    from benchmarks.mapper_triton import Tiling, covariance

    if not tilings:
        tilings["bf16"] = [Tiling(), Tiling(stages=4), Tiling(stages=4, splits=4), Tiling(stages=4, splits=16)]
        tilings["bf16"] += [Tiling(stages=4, flatten=True), Tiling(width=128, stages=2), Tiling(tokens=64, warps=4, stages=2)]
        tilings["tf32"] = [Tiling(width=32), Tiling(width=32, stages=4), Tiling(width=32, stages=4, flatten=True)]
    kept: Tilings = {}
    for unit, chosen in tilings.items():
        g, table = (case.half_g, case.half_table) if unit == "bf16" else (case.g, case.table)
        times = []
        for tiling in chosen:
            gradient = partial(covariance, g, case.logits, table, tiling)
            row = case.row(f"fused, {unit}: {tiling}", gradient, unit, variant=f"fused, {unit}")
            times.append((row.get("milliseconds", float("inf")), tiling))
        kept[unit] = [tiling for _, tiling in sorted(times, key=itemgetter(0))[:KEPT]]
    return kept


def _half_product(g: Tensor, rows: Tensor, *, half: bool = False) -> Tensor:
    """Scores with bfloat16 operands, summed and kept in float32."""
    if g.device.type == "cpu":
        return g.to(BF16).float() @ rows.to(BF16).float().T
    return torch.mm(g.to(BF16), rows.to(BF16).T, out_dtype=torch.float32)


@contextmanager
def tf32() -> Iterator[None]:
    """Float32 products on the tensor cores."""
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
