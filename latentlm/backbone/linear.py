"""Products of float32 matrices on a CPU, by the faster of the two libraries that come with PyTorch.

PyTorch takes Intel's MKL, which uses AVX-512 on Intel's processors alone; oneDNN uses what the processor has. On AMD's with
AVX-512 it is twice as fast (``python -m benchmarks.ceiling``), so there it is taken, forward and back, compiled and
not. Elsewhere, and for all but large plain float32 matrices, `linear` is `torch.nn.functional.linear`.

For every number of rows that it has met oneDNN keeps memory of the result's size. So it gets few numbers: all rows where they
are a power of two, else `TILE` of them at a time and powers of two of the rest. What a product is made of depends on its shape
alone, so that equal products are equal.

Legend: N rows (all leading dimensions as one), I inputs, O outputs.
"""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx.experimental.symbolic_shapes import guard_or_false
from torch.utils.flop_counter import register_flop_formula

SMALLEST = 2**21
"""N I O from which oneDNN's call pays: at width 256, 32 rows and more."""
TILE = 512
_FEWEST = 16
"""Rows of the rest that oneDNN gets."""
_FEWEST_SUMMED = 256
"""The same where rows are summed over: each piece is added to the others."""


class Linear(nn.Linear):
    """`torch.nn.Linear` with the product of this file: the same parameters, the same result but for rounding."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        return super().forward(input) if self.bias is not None else linear(input, self.weight)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T: (..., I), (O, I) -> (..., O)."""
    if not (ONE_DNN and weight.dim() == 2 and x.shape[-1] == weight.shape[1] and _served(x, weight, weight.shape[0])):
        return F.linear(x, weight)
    out: Tensor = torch.ops.latentlm.linear(x.reshape(-1, x.shape[-1]), weight)
    return out.view(*x.shape[:-1], weight.shape[0])


def _outer(a: Tensor, b: Tensor) -> Tensor:
    """a^T b, the sum of the rows' outer products: (N, O), (N, I) -> (O, I)."""
    if not (ONE_DNN and _served(a, b, b.shape[1])):
        return a.t() @ b
    out: Tensor = torch.ops.latentlm.outer(a, b)
    return out


def _served(x: Tensor, other: Tensor, columns: int) -> bool:
    """Whether oneDNN has a product with x of so many columns: large ones of float32 matrices on a CPU, of no class of their
    own, not cast on the way, and differentiated backwards alone."""
    return (
        x.dtype == other.dtype == torch.float32
        and x.device.type == other.device.type == "cpu"
        and type(x) in (Tensor, nn.Parameter)
        and type(other) in (Tensor, nn.Parameter)
        and not torch.is_autocast_enabled("cpu")
        and (_large_in_a_graph(x, columns) if torch.compiler.is_compiling() else _large(x, columns))
    )


def _large(x: Tensor, columns: int) -> bool:
    transformed = torch._C._functorch.maybe_current_level() is not None or forward_ad._current_level >= 0
    return x.numel() * columns >= SMALLEST and not transformed


def _large_in_a_graph(x: Tensor, columns: int) -> bool:
    """Small products and large ones have graphs of their own; an exported one is for all, and has PyTorch's."""
    return not torch.compiler.is_exporting() and guard_or_false(x.numel() * columns >= SMALLEST)


def _one_dnn_is_faster() -> bool:
    if not torch.backends.mkldnn.is_available() or getattr(torch.ops.mkldnn, "_linear_pointwise", None) is None:
        return False
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and "AuthenticAMD" in _vendor()


def _vendor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"vendor_id\s*:\s*(\S+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found[1] if found else platform.processor()


ONE_DNN = _one_dnn_is_faster()
"""Set to False, all products are PyTorch's."""


# ----------------------------------------------------------------------------------------------------------- operators

