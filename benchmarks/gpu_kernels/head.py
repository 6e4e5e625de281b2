"""Head and cross-entropy, forward and backward, with and without all logits at once.

Letters: T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from benchmarks.gpu_kernels.events import Bench, relative

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
Slope = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
CHECKED = 256  # tokens whose gradient is compared with float32's


def run(bench: Bench) -> None:
    """Rows for T=16,384, D=1536, V=131,072 in bf16; `error` figures against float32 logits of float32 products."""
    tokens, width, vocabulary = (96, 16, 64) if bench.quick else (16384, 1536, 131072)
    hidden = bench.random(tokens, width, dtype=torch.bfloat16).requires_grad_()
    weight = bench.random(vocabulary, width, dtype=torch.bfloat16, scale=0.05).requires_grad_()
    targets = torch.randint(vocabulary, (tokens,), device=bench.device)
    exact = _exact(hidden, weight, targets)
    operations = 6 * tokens * width * vocabulary  # three products; what is recomputed does not count

    def measured(loss: Loss) -> dict[str, Any]:
        def step() -> tuple[Tensor, ...]:
            value = loss(hidden, weight, targets)
            return value.detach(), *torch.autograd.grad(value, (hidden, weight))

        value, gradient, _ = step()
        errors = {"loss": value.item(), "error_gradient": relative(gradient[:CHECKED], exact)}
        del gradient
        return bench.time(step) | errors | {"teraflop": operations / 1e12, "unit": "bf16"}

    def chunks(size: int, one: Loss = full) -> Loss:
        return lambda *inputs: chunked(*inputs, size=size, one=one)

    def at_once(size: int, slope: Slope = slope_of_logits) -> Loss:
        return lambda *inputs: AtOnce.apply(*inputs, size, slope)

    sizes = (32,) if bench.quick else (1024, 2048, 4096)
    middle = sizes[len(sizes) // 2]  # compiled for one size: that takes longer than measuring
    contenders: dict[str, Loss] = {"all logits, float32": full, "all logits, compiled": bench.compiled(full)}
    contenders |= {f"chunks of {size}, recomputed": chunks(size) for size in sizes}
    contenders[f"chunks of {middle}, recomputed, compiled"] = chunks(middle, bench.compiled(full))
    contenders |= {f"chunks of {size}, gradient at once": at_once(size) for size in sizes}
    contenders[f"chunks of {middle}, gradient at once, compiled"] = at_once(middle, bench.compiled(slope_of_logits))
    if hasattr(F, "linear_cross_entropy"):
        contenders["F.linear_cross_entropy"] = F.linear_cross_entropy
    case = f"T={tokens}, D={width}, V={vocabulary}"
    for name, loss in contenders.items():
        bench.row(case, name, lambda loss=loss: measured(loss))


def full(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """(T, D), (V, D), (T,) -> the mean in nats, through float32 logits (T, V)."""
    return F.cross_entropy((hidden @ weight.T).float(), targets)


def chunked(hidden: Tensor, weight: Tensor, targets: Tensor, *, size: int, one: Loss) -> Tensor:
    """`full`, `size` tokens at a time; each chunk's logits are made again in the backward pass."""
    total = hidden.new_zeros((), dtype=torch.float32)
    for start in range(0, len(hidden), size):
        part = slice(start, start + size)
        mean = checkpoint(one, hidden[part], weight, targets[part], use_reentrant=False)
        total = total + mean * len(targets[part])
    return total / len(targets)


class AtOnce(torch.autograd.Function):
    """`full` with its gradient taken chunk by chunk in the forward pass: no logits are kept, and none made again."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, size: int, slope: Slope) -> Tensor:
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)  # summed over chunks
        total = hidden.new_zeros((), dtype=torch.float32)
        for start in range(0, len(hidden), size):
            part = slice(start, start + size)
            loss, by_logit = slope(hidden[part], weight, targets[part])
            total += loss
            grad_hidden[part] = by_logit @ weight
            grad_weight += by_logit.T @ hidden[part]
        grad_hidden /= len(hidden)
        ctx.save_for_backward(grad_hidden, (grad_weight / len(hidden)).to(weight.dtype))
        return total / len(hidden)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = gradient.to(grad_hidden.dtype)
        return grad_hidden * scale, grad_weight * scale, None, None, None


def slope_of_logits(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of the losses and its gradient by each logit: (T, D), (V, D), (T,) -> (), (T, V) in the dtype of `hidden`."""
    logits = (hidden @ weight.T).float()
    normaliser = logits.logsumexp(1, keepdim=True)
    probability = (logits - normaliser).exp()
    right = torch.arange(len(weight), device=weight.device) == targets[:, None]
    slope = torch.where(right, probability - 1, probability).to(hidden.dtype)
    return (normaliser - logits.gather(1, targets[:, None])).sum(), slope


def _exact(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The first tokens' gradient, of the mean over all tokens, in float32."""
    first = hidden.detach()[:CHECKED].float().requires_grad_()
    loss = F.cross_entropy(first @ weight.detach().float().T, targets[:CHECKED], reduction="sum") / len(targets)
    return torch.autograd.grad(loss, first)[0]
