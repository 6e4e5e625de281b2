"""How much of a codebook a trained model uses (the question of Mentzer et al. 2023, section 5, on FSQ against VQ).

With a_d the mean over all sites at hand of q(code d | text), the aggregate posterior:

    perplexity   exp(-sum_d a_d log a_d), between 1 and N: the number of codes used, if all were used alike
    used         codes that are the likeliest one of at least one site

Both are limited by the number of sites: with fewer than a few times N of them, few codes can be met.

Run: ``code_usage(model, texts)``, texts being token lists; the first window of each counts.

Legend: B texts, S sites, E event dimensions, N codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from latentlm.errors import UserError
from latentlm.interface import Batch, Bits, Codes, Distribution, LatentDecoder
from latentlm_chunk.levels import JointLevels, Levels, OnGrid
from latentlm_chunk.point import PointLevels


@dataclass(frozen=True)
class Usage:
    """See the module's docstring."""

    perplexity: float
    used: int
    codes: int
    """N."""
    sites: int


@torch.no_grad()
def code_usage(model: LatentDecoder, texts: Sequence[Sequence[int]], *, batch_size: int = 16) -> Usage:
    """Usage of the codes of a model on texts. Raises UserError where a latent is no code, its codes are too many to
    count, or there is no encoder."""
    if not model.has_encoder:
        raise UserError("This model has no encoder, so no text has codes in it.")
    length = model.config.backbone.context
    total, likeliest, sites = torch.zeros(()), torch.zeros(()), 0
    for start in range(0, len(texts), batch_size):
        rows = [list(text[:length]) for text in texts[start : start + batch_size]]
        context = model.context(Batch.of(rows, device=model.device))
        chances = _chances(model.posterior(context))[context.site_mask]  # (n, N)
        total = total + chances.sum(0)
        likeliest = likeliest + F.one_hot(chances.argmax(-1), chances.shape[-1]).sum(0)
        sites += len(chances)
    mean = total / sites
    perplexity = float(torch.special.entr(mean).sum().exp())
    return Usage(perplexity, int((likeliest > 0).sum()), len(mean), sites)


def _chances(q: Distribution) -> Tensor:
    """Probability of every code, (B, S, N) float64."""
    if isinstance(q, OnGrid):
        q.grid.check_size("The count of codes in use", "take a model with fewer levels")
    if isinstance(q, PointLevels):
        return F.one_hot(q.grid.code(q.grid.index(q.expected())), q.grid.size).double()
    if isinstance(q, Bits):
        q = Codes.of(q)
    if isinstance(q, Levels):
        q = JointLevels.of(q)
    if isinstance(q, Codes | JointLevels):
        return q.log_probs.double().exp()
    raise UserError(f"{type(q).__name__} is not a distribution over codes.")
