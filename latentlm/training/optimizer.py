"""AdamW (Loshchilov & Hutter 2019) with linear warm-up and a cosine to a share of the peak.

    rate(step) = peak (step + 1) / warmup                                  while step < warmup
               = low + (peak - low) (1 + cos(pi u)) / 2                    after, u from 0 to 1 at the last step

Weight decay acts on the weights of nn.Linear alone: norms, biases, embeddings and tables that are looked up by a code (a row
that no text touches would only shrink) are left out, and so is a Linear that shares an embedding's weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from latentlm.config import TrainConfig


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """The learning rate of the optimiser step that follows `step` finished ones."""
    peak, low = config.learning_rate, config.learning_rate * config.min_learning_rate
    if step < config.warmup:
        return peak * (step + 1) / config.warmup
    share = min(1.0, (step - config.warmup) / max(1, config.steps - 1 - config.warmup))
    return low + (peak - low) * (1 + math.cos(math.pi * share)) / 2


def decayed_names(model: nn.Module) -> set[str]:
    """Names of the parameters that weight decay acts on."""
    embedded = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    linear = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    return {name for name, parameter in model.named_parameters() if id(parameter) in linear - embedded}


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over every trainable parameter, in two groups: decayed and not."""
    names = decayed_names(model)
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in trainable if name in names], "weight_decay": config.weight_decay},
        {"params": [p for name, p in trainable if name not in names], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group the rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimiser's own state, named `kind/parameter`, scalars with one dimension; parameters that never had a gradient have
    none."""
    return {
        f"{kind}/{name}": value.reshape(-1) if value.dim() == 0 else value
        for name, parameter in model.named_parameters()
        for kind, value in optimizer.state.get(parameter, {}).items()
    }


def optimizer_shapes(model: nn.Module) -> dict[str, torch.Size]:
    """The shape of everything that `optimizer_tensors` can give."""
    shapes: dict[str, torch.Size] = {}
    for name, parameter in model.named_parameters():
        shapes |= {f"step/{name}": torch.Size([1]), f"exp_avg/{name}": parameter.shape, f"exp_avg_sq/{name}": parameter.shape}
    return shapes


def make_room(optimizer: torch.optim.Optimizer, model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """`optimizer_tensors` of these names, zero, to be filled in place: fresh memory, aligned as in an unbroken run."""
    parameters = dict(model.named_parameters())
    for key in names:
        kind, _, name = key.partition("/")
        parameter = parameters[name]
        zero = torch.zeros((), device=parameter.device) if kind == "step" else torch.zeros_like(parameter.detach())
        optimizer.state[parameter][kind] = zero
    return optimizer_tensors(optimizer, model)


@torch.no_grad()
def load_optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Take over what `optimizer_tensors` gave."""
    room = make_room(optimizer, model, tensors)
    for name, value in tensors.items():
        room[name].copy_(value)
