"""One block of the backbone in float64, and what stands in its slots: shared by the tests of conditions.

Legend: R rows, T tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from latentlm.backbone import Block, Mask, rotation
from latentlm.config import BackboneConfig
from latentlm.interface import BlockCondition

CONFIG = BackboneConfig(width=16, blocks=2, heads=4, kv_heads=2, context=16, vocabulary=11)
DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1], [0, 0, -1, -1, -1]])


def filled(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def block() -> Block:
    made = Block(CONFIG)
    generator = torch.Generator().manual_seed(1)
    for parameter in made.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0.0, 0.3, generator=generator)
    return made.double()


def run(made: Block, x: Tensor, condition: BlockCondition | None) -> Tensor:
    mask = Mask(DOCUMENTS, DOCUMENTS)
    return made(x, mask=mask, rotation=rotation(CONFIG, torch.arange(5).expand(2, -1)), condition=condition)


def middle(made: Block, x: Tensor) -> Tensor:
    """The stream between attention and feed-forward."""
    normed = made.attention_norm(x)
    mixed = made.attention(
        normed,
        normed,
        mask=Mask(DOCUMENTS, DOCUMENTS),
        rotation=rotation(CONFIG, torch.arange(5).expand(2, -1)),
        prefixes=(),
        value_gate=None,
        cache=None,
        index=0,
    )
    return x + mixed


class Experts(torch.nn.Module):
    """Two linear maps, mixed by the factor (R, T, 2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(filled(2, width, width, seed=11).double())

    def forward(self, x: Tensor, factor: Tensor) -> Tensor:
        return torch.einsum("rtk,kwv,rtv->rtw", factor, self.weight, x)
