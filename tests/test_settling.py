"""When a score may be believed: the tail of its weights, its islands, and who takes over from importance sampling."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from benchmarks.texts import published_texts
from latentlm import zoo
from latentlm.likelihood import Score, bits_per_byte, paired_difference, score_continuations, score_texts
from latentlm.likelihood.results import islands_agree, settled
from latentlm.likelihood.tails import HEAVY, tail_shape
from latentlm_evals.measure import tokenized
from likelihood_parts import tiny


@pytest.mark.parametrize("shape", [0.2, 0.5, 1.0])
def test_the_shape_of_pareto_weights_is_found(shape: float) -> None:
    uniform = torch.rand(200, 1024, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = tail_shape(-shape * uniform.log())
    assert float(found.mean()) == pytest.approx(shape, abs=0.08)  # the prior draws it towards 1/2
    assert float((found > HEAVY).double().mean()) == pytest.approx(float(shape > HEAVY), abs=0.12)


def test_a_tail_of_few_or_equal_weights_has_no_shape() -> None:
    rows = [torch.zeros(1, 256), torch.randn(1, 16), torch.full((1, 256), -math.inf)]
    assert all(math.isnan(float(tail_shape(row))) for row in rows)
    assert settled(rows[0]) == [True], "even weights are no tail"


def test_a_tail_above_equal_weights_is_fitted() -> None:
    """Those of a latent with few values, and of paths from the prior that the decoder does not heed, are equal."""
    rising = torch.cat((torch.zeros(230), torch.linspace(0.5, 9, 26)))[None]
    assert float(tail_shape(rising)) > HEAVY
    assert settled(rising) == [False]


def test_weights_are_settled_by_their_number_and_their_tail() -> None:
    generator = torch.Generator().manual_seed(1)
    light, wild = 0.5 * torch.randn(1, 256, generator=generator), 6 * torch.randn(1, 256, generator=generator)
    assert settled(torch.cat((light, wild))) == [True, False]


def test_islands_agree_within_their_spread() -> None:
    near, far = torch.linspace(-1, 1, 8), torch.linspace(-6, 6, 8)
    assert islands_agree(torch.stack((near, far))) == [True, False]
    assert islands_agree(torch.tensor([[-3.0], [-math.inf]])) == [False, False], "one island agrees with nobody"
    assert islands_agree(torch.full((1, 8), -math.inf)) == [False]


def unsettled() -> Score:
    return Score(-100.0, 0.1, 1.2, 256, 100, "iwae", quarter=-100.1, sixteenth=-100.2, tolerance=5.0, settled=0.0)


def test_what_is_not_settled_is_a_bound_from_below() -> None:
    score = unsettled()
    assert score.uncertainty == math.inf
    assert not score.converged
    assert score.interval[0] < score.value < score.interval[1] == math.inf


def test_windows_and_texts_are_settled_by_their_share() -> None:
    good = Score(-100.0, 0.1, 60, 256, 1900, "iwae", quarter=-100.1, sixteenth=-100.2, tolerance=5.0)
    whole = good.plus(unsettled())
    assert whole.settled == pytest.approx(0.95)
    assert whole.converged, "one window in twenty may be a false alarm"
    assert not good.plus(unsettled()).plus(unsettled()).converged
    few, many = bits_per_byte([good] * 19 + [unsettled()], [100] * 20), bits_per_byte([good] * 9 + [unsettled()], [100] * 10)
    assert few.converged(1.0)
    assert (many.good_to, many.converged(1.0)) == ("unknown", False)
    assert paired_difference([good] * 10, [good] * 9 + [unsettled()], [100] * 10).uncertainty == math.inf


def test_a_filter_and_importance_sampling_add_up() -> None:
    """Each with its own rule of what is left."""
    weighed = Score(-100.0, 0.1, 60, 256, 100, "iwae", quarter=-100.4, sixteenth=-102.0)
    filtered = Score(-50.0, 0.1, 60, 256, 100, "smc", quarter=-50.3, sixteenth=-50.3, islands=(-50.0, -50.3))
    assert filtered.bias == pytest.approx(0.3)
    assert replace(filtered, standard_error=0.5).bias == pytest.approx(1.0), "what an island alone would lack"
    both = weighed.plus(filtered)
    assert both.bias == pytest.approx(weighed.bias + 0.3)
    assert both.method == "iwae and smc"
    assert math.isnan(Score(-50.0, 0.1, 1, 4, 9, "smc", quarter=math.nan, sixteenth=math.nan, islands=(-50.0, math.nan)).bias)


def test_auto_is_importance_sampling_where_that_settles_it() -> None:
    request = ([0, 1, 1, 0] * 3, [1])  # 2^12 values are not gone through
    (one,) = score_continuations(tiny(vocabulary=2), [request], method="auto", samples="auto", tolerance=0.5)
    (other,) = score_continuations(tiny(vocabulary=2), [request], method="operational", samples="auto", tolerance=0.5)
    assert one == other
    assert one.method == "operational"


def test_auto_of_a_fixed_number_of_samples_takes_no_more() -> None:
    (score,) = score_texts(tiny(vocabulary=2), [[0, 1, 1, 0]], samples=2)
    assert (score.method, score.samples) == ("iwae", 2)


@pytest.mark.conformance
def test_a_filter_takes_over_where_weights_tell_nothing() -> None:
    """On a whole window few samples in 256 have the weight, and the filter finds nats that they did not."""
    model = zoo.load("chunk-tiny")
    window = tokenized(model, published_texts(3, 256)[0])
    (weighed,) = score_texts(model, [window], method="iwae", samples=256)
    (found,) = score_texts(model, [window])
    assert not weighed.known
    assert weighed.uncertainty == math.inf
    assert found.method == "smc"
    assert found.known
    assert found.value > weighed.value + 1


@pytest.mark.conformance
@pytest.mark.parametrize("name", ["chunk-tiny", "causal-tiny"])
def test_the_estimators_agree_on_trained_models(name: str) -> None:
    model = zoo.load(name)
    texts = [tokenized(model, text) for text in published_texts(3, 48)]
    scores = [score_texts(model, texts, method=method, samples=1024, seed=3) for method in ("iwae", "smc")]  # type: ignore[arg-type]
    for one, other in zip(*scores, strict=True):
        allowed = 4.5 * math.hypot(one.standard_error, other.standard_error) + one.bias + other.bias
        assert abs(one.value - other.value) <= allowed < 3


def test_rounding_does_not_make_a_tail_of_equal_weights() -> None:
    """Few different weights, as of discrete latents, have no tail, a millionth apart or not; many of twenty nats have."""
    generator = torch.Generator().manual_seed(0)
    few = torch.randint(0, 3, (1, 64), generator=generator).double()
    rounded = few + 1e-6 * torch.rand(few.shape, generator=generator, dtype=torch.float64)
    assert tail_shape(few).isnan().all()
    assert tail_shape(rounded).isnan().all()
    spread = 10 * torch.randn(1, 64, generator=generator, dtype=torch.float64)
    assert tail_shape(spread).item() > HEAVY
    assert tail_shape(3 * spread).item() > HEAVY, "however far apart the largest are"
