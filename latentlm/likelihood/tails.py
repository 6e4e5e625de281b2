"""How heavy the tail of importance weights is: whether their mean says anything yet.

The largest of K weights, M = min(K/5, 3 sqrt K) of them, are fitted by a generalised Pareto distribution above the next one
(Zhang & Stephens 2009, Technometrics 51, with the weak prior of Vehtari et al. 2024, JMLR 25:72). Its shape k says what a
spread of the weights that were drawn cannot: up to 1/2 their variance is finite; from 1 on not even their mean is, and an
estimate goes on rising however many are drawn. Above 0.7 it is not to be relied upon at any number that one would draw.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

HEAVY = 0.7
"""The shape above which a mean of weights is not to be relied upon."""
_LEAST = 5
"""Weights of different size that a tail takes at least."""
_SAME = 1e-5
"""Log-weights that differ by less are equal: logits round by about as much, from one batch to another."""


def tail_shape(log_weights: Tensor) -> Tensor:
    """The shape k of each row of log-weights (B, K), (B,) float64; NaN where there are too few of them, or too few of different
    size, to say."""
    count = log_weights.shape[-1]
    most = int(min(count / 5, 3 * math.sqrt(count)))
    if most < _LEAST:
        return torch.full(log_weights.shape[:1], math.nan, dtype=torch.float64)
    ordered = log_weights.double().cpu().sort(dim=-1).values
    weights = (ordered - ordered[:, -1:]).exp()
    excess = weights[:, -most:] - weights[:, -most - 1, None]  # (B, M), rising
    steps = ordered[:, -most - 1 :].diff() > _SAME  # (B, M): what differs from the weight before it
    return torch.tensor([_of_row(*row) for row in zip(excess, steps, strict=True)], dtype=torch.float64)


def _of_row(excess: Tensor, steps: Tensor) -> float:
    """Of what lies above the threshold: weights that are equal to it, as those of discrete latents may be, do not."""
    above = excess[(steps.cumsum(0) > 0) & (excess > 0)]
    return float(_shape(above[None])) if len(above) >= _LEAST and int(steps.sum()) >= _LEAST else math.nan


def _shape(excess: Tensor) -> Tensor:
    """Of generalised Pareto variates (B, M), rising and positive: a posterior mean over a grid, and the prior's ten at 1/2."""
    count = excess.shape[-1]
    grid = 30 + int(math.sqrt(count))
    steps = 1 - (grid / (torch.arange(1, grid + 1, dtype=torch.float64) - 0.5)).sqrt()
    quartile = excess[:, int(count / 4 + 0.5) - 1, None]
    b = 1 / excess[:, -1:] + steps / (3 * quartile)  # (B, G)
    k = torch.log1p(-b[..., None] * excess[:, None]).mean(-1)
    profile = count * ((-b / k).log() - k - 1)
    chosen = (b * profile.softmax(-1)).sum(-1, keepdim=True)
    fitted = torch.log1p(-chosen * excess).mean(-1)
    return (count * fitted + 10 * 0.5) / (count + 10)
