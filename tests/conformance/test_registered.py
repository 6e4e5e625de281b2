"""Every registered decoder passes the conformance kit, and so do a third party's that are really installed.

Compiling, and killing a process, take long: three representative decoders, of three kinds of latents, in the usual run; all of
them under the marker `conformance`.
"""

from __future__ import annotations

from typing import Any

import pytest

from conformance.subjects import MORE, TESTPARTS, Setting, settings_of
from latentlm import plugins
from latentlm.testing import CHECKS, Case, cases

REGISTERED = settings_of(plugins.names("decoder"))
REPRESENTATIVE = {"vanilla", "free", "gaussian"}
LONG = ["compiled_equals_eager", "kill_and_resume_exact"]
EXPENSIVE = pytest.mark.conformance
USUAL = [name for name in CHECKS if name not in LONG]


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


@pytest.mark.parametrize("case", params(REGISTERED, USUAL))
def test_registered(case: Case) -> None:
    case()


@pytest.mark.slow
@pytest.mark.parametrize("case", params({k: v for k, v in REGISTERED.items() if k in REPRESENTATIVE}, LONG))
def test_representative(case: Case) -> None:
    case()


@EXPENSIVE
@pytest.mark.parametrize("case", params({k: v for k, v in REGISTERED.items() if k not in REPRESENTATIVE}, LONG))
def test_others_compile_and_survive_a_kill(case: Case) -> None:
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
    assert set(REGISTERED) >= REPRESENTATIVE
