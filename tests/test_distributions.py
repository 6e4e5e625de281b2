"""The KL of bits, codes and Gaussians: by its definition, by sampling, and at the ends of its range.

Legend: S sites, E event dimensions, K samples.
"""

from __future__ import annotations

import math

import pytest
import torch

from latentlm.interface import Bits, Codes, Distribution, Gaussian, Latent, Noise

_NONE = Latent(torch.zeros(0))


def kl(logits: torch.Tensor, prior: torch.Tensor) -> torch.Tensor:
    return Bits(logits.view(1, 1, -1)).kl(Bits(prior.view(1, 1, -1)), _NONE)[0, 0]


def test_certain_bits_have_a_kl() -> None:
    """Against a fair bit log 2, against themselves 0, against their opposite infinity."""
    ends = torch.tensor([math.inf, -math.inf, math.inf, -math.inf, math.inf, -math.inf, 0.0], requires_grad=True)
    prior = torch.tensor([0.0, 0.0, math.inf, -math.inf, -math.inf, math.inf, math.inf])
    found = kl(ends, prior)
    assert found.tolist() == pytest.approx([math.log(2)] * 2 + [0.0] * 2 + [math.inf] * 3)
    (slope,) = torch.autograd.grad(found[:4].sum(), ends)
    assert slope[:4].tolist() == [0.0] * 4


def test_the_kl_is_never_negative() -> None:
    """Near p = 1/2 both terms cancel to within rounding; the gradient is p (1-p) (logit - prior's logit) all the same."""
    logits = torch.linspace(-1e-2, 1e-2, 2001).requires_grad_()
    for centre in (0.0, 0.7):
        found = kl(logits + centre, torch.full_like(logits, centre))
        assert found.min() >= 0
        (slope,) = torch.autograd.grad(found.sum(), logits)
        p = torch.sigmoid(logits.detach() + centre)
        torch.testing.assert_close(slope, p * (1 - p) * logits.detach(), atol=1e-6, rtol=1e-3)


def test_the_kl_and_its_gradient_are_exact() -> None:
    logits = torch.linspace(-30, 30, 121, dtype=torch.float64).requires_grad_()
    prior = torch.linspace(4, -4, 121, dtype=torch.float64)
    p, q = torch.sigmoid(prior), torch.sigmoid(logits.detach())
    found = kl(logits, prior)
    expected = torch.xlogy(q, q / p) + torch.xlogy(1 - q, (1 - q) / (1 - p))
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)
    (slope,) = torch.autograd.grad(found.sum(), logits)
    torch.testing.assert_close(slope, q * (1 - q) * (logits.detach() - prior), atol=1e-10, rtol=1e-10)


def test_against_fair_bits_the_kl_is_log_2_less_the_entropy() -> None:
    """The paper's formula, bit by bit."""
    logits = torch.linspace(-8, 8, 65, dtype=torch.float64)
    p = torch.sigmoid(logits)
    entropy = -(p * p.log() + (1 - p) * (1 - p).log())
    torch.testing.assert_close(kl(logits, torch.zeros_like(logits)), math.log(2) - entropy, atol=1e-12, rtol=1e-12)


def numbers(seed: int, spread: float = 1.0) -> torch.Tensor:
    """(1, 5 sites, 3 dimensions)."""
    return spread * torch.randn(1, 5, 3, generator=torch.Generator().manual_seed(seed))


BITS = Bits(numbers(0, 2.0))
GAUSSIAN = Gaussian(numbers(1), numbers(2, 0.5))
PAIRS: list[tuple[Distribution, Distribution]] = [
    (BITS, Bits(torch.zeros(1, 5, 3))),
    (BITS, Bits(numbers(3))),
    (GAUSSIAN, Gaussian(torch.zeros(1, 5, 3), torch.zeros(1, 5, 3))),
    (GAUSSIAN, Gaussian(numbers(4), numbers(5, 0.5))),
]


@pytest.mark.parametrize(("q", "p"), PAIRS)
def test_the_kl_is_the_mean_log_ratio_of_samples(q: Distribution, p: Distribution) -> None:
    """Site by site within four standard errors, which are small beside it."""
    count = 4000
    rows = torch.zeros(count, dtype=torch.long)
    drawn = q.select(rows).sample(Noise.keyed(0, ["kl"], samples=count))
    ratios = (q.select(rows).log_prob(drawn) - p.select(rows).log_prob(drawn)).double()  # (K, S)
    exact, error = q.kl(p, drawn).sum(-1)[0], ratios.std(0) / math.sqrt(count)
    assert exact.shape == (5,)
    assert ((ratios.mean(0) - exact).abs() < 4 * error).all()
    assert error.max() < 0.1 * exact.max()


@pytest.mark.parametrize(("q", "p"), PAIRS)
def test_the_kl_is_zero_only_between_equals(q: Distribution, p: Distribution) -> None:
    assert q.kl(q, _NONE).abs().max() < 1e-6
    assert q.kl(p, _NONE).min() >= 0
    assert q.kl(p, _NONE).sum() > 0.1


