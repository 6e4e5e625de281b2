"""The KL of bits and of Gaussians: by its definition, by sampling, and at the ends of its range.

Legend: S sites, E event dimensions, K samples.
"""

from __future__ import annotations

import math

import pytest
import torch

from latentlm.distributions import Bits, Distribution, Gaussian, Latent
from latentlm.noise import Noise

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
