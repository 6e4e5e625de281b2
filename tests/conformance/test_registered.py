"""Every registered decoder passes the conformance kit, and so do a third party's that are really installed.

Compiling, killing a process, and what takes many samples take long: representative decoders in the usual run, all of them under
the marker `conformance`.
"""

from __future__ import annotations

from typing import Any

import pytest

from conformance.subjects import MORE, TESTPARTS, Setting, settings_of
from latentlm import plugins
from latentlm.testing import CHECKS, Case, cases

REGISTERED = settings_of(plugins.names("decoder"))
REPRESENTATIVE = {
    "compiled_equals_eager": {"free"},
    "compiled_steps_equal_steps": set(),  # (tests/test_compiled_generation.py has the Free Transformer's and chunks')
    "kill_and_resume_exact": set(),  # (tests/training/test_resume.py kills the Free Transformer's training)
    "error_bars_honest": {"vanilla", "gaussian"},
    "leak_found_out": {"vanilla", "gaussian"},
    "scores_keyed": {"vanilla", "free", "gaussian"},
    "sampler_agrees": {"vanilla", "free", "gaussian"},
    "probabilities_sum_to_one": {"vanilla", "free", "gaussian"},
    "bounds_in_order": {"vanilla", "free", "gaussian"},
}
"""Of the checks that take long, the decoders whose usual run has them."""
EXPENSIVE = pytest.mark.conformance


def params(settings: dict[str, Setting], checks: list[str]) -> list[Any]:
    """The cases of these decoders."""
    return [
        param
        for label, setting in settings.items()
        for param in cases(
            setting.decoder,
            model=setting.model,
            exact=setting.exact,
            checks=checks,
            expected_failures={name: why for name, why in setting.expected_failures.items() if name in checks},
            label=label,
        )
    ]


def shared(*, usual: bool) -> list[Any]:
    """The cases of the usual run, or those left to the long one."""
    return [
        param
        for check in CHECKS
        for param in params(
            {name: setting for name, setting in REGISTERED.items() if (name in REPRESENTATIVE.get(check, REGISTERED)) == usual},
            [check],
        )
    ]


@pytest.mark.parametrize("case", shared(usual=True))
def test_registered(case: Case) -> None:
    case()


@EXPENSIVE
@pytest.mark.parametrize("case", shared(usual=False))
def test_registered_at_length(case: Case) -> None:
    case()


@EXPENSIVE
@pytest.mark.parametrize("case", params(MORE, list(CHECKS)))
def test_other_combinations(case: Case) -> None:
    case()


@EXPENSIVE
@pytest.mark.usefixtures("testparts")
@pytest.mark.parametrize("case", params(TESTPARTS, list(CHECKS)))
def test_a_third_party(case: Case) -> None:
    case()


def test_every_decoder_of_this_repository_is_among_them() -> None:
    """One whose plugin failed to load would leave without a word."""
    assert {"vanilla", "composed", "free", "causal", "chunk", "gaussian", "ltm", "della", "ngram", "prefix"} <= set(REGISTERED)
    assert CHECKS.keys() >= REPRESENTATIVE.keys()
    assert set(REGISTERED) >= set().union(*REPRESENTATIVE.values())
