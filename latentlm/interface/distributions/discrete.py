"""Discrete latents: independent bits, one of N values, one of the 2^E codes of bits.

Bits          p_e = sigmoid(logit_e); KL(q || p) = sum over both values of q log(q / p), per bit. Against the uniform prior
              (logit 0) this is log 2 - entropy(p_e) (Fleuret 2025, section 3.4).
Categorical   p = softmax(logits) over N values; KL is one sum over all of them, for the site as a whole.
Codes         Categorical over the 2^E values of E bits.

Legend: B rows, S sites, E event dimensions, N values that a site can take. All numbers are nats.
"""

from __future__ import annotations

from copy import copy
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from latentlm.interface.distributions.base import Distribution, Latent, sampled_kl, wide
from latentlm.interface.noise import Noise


class Bits(Distribution):
    """Independent Bernoulli bits, values 0 and 1."""

    parameters: ClassVar[tuple[str, ...]] = ("logits",)
    exact_kl = True

    def __init__(self, logits: Tensor) -> None:
        """logits (B, S, E): log-odds of a one."""
        self.logits = wide(logits)

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

    def tempered(self, temperature: float) -> Bits:
        """Logits divided by the temperature (a uniform bit stays uniform)."""
        return self.mapped(lambda logits: logits / temperature)

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


class Categorical(Distribution):
    """One of N values. A site's latent is the number of its value, counted from 0, as one real number (E = 1): as small as a
    latent can be to save, to give and to edit, and `index` is there for injections that look up a table or want one-hot
    vectors. Or, with `table` (N, E), it is that row of the table (a codebook, whose gradients are the injection's to make).

    A family over values of its own overrides `values`, `index` and `shape` and has the rest from here.

    Example::

        q = Categorical(torch.randn(2, 3, 10))
        number = q.sample(Noise.keyed(0, range(2))).value  # (2, 3, 1), of 0.0 .. 9.0
        one_hot = torch.nn.functional.one_hot(q.index(number), 10)  # (2, 3, 10)
    """

    parameters: ClassVar[tuple[str, ...]] = ("log_probs",)
    exact_kl = True

    def __init__(self, logits: Tensor, table: Tensor | None = None) -> None:
        """logits (B, S, N), up to a constant; `table` (N, E), no row twice."""
        self.log_probs = wide(logits).log_softmax(-1)
        self.table = table

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, S, E)."""
        rows, sites, _ = self.log_probs.shape
        return rows, sites, 1 if self.table is None else self.table.shape[1]

    def values(self) -> Tensor:
        """(N, E): what a site can be, in the order of `log_probs`."""
        if self.table is not None:
            return self.table.detach()
        count = self.log_probs.shape[-1]
        return torch.arange(count, dtype=self.log_probs.dtype, device=self.log_probs.device)[:, None]

    def index(self, value: Tensor) -> Tensor:
        """The number (B, S) long of values (B, S, E): the nearest one's, where rounding has moved them."""
        if self.table is None:
            return value[..., 0].round().long().clamp(min=0, max=self.log_probs.shape[-1] - 1)
        exact = "donot_use_mm_for_euclid_dist"  # the faster way loses the smallest distances
        return torch.cdist(value.to(self.table), self.values(), compute_mode=exact).argmin(-1)

    def sample(self, noise: Noise, *, differentiable: bool = False) -> Latent:
        """Values (B, S, E), by the inverse of the cumulative distribution. No gradient through the value."""
        rows, sites, _ = self.shape
        assert len(noise) == rows, f"{len(noise)} rows of noise for {rows} rows"
        uniform = noise.uniform(sites, 1, device=self.log_probs.device)
        number = (self._cumulative() <= uniform).sum(-1).clamp(max=self.log_probs.shape[-1] - 1)  # (B, S)
        value = self.values()[number]
        return Latent(value, self, noise) if differentiable else Latent(value)

    def log_prob(self, latent: Latent) -> Tensor:
        """(B, S) nats."""
        return self.log_probs.gather(-1, self.index(latent.value)[..., None])[..., 0]

    def kl(self, prior: Distribution, latent: Latent) -> Tensor:
        """(B, S, 1) nats, exact and never negative, against probabilities of the same values; else the one-sample estimate."""
        same = self.matching(prior)
        if same is None:
            return sampled_kl(self, prior, latent)
        q = self.log_probs.exp()
        gain = (self.log_probs - same.log_probs).masked_fill(q == 0, 0.0)
        kl = (q * gain).sum(-1, keepdim=True)
        return kl - kl.detach().clamp(max=0.0)

    def matching(self, prior: Distribution) -> Categorical | None:
        """`prior` as probabilities of the same values in the same order; None where it is no such thing."""
        if not isinstance(prior, Categorical) or type(prior).values is not type(self).values:
            return None
        if prior.log_probs.shape[-1] != self.log_probs.shape[-1]:
            return None
        if self.table is None or prior.table is None:
            return prior if self.table is prior.table else None
        return prior if self.table is prior.table or torch.equal(self.table, prior.table) else None

    def select(self, rows: Tensor) -> Self:
        """The given rows."""
        return super().select(rows)._normalised()

    def narrow(self, start: int, length: int) -> Self:
        """The given sites."""
        return super().narrow(start, length)._normalised()

    def tempered(self, temperature: float) -> Self:
        """Logits divided by the temperature."""
        return self.mapped(lambda log_probs: log_probs / temperature)._normalised()

    def support(self) -> Tensor:
        """All values, float32."""
        return self.values().float()

    def expected(self) -> Tensor:
        """(B, S, E): the mean value. Of bare numbers, whose order means nothing, it says no more than whether they move."""
        return self.log_probs.exp() @ self.values().to(self.log_probs.dtype)

    def leaning(self, signs: Tensor, strength: float) -> Distribution:
        """Logits strength * signs * value, each dimension scaled to -1..1: towards its high values or its low ones."""
        values = self.values().to(signs.dtype)
        low, high = values.amin(0), values.amax(0)
        scaled = (2 * values - low - high) / (high - low).clamp(min=torch.finfo(values.dtype).tiny)
        twin = copy(self)
        twin.log_probs = wide(strength * signs @ scaled.T).log_softmax(-1)
        return twin

    def near_ties(self, noise: Noise, rounding: float) -> Tensor:
        """1 where the uniform number lies within `rounding` of a boundary between two values."""
        uniform = noise.uniform(self.shape[1], 1, device=self.log_probs.device)
        near = ((self._cumulative()[..., :-1] - uniform).abs() < rounding).any(-1)
        # Equal probabilities are a constant (the uniform prior), the same in every batch.
        return (near & (self.log_probs != self.log_probs[..., :1]).any(-1)).long()

    def _normalised(self) -> Self:
        """Probabilities that sum to one. After a mere pick they do already, and this changes the last bit of some: scores and
        runs of old have it so, and it is cheap to stay equal to them."""
        self.log_probs = self.log_probs.log_softmax(-1)
        return self

    def _cumulative(self) -> Tensor:
        """(B, S, N) probability of the values up to each."""
        return self.log_probs.detach().exp().cumsum(-1)


