"""What every family of latents owes: probabilities that sum to one, draws that follow them, a KL that is what it is by
definition, rows and sites that can be picked; and what a family of a third party has without writing it.

Legend: B rows, S sites, E event dimensions, N values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import pytest
import torch
from torch import Tensor

from latentlm.interface import Bits, Categorical, Codes, Distribution, Gaussian, Latent, Noise, Point, Product, sampled_kl

ROWS, SITES = 2, 3
TABLE = torch.tensor([[0.0, 1.5], [2.0, -1.0], [0.5, 0.5], [-3.0, 1.5]])
AXIS = torch.linspace(-12.0, 12.0, 2401)


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(ROWS, SITES, *shape, generator=torch.Generator().manual_seed(seed))


def noise(rows: int = ROWS, seed: int = 0) -> Noise:
    return Noise.keyed(seed, range(rows))


class Laplace(Distribution):
    """A third party's: one real dimension, and only what has to be written. Its tables are not of rows and sites, whatever
    their shape."""

    parameters = ("mean", "spread")

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        self.mean, self.spread = mean, {"scale": (scale,)}
        self.table = torch.arange(6.0).view(ROWS, SITES)

    @property
    def shape(self) -> tuple[int, int, int]:
        return (*self.mean.shape[:2], 1)

    @cached_property
    def log_scale(self) -> Tensor:
        return self.spread["scale"][0].log()

    def sample(self, noise: Noise, *, differentiable: bool = False) -> Latent:
        tail = 2 * noise.uniform(self.shape[1], 1) - 1
        value = self.mean - self.log_scale.exp() * tail.sign() * torch.log1p(-tail.abs())
        return Latent(value, self, noise) if differentiable else Latent(value)

    def log_prob(self, latent: Latent) -> Tensor:
        return (-(latent.value - self.mean).abs() / self.log_scale.exp() - self.log_scale - math.log(2)).sum(-1)

    def tempered(self, temperature: float) -> Laplace:
        return Laplace(self.mean, self.spread["scale"][0] * temperature)


class Die(Distribution):
    """A third party's: one of three values, and only what has to be written, and `support`."""

    parameters = ("chances",)

    def __init__(self, chances: Categorical) -> None:
        self.chances = chances

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.chances.shape

    def sample(self, noise: Noise, *, differentiable: bool = False) -> Latent:
        return Latent(self.chances.sample(noise).value + 7)

    def log_prob(self, latent: Latent) -> Tensor:
        return self.chances.log_prob(Latent(latent.value - 7))

    def tempered(self, temperature: float) -> Die:
        return Die(self.chances.tempered(temperature))

    def support(self) -> Tensor:
        return torch.tensor([[7.0], [8.0], [9.0]])


DISCRETE: dict[str, Callable[[int], Distribution]] = {
    "bits": lambda seed: Bits(2 * numbers(3, seed=seed)),
    "codes": lambda seed: Codes(2 * numbers(8, seed=seed)),
    "numbers": lambda seed: Categorical(2 * numbers(5, seed=seed)),
    "a table's rows": lambda seed: Categorical(2 * numbers(4, seed=seed), TABLE),
    "number and bits": lambda seed: Product(Categorical(numbers(3, seed=seed)), Bits(numbers(2, seed=seed + 50))),
    "a third party's": lambda seed: Die(Categorical(numbers(3, seed=seed))),
}
REAL: dict[str, Callable[[int], Distribution]] = {
    "Gaussian": lambda seed: Gaussian(numbers(1, seed=seed), 0.5 * numbers(1, seed=seed + 50)),
    "a third party's": lambda seed: Laplace(numbers(1, seed=seed), 0.4 + 0.3 * numbers(1, seed=seed + 50).abs()),
}
MIXED: dict[str, Callable[[int], Distribution]] = {
    "real and bits": lambda seed: Product(REAL["Gaussian"](seed), Bits(numbers(2, seed=seed + 100))),
    "real and number": lambda seed: Product(REAL["Gaussian"](seed), Categorical(numbers(3, seed=seed + 100))),
}
ALL = [
    *(pytest.param(make, id=f"{kind}: {name}") for kind, made in (("discrete", DISCRETE), ("real", REAL), ("mixed", MIXED))
      for name, make in made.items()),
    pytest.param(lambda seed: Point(numbers(3, seed=seed)), id="point"),
]  # fmt: skip
WITH_MASS = ALL[:-1]


