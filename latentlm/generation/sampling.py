"""From next-token logits to a token: temperature, top-k, top-p, and the inverse CDF of a given uniform number.

    p         = softmax(logits / temperature)
    top-k     keeps the k most likely tokens (and those tied with the last of them)
    top-p     keeps the smallest set of most likely tokens whose probability reaches p (Holtzman et al. 2020, "nucleus")
    token     = the first one at which the cumulated probability exceeds u, u uniform in (0, 1)

Filters act in that order, each on what the one before left, renormalised. The uniform number comes from the caller, so a draw
depends on nothing but the logits of its row and that number. Temperature 0 is greedy: the most likely token.

Legend: B rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentlm.config.checking import real, whole
from latentlm.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TokenSampling:
    """How tokens are drawn. Raises UserError for settings that make no distribution."""

    temperature: float = 1.0
    """0 = greedy."""
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "temperature", real("temperature", self.temperature, least=0))
        if self.top_k is not None:
            object.__setattr__(self, "top_k", whole("top_k", self.top_k, least=1))
        if self.top_p is not None:
            object.__setattr__(self, "top_p", real("top_p", self.top_p, above=0, most=1))

    @property
    def greedy(self) -> bool:
        """No random number is needed."""
        return self.temperature == 0

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits (B, V) -> probabilities (B, V) after temperature and filters, float64; greedy: all on the best token."""
        if self.greedy:
            best = logits.argmax(dim=-1, keepdim=True)
            return torch.zeros_like(logits, dtype=torch.float64).scatter(-1, best, 1.0)
        scaled = logits.double()
        # Differences are divided, not the logits, so that a tiny temperature cannot overflow.
        scaled = (scaled - scaled.amax(dim=-1, keepdim=True)) / self.temperature
        if self.top_k is not None:
            scaled = keep_top_k(scaled, self.top_k)
        if self.top_p is not None:
            scaled = keep_top_p(scaled, self.top_p)
        return torch.softmax(scaled, dim=-1)

    def draw(self, logits: Tensor, uniform: Tensor | None) -> Tensor:
        """One token per row: logits (B, V), uniform (B,) in (0, 1), or None where greedy -> (B,) long."""
        if not bool(torch.isfinite(logits).all()):
            raise UserError("The model's logits are not finite: its weights or its precision are broken.")
        if self.greedy:
            return logits.argmax(dim=-1)
        assert uniform is not None, "sampling needs uniform numbers"
        return inverse_cdf(self.probabilities(logits), uniform)


def keep_top_k(logits: Tensor, count: int) -> Tensor:
    """Logits (B, V) with all but the `count` largest (and ties with the last of them) at minus infinity."""
    last = logits.topk(min(count, logits.shape[-1]), dim=-1).values[:, -1:]
    return logits.masked_fill(logits < last, -torch.inf)


def keep_top_p(logits: Tensor, mass: float) -> Tensor:
    """Logits (B, V) with all at minus infinity but the smallest set of most likely tokens of probability >= `mass`."""
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probability = torch.softmax(ordered, dim=-1)
    before = probability.cumsum(dim=-1) - probability  # mass of the more likely tokens: 0 for the first, which thus stays
    return logits.masked_fill((before >= mass).gather(-1, order.argsort(dim=-1)), -torch.inf)


def inverse_cdf(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """First token at which the cumulated probability exceeds the uniform number: (B, V), (B,) -> (B,) long.

    A token of probability zero is never returned."""
    cumulated = probabilities.double().cumsum(dim=-1)
    goal = uniform.to(cumulated)[:, None] * cumulated[:, -1:]
    return torch.searchsorted(cumulated, goal, right=True)[:, 0]