class Codes(Categorical):
    """Any distribution over the 2^E codes of E bits (one categorical variable). Its values are bits, 0 and 1, so whatever takes
    Bits takes Codes."""

    def __init__(self, logits: Tensor) -> None:
        """logits (B, S, 2^E), up to a constant; the bits of code d are those of the integer d, bit 0 the least significant."""
        assert logits.shape[-1].bit_count() == 1, "the number of codes is a power of two"
        super().__init__(logits)

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

    def values(self) -> Tensor:
        """(N, E): the bits of each code."""
        return _all_codes(self.bits, like=self.log_probs)

    def index(self, value: Tensor) -> Tensor:
        """The code (B, S) long of bits (B, S, E)."""
        weights = 2 ** torch.arange(self.bits, device=value.device)
        return torch.where(value > 0.5, weights, 0).sum(-1)

    def matching(self, prior: Distribution) -> Categorical | None:
        """Codes of as many bits; independent bits as codes."""
        return Codes.of(prior) if isinstance(prior, Bits) else super().matching(prior)

    def leaning(self, signs: Tensor, strength: float) -> Codes:
        """The codes of bits with logits strength * signs."""
        return Codes.of(Bits(strength * signs))


_MOST_BITS = 16  # that are written down as codes


def code_bits(bits: int, *, device: torch.device | str | None = None) -> Tensor | None:
    """(2^H, H) float32: the bits of every code, bit 0 the least significant; None for more than 16 bits."""
    if bits > _MOST_BITS:
        return None
    codes = torch.arange(2**bits, device=device)[:, None] >> torch.arange(bits, device=device)
    return (codes & 1).float()


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
