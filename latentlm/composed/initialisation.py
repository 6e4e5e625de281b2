"""Initialising a part, and finding what it forgot: a model is built without memory and filled in place, so a parameter that no
one sets would hold whatever the memory held before, often something plausible.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from latentlm.errors import PluginError
from latentlm.interface import Part


@torch.no_grad()
def initialise(part: Part, generator: torch.Generator | None) -> None:
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
        if isinstance(module, nn.Embedding | nn.Linear | nn.RMSNorm):
            continue
        named = (*module.named_parameters(prefix, recurse=False), *module.named_buffers(prefix, recurse=False))
        yield from ((name, tensor) for name, tensor in named if tensor.is_floating_point())