def everything(q: Distribution) -> tuple[Tensor, float]:
    """(K, E): values that cover all that a site can be, and the volume of each: the support, and a grid for one real number."""
    real, rest = (q, None) if not isinstance(q, Product) else q.components
    support = q.support()
    if support is not None:
        return support, 1.0
    assert real.shape[2] == 1
    step = float(AXIS[1] - AXIS[0])
    if rest is None:
        return AXIS[:, None], step
    pairs = torch.cartesian_prod(torch.arange(len(AXIS)), torch.arange(len(rest.support())))
    return torch.cat((AXIS[pairs[:, 0], None], rest.support()[pairs[:, 1]]), dim=-1), step


def log_probs(q: Distribution, values: Tensor) -> Tensor:
    """(B, S, K) float64 of values (K, E)."""
    count = len(values)
    wide = q.mapped(lambda part: part.repeat_interleave(count, dim=0))
    repeated = values.repeat(q.shape[0], 1)[:, None].expand(-1, q.shape[1], -1)
    return wide.log_prob(Latent(repeated)).double().view(q.shape[0], count, -1).transpose(1, 2)


@pytest.mark.parametrize("make", WITH_MASS)
def test_probabilities_sum_to_one(make: Callable[[int], Distribution]) -> None:
    values, volume = everything(make(0))
    total = log_probs(make(0), values).exp().sum(-1) * volume
    torch.testing.assert_close(total, torch.ones(ROWS, SITES).double(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("make", WITH_MASS)
def test_the_kl_is_its_sum_over_everything(make: Callable[[int], Distribution]) -> None:
    """Exact ones site by site; an estimate in the mean over draws, within five standard errors."""
    q, p = make(1), make(2)
    values, volume = everything(q)
    log_q, log_p = log_probs(q, values), log_probs(p, values)
    terms = log_q.exp() * (log_q - log_p)
    expected = terms.masked_fill(log_q.exp() == 0, 0.0).sum(-1) * volume
    if q.exact_kl and p.exact_kl:
        found = q.kl(p, q.sample(noise()))
        torch.testing.assert_close(found.double().sum(-1), expected, atol=2e-4, rtol=1e-3)
        assert torch.equal(found, q.kl(p, q.sample(noise(seed=1)))), "exact, but it depends on the latent"
    else:
        rows = torch.arange(ROWS).repeat_interleave(4000)
        wide, prior = q.select(rows), p.select(rows)
        found = wide.kl(prior, wide.sample(noise(len(rows)))).double()
        assert found.shape == (ROWS * 4000, SITES, 1)
        mean, spread = found.view(ROWS, 4000, SITES).mean(1), found.view(ROWS, 4000, SITES).std(1)
        assert ((mean - expected).abs() < 5 * spread / math.sqrt(4000)).all()
    assert expected.min() > 0.02, "the two are too alike to test anything"


@pytest.mark.parametrize("make", WITH_MASS)
def test_draws_follow_the_probabilities(make: Callable[[int], Distribution]) -> None:
    """The distribution function in a real dimension (Kolmogorov-Smirnov, p = 0.001 over all sites), frequencies in all else."""
    q, count = make(3), 4000
    rows = torch.arange(ROWS).repeat_interleave(count)
    value = q.select(rows).sample(noise(len(rows))).value.view(ROWS, count, SITES, -1).transpose(1, 2)  # (B, S, K, E)
    values, volume = everything(q)
    chance = log_probs(q, values).exp() * volume  # (B, S, K')
    if q.support() is None:
        below = (values[:, 0] <= AXIS[::40, None]).double()  # (A, K')
        expected = chance @ below.T
        found = (value[..., 0][..., None] <= AXIS[::40]).double().mean(2)
        assert (found - expected).abs().max() < 2.2 / math.sqrt(count)
    discrete = slice(0 if q.support() is not None else 1, None)
    for point in values[:, discrete].unique(dim=0) if isinstance(q, Product) or q.support() is not None else ():
        expected = (chance * (values[:, discrete] == point).all(-1)).sum(-1)
        found = (value[..., discrete] == point).all(-1).double().mean(-1)
        assert ((found - expected).abs() < 5 * (expected * (1 - expected) / count).sqrt() + 1e-3).all()


@pytest.mark.parametrize("make", ALL)
def test_rows_and_sites_can_be_picked(make: Callable[[int], Distribution]) -> None:
    """Density, KL and draws of what was picked are those of the whole."""
    q, p = make(4), make(5)
    value = q.sample(noise()).value
    whole = q.log_prob(Latent(value))
    rows = torch.tensor([1, 0, 1])
    picked = q.select(rows)
    assert picked.shape == (3, *q.shape[1:])
    assert type(picked) is type(q)
    torch.testing.assert_close(picked.log_prob(Latent(value[rows])), whole[rows])
    torch.testing.assert_close(picked.sample(noise().select(rows)).value, value[rows])
    torch.testing.assert_close(picked.kl(p.select(rows), Latent(value[rows])), q.kl(p, Latent(value))[rows])
    for start, length in ((0, 1), (1, 2), (2, 1)):
        narrow = q.narrow(start, length)
        here = slice(start, start + length)
        assert narrow.shape == (ROWS, length, q.shape[2])
        torch.testing.assert_close(narrow.log_prob(Latent(value[:, here])), whole[:, here])
        torch.testing.assert_close(narrow.sample(noise().at([start])).value, value[:, here])
    assert q.shape == (ROWS, SITES, value.shape[-1]), "the whole is left as it was"
    assert torch.equal(q.sample(noise()).value, value)


@pytest.mark.parametrize("make", WITH_MASS)
def test_draws_are_keyed(make: Callable[[int], Distribution]) -> None:
    q = make(6)
    before = torch.get_rng_state()
    assert torch.equal(q.sample(noise()).value, q.sample(noise()).value)
    assert torch.equal(torch.get_rng_state(), before)
    assert any(not torch.equal(q.sample(noise()).value, q.sample(noise(seed=seed)).value) for seed in range(1, 5))
    with pytest.raises(AssertionError, match="3 rows of noise") if not isinstance(q, Laplace) else pytest.raises(RuntimeError):
        q.sample(noise(3))


@pytest.mark.parametrize("make", WITH_MASS)
def test_a_low_temperature_leaves_the_likeliest(make: Callable[[int], Distribution]) -> None:
    values, _ = everything(make(7))
    likeliest = values[log_probs(make(7), values).argmax(-1)]
    cold = make(7).tempered(1e-4)
    torch.testing.assert_close(cold.sample(noise()).value, likeliest, atol=0.02, rtol=0)
    torch.testing.assert_close(log_probs(make(7).tempered(1.0), values), log_probs(make(7), values), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("make", WITH_MASS)
def test_the_mean_is_that_of_the_draws(make: Callable[[int], Distribution]) -> None:
    q = make(8)
    if q.expected() is None:
        assert isinstance(q, Laplace), "no values to sum over"
        return
    values, volume = everything(q)
    expected = log_probs(q, values).exp() @ values.double() * volume
    torch.testing.assert_close(q.expected().double(), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("make", ALL)
def test_a_planted_posterior_leans(make: Callable[[int], Distribution]) -> None:
    """Of other rows and sites than the prior that it is like; its values are the prior's own."""
    p = make(9)
    signs = torch.tensor([1.0, -1.0]).repeat(p.shape[2])[: p.shape[2]].expand(4, 5, -1)
    leaning = p.leaning(signs, 4.0)
    assert leaning.shape == signs.shape
    assert not leaning.deterministic
    assert ((leaning.expected() - p.leaning(0 * signs, 4.0).expected()) * signs > 0.2).all()
    if p.support() is not None:
        value = leaning.sample(noise(4)).value
        assert (value[:, :, None] == p.support()).all(-1).any(-1).all()


# -------------------------------------------------------------------------------------------- what an author does not write


def test_what_is_not_named_is_left_alone_whatever_its_shape() -> None:
    """The table of shape (B, S) by accident; a number made of the named tensors and kept is made anew."""
    q = REAL["a third party's"](0)
    assert torch.equal(q.log_scale, q.spread["scale"][0].log())
    picked, narrow = q.select(torch.tensor([1])), q.narrow(2, 1)
    assert picked.table is narrow.table is q.table
    assert torch.equal(picked.log_scale, q.log_scale[[1]])
    assert torch.equal(narrow.log_scale, q.log_scale[:, 2:])
    assert picked.tempered(1.0).shape == (1, SITES, 1)


def test_a_family_that_names_nothing_or_the_wrong_thing_is_told() -> None:
    class Unnamed(Laplace):
        parameters = ()

    class Shared(Laplace):
        parameters = ("mean", "codebook")
        codebook = torch.zeros(7, 4)

    class Odd(Laplace):
        parameters = ("shape",)

    arguments = torch.zeros(ROWS, SITES, 1), torch.ones(ROWS, SITES, 1)
    with pytest.raises(ValueError, match="Unnamed does not say what it is made of: name its tensors"):
        Unnamed(*arguments).select(torch.tensor([0]))
    with pytest.raises(ValueError, match=r"Shared\.codebook is \(7, 4\), not a tensor \(2, 3, '\.\.\.'\): take what"):
        Shared(*arguments).narrow(0, 1)
    with pytest.raises(ValueError, match=r"Odd\.shape\[0\] is int"):
        Odd(*arguments).narrow(0, 1)


def test_the_kl_of_a_third_party_is_the_one_sample_estimate() -> None:
    q, p = REAL["a third party's"](0), REAL["Gaussian"](1)
    latent = q.sample(noise())
    assert not q.exact_kl
    assert torch.equal(q.kl(p, latent), (q.log_prob(latent) - p.log_prob(latent))[..., None])
    assert torch.equal(p.kl(q, latent), sampled_kl(p, q, latent))


def test_a_mean_is_not_summed_without_end_or_without_a_norm() -> None:
    class Large(Die):
        def support(self) -> Tensor:
            return torch.arange(257.0)[:, None]

    class Energy(Die):
        normalised = False

    chances = Categorical(numbers(3, seed=0))
    assert Die(chances).expected() is not None
    assert Large(chances).expected() is None
    assert Energy(chances).expected() is None


# -------------------------------------------------------------------------------------------------------------- categorical


def test_numbers_are_compared_with_numbers_alone() -> None:
    """Exact against the same values; against others of as many, an estimate, which a wrong match would not be."""
    logits = numbers(4, seed=0)
    bare, rows, codes = Categorical(logits), Categorical(logits, TABLE), Codes(logits)
    assert bare.matching(Categorical(logits)) is not None
    assert rows.matching(Categorical(logits, TABLE.clone())) is not None
    for other in (rows, codes, Categorical(numbers(5, seed=0)), Bits(logits)):
        assert bare.matching(other) is None
    assert rows.matching(Categorical(logits, TABLE + 1)) is None
    assert rows.matching(bare) is None
    assert codes.matching(bare) is None


def test_a_value_is_recognised_after_rounding() -> None:
    rows = Categorical(numbers(4, seed=0), TABLE)
    number = torch.tensor([[0, 1, 2], [3, 2, 1]])
    assert torch.equal(rows.index((TABLE[number] + 0.01).half()), number)
    bare = Categorical(numbers(4, seed=0))
    assert torch.equal(bare.index(number[..., None] - 0.01), number)
    torch.testing.assert_close(bare.log_prob(Latent(number[..., None])), bare.log_probs.gather(-1, number[..., None])[..., 0])


def test_probabilities_of_numbers_hear_the_kl() -> None:
    """d KL / d logit_n = q_n (log q_n / p_n - KL)."""
    logits, p = numbers(4, seed=1).double().requires_grad_(), Categorical(numbers(4, seed=2).double())
    q = Categorical(logits)
    kl = q.kl(p, Latent(torch.zeros(0)))
    (slope,) = torch.autograd.grad(kl.sum(), logits)
    expected = q.log_probs.exp() * (q.log_probs - p.log_probs - kl)
    torch.testing.assert_close(slope, expected.detach())