# ------------------------------------------------------------------------------------------------------------- codes


def codes(rows: int = 2, sites: int = 3, bits: int = 3, seed: int = 0) -> Codes:
    return Codes(1.5 * torch.randn(rows, sites, 2**bits, generator=torch.Generator().manual_seed(seed)))


def test_codes_of_independent_bits_are_those_bits() -> None:
    bits = Bits(torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1)))
    same = Codes.of(bits)
    latent = bits.sample(Noise.keyed(0, range(2)))
    torch.testing.assert_close(same.log_prob(latent), bits.log_prob(latent))
    torch.testing.assert_close(same.expected(), bits.probabilities)
    prior = Bits(torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(2)))
    torch.testing.assert_close(same.kl(prior, latent), bits.kl(prior, latent).sum(-1, keepdim=True))
    torch.testing.assert_close(bits.kl(Codes.of(prior), latent), bits.kl(prior, latent).sum(-1, keepdim=True))


def test_codes_are_drawn_as_often_as_they_are_likely() -> None:
    q = codes(rows=1, sites=1)
    many = q.select(torch.zeros(20_000, dtype=torch.long))
    drawn = many.index(many.sample(Noise.keyed(3, range(20_000))).value)[:, 0]
    share = torch.bincount(drawn, minlength=8) / 20_000
    expected = q.log_probs.exp()[0, 0]
    assert ((share - expected).abs() < 5 * (expected * (1 - expected) / 20_000).sqrt()).all()


def test_code_bits_count_from_the_least_significant() -> None:
    certain = torch.full((1, 1, 8), -50.0)
    certain[..., 6] = 50.0  # 6 = 0b110
    assert Codes(certain).sample(Noise.keyed(0, [0])).value.tolist() == [[[0.0, 1.0, 1.0]]]


def test_codes_kl_is_its_mean_over_every_code_and_zero_for_equals() -> None:
    q, p = codes(seed=1), codes(seed=2)
    support = q.support()
    values = [Latent(value.expand(2, 3, 3)) for value in support]
    by_hand = sum(q.log_prob(z).exp() * (q.log_prob(z) - p.log_prob(z)) for z in values)
    torch.testing.assert_close(q.kl(p, values[0])[..., 0], by_hand)
    assert q.kl(q, values[0]).abs().max() < 1e-6
    assert q.kl(p, values[0]).min() >= 0


def test_codes_select_narrow_and_temper() -> None:
    q = codes()
    torch.testing.assert_close(q.select(torch.tensor([1, 1])).log_probs, q.log_probs[[1, 1]])
    torch.testing.assert_close(q.narrow(1, 2).log_probs, q.log_probs[:, 1:])
    assert q.tempered(1e-6).log_probs.exp().amax(-1).min() > 0.999


def test_near_ties_count_what_rounding_could_flip() -> None:
    q, noise = codes(rows=4, sites=50), Noise.keyed(0, range(4))
    moved = Codes(q.log_probs + 0.02 * torch.randn(q.log_probs.shape, generator=torch.Generator().manual_seed(5)))
    flipped = (q.sample(noise).value != moved.sample(noise).value).any(-1)
    assert flipped.any()
    assert (q.near_ties(noise, 0.05).bool() | ~flipped).all()
    assert q.near_ties(noise, 1e-9).sum() == 0


def test_a_kl_without_a_closed_form_is_the_one_sample_estimate() -> None:
    class Other(Gaussian):
        pass

    class Odd:
        """No Gaussian, but it has a density."""

        def log_prob(self, latent: Latent) -> torch.Tensor:
            return -latent.value.abs().sum(-1)

    q = Gaussian(torch.zeros(2, 1, 3), torch.zeros(2, 1, 3))
    latent = q.sample(Noise.keyed(0, range(2)))
    found = q.kl(Odd(), latent)  # type: ignore[arg-type]
    torch.testing.assert_close(found, (q.log_prob(latent) + latent.value.abs().sum(-1))[..., None])
    assert q.kl(Other(q.mean, q.log_std), latent).shape == (2, 1, 3)


@pytest.mark.parametrize("family", [Bits, Gaussian, Codes])
def test_a_planted_distribution_leans_to_its_signs(family: type) -> None:
    some = {"Bits": Bits(torch.zeros(1, 2, 3)), "Gaussian": Gaussian(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)),
            "Codes": codes(rows=1, sites=2)}[family.__name__]  # fmt: skip
    signs = torch.tensor([[[1.0, -1.0, 1.0], [-1.0, -1.0, 1.0]]])
    leaning = some.leaning(signs, 4.0)
    centre = 0.0 if family is Gaussian else 0.5
    assert (((leaning.expected() - centre) * signs) > 0).all()
    assert leaning.shape == some.shape


def test_support_lists_every_value_once() -> None:
    support = Bits(torch.zeros(1, 1, 3)).support()
    assert len({tuple(row) for row in support.tolist()}) == 8
    assert Bits(torch.zeros(1, 1, 17)).support() is None
    assert Gaussian(torch.zeros(1, 1, 3), torch.zeros(1, 1, 3)).support() is None
