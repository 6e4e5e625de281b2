"""An encoder without a network: each batch's posterior is fitted by a few gradient steps on its own mean and log standard
deviation, with the decoder frozen (stochastic variational inference, Hoffman et al. 2013).

Legend: B rows, S sites, E dimensions.
"""

from __future__ import annotations

import torch
from pydantic import Field

from latentlm.config import Strict
from latentlm.interface import Context, Encoder, Gaussian, Objective


class FittedConfig(Strict):
    """How long to fit."""

    steps: int = Field(6, ge=0, description="gradient steps per batch")
    rate: float = Field(0.2, gt=0)


class FittedGaussian(Encoder):
    """Starts at the standard normal and descends on the row's cross-entropy plus KL, whose targets it sees."""

    Config = FittedConfig
    taps = ()
    sees_future = True
    needs_objective = True

    def forward(self, context: Context, objective: Objective | None = None) -> Gaussian:
        """(B, S, E), without gradient."""
        assert objective is not None
        mean = torch.zeros(context.rows, context.sites, self.shape.latent.dims, device=context.tokens.device)
        log_std = torch.zeros_like(mean)
        for _ in range(self.config.steps):
            mean, log_std = mean.detach().requires_grad_(), log_std.detach().requires_grad_()
            nats = objective(Gaussian(mean, log_std)).sum()
            slopes = torch.autograd.grad(nats, (mean, log_std))
            mean, log_std = mean - self.config.rate * slopes[0], log_std - self.config.rate * slopes[1]
        return Gaussian(mean.detach(), log_std.detach())
