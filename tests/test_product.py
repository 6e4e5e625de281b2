"""Point masses, and families side by side.

Legend: B rows, S sites, E event dimensions.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from latentlm.interface import Bits, Categorical, Codes, Distribution, Gaussian, Latent, Noise, Point, Product


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(seed))


def noise(seed: int = 0) -> Noise:
    return Noise.keyed(seed, range(2))


def gaussian(size: int = 2, seed: int = 0) -> Gaussian:
    return Gaussian(numbers(size, seed=seed), 0.5 * numbers(size, seed=seed + 50))


# ------------------------------------------------------------------------------------------------------------------- points


def test_a_point_is_its_value_for_certain() -> None:
    value = numbers(2, seed=0)
    q = Point(value)
    assert q.deterministic
    assert torch.equal(q.sample(noise()).value, value)
    assert torch.equal(q.sample(noise(seed=1)).value, value)
    assert torch.equal(q.log_prob(Latent(value + 1e-6)), torch.zeros(2, 3))
    assert torch.equal(q.log_prob(Latent(value + torch.tensor([0.0, 1e-2]))), torch.full((2, 3), -math.inf))
    assert torch.equal(q.tempered(0.3).expected(), value)


def test_its_gradient_is_the_values_or_goes_straight_through() -> None:
    raw, weights = numbers(2, seed=0).requires_grad_(), numbers(2, seed=1)
    for q, slope in ((Point(raw.square()), 2 * raw.detach()), (Point(raw.square(), raw), torch.ones(2, 3, 2))):
        value = q.sample(noise(), differentiable=True).value
        assert torch.equal(value, q.value), "bit for bit"
        (found,) = torch.autograd.grad((value * weights).sum(), raw)
        torch.testing.assert_close(found, slope * weights)
        assert not q.sample(noise()).value.requires_grad


def test_its_kl_is_the_surprise_of_the_prior_and_both_hear_it() -> None:
    raw, p = numbers(2, seed=0).requires_grad_(), gaussian()
    p.mean.requires_grad_()
    q = Point((4 * raw).round() / 4, raw)
    kl = q.kl(p, Latent(torch.zeros(0)))
    torch.testing.assert_close(kl, -p.log_prob(Latent(q.value))[..., None])
    slopes = torch.autograd.grad(kl.sum(), (raw, p.mean))
    pull = (q.value - p.mean) * torch.exp(-2 * p.log_std)
    torch.testing.assert_close(slopes[0], pull.detach())
    torch.testing.assert_close(slopes[1], -pull.detach())
    codes = Categorical(numbers(4, seed=3))
    number = torch.tensor([[0, 1, 2], [3, 2, 1]])[..., None]
    torch.testing.assert_close(Point(number).kl(codes, Latent(number)), -codes.log_probs.gather(-1, number))


# ----------------------------------------------------------------------------------------------------------------- products


def test_components_draw_from_streams_of_their_own() -> None:
    """Two alike draw differently; each as it would by itself from its stream."""
    q = Product(gaussian(), gaussian(), Bits(numbers(3, seed=1)))
    value = q.sample(noise()).value
    assert value.shape == q.shape == (2, 3, 7)
    assert not torch.equal(value[..., :2], value[..., 2:4])
    for number, (component, start, end) in enumerate(zip(q.components, (0, 2, 4), (2, 4, 7), strict=True)):
        alone = component.sample(noise().stream(f"component {number}")).value
        assert torch.equal(value[..., start:end], alone)


def test_a_latent_can_be_split_with_all_that_an_injection_needs() -> None:
    q = Product(gaussian(), Bits(numbers(3, seed=1)))
    real, bits = q.split(q.sample(noise(), differentiable=True))
    assert (real.distribution, bits.distribution) == q.components
    assert torch.equal(bits.distribution.sample(bits.noise).value, bits.value)
    bare = q.split(q.sample(noise()))
    assert [(each.distribution, each.noise) for each in bare] == [(None, None)] * 2
    assert torch.equal(torch.cat([each.value for each in bare], dim=-1), torch.cat((real.value, bits.value), dim=-1))


def test_gradients_reach_what_is_reparameterised() -> None:
    q = Product(gaussian(), Bits(numbers(3, seed=1)))
    q.components[0].mean.requires_grad_()
    (slope,) = torch.autograd.grad(q.sample(noise(), differentiable=True).value.sum(), q.components[0].mean)
    assert torch.equal(slope, torch.ones(2, 3, 2))


def test_the_kl_stands_component_by_component_where_each_factorises() -> None:
    q, p = (Product(gaussian(seed=s), Bits(numbers(3, seed=s)), Categorical(numbers(4, seed=s))) for s in (1, 2))
    latent = q.sample(noise())
    kl = q.kl(p, latent)
    assert kl.shape == q.shape
    assert q.exact_kl
    for (one, other), found in zip(zip(q.components, p.components, strict=True), kl.split([2, 3, 1], dim=-1), strict=True):
        torch.testing.assert_close(found, one.kl(other, latent))


def test_the_kl_is_one_number_where_one_component_does_not_factorise() -> None:
    q, p = (Product(gaussian(seed=s), Codes(numbers(4, seed=s))) for s in (1, 2))
    latent = q.sample(noise())
    kl = q.kl(p, latent)
    assert kl.shape == (2, 3, 1)
    parts = [one.kl(other, latent).sum(-1) for one, other in zip(q.components, p.components, strict=True)]
    torch.testing.assert_close(kl[..., 0], parts[0] + parts[1])


@pytest.mark.parametrize("prior", [gaussian(5, seed=3), Product(gaussian(3, seed=3), gaussian(2, seed=4))])
def test_against_another_prior_it_is_the_one_sample_estimate(prior: Distribution) -> None:
    q = Product(gaussian(seed=1), gaussian(3, seed=2))
    latent = q.sample(noise())
    torch.testing.assert_close(q.kl(prior, latent), (q.log_prob(latent) - prior.log_prob(latent))[..., None])


def test_values_are_all_combinations_the_first_fastest() -> None:
    q = Product(Categorical(numbers(3, seed=0)), Bits(numbers(1, seed=0)))
    assert q.support().tolist() == [[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1]]
    assert Product(Bits(numbers(4, seed=0)), Bits(numbers(2, seed=0))).support().tolist() == (
        Bits(numbers(6, seed=0)).support().tolist()
    )
    assert Product(Bits(numbers(2, seed=0)), gaussian()).support() is None
    assert Product(Bits(numbers(9, seed=0)), Bits(numbers(7, seed=0))).support().shape == (2**16, 16)
    assert Product(Bits(numbers(9, seed=0)), Bits(numbers(8, seed=0))).support() is None


def test_near_ties_are_those_of_the_components() -> None:
    bits = numbers(50, seed=0)
    q = Product(gaussian(), Bits(bits), Categorical(numbers(40, seed=1)))
    expected = Bits(bits).near_ties(noise().stream("component 1"), 0.02)
    expected = expected + q.components[2].near_ties(noise().stream("component 2"), 0.02)
    assert torch.equal(q.near_ties(noise(), 0.02), expected)
    assert expected.sum() > 0
    assert Product(gaussian(), gaussian()).near_ties(noise(), 0.02) is None


def test_a_product_is_what_all_its_components_are() -> None:
    class Energy(Gaussian):
        normalised = False
        exact_kl = False

    points = Product(Point(numbers(1, seed=0)), Point(numbers(2, seed=1)))
    assert points.deterministic
    assert torch.equal(points.sample(noise()).value, points.sample(noise(1)).value)
    uncertain = Product(Energy(numbers(1, seed=0), numbers(1, seed=1)), gaussian())
    assert (uncertain.deterministic, uncertain.normalised, uncertain.exact_kl) == (False, False, False)
    plain = Product(gaussian(), Bits(numbers(1, seed=0)))
    assert (plain.deterministic, plain.normalised, plain.exact_kl) == (False, True, True)
    assert Product.normalised, "a product's flags are its own"


@pytest.mark.parametrize(
    ("components", "words"),
    [
        ((), "needs one or more"),
        ((gaussian(), Bits(torch.zeros(2, 4, 1))), "of the same rows and sites"),
        ((gaussian(), Point(numbers(1, seed=0))), r"\['Gaussian', 'Point'\] is partly a point mass: make the point mass a"),
    ],
)
def test_what_is_no_product_is_refused(components: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Product(*components)


def test_products_nest() -> None:
    inner = Product(gaussian(), Bits(numbers(1, seed=1)))
    flat, nested = Product(*inner.components, Categorical(numbers(3, seed=2))), Product(inner, Categorical(numbers(3, seed=2)))
    latent = flat.sample(noise())
    torch.testing.assert_close(nested.log_prob(latent), flat.log_prob(latent))
    rows = torch.tensor([1, 1, 0])
    torch.testing.assert_close(nested.select(rows).log_prob(latent.select(rows)), flat.log_prob(latent)[rows])
