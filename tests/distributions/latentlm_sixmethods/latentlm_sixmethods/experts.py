"""Experts chosen by z: in the two middle blocks one of E feed-forwards stands in the block's place, the same one for a whole
site (Jacobs et al. 1991, "Adaptive mixtures of local experts", with the choice as a latent).

    q(k_s | x) = softmax(W mean of the trunk over site s)      p(k_s) = 1/E      expert_k(y) = down_k gelu(up_k y)

The value of z is a one-hot vector, that is a Categorical over the rows of the unit matrix, so that event_dims is the number of
experts and no part needs it told. Gradients go straight through it to the probabilities (Bengio et al. 2013).

    encoder   router        prior   even_choice        injection   experts

Legend: B rows, R latent rows, T tokens, S sites, E experts, D width, F hidden width of an expert.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from latentlm.config import Strict
from latentlm.interface import (
    BlockCondition,
    Categorical,
    Condition,
    Context,
    Encoder,
    Injection,
    Latent,
    Objective,
    Prior,
    Shape,
    ValueMap,
)
from latentlm.plugins import hookimpl

latentlm_contract = 2


def one_of(logits: Tensor) -> Categorical:
    """A one-hot choice from logits (B, S, E)."""
    return Categorical(logits, table=torch.eye(logits.shape[-1], device=logits.device))


class Router(Encoder):
    """Reads the mean of the trunk over a site, later tokens included: sees_future."""

    Config = Strict
    family = "one-hot"
    sees_future = True

    def __init__(self, config: Strict, shape: Shape) -> None:
        super().__init__(config, shape)
        self.taps = (shape.blocks // 2 - 1,)
        self.choice = nn.Linear(shape.width, shape.latent.dims)

    def forward(self, context: Context, objective: Objective | None = None) -> Categorical:
        """(B, S, E)."""
        return one_of(self.choice(context.site_means(context.taps[self.taps[0]])))


class EvenChoice(Prior):
    """Every expert equally likely."""

    Config = Strict
    family = "one-hot"

    def forward(self, context: Context, latent: Latent | None = None) -> Categorical:
        """(R, S, E)."""
        return one_of(torch.zeros(context.rows, context.sites, self.shape.latent.dims, device=context.tokens.device))

    def step(
        self, state: Any, taps: Mapping[int, Tensor], previous: Tensor | None, starts: Tensor, above: Mapping[str, Tensor]
    ) -> tuple[Categorical, Any]:
        """(B, 1, E)."""
        return one_of(torch.zeros(len(starts), 1, self.shape.latent.dims, device=starts.device)), state


class ExpertsConfig(Strict):
    """Their size."""

    hidden: int | None = Field(None, ge=1, description="hidden width of an expert; default: the backbone's feed-forward width")


class Bank(nn.Module):
    """The experts of one block, as the slot `feed_forward` wants them: `layer(x, factor)`."""

    def __init__(self, experts: int, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.empty(experts, width, hidden))
        self.down = nn.Parameter(torch.empty(experts, hidden, width))

    def forward(self, x: Tensor, choice: Tensor) -> Tensor:
        """x (R, T, D) through each expert, weighted by choice (R, T, E): (R, T, D)."""
        inner = F.gelu(torch.einsum("rtd,edf->rtef", x, self.up))
        return torch.einsum("rte,rtef,efd->rtd", choice.to(x), inner, self.down)


class Experts(Injection):
    """A bank of experts in each of the two middle blocks."""

    Config = ExpertsConfig
    family = "one-hot"
    slots = ("feed_forward",)

    def __init__(self, config: ExpertsConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        self.blocks = (shape.blocks // 2 - 1, shape.blocks // 2)
        hidden = config.hidden or shape.backbone.feed_forward
        assert hidden is not None
        self.banks = nn.ModuleList(Bank(shape.latent.dims, shape.width, hidden) for _ in self.blocks)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Like the feed-forward that they stand for."""
        for parameter in self.banks.parameters():
            nn.init.normal_(parameter, std=self.shape.backbone.init_std, generator=generator)

    def forward(self, latent: Latent, context: Context) -> Condition:
        """The site's choice at each of its positions, (R, T, E), for both blocks."""
        choice = latent.value
        if isinstance(latent.distribution, Categorical):
            soft = latent.distribution.log_probs.exp()
            choice = choice + (soft - soft.detach())
        choice = context.at_positions(choice)
        maps = {block: ValueMap(bank, choice) for block, bank in zip(self.blocks, self.banks, strict=True)}
        return Condition({block: BlockCondition(feed_forward=each) for block, each in maps.items()})


@hookimpl
def latentlm_parts() -> dict[str, dict[str, type]]:
    """The parts of this plugin."""
    return {"encoder": {"router": Router}, "prior": {"even_choice": EvenChoice}, "injection": {"experts": Experts}}
