"""torch.compile for training: each block once, as a graph that equal blocks share, and the head with its cross-entropy.

Scores and samples, whose shapes vary, run uncompiled (`uncompiled`). """

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from latentlm.backbone.block import Block
from latentlm.composed import ComposedDecoder
from latentlm.config import TrainConfig
from latentlm.interface import LatentDecoder


def compile_blocks(model: LatentDecoder, *, backend: str = "inductor") -> None:
    """Compile the blocks of the backbone and of the encoders, in place: names of parameters stay. Rounding changes."""
    for module in model.modules():
        if isinstance(module, Block):
            module.compile(backend=backend)
    if isinstance(model, ComposedDecoder):
        model._cross_entropy = torch.compile(model._cross_entropy, backend=backend)  # type: ignore[method-assign]


def uncompiled(config: TrainConfig) -> AbstractContextManager[object]:
    """The context in which a compiled model runs as it would without."""
    return torch.compiler.set_stance("force_eager") if config.compile else nullcontext()
