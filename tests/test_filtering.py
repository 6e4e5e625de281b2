"""What a score by the particle filter says beside its value."""

from __future__ import annotations

import math
from statistics import fmean, stdev

import pytest
import torch

from latentlm.interface import Noise
from latentlm.likelihood import filtering, score_continuations
from latentlm.likelihood.filtering import _in_place, filtered
from latentlm.likelihood.texts import Texts
from likelihood_parts import tiny

REQUEST = ([0, 1], [1, 1, 0, 1, 0, 0, 1, 1])
model = tiny(vocabulary=2, events=1)


def test_its_error_is_how_far_it_scatters() -> None:
    """Over islands: after resampling the weights within one are even and know nothing of it."""
    keys = list(range(200))
    scores = score_continuations(model, [REQUEST] * 200, method="smc", samples=32, keys=keys)
    spread = stdev(score.value for score in scores)
    assert 0.7 * spread < fmean(score.standard_error for score in scores) < 2.5 * spread


def test_a_quarter_is_the_mean_of_so_many_islands() -> None:
    (score,) = score_continuations(model, [REQUEST], method="smc", samples=32)
    texts = Texts.of(model, [REQUEST[0] + REQUEST[1]], [2])
    key = ("continuation", tuple(REQUEST[0]))
    apart = []
    for first in range(0, 32, 4):
        noise = Noise.keyed(0, [(key, "smc", 4)], samples=4, first=first)
        apart.append(filtered(model, texts, noise, particles=4, target="generation").log_weights[0, 0])
    islands = torch.stack(apart)
    assert score.quarter == pytest.approx(float((islands.view(4, 2).logsumexp(1) - math.log(2)).mean()), abs=1e-5)
    assert score.value == pytest.approx(float(islands.logsumexp(0)) - math.log(8), abs=1e-5)
    assert score.samples == 32


@pytest.mark.parametrize(("samples", "wanted"), [
    (1, (1, 1)), (7, (1, 7)), (16, (4, 4)), (34, (8, 4)), (64, (8, 8)), (250, (8, 31)), (1024, (8, 128)),
])  # fmt: skip
def test_particles_are_shared_out_to_islands(samples: int, wanted: tuple[int, int]) -> None:
    assert filtering.islands(samples) == wanted


def test_rows_that_have_children_stay_where_they_are() -> None:
    parents = torch.tensor([[0, 2, 2, 2, 5, 5], [0, 1, 2, 3, 4, 5], [3, 3, 3, 3, 3, 3]])
    found = _in_place(parents)
    assert found.sort(-1).values.tolist() == parents.tolist()
    for row, own in zip(found.tolist(), parents.tolist(), strict=True):
        assert all(row[place] == place for place in set(own))

