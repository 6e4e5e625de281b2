"""The conformance kit: checks that a plugin author runs on a decoder, each raising AssertionError with what went wrong.

    test_conformance = latentlm.testing.conformance("mine")      every check as a test of its own (docs/conformance.md)
    CHECKS["causal_given_z"](Subject("mine"))                    one check, without pytest
    planted = plant(model)                  a copy whose posterior reads the future and whose decoder uses it
    check_normalisation(planted, ...)       and the other checks of `latentlm.testing.likelihood`
"""

from latentlm.testing.collecting import Case, Conformance, cases, conformance
from latentlm.testing.likelihood import (
    Sum,
    check_coverage,
    check_exactness,
    check_keyed_randomness,
    check_no_latents_no_noise,
    check_normalisation,
    check_sampler_agreement,
    check_shrinking_error,
    leak_sum,
    probability_sum,
)
from latentlm.testing.planted import PlantedEncoder, plant
from latentlm.testing.registry import GROUPS, QUICK, Check, NotApplicable, registered
from latentlm.testing.subject import Subject

CHECKS: dict[str, Check] = registered()
"""Every check by name, group by group; `CHECKS[name].line` says what it is about, and calling it with a Subject runs it."""

__all__ = [
    "CHECKS",
    "GROUPS",
    "QUICK",
    "Case",
    "Check",
    "Conformance",
    "NotApplicable",
    "PlantedEncoder",
    "Subject",
    "Sum",
    "cases",
    "check_coverage",
    "check_exactness",
    "check_keyed_randomness",
    "check_no_latents_no_noise",
    "check_normalisation",
    "check_sampler_agreement",
    "check_shrinking_error",
    "conformance",
    "leak_sum",
    "plant",
    "probability_sum",
]
