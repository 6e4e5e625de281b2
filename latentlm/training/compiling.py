"""torch.compile for training: each block once, as a graph that equal blocks share, and the head with its cross-entropy; and
whatever module of a part says `compiles = True`.

Scores and samples, whose shapes vary, run uncompiled (`uncompiled`). """

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from latentlm.composed import ComposedDecoder
from latentlm.config import TrainConfig
from latentlm.interface import LatentDecoder


def compile_blocks(model: LatentDecoder, *, backend: str = "inductor") -> None:
    """Compile, in place, the blocks of backbone and encoders, and modules that ask for it: names of parameters stay. Rounding
    changes."""
    for module in model.modules():
        if getattr(module, "compiles", False) is True:
            module.compile(backend=backend)
    if isinstance(model, ComposedDecoder):
        model._cross_entropy = torch.compile(model._cross_entropy, backend=backend)  # type: ignore[method-assign]


def uncompiled(config: TrainConfig) -> AbstractContextManager[object]:
    """The context in which a compiled model runs as it would without."""
    return torch.compiler.set_stance("force_eager") if config.compile else nullcontext()
