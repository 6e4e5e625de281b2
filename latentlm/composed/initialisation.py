"""Initialising a part, and finding what it forgot: a model is built without memory and filled in place, so a parameter that no
one sets would hold whatever the memory held before, often something plausible.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn

from latentlm.backbone.init import normal_
from latentlm.config import BackboneConfig
from latentlm.errors import PluginError
from latentlm.interface import Part

_FRAMES = (nn.Embedding, nn.Linear, nn.RMSNorm)
"""Modules that the frame sets, wherever they are."""


class Held(Protocol):
    """Makes the weights of a module whole within a block, and keeps what they are then: alone those of the module itself, which
    are to be set anew, or, where they are `filled`, those of all in it."""

    def __call__(self, module: nn.Module, *, filled: bool) -> AbstractContextManager[None]:
        """The block."""


def _as_it_is(module: nn.Module, *, filled: bool) -> AbstractContextManager[None]:
    """Where weights are whole anyway."""
    return nullcontext()


@torch.no_grad()
def initialise(
    decoder: nn.Module, backbone: BackboneConfig, generator: torch.Generator | None, *, held: Held = _as_it_is
) -> None:
    """What a composed decoder begins as: see its `init_weights`. Where weights are spread over processes, `held` makes those of
    one module whole for a while, so that no process needs memory for more."""
    scaled = (2 * backbone.blocks) ** -0.5
    for name, module in decoder.named_modules():
        if isinstance(module, _FRAMES):
            last = name.endswith(("attention.output", "feed_forward.down"))
            with held(module, filled=False):
                _initialise_own(module, std=backbone.init_std * scaled if last else backbone.init_std, generator=generator)
    for module in decoder.modules():
        if isinstance(module, Part):
            with held(module, filled=True):
                _initialise_part(module, generator)


def _initialise_own(module: nn.Module, *, std: float, generator: torch.Generator | None) -> None:
    """Set one of _FRAMES: weights normal(0, std), biases zero, scales of norms one."""
    if isinstance(module, nn.RMSNorm):
        if module.weight is not None:
            module.weight.fill_(1.0)
        return
    assert isinstance(module, nn.Embedding | nn.Linear)
    normal_(module.weight, std=std, generator=generator)
    if isinstance(module, nn.Linear) and module.bias is not None:
        module.bias.zero_()


def _initialise_part(part: Part, generator: torch.Generator | None) -> None:
    """Call `init_weights` of a part. Raises PluginError where a tensor of the part's own is left unset."""
    own = dict(_own(part))
    for tensor in own.values():
        tensor.fill_(float("nan"))
    part.init_weights(generator)
    if unset := [name for name, tensor in own.items() if not tensor.is_meta and bool(tensor.isnan().any())]:
        name = type(part).__name__
        raise PluginError(f"{name}.init_weights leaves {', '.join(unset)} unset. Set there what {name} makes itself.")


def _own(part: Part) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers of real numbers, by name, that the frame does not set."""
    for prefix, module in part.named_modules():
        if isinstance(module, _FRAMES):
            continue
        named = (*module.named_parameters(prefix, recurse=False), *module.named_buffers(prefix, recurse=False))
        yield from ((name, tensor) for name, tensor in named if tensor.is_floating_point())
