"""Classical variational Bayes in place of an encoder network: the parameters of q(z | x) = N(mu, sigma^2) are local to each
document and are fitted to it by T_fast steps of Adam (Kingma & Ba 2015) while the decoder stands still (Kong et al. 2025,
equation 5 and algorithm 1):

    minimise over mu and log sigma^2    -E_q log p(x | z) + KL(q || N(0, I))          (nats of the whole document)

each step with one fresh draw z = mu + sigma eps. The next document starts again from the same initial values; nothing is kept.
The fitted posterior has seen the targets: cross-entropy under it is no language-model loss.

The paper's: Adam, T_fast = 16 (LTM-Small, LTM-Medium) or 64 (LTM-Large), rate 0.3 rising to 0.34 over the training run (a part
does not know the training step: one rate here, 0.3). It does not say where mu and sigma^2 start; the authors' code starts at
mu = 0, log sigma^2 = -5, which is the default. Adam moves a coordinate by about its rate a step, so that rate * steps has to
bridge those 5 units: 0.3 * 16 = 4.8 does, and with fewer steps a dimension that says nothing keeps a KL of up to 2 nats. Take
another `initial_log_variance` (0 is the prior's) or a higher `variance_rate` then.

Ours: the noise of step i is the same for every document (common random numbers, one key per step), so that a fit depends on
the document alone, not on its row, its batch or its place in a packed row. The authors' code draws once and keeps that draw for
all steps and for the cross-entropy that it then reports, which fits mu to the draw and flatters the bound; `redraw: false`
keeps one draw for all steps, but scores and losses always draw anew.

Legend: B rows, S sites (documents), E dimensions.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from latentlm.config import Strict
from latentlm.interface import Context, Encoder, Gaussian, Latent, Noise, Objective, Operations
from latentlm_ltm.adam import Adam, cosine


class FittedThoughtsConfig(Strict):
    """The fast learner."""

    steps: int = Field(16, ge=0, description="T_fast: gradient steps per document; the paper's 16, and 64 in LTM-Large")
    rate: float = Field(0.3, gt=0, description="fast learning rate of mu; the paper's rises from 0.3 to 0.34 in training")
    variance_rate: float | None = Field(None, gt=0, description="of log sigma^2; default: the rate of mu, as in the paper")
    final_rate: float = Field(
        1.0, gt=0, le=1, description="share of both rates that the last step takes, by a cosine; 1: constant (the paper)"
    )
    initial_mean: float = Field(0.0, description="mu before the first step")
    initial_log_variance: float = Field(-5.0, description="log sigma^2 before the first step (the authors' code; prior: 0)")
    beta1: float = Field(0.9, ge=0, lt=1, description="Adam's decay of the mean of the gradient")
    beta2: float = Field(0.999, ge=0, lt=1, description="Adam's decay of its square")
    epsilon: float = Field(
        1e-8, gt=0, description="Adam's, in nats per unit: gradients well below it move nothing, whatever their sign"
    )
    redraw: bool = Field(True, description="fresh noise at each step (algorithm 1); false: one draw for all (authors' code)")


class FittedThoughts(Encoder):
    """Mean and variance by a few steps of gradient on the document itself."""

    Config = FittedThoughtsConfig
    taps = ()
    sees_future = True
    needs_objective = True
    family = "real"
    granularities = ("document",)

    def operations(self) -> Operations:
        """A pass forward and back to the latents for each step."""
        return Operations(fitting_passes=self.config.steps)

    def forward(self, context: Context, objective: Objective | None = None) -> Gaussian:
        """(B, S, E), without gradient. With no steps: the initial values, whatever the text."""
        assert objective is not None, "posteriors without a network are fitted to an objective"
        start = torch.zeros(context.rows, context.sites, self.shape.latent.dims, device=context.tokens.device)
        mean, log_variance = start + self.config.initial_mean, start + self.config.initial_log_variance
        adams = [Adam(self.config.beta1, self.config.beta2, self.config.epsilon) for _ in range(2)]
        for step in range(self.config.steps):
            mean, log_variance = mean.requires_grad_(), log_variance.requires_grad_()
            q = _Redrawn(mean, 0.5 * log_variance, draw=step if self.config.redraw else 0)
            slopes = torch.autograd.grad(objective(q).sum(), (mean, log_variance))
            share = cosine(step, self.config.steps, end=self.config.final_rate)
            mean = mean.detach() - share * self.config.rate * adams[0].direction(slopes[0])
            rate = self.config.variance_rate or self.config.rate
            log_variance = log_variance.detach() - share * rate * adams[1].direction(slopes[1])
        return Gaussian(mean.detach(), 0.5 * log_variance.detach())


class _Redrawn(Gaussian):
    """The posterior under way. Its draw number `draw` is the same for all sites of a row, so that a document is fitted alike
    wherever it stands in a packed row."""

    def __init__(self, mean: Tensor, log_std: Tensor, *, draw: int) -> None:
        super().__init__(mean, log_std)
        self.draw = draw

    def sample(self, noise: Noise, *, differentiable: bool = False) -> Latent:
        """mean + std * epsilon, (B, S, E), with one epsilon (E) per row."""
        epsilon = noise.stream(f"fast step {self.draw}").normal(1, self.shape[2], device=self.mean.device)
        value = self.mean + self.log_std.exp() * epsilon
        return Latent(value, self) if differentiable else Latent(value.detach())
