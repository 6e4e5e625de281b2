"""A point mass: the posterior of a quantiser, or of an encoder without noise.

    KL(q || p) = -log p(value)

which is exact where p has probabilities. Where p has a density, the point's own, infinite, is left out, as in a deterministic
autoencoder with a prior on its codes (Ghosh et al. 2020, "From variational to deterministic autoencoders"): a penalty, of
either sign, and no bound on a likelihood.

Legend: B rows, S sites, E dimensions. Nats.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from latentlm.interface.distributions.base import Distribution, Latent, wide
from latentlm.interface.noise import Noise

_SAME = 1e-5
"""A value so near to the point in each dimension is the point: it may have been saved and read, or summed in another order."""


class Point(Distribution):
    """One value for each site, for certain."""

    parameters: ClassVar[tuple[str, ...]] = ("value", "through")
    deterministic = True

    def __init__(self, value: Tensor, through: Tensor | None = None) -> None:
        """value (B, S, E). `through` (B, S, E): what it was rounded from; gradients with respect to the value then go there as
        they are (straight-through; van den Oord et al. 2017), and none to the value itself."""
        self.value = wide(value) if through is None else wide(value).detach()
        self.through = through

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, S, E)."""
        rows, sites, events = self.value.shape
        return rows, sites, events

    def sample(self, noise: Noise, *, differentiable: bool = False) -> Latent:
        """The value (B, S, E), whatever the noise; with `differentiable`, gradients flow through it."""
        assert len(noise) == len(self.value), f"{len(noise)} rows of noise for {len(self.value)} rows"
        return Latent(self._with_gradient(), self, noise) if differentiable else Latent(self.value.detach())

    def log_prob(self, latent: Latent) -> Tensor:
        """(B, S) nats: zero at the value, minus infinity elsewhere."""
        same = ((latent.value - self.value).abs() <= _SAME).all(-1)
        return torch.where(same, 0.0, float("-inf")).to(self.value.dtype)

    def kl(self, prior: Distribution, latent: Latent) -> Tensor:
        """-log p(value) in nats, (B, S, 1), whatever the latent given; gradients reach prior and value."""
        return -prior.log_prob(Latent(self._with_gradient()))[..., None]

    def tempered(self, temperature: float) -> Point:
        """The same: a point mass has no temperature."""
        return self

    def expected(self) -> Tensor:
        """The value."""
        return self.value

    def _with_gradient(self) -> Tensor:
        """The value, bit for bit; its gradient goes where the constructor says."""
        return self.value if self.through is None else self.value + (self.through - self.through.detach())
