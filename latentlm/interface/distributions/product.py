"""Different families side by side in one site, independent given what they were computed from:

    p(z) = prod_i p_i(z_i)        z = (z_1, z_2, ...) along the event dimension, E = sum_i E_i

Component i draws from the stream "component i" of the site's noise. Legend: B rows, S sites, E event dimensions. Nats.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from latentlm.interface.distributions.base import Distribution, Latent, sampled_kl
from latentlm.interface.noise import Noise

_MOST_VALUES = 2**16


class Product(Distribution):
    """Independent components, each a family of its own; a product of products is one.

    Example::

        q = Product(Gaussian(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)), Bits(torch.zeros(2, 3, 5)))
        real, bits = q.split(q.sample(Noise.keyed(0, range(2))))  # latents (2, 3, 4) and (2, 3, 5)
    """

    parameters: ClassVar[tuple[str, ...]] = ("components",)

    def __init__(self, *components: Distribution) -> None:
        """Components (B, S, E_i) of the same rows and sites. Raises ValueError where those differ, or where some are point
        masses and others are not: such a site has neither a density to weigh it by nor a value that is certain."""
        if not components or len({component.shape[:2] for component in components}) > 1:
            shapes = [component.shape for component in components]
            raise ValueError(f"Components of shapes {shapes}: a product needs one or more, of the same rows and sites.")
        if len({component.deterministic for component in components}) > 1:
            kinds = [type(component).__name__ for component in components]
            raise ValueError(f"A product of {kinds} is partly a point mass: make the point mass a latent of its own.")
        self.components = components
        self.exact_kl = all(component.exact_kl for component in components)
        self.deterministic = all(component.deterministic for component in components)
        self.normalised = all(component.normalised for component in components)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, S, E)."""
        rows, sites, _ = self.components[0].shape
        return rows, sites, sum(self._sizes)

    def split(self, latent: Latent) -> list[Latent]:
        """The latent (B, S, E) of the product as one (B, S, E_i) of each component: with that component and the numbers it was
        drawn with where it was drawn from this product, so that an injection can treat each by its family."""
        return [
            Latent(
                value,
                None if latent.distribution is None else component,
                None if latent.noise is None else _own(latent.noise, number),
            )
            for number, (value, component) in enumerate(
                zip(latent.value.split(self._sizes, dim=-1), self.components, strict=True)
            )
        ]

    def sample(self, noise: Noise, *, differentiable: bool = False) -> Latent:
        """(B, S, E), each component by its own `sample`."""
        drawn = [
            component.sample(_own(noise, number), differentiable=differentiable).value
            for number, component in enumerate(self.components)
        ]
        value = torch.cat(drawn, dim=-1)
        return Latent(value, self, noise) if differentiable else Latent(value)

    def log_prob(self, latent: Latent) -> Tensor:
        """(B, S) nats: the sum."""
        return torch.stack([part.log_prob(z) for part, z in self._each(latent)]).sum(0)

    def kl(self, prior: Distribution, latent: Latent) -> Tensor:
        """Nats, component by component against a product of the same sizes: (B, S, E) where the KL of each component
        factorises, else their sum (B, S, 1). Against any other prior, the one-sample estimate (B, S, 1)."""
        if not isinstance(prior, Product) or prior._sizes != self._sizes:
            return sampled_kl(self, prior, latent)
        found = [q.kl(p, z) for (q, z), p in zip(self._each(latent), prior.components, strict=True)]
        if [kl.shape[-1] for kl in found] == self._sizes:
            return torch.cat(found, dim=-1)
        return torch.stack([kl.sum(-1, keepdim=True) for kl in found]).sum(0)

    def tempered(self, temperature: float) -> Product:
        """Each component tempered."""
        return Product(*(component.tempered(temperature) for component in self.components))

    def support(self) -> Tensor | None:
        """All combinations, the first component's values fastest; None for more than 2^16, or where a component has none."""
        values = [component.support() for component in self.components]
        known = [each for each in values if each is not None]
        if len(known) < len(values) or math.prod(map(len, known)) > _MOST_VALUES:
            return None
        axes = [torch.arange(len(each), device=each.device) for each in reversed(known)]
        index = torch.cartesian_prod(*axes).view(-1, len(known)).flip(-1)  # (N, components)
        return torch.cat([each[index[:, number]] for number, each in enumerate(known)], dim=-1)

    def expected(self) -> Tensor | None:
        """The components' means, (B, S, E); None where one has none."""
        means = [component.expected() for component in self.components]
        known = [mean for mean in means if mean is not None]
        return torch.cat(known, dim=-1) if len(known) == len(means) else None

    def leaning(self, signs: Tensor, strength: float) -> Product:
        """Each component leaning to its own signs."""
        parts = signs.split(self._sizes, dim=-1)
        return Product(*(component.leaning(part, strength) for component, part in zip(self.components, parts, strict=True)))

    def near_ties(self, noise: Noise, rounding: float) -> Tensor | None:
        """The sum over those components that count them."""
        ties = [component.near_ties(_own(noise, number), rounding) for number, component in enumerate(self.components)]
        counted = [count for count in ties if count is not None]
        return torch.stack(counted).sum(0) if counted else None

    @property
    def _sizes(self) -> list[int]:
        """E_i."""
        return [component.shape[2] for component in self.components]

    def _each(self, latent: Latent) -> list[tuple[Distribution, Latent]]:
        """Components with their part of the value."""
        values = latent.value.split(self._sizes, dim=-1)
        return [(component, Latent(value)) for component, value in zip(self.components, values, strict=True)]


def _own(noise: Noise, number: int) -> Noise:
    """The numbers that a component draws from."""
    return noise.stream(f"component {number}")
