"""Products of float32 matrices on a CPU, by the faster of the two libraries that come with PyTorch.

PyTorch takes Intel's MKL, which uses AVX-512 on Intel's processors alone; oneDNN uses what the processor has. On AMD's with
AVX-512 it is 1.5 to 2.2 times as fast (``python -m benchmarks.ceiling``), so there it is taken, forward and back, compiled and
not. Elsewhere, and for all but large float32 matrices, this is `torch.nn.functional.linear`.

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
from torch.utils.flop_counter import register_flop_formula

SMALLEST = 2**21
"""N I O from which oneDNN's call pays: at width 256, 32 rows and more."""


class Linear(nn.Linear):
    """`torch.nn.Linear` with the product of this file: the same parameters, the same result but for rounding."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        return super().forward(input) if self.bias is not None else linear(input, self.weight)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T: (..., I), (O, I) -> (..., O)."""
    if not (ONE_DNN and _large_and_plain(x, weight)):
        return F.linear(x, weight)
    out: Tensor = torch.ops.latentlm.linear(x.reshape(-1, x.shape[-1]), weight)
    return out.view(*x.shape[:-1], len(weight))


def _large_and_plain(x: Tensor, weight: Tensor) -> bool:
    """Float32 matrices on a CPU, of no class of their own, and not cast on the way."""
    return (
        x.numel() * len(weight) >= SMALLEST
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and type(x) in (Tensor, nn.Parameter)
        and type(weight) in (Tensor, nn.Parameter)
        and not torch.is_autocast_enabled("cpu")
    )


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

# PyTorch's own operator for it has no derivative, and its compiler takes it with constant weights only.
_library = torch.library.Library("latentlm", "DEF")
_library.define("linear(Tensor x, Tensor weight) -> Tensor")


@torch.library.impl(_library, "linear", "CPU")
def _product(x: Tensor, weight: Tensor) -> Tensor:
    """(N, I), (O, I) -> (N, O)."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return out


@torch.library.register_fake("latentlm::linear", lib=_library)
def _shape(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
    x, weight = ctx.saved_tensors
    gradient = gradient.contiguous()  # what a sum sends back has no strides
    of_x, of_weight = ctx.needs_input_grad
    return linear(gradient, weight.t()) if of_x else None, linear(gradient.t(), x.t()) if of_weight else None


torch.library.register_autograd("latentlm::linear", _backward, setup_context=_keep, lib=_library)


@register_flop_formula(torch.ops.latentlm.linear)
def _operations(x_shape: Any, weight_shape: Any, *_: Any, **__: Any) -> int:
    return int(2 * x_shape[0] * x_shape[1] * weight_shape[0])
