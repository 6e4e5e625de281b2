"""A prior known up to a constant: a standard normal tilted by a small network (Pang et al. 2020, "Learning latent space
energy-based prior model", arXiv 2006.08205).

    p(z) = exp(f(z)) N(z; 0, I) / C        C is an integral that nobody computes: normalised = False
    draws   z <- z + s^2/2 grad log p(z) + s epsilon, a few steps from z ~ N(0, I)   (Langevin; their equation 5)
    learns  gradient of E_q f - E_p f, over the encoder's draws and its own           (their equation 7)

The second sum needs draws of the prior, so f learns in `auxiliary`, by maximum likelihood whatever the KL schedule; towards the
encoder f stands still.

Legend: B rows, R latent rows, S sites, E dimensions. Nats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from latentlm.config import Strict
from latentlm.interface import Batch, Context, Distribution, Gaussian, Latent, Noise, Prior, Shape
from latentlm.plugins import hookimpl

latentlm_contract = 2


class Tilted(Distribution):
    """exp(tilt(z)) base(z), up to a constant, drawn from by Langevin steps."""

    parameters: ClassVar[tuple[str, ...]] = ("base",)
    normalised = False

    def __init__(self, base: Gaussian, tilt: Callable[[Tensor], Tensor], *, steps: int, size: float) -> None:
        """`tilt` maps values (B, S, E) to nats (B, S), one function for all sites."""
        self.base, self.tilt, self.steps, self.size = base, tilt, steps, size

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, S, E)."""
        return self.base.shape

    def sample(self, noise: Noise, *, differentiable: bool = False) -> Latent:
        """The end of a short chain for each site, which draws its numbers from streams of the site's own. No gradient."""
        z = self.base.sample(noise).value
        for step in range(self.steps):
            epsilon = noise.stream(f"langevin {step}").normal(*self.shape[1:], device=z.device)
            z = z + 0.5 * self.size**2 * self._slope(z) + self.size * epsilon
        return Latent(z, self, noise) if differentiable else Latent(z)

    def log_prob(self, latent: Latent) -> Tensor:
        """(B, S) nats, up to a constant."""
        return self.base.log_prob(latent) + self.tilt(latent.value)

    def tempered(self, temperature: float) -> Tilted:
        """p^(1 / temperature^2), as `Gaussian.tempered` is."""
        tilt, base = self.tilt, self.base.tempered(temperature)
        return Tilted(base, lambda z: tilt(z) / temperature**2, steps=self.steps, size=self.size * temperature)

    def _slope(self, z: Tensor) -> Tensor:
        """grad log p(z), (B, S, E): also where scores and generation have turned gradients off."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.log_prob(Latent(z)).sum(), z)
        return slope


class EnergyConfig(Strict):
    """The network and its chains."""

    hidden: int = Field(32, ge=1, description="width of the network's hidden layer")
    steps: int = Field(20, ge=0, description="Langevin steps of a draw")
    size: float = Field(0.4, gt=0, description="their size s")


class EnergyPrior(Prior):
    """The same at every site, whatever the text."""

    Config = EnergyConfig
    config: EnergyConfig
    family = "real"

    def __init__(self, config: EnergyConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        into, out = nn.Linear(shape.latent.dims, config.hidden), nn.Linear(config.hidden, 1, bias=False)
        self.energy = nn.Sequential(into, nn.SiLU(), out)

    def forward(self, context: Context, latent: Latent | None = None) -> Tilted:
        """(R, S, E)."""
        return self._tilted(context.rows, context.sites, context.tokens.device)

    def step(
        self, state: Any, taps: Mapping[int, Tensor], previous: Tensor | None, starts: Tensor, above: Mapping[str, Tensor]
    ) -> tuple[Tilted, Any]:
        """(B, 1, E)."""
        return self._tilted(len(starts), 1, starts.device), state

    def auxiliary(self, latent: Latent, context: Context, batch: Batch) -> tuple[Tensor, dict[str, Tensor]] | None:
        """Gradient of f(draws of the prior) - f(draws of the encoder), nats per target token, on a value of zero."""
        if latent.noise is None:
            return None
        own = self(context).sample(latent.noise.stream("energy")).value
        gap = (self.energy(own) - self.energy(latent.value.detach().to(own)))[..., 0]  # (R, S)
        nats = gap.masked_fill(~context.site_mask, 0.0).sum() / batch.target_mask.sum().clamp(min=1)
        return nats - nats.detach(), {"energy_gap_nats": nats.detach()}

    def _tilted(self, rows: int, sites: int, device: torch.device) -> Tilted:
        zeros = torch.zeros(rows, sites, self.shape.latent.dims, device=device)
        still = {name: weight.detach() for name, weight in self.energy.named_parameters()}
        return Tilted(
            Gaussian(zeros, zeros),
            lambda z: torch.func.functional_call(self.energy, still, (z.to(zeros),))[..., 0],
            steps=self.config.steps,
            size=self.config.size,
        )


@hookimpl
def latentlm_parts() -> dict[str, dict[str, type]]:
    """The part of this plugin."""
    return {"prior": {"energy": EnergyPrior}}
