"""Latents and their distributions: the contract, independent bits, codes of bits, diagonal Gaussians.

Legend: B rows, S sites, E event dimensions, N values that a site can take. All numbers are nats, computed in float32 or wider.

Bits      p_e = sigmoid(logit_e); KL(q || p) = sum over both values of q log(q / p), per bit. Against the uniform prior
          (logit 0) this is log 2 - entropy(p_e) (Fleuret 2025, section 3.4).
Codes     any distribution over the 2^E values of E bits; KL is one sum over all of them, for the site as a whole.
Gaussian  KL in closed form against another Gaussian, per dimension (Kingma & Welling 2014, appendix B, for the standard one).

A family that a plugin brings is treated like these where it says as much of itself: `support` (exact sums), `expected` (live
units), `leaning` (planted posteriors of the conformance kit), `near_ties` (rounding).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from latentlm.interface.noise import Noise


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

    exact_kl: ClassVar[bool]
    """`kl` is the closed form (not an estimate from the latent it is given) against every prior of which this is true too."""
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

    def support(self) -> Tensor | None:
        """(N, E): every value that a site can take; None for a continuous latent, or where they are too many to write down."""
        return None

    def expected(self) -> Tensor | None:
        """(B, S, E): the mean of each dimension, whose variance over texts tells which are live; None where there is none."""
        return None

    def leaning(self, signs: Tensor, strength: float) -> Distribution:
        """A distribution of sites of this kind that leans to the side of `signs` (B, S, E, each within -1..1), the more so the
        larger `strength`: how the conformance kit plants a posterior that knows something. It has a density."""
        raise NotImplementedError(f"{type(self).__name__} does not say how to lean; write its `leaning`.")

    def near_ties(self, noise: Noise, rounding: float) -> Tensor | None:
        """(B, S) long: how many draws with this noise would change if probabilities moved by `rounding`; None where values
        change with probabilities without a jump."""
        return None


def sampled_kl(posterior: Distribution, prior: Distribution, latent: Latent) -> Tensor:
    """The one-sample estimate of KL(posterior || prior), log q(z) - log p(z) at z ~ q: (B, S, 1) nats, unbiased, of either
    sign. What `Distribution.kl` returns where there is no closed form."""
    return (posterior.log_prob(latent) - prior.log_prob(latent))[..., None]


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
        return Latent(bits, self, noise) if differentiable else Latent(bits)

    def log_prob(self, latent: Latent) -> Tensor:
        """(B, S) nats."""
        signs = 2.0 * latent.value - 1.0
        return F.logsigmoid(signs * self.logits).sum(-1)

    def kl(self, prior: Distribution, latent: Latent) -> Tensor:
        """(B, S, E) nats, exact and never negative; infinite logits are bits that are certain. (B, S, 1) against another kind
        of prior: exact over codes, else the one-sample estimate."""
        if isinstance(prior, Codes):
            return Codes.of(self).kl(prior, latent)
        if not isinstance(prior, Bits):
            return sampled_kl(self, prior, latent)
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

    def support(self) -> Tensor | None:
        """All 2^E codes, bit 0 the least significant."""
        return code_bits(self.shape[2], device=self.logits.device)

    def expected(self) -> Tensor:
        """Probabilities of a one."""
        return self.probabilities

    def leaning(self, signs: Tensor, strength: float) -> Bits:
        """Logits strength * signs."""
        return Bits(strength * signs)

    def near_ties(self, noise: Noise, rounding: float) -> Tensor:
        """Bits whose uniform number lies within `rounding` of their probability."""
        uniform = noise.uniform(*self.shape[1:], device=self.logits.device)
        # A logit of exactly zero is a constant (the uniform prior), the same in every batch.
        near = ((uniform - self.probabilities).abs() < rounding) & (self.logits != 0)
        return near.sum(-1)


_MOST_BITS = 16  # that are written down as codes


def code_bits(bits: int, *, device: torch.device | str | None = None) -> Tensor | None:
    """(2^H, H) float32: the bits of every code, bit 0 the least significant; None for more than 16 bits."""
    if bits > _MOST_BITS:
        return None
    codes = torch.arange(2**bits, device=device)[:, None] >> torch.arange(bits, device=device)
    return (codes & 1).float()


class Codes(Distribution):
    """Any distribution over the 2^E codes of E bits (one categorical variable). Its values are bits, 0 and 1, so whatever takes
    Bits takes Codes."""

    exact_kl = True

    def __init__(self, logits: Tensor) -> None:
        """logits (B, S, 2^E), up to a constant; the bits of code d are those of the integer d, bit 0 the least significant."""
        assert logits.shape[-1].bit_count() == 1, "the number of codes is a power of two"
        wide = logits if logits.dtype == torch.float64 else logits.float()
        self.log_probs = wide.log_softmax(-1)

    @classmethod
    def of(cls, bits: Bits) -> Codes:
        """Independent bits as a distribution over their codes."""
        signs = 2.0 * _all_codes(bits.shape[2], like=bits.logits) - 1.0  # (N, E)
        return cls(F.logsigmoid(signs * bits.logits[..., None, :]).sum(-1))

    @property
    def bits(self) -> int:
        """E."""
        return self.log_probs.shape[-1].bit_length() - 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, S, E)."""
        return self.log_probs.shape[0], self.log_probs.shape[1], self.bits

    def sample(self, noise: Noise, *, differentiable: bool = False) -> Latent:
        """The bits of a code, (B, S, E), by the inverse of the cumulative distribution. No gradient through the value."""
        rows, sites, _ = self.shape
        assert len(noise) == rows, f"{len(noise)} rows of noise for {rows} rows"
        uniform = noise.uniform(sites, 1, device=self.log_probs.device)
        code = (self._cumulative() <= uniform).sum(-1).clamp(max=self.log_probs.shape[-1] - 1)  # (B, S)
        bits = _all_codes(self.bits, like=self.log_probs)[code]
        return Latent(bits, self, noise) if differentiable else Latent(bits)

    def log_prob(self, latent: Latent) -> Tensor:
        """(B, S) nats."""
        return self.log_probs.gather(-1, self.index(latent.value)[..., None])[..., 0]

    def index(self, value: Tensor) -> Tensor:
        """The code (B, S) long of bits (B, S, E)."""
        weights = 2 ** torch.arange(self.bits, device=value.device)
        return torch.where(value > 0.5, weights, 0).sum(-1)

    def kl(self, prior: Distribution, latent: Latent) -> Tensor:
        """(B, S, 1) nats, exact over all codes against bits and codes; else the one-sample estimate."""
        if isinstance(prior, Bits):
            prior = Codes.of(prior)
        if not isinstance(prior, Codes):
            return sampled_kl(self, prior, latent)
        q = self.log_probs.exp()
        gain = (self.log_probs - prior.log_probs).masked_fill(q == 0, 0.0)
        kl = (q * gain).sum(-1, keepdim=True)
        return kl - kl.detach().clamp(max=0.0)

    def select(self, rows: Tensor) -> Codes:
        """The given rows."""
        return Codes(self.log_probs.index_select(0, rows))

    def narrow(self, start: int, length: int) -> Codes:
        """The given sites."""
        return Codes(self.log_probs.narrow(1, start, length))

    def tempered(self, temperature: float) -> Codes:
        """Logits divided by the temperature."""
        return Codes(self.log_probs / temperature)

    def support(self) -> Tensor:
        """All codes."""
        return _all_codes(self.bits, like=self.log_probs).float()

    def expected(self) -> Tensor:
        """Probability of a one, bit by bit, (B, S, E)."""
        return self.log_probs.exp() @ _all_codes(self.bits, like=self.log_probs)

    def leaning(self, signs: Tensor, strength: float) -> Codes:
        """The codes of bits with logits strength * signs."""
        return Codes.of(Bits(strength * signs))

    def near_ties(self, noise: Noise, rounding: float) -> Tensor:
        """1 where the uniform number lies within `rounding` of a boundary between two codes."""
        uniform = noise.uniform(self.shape[1], 1, device=self.log_probs.device)
        near = ((self._cumulative()[..., :-1] - uniform).abs() < rounding).any(-1)
        # Equal probabilities are a constant (the uniform prior), the same in every batch.
        return (near & (self.log_probs != self.log_probs[..., :1]).any(-1)).long()

    def _cumulative(self) -> Tensor:
        """(B, S, N) probability of the codes up to each."""
        return self.log_probs.detach().exp().cumsum(-1)


def _all_codes(bits: int, *, like: Tensor) -> Tensor:
    """(2^H, H) in the dtype of `like`."""
    table = code_bits(bits, device=like.device)
    assert table is not None, f"{bits} bits have too many codes to write down"
    return table.to(like.dtype)


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
        return Latent(value, self, noise) if differentiable else Latent(value.detach())

    def log_prob(self, latent: Latent) -> Tensor:
        """(B, S) nats."""
        scaled = (latent.value - self.mean) * torch.exp(-self.log_std)
        return (-0.5 * scaled.square() - self.log_std - 0.5 * math.log(2.0 * math.pi)).sum(-1)

    def kl(self, prior: Distribution, latent: Latent) -> Tensor:
        """(B, S, E) nats, exact; (B, S, 1), the one-sample estimate, against another kind of prior."""
        if not isinstance(prior, Gaussian):
            return sampled_kl(self, prior, latent)
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

    def expected(self) -> Tensor:
        """The means."""
        return self.mean

    def leaning(self, signs: Tensor, strength: float) -> Gaussian:
        """Means at `signs`, standard deviation 2.4 / strength (0.6 at the kit's 4)."""
        return Gaussian(signs, torch.full_like(signs, math.log(2.4 / strength)))
