"""The contract of a distribution over latents, and the latent that is drawn from one.

What an author writes: `parameters`, `shape`, `sample`, `log_prob`, `tempered`, and `kl` where there is better than the
one-sample estimate. Rows and sites are picked from what `parameters` names. The rest has defaults, and is worth writing where
a family knows better: `support` (exact sums), `expected` (live units), `leaning` (planted posteriors of the conformance kit),
`near_ties` (rounding).

Legend: B rows, S sites, E event dimensions, N values that a site can take. All numbers are nats.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from latentlm.interface.noise import Noise

_MOST_SUMMED = 256
"""Values that the default of `expected` sums over, one `log_prob` each."""


@dataclass(frozen=True)
class Latent:
    """A value of z. In training it carries the distribution it came from, so that an injection can build its own
    surrogate gradient (the Free Transformer's needs the bit logits, not only the bits).

    Example::

        latent = Latent(torch.tensor([[[0.0, 1.0], [1.0, 1.0]]]))  # one row, two sites of two bits
    """

    value: Tensor
    """(R, S, E)."""
    distribution: Distribution | None = None
    noise: Noise | None = None
    """The keyed numbers it was drawn with, beside `distribution`: an estimator that needs more draws takes a stream of them."""

    def select(self, rows: Tensor) -> Latent:
        """The given rows, in that order; rows may repeat."""
        chosen = None if self.distribution is None else self.distribution.select(rows)
        noise = None if self.noise is None else self.noise.select(rows)
        return Latent(self.value.index_select(0, rows), chosen, noise)


class Distribution(ABC):
    """A distribution over the latents of S sites, independent between sites given what it was computed from.

    Example::

        q, p = Bits(torch.randn(3, 5, 8)), Bits(torch.zeros(3, 5, 8))
        latent = q.sample(Noise.keyed(0, ["a", "b", "c"]))  # (3, 5, 8)
        nats = q.kl(p, latent)  # (3, 5, 8): never summed before the schedule sees it
    """

    parameters: ClassVar[tuple[str, ...]] = ()
    """Names of the attributes that hold something for each row and site: a tensor (B, S, ...), a distribution of the same rows
    and sites, None, or a tuple, list or dict of these. `select` and `narrow` pick from them and leave all else, such as a
    table that sites share, as it is. They are named since their shapes cannot tell: a table (N, E) looks like (B, S) in the one
    batch in which N is B and E is S, and would be cut there and nowhere else."""
    exact_kl: bool = False
    """`kl` is the closed form (not an estimate from the latent it is given) against every prior of its kind of which this is
    true too."""
    deterministic: bool = False
    """A point mass (quantisers): it has no density, and estimators use the prior as their proposal."""
    normalised: bool = True
    """False: `log_prob` is up to a constant that nobody knows (an energy), the same for all values of a site. Such a prior can
    be trained and drawn from, but no likelihood can be told with it."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """(B, S, E)."""

    @abstractmethod
    def sample(self, noise: Noise, *, differentiable: bool = False) -> Latent:
        """Draw a latent (B, S, E) from keyed uniform numbers. With `differentiable`, gradients may reach the distribution
        through the value (reparameterised) or through `Latent.distribution` (the injection's surrogate)."""

    @abstractmethod
    def log_prob(self, latent: Latent) -> Tensor:
        """Log-probability (discrete) or log-density of each site, (B, S), nats, float32 or wider."""

    @abstractmethod
    def tempered(self, temperature: float) -> Distribution:
        """The same distribution sharpened (temperature < 1) or flattened (> 1), for generation only."""

    def kl(self, prior: Distribution, latent: Latent) -> Tensor:
        """KL(self || prior) in nats, (B, S, E), or (B, S, 1) where it does not factorise over events; never summed further,
        since the level at which a hinge acts is the schedule's choice. By default, and where there is no closed form, the
        one-sample estimate at `latent`."""
        return sampled_kl(self, prior, latent)

    def select(self, rows: Tensor) -> Self:
        """The given rows, in that order; rows may repeat."""
        return self.mapped(lambda parameter: parameter.index_select(0, rows))

    def narrow(self, start: int, length: int) -> Self:
        """The sites start .. start + length - 1."""
        return self.mapped(lambda parameter: parameter.narrow(1, start, length))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Self:
        """A copy with `change` applied to every tensor that `parameters` names, each (B, S, ...) to (B', S', ...): picked,
        repeated, moved to another device, out of the graph. Raises ValueError where none is named, or one is no such tensor."""
        owner = type(self).__name__
        if not self.parameters:
            raise ValueError(f"{owner} does not say what it is made of: name its tensors (B, S, ...) in `parameters`.")
        twin = copy(self)
        for name in [name for name in vars(twin) if isinstance(getattr(type(self), name, None), cached_property)]:
            delattr(twin, name)  # made of the tensors as they were
        for name in self.parameters:
            setattr(twin, name, _changed(getattr(self, name), change, self.shape[:2], f"{owner}.{name}"))
        return twin

    def support(self) -> Tensor | None:
        """(N, E): every value that a site can take; None for a continuous latent, or where they are too many to write down."""
        return None

    @torch.no_grad()
    def expected(self) -> Tensor | None:
        """(B, S, E): the mean of each dimension, whose variance over texts tells which are live; None where there is none. By
        default a point mass's value, else the sum over `support`, of at most 256 values."""
        if self.deterministic:
            return self.sample(Noise.keyed(0, range(self.shape[0]))).value
        support = self.support()
        if support is None or len(support) > _MOST_SUMMED or not self.normalised:
            return None
        chances = torch.stack([self.log_prob(Latent(value.expand(self.shape))).exp() for value in support], dim=-1)
        return chances @ support.to(chances)

    def leaning(self, signs: Tensor, strength: float) -> Distribution:
        """A distribution of sites of this kind that leans to the side of `signs` (B, S, E, each within -1..1), the more so the
        larger `strength`: how the conformance kit plants a posterior that knows something. It has a density. By default one
        over the values of `support`, or where there is none a Gaussian: write it where values are bounded, or discrete but too
        many to write down."""
        from latentlm.interface.distributions.continuous import Gaussian  # these families are made of this contract
        from latentlm.interface.distributions.discrete import Categorical

        support = self.support()
        if support is None:
            return Gaussian(signs, signs).leaning(signs, strength)
        return Categorical(support.new_zeros(1, 1, len(support)), support).leaning(signs, strength)

    def near_ties(self, noise: Noise, rounding: float) -> Tensor | None:
        """(B, S) long: how many draws with this noise would change if probabilities moved by `rounding`; None where values
        change with probabilities without a jump, or nobody counts."""
        return None


def sampled_kl(posterior: Distribution, prior: Distribution, latent: Latent) -> Tensor:
    """The one-sample estimate of KL(posterior || prior), log q(z) - log p(z) at z ~ q: (B, S, 1) nats, unbiased, of either
    sign. What `Distribution.kl` returns where there is no closed form."""
    return (posterior.log_prob(latent) - prior.log_prob(latent))[..., None]


def wide(tensor: Tensor) -> Tensor:
    """In float32, or float64 where it is: densities are never computed in less."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _changed(parameter: Any, change: Callable[[Tensor], Tensor], leading: tuple[int, ...], name: str) -> Any:
    """One of `Distribution.parameters` with its tensors changed."""
    if parameter is None:
        return None
    if isinstance(parameter, Distribution):
        return parameter.mapped(change)
    if isinstance(parameter, dict):
        return {key: _changed(value, change, leading, f"{name}[{key!r}]") for key, value in parameter.items()}
    if isinstance(parameter, tuple | list):
        return type(parameter)(_changed(value, change, leading, f"{name}[{i}]") for i, value in enumerate(parameter))
    if not isinstance(parameter, Tensor) or parameter.shape[:2] != leading:
        what = tuple(parameter.shape) if isinstance(parameter, Tensor) else type(parameter).__name__
        raise ValueError(f"{name} is {what}, not a tensor {(*leading, '...')}: take what rows share out of `parameters`.")
    return change(parameter)
