"""Prompts in training: a share of the rows begin with tokens that are given, as in generation and in scores of continuations.

A row of n inputs x_1..x_n that becomes prompted has a prompt of m tokens, m uniform on 1..n-1. `given` says m, which priors may
read ahead; the m-1 targets inside the prompt do not count, so what is learned is p(x_{m+1}.. | x_1..x_m): position m, the
prompt's last, predicts the first token that counts. Rows of one input have no room for a prompt.

What a row draws depends on (seed, number of the sequence in the stream) alone, so the same sequences get the same prompts
however they are split into micro-batches, and after a resume.

Legend: B rows, T tokens.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from latentlm.config import Recipe
from latentlm.errors import UserError
from latentlm.interface import Batch, Noise


def check_prompts(recipe: Recipe) -> None:
    """Raise UserError where rows hold several documents: only the first of a row could have a prompt."""
    if recipe.train.prompts > 0 and recipe.data.packing:
        raise UserError(
            f"train.prompts is {recipe.train.prompts}, but data.packing puts several documents into a row, and only one of "
            "them can have a prompt. Set data.packing=false, or train.prompts=0."
        )


def with_prompts(batch: Batch, *, share: float, seed: int, first: int) -> Batch:
    """The batch (one document per row) with a prompt in each row with probability `share`. Row r is sequence `first` + r."""
    if share <= 0:
        return batch
    rows, length = batch.inputs.shape
    noise = Noise.keyed(seed, [("prompt", first + row) for row in range(rows)])
    uniform = noise.uniform(1, 2)[:, 0].double()  # (B, 2): whether, and how long
    inputs = (batch.documents >= 0).sum(1)  # (B,)
    lengths = 1 + (uniform[:, 1] * (inputs - 1)).long()  # uniform on 1 .. n-1
    given = torch.where((uniform[:, 0] < share) & (inputs > 1), lengths, 0)
    inside = torch.arange(length)[None] < (given - 1)[:, None]
    return replace(batch, given=given, target_mask=batch.target_mask & ~inside)
