"""Latents and their distributions: the contract, independent bits, diagonal Gaussians.

Legend: B rows, S sites, E event dimensions. All numbers are nats, computed in float32 or wider.

Bits      p_e = sigmoid(logit_e); KL(q || p) = sum over both values of q log(q / p), per bit. Against the uniform prior
          (logit 0) this is log 2 - entropy(p_e) (Fleuret 2025, section 3.4).
Gaussian  KL in closed form against another Gaussian, per dimension (Kingma & Welling 2014, appendix B, for the standard one).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from latentlm.noise import Noise


@dataclass(frozen=True)
class Latent:
    """A value of z. In training it carries the distribution it came from, so that an injection can build its own
    surrogate gradient (the Free Transformer's needs the bit logits, not only the bits)."""

    value: Tensor
    """(R, S, E)."""
    distribution: Distribution | None = None

    def select(self, rows: Tensor) -> Latent:
        """The given rows, in that order; rows may repeat."""
        chosen = None if self.distribution is None else self.distribution.select(rows)
        return Latent(self.value.index_select(0, rows), chosen)


class Distribution(ABC):
    """A distribution over the latents of S sites, independent between sites given what it was computed from."""

    exact_kl: ClassVar[bool]
    """`kl` is the closed form (not an estimate from the latent it is given)."""
    deterministic: ClassVar[bool] = False
    """A point mass (quantisers): it has no density, and estimators use the prior as their proposal."""

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
    def kl(self, prior: Distribution, latent: Latent) -> Tensor:
        """KL(self || prior) in nats, (B, S, E), or (B, S, 1) where it does not factorise over events; never summed further,
        since the level at which a hinge acts is the schedule's choice. Where there is no closed form, the one-sample
        estimate at `latent`."""

    @abstractmethod
    def select(self, rows: Tensor) -> Distribution:
        """The given rows, in that order; rows may repeat."""

    @abstractmethod
    def narrow(self, start: int, length: int) -> Distribution:
        """The sites start .. start + length - 1."""

    @abstractmethod
    def tempered(self, temperature: float) -> Distribution:
        """The same distribution sharpened (temperature < 1) or flattened (> 1), for generation only."""


class Bits(Distribution):
    """Independent Bernoulli bits, values 0 and 1."""

    exact_kl = True

    def __init__(self, logits: Tensor) -> None:
        """logits (B, S, E): log-odds of a one."""
        self.logits = logits if logits.dtype == torch.float64 else logits.float()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, S, E)."""
        rows, sites, events = self.logits.shape
        return rows, sites, events

    @property
    def probabilities(self) -> Tensor:
        """(B, S, E) probability of a one."""
        return torch.sigmoid(self.logits)

    def sample(self, noise: Noise, *, differentiable: bool = False) -> Latent:
        """Bits (B, S, E). The value itself has no gradient; an injection finds the logits in `Latent.distribution`."""
        rows, sites, events = self.shape
        assert len(noise) == rows, f"{len(noise)} rows of noise for {rows} rows"
        uniform = noise.uniform(sites, events, device=self.logits.device)
        bits = (uniform < self.probabilities.detach()).to(self.logits.dtype)
        return Latent(bits, self if differentiable else None)

    def log_prob(self, latent: Latent) -> Tensor:
        """(B, S) nats."""
        signs = 2.0 * latent.value - 1.0
        return F.logsigmoid(signs * self.logits).sum(-1)

    def kl(self, prior: Distribution, latent: Latent) -> Tensor:
        """(B, S, E) nats, exact and never negative; infinite logits are bits that are certain."""
        assert isinstance(prior, Bits), f"the KL of Bits needs a prior over bits, not {type(prior).__name__}"
        kl = _gain(self.logits, prior.logits) + _gain(-self.logits, -prior.logits)
        return kl - kl.detach().clamp(max=0.0)  # not a clamp of kl itself, which would cut its gradient

    def select(self, rows: Tensor) -> Bits:
        """The given rows."""
        return Bits(self.logits.index_select(0, rows))

    def narrow(self, start: int, length: int) -> Bits:
        """The given sites."""
        return Bits(self.logits.narrow(1, start, length))

    def tempered(self, temperature: float) -> Bits:
        """Logits divided by the temperature (a uniform bit stays uniform)."""
        return Bits(self.logits / temperature)


def _gain(logits: Tensor, prior: Tensor) -> Tensor:
    """q log(q / p) for q = sigmoid(logits), p = sigmoid(prior); zero where q is, whatever p."""
    q = torch.sigmoid(logits)
    gain = F.logsigmoid(logits) - F.logsigmoid(prior)
    return q * gain.masked_fill(q == 0, 0.0)


class Gaussian(Distribution):
    """Independent normal dimensions."""

    exact_kl = True

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        """mean and log_std (B, S, E)."""
        self.mean = mean if mean.dtype == torch.float64 else mean.float()
        self.log_std = log_std if log_std.dtype == torch.float64 else log_std.float()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, S, E)."""
        rows, sites, events = self.mean.shape
        return rows, sites, events

    def sample(self, noise: Noise, *, differentiable: bool = False) -> Latent:
        """mean + std * epsilon, (B, S, E); reparameterised, so that gradients flow through the value."""
        rows, sites, events = self.shape
        assert len(noise) == rows, f"{len(noise)} rows of noise for {rows} rows"
        epsilon = noise.normal(sites, events, device=self.mean.device)
        value = self.mean + self.log_std.exp() * epsilon
        return Latent(value, self) if differentiable else Latent(value.detach())

    def log_prob(self, latent: Latent) -> Tensor:
        """(B, S) nats."""
        scaled = (latent.value - self.mean) * torch.exp(-self.log_std)
        return (-0.5 * scaled.square() - self.log_std - 0.5 * math.log(2.0 * math.pi)).sum(-1)

    def kl(self, prior: Distribution, latent: Latent) -> Tensor:
        """(B, S, E) nats, exact."""
        assert isinstance(prior, Gaussian), f"the KL of a Gaussian needs a Gaussian prior, not {type(prior).__name__}"
        variance_ratio = torch.exp(2.0 * (self.log_std - prior.log_std))
        distance = (self.mean - prior.mean) * torch.exp(-prior.log_std)
        return prior.log_std - self.log_std + 0.5 * (variance_ratio + distance.square() - 1.0)

    def select(self, rows: Tensor) -> Gaussian:
        """The given rows."""
        return Gaussian(self.mean.index_select(0, rows), self.log_std.index_select(0, rows))

    def narrow(self, start: int, length: int) -> Gaussian:
        """The given sites."""
        return Gaussian(self.mean.narrow(1, start, length), self.log_std.narrow(1, start, length))

    def tempered(self, temperature: float) -> Gaussian:
        """Standard deviation times the temperature."""
        return Gaussian(self.mean, self.log_std + math.log(temperature))
