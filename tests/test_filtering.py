"""What a score by the particle filter says beside its value."""

from __future__ import annotations

from statistics import fmean, stdev

import pytest

from latentlm.likelihood import score_continuations
from likelihood_parts import tiny

REQUEST = ([0, 1], [1, 1, 0, 1, 0, 0, 1, 1])


def test_its_error_is_how_far_it_scatters() -> None:
    """Over first particles and all their descendants: after resampling the weights are even and know nothing of it."""
    keys = list(range(200))
    scores = score_continuations(tiny(vocabulary=2, events=1), [REQUEST] * 200, method="smc", samples=32, keys=keys)
    spread = stdev(score.value for score in scores)
    assert 0.7 * spread < fmean(score.standard_error for score in scores) < 2.5 * spread


def test_a_quarter_and_a_sixteenth_are_filters_of_so_many_particles() -> None:
    found = {
        count: score_continuations(tiny(vocabulary=2, events=1), [REQUEST], method="smc", samples=count)[0]
        for count in (2, 8, 32)
    }
    assert found[32].quarter == pytest.approx(found[8].value, abs=1e-5)
    assert found[32].sixteenth == pytest.approx(found[2].value, abs=1e-5)
    assert len({round(score.value, 4) for score in found.values()}) == 3
