"""Less memory for more work: what the way back needs is computed a second time instead of kept.

    train.recompute=true       of each block only what enters it is kept; about a third more operations
    train.head_chunk=2048      logits of so many positions at a time, never of all; the head's product is computed twice

A block draws nothing: z is sampled outside of it and kept, and what is recomputed is what was computed, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from latentlm.backbone.block import Block
from latentlm.composed import ComposedDecoder
from latentlm.composed.sockets import Sockets
from latentlm.errors import UserError
from latentlm.interface import LatentDecoder


def recompute_blocks(model: LatentDecoder) -> None:
    """Have the blocks of the backbone and of the encoders recomputed, in place. Raises UserError where an encoder descends
    through them: while it does, the decoder's weights ask for no gradient, and later they do."""
    descending = [
        name
        for name, latent in model.latents.items()
        for socket, part in (latent.named_parts() if isinstance(latent, Sockets) else ())
        if socket == "encoder" and getattr(part, "needs_objective", False)
    ]
    if descending:
        raise UserError(
            f"train.recompute does not go with the encoder of {descending[0]}, which descends through the decoder within a "
            "step. Lower train.batch instead (train.accumulate makes up for it)."
        )
    for module in model.modules():
        if isinstance(module, Block):
            module.forward = partial(_recomputed, module.forward)  # type: ignore[method-assign]


def _recomputed(forward: Callable[..., Tensor], x: Tensor, **options: Any) -> Tensor:
    if not torch.is_grad_enabled() or options.get("cache") is not None:
        return forward(x, **options)
    out: Tensor = checkpoint(forward, x, use_reentrant=False, preserve_rng_state=False, **options)
    return out


def chunk_head(model: LatentDecoder, positions: int) -> None:
    """Have the cross-entropy computed for so many positions at a time, in place. A decoder of another make keeps its own."""
    if isinstance(model, ComposedDecoder):
        model._nats = partial(_chunked, model._nats, positions)  # type: ignore[method-assign]


def _chunked(nats: Callable[[Tensor, Tensor], Tensor], positions: int, hidden: Tensor, targets: Tensor) -> Tensor:
    """What `nats` says of hidden (N, D) and targets (N,)."""
    chunks = zip(hidden.split(positions), targets.split(positions), strict=True)
    return torch.cat([checkpoint(nats, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks])
