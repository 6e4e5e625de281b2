"""Decoders of several latents pass the conformance kit.

    two_levels    a real number per document above a bit per token
    causal        the same, the bits' prior reading the document's number: p(bits | text, bits before, intent)
    three_levels  a number per document, a code per two tokens, a bit per token: a part of each level reads a block above the
                  injections of those before, so that every stage is met

Every quick check on all three. Likelihoods are sums over the product of all values: 141 points of the number times the codes of
the chunks times the bits of the tokens, 9,024 at most. Exactness on two of them, keyed scores on the first; all else that
takes long under the marker `conformance`.
"""

from __future__ import annotations

from typing import Any

import pytest

from conformance.subjects import SEVERAL
from latentlm.testing import CHECKS, QUICK, Case, Subject, cases
from latentlm.testing.exact import count_values, exact_elbo, exact_log_likelihood
from latentlm.testing.likelihood import check_exactness

EXACT = ["scores_exact_own_encoder", "scores_exact_planted"]
LIKELIHOOD = [name for name, check in CHECKS.items() if check.group == "likelihood"]
LONG = ["compiled_equals_eager", "compiled_steps_equal_steps", "kill_and_resume_exact"]


def params(labels: list[str], checks: list[str]) -> list[Any]:
    """The cases of these decoders."""
    return [
        param
        for label in labels
        for param in cases(
            "composed", model=SEVERAL[label].model, exact=SEVERAL[label].exact, checks=checks, label=label
        )
    ]


@pytest.mark.parametrize("case", params(list(SEVERAL), [*QUICK, "resume_exact", "noise_alone_decides_training"]))
def test_several(case: Case) -> None:
    case()


@pytest.mark.parametrize("case", params(["two_levels", "causal"], EXACT) + params(["two_levels"], ["scores_keyed"]))
def test_likelihoods(case: Case) -> None:
    case()


@pytest.mark.conformance
@pytest.mark.parametrize("case", params(list(SEVERAL), LIKELIHOOD))
def test_likelihoods_at_length(case: Case) -> None:
    case()


@pytest.mark.conformance
@pytest.mark.parametrize("case", params(list(SEVERAL), LONG))
def test_they_compile_and_survive_a_kill(case: Case) -> None:
    case()


@pytest.mark.conformance
def test_six_tokens_are_summed_over_exactly() -> None:
    """A bit for each of six tokens times a grid: 9,024 values."""
    subject = Subject("composed", model=SEVERAL["causal"].model)
    request = ([0, 1, 1], [2, 0, 1, 1])
    assert count_values(subject.planted, *request) == 141 * 2**6
    for model in (subject.exact, subject.planted):
        for method in ("operational", "iwae", "prior", "elbo"):
            samples = 2048 if method == "prior" else 1024
            check_exactness(model, [request], method=method, samples=samples, power=0.4, seed=2)  # type: ignore[arg-type]
        assert exact_elbo(model, *request) <= exact_log_likelihood(model, *request, target="prior") + 1e-4