# PyTorch's own operator for it has no derivative, and its compiler takes it with constant weights only.
_library = torch.library.Library("latentlm", "DEF")
_library.define("linear(Tensor x, Tensor weight) -> Tensor")
_library.define("outer(Tensor a, Tensor b) -> Tensor")


@torch.library.impl(_library, "linear", "CPU")
def _product(x: Tensor, weight: Tensor) -> Tensor:
    """(N, I), (O, I) -> (N, O)."""
    rows = x.shape[0]
    if x.numel() * weight.shape[0] < SMALLEST:
        return x @ weight.t()
    x, weight = _laid_out(x), _laid_out(weight)
    pieces = _pieces(rows, _FEWEST)
    if pieces == [rows]:
        return _one_dnn(x, weight)
    out, done = x.new_empty(rows, weight.shape[0]), 0
    for count in pieces:
        out[done : done + count] = _one_dnn(x[done : done + count], weight)
        done += count
    if done < rows:
        torch.mm(x[done:], weight.t(), out=out[done:])
    return out


@torch.library.impl(_library, "outer", "CPU")
def _summed(a: Tensor, b: Tensor) -> Tensor:
    """(N, O), (N, I) -> (O, I)."""
    rows, pieces = a.shape[0], _pieces(a.shape[0], _FEWEST_SUMMED)
    if not pieces or a.numel() * b.shape[1] < SMALLEST:
        return a.t() @ b
    a, b = _laid_out(a), _laid_out(b)
    out, done = _one_dnn(a[: pieces[0]].t(), b[: pieces[0]].t()), pieces[0]
    for count in pieces[1:]:
        out += _one_dnn(a[done : done + count].t(), b[done : done + count].t())
        done += count
    return out if done == rows else out.addmm_(a[done:].t(), b[done:])


def _pieces(rows: int, fewest: int) -> list[int]:
    """Into how many rows each a product is cut; what is left is MKL's."""
    if rows & (rows - 1) == 0:
        return [rows]
    sizes = [TILE >> halvings for halvings in range(1, TILE.bit_length())]
    return [TILE] * (rows // TILE) + [size for size in sizes if size >= fewest and rows & size]


def _laid_out(matrix: Tensor) -> Tensor:
    """Rows or columns without gaps, as oneDNN wants them."""
    return matrix if matrix.is_contiguous() or matrix.t().is_contiguous() else matrix.contiguous()


def _one_dnn(x: Tensor, weight: Tensor) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return out


@torch.library.register_fake("latentlm::linear", lib=_library)
def _product_shape(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@torch.library.register_fake("latentlm::outer", lib=_library)
def _summed_shape(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[1], b.shape[1])


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _product_back(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
    (x, weight), (of_x, of_weight) = ctx.saved_tensors, ctx.needs_input_grad
    traced = type(gradient) is not Tensor  # for a graph, of which the way forward was for large ones
    product, summed = (torch.ops.latentlm.linear, torch.ops.latentlm.outer) if traced else (linear, _outer)
    return product(gradient, weight.t()) if of_x else None, summed(gradient, x) if of_weight else None


def _summed_back(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
    (a, b), (of_a, of_b) = ctx.saved_tensors, ctx.needs_input_grad
    return linear(b, gradient) if of_a else None, linear(a, gradient.t()) if of_b else None


torch.library.register_autograd("latentlm::linear", _product_back, setup_context=_keep, lib=_library)
torch.library.register_autograd("latentlm::outer", _summed_back, setup_context=_keep, lib=_library)


@register_flop_formula(torch.ops.latentlm.linear)
def _product_operations(x_shape: Any, weight_shape: Any, *_: Any, **__: Any) -> int:
    return int(2 * x_shape[0] * x_shape[1] * weight_shape[0])


@register_flop_formula(torch.ops.latentlm.outer)
def _summed_operations(a_shape: Any, b_shape: Any, *_: Any, **__: Any) -> int:
    return int(2 * a_shape[0] * a_shape[1] * b_shape[1])
