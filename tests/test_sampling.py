"""Token sampling: filters against hand-computed ones, and frequencies of the inverse CDF."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from latentlm.errors import UserError
from latentlm.generation.sampling import TokenSampling, inverse_cdf
from latentlm.interface import Noise

# Probabilities .5, .25, .125, .125 in a scrambled order.
LOGITS = torch.tensor([[math.log(0.125), math.log(0.5), math.log(0.125), math.log(0.25)]])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [1 / 8, 1 / 2, 1 / 8, 1 / 4]),
        ({"top_k": 1}, [0, 1, 0, 0]),
        ({"top_k": 2}, [0, 2 / 3, 0, 1 / 3]),
        ({"top_k": 3}, [1 / 8, 1 / 2, 1 / 8, 1 / 4]),  # the third and the fourth tie
        ({"top_k": 9}, [1 / 8, 1 / 2, 1 / 8, 1 / 4]),
        ({"top_p": 0.4}, [0, 1, 0, 0]),
        ({"top_p": 0.6}, [0, 2 / 3, 0, 1 / 3]),
        ({"top_p": 0.8}, [1 / 7, 4 / 7, 0, 2 / 7]),  # ties enter one by one, the lower number first
        ({"top_p": 1.0}, [1 / 8, 1 / 2, 1 / 8, 1 / 4]),
        ({"top_k": 2, "top_p": 0.6}, [0, 1, 0, 0]),  # of what top-k left, the first token alone has 2/3
        ({"temperature": 0.5}, [1 / 22, 16 / 22, 1 / 22, 4 / 22]),
        ({"temperature": 0.5, "top_p": 0.7}, [0, 1, 0, 0]),  # the temperature comes first
        ({"temperature": 0.0}, [0, 1, 0, 0]),
        ({"temperature": 1e-30}, [0, 1, 0, 0]),
    ],
)
def test_filters_give_the_probabilities_computed_by_hand(settings: dict[str, float], expected: list[float]) -> None:
    found = TokenSampling(**settings).probabilities(LOGITS)  # type: ignore[arg-type]
    torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float64), atol=1e-7, rtol=0)


def test_top_p_keeps_the_set_that_just_reaches_it() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log()
    found = TokenSampling(top_p=0.75 - 1e-9).probabilities(logits)
    torch.testing.assert_close(found, torch.tensor([[2 / 3, 1 / 3, 0]], dtype=torch.float64))


def test_rows_are_filtered_apart() -> None:
    both = torch.cat((LOGITS, LOGITS.flip(-1)))
    found = TokenSampling(top_k=2, top_p=0.9).probabilities(both)
    torch.testing.assert_close(found[0], found[1].flip(-1))


def test_inverse_cdf_at_its_edges() -> None:
    probabilities = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]]).expand(5, -1)
    uniform = torch.tensor([2.0**-24, 0.4999, 0.5, 0.5001, 1 - 2.0**-24])
    assert inverse_cdf(probabilities, uniform).tolist() == [1, 1, 3, 3, 3]


def test_frequencies_of_drawn_tokens_are_the_probabilities() -> None:
    count = 20_000
    uniform = Noise.keyed(0, ["frequencies"]).uniform(count, 1)[0, :, 0]
    sampling = TokenSampling(temperature=1.5, top_k=3)
    logits = torch.tensor([[0.3, -1.0, 1.2, 0.1, 0.9]])
    found = torch.bincount(sampling.draw(logits.expand(count, -1), uniform), minlength=5) / count
    expected = sampling.probabilities(logits)[0]
    error = (expected * (1 - expected) / count).sqrt()
    assert expected[[1, 3]].tolist() == [0, 0]
    assert ((found - expected).abs() <= 4 * error).all()


def test_greedy_takes_the_most_likely_token_without_numbers() -> None:
    assert TokenSampling(temperature=0).draw(torch.tensor([[0.0, 3.0, 1.0], [2.0, 1.0, 0.0]]), None).tolist() == [1, 0]


@pytest.mark.parametrize(
    "settings", [{"temperature": -1}, {"temperature": math.nan}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}]
)
def test_settings_that_make_no_distribution_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(settings))):
        TokenSampling(**settings)  # type: ignore[arg-type]


def test_logits_that_are_not_finite_are_refused() -> None:
    with pytest.raises(UserError, match="not finite"):
        TokenSampling().draw(torch.tensor([[0.0, math.nan]]), torch.tensor([0.5]))


def test_a_fraction_is_a_temperature() -> None:
    half = TokenSampling(temperature=Fraction(1, 2), top_p=Fraction(1, 2))  # type: ignore[arg-type]
    assert half == TokenSampling(temperature=0.5, top_p=0.5)
    half.draw(torch.zeros(1, 3), torch.tensor([0.5]))
