"""The kit proves itself: parts and decoders with one bug each are found by the check that is meant for the bug, and the same
decoder without bugs passes all of them.

`FOUND_BY` says which check is meant, and which others of the quick groups see the bug too. Both are compared exactly, so a
check that loses its power shows here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

import broken_parts
from latentlm.errors import PluginError
from latentlm.testing import CHECKS, QUICK, Case, NotApplicable, Subject, cases


class Bug(NamedTuple):
    """What finds a bug."""

    meant: str
    """The check that is for it."""
    also: frozenset[str] = frozenset()
    """Other quick checks that see it."""
    likelihood: frozenset[str] = frozenset()
    """Checks of likelihoods that see it; looked at where the bug is about scores."""


def bug(meant: str, *also: str, likelihood: tuple[str, ...] = ()) -> Bug:
    return Bug(meant, frozenset(also), frozenset(likelihood))


ENCODERS = {
    "sees_future_as_declared", "hiding_equals_cutting", "encoder_hears_reconstruction", "posterior_varies_between_sites",
}  # fmt: skip
"""Checks that are about encoders alone."""
FOUND_BY: dict[tuple[str, str], Bug] = {
    ("encoder", "no_positions"): bug("posterior_varies_between_sites"),
    ("encoder", "ignores_documents"): bug("documents_separate", "packed_equals_separate"),
    ("encoder", "ignores_padding"): bug(
        "padding_ignored", "hiding_equals_cutting", "documents_separate", "packed_equals_separate", "batch_independent"
    ),
    ("encoder", "says_causal"): bug("sees_future_as_declared"),
    ("encoder", "cuts_gradient"): bug("encoder_hears_reconstruction", "gradients_reach_parts"),
    ("encoder", "takes_anything"): bug("unknown_settings_refused"),
    ("encoder", "summed_over_sites"): bug(
        "shapes_and_dtypes", "packed_equals_separate", "kl_not_negative", "gradients_reach_parts"
    ),
    ("encoder", "batch_mean_kl"): bug("kl_equals_monte_carlo", "packed_equals_separate"),
    ("encoder", "global_draws"): bug(
        "random_state_untouched", "draws_keyed", "state_round_trip", "padding_ignored", "packed_equals_separate",
        "batch_independent", "batched_equals_single", "select_forks",
    ),
    ("encoder", "wrong_density"): bug("samples_follow_density", "distributions_consistent", "kl_equals_monte_carlo"),
    ("encoder", "negative_kl"): bug("kl_not_negative", "kl_equals_monte_carlo"),
    ("encoder", "real_buffer"): bug("meta_build_equals_real"),
    ("encoder", "fits_nothing"): bug("fitted_posterior_fits", "posterior_varies_between_sites"),
    ("prior", "unseeded_prior"): bug("initialisation_complete"),
    ("prior", "priced_prior"): bug("kl_zero_at_prior"),
    ("prior", "peeking_prior"): bug(
        "prior_causal", "padding_ignored", "documents_separate", "packed_equals_separate", "batch_independent",
        "step_equals_forward",
    ),
    ("prior", "other_step"): bug("step_equals_forward", "draws_equal_teacher_forced"),
    ("prior", "hidden_memory"): bug(
        "prior_orders_latents", "documents_separate", "packed_equals_separate", "step_equals_forward",
        "draws_equal_teacher_forced",
    ),
    ("injection", "detached_injection"): bug("encoder_hears_reconstruction"),
    ("injection", "early_site"): bug(
        "latent_conditions_own_positions", "documents_separate", "packed_equals_separate", "batch_independent",
        "cached_equals_uncached", "batched_equals_single", "given_latents_used",
        likelihood=("sampler_agrees", "scores_exact_own_encoder", "scores_exact_planted", "scores_keyed"),
    ),
    ("injection", "late_site"): bug(
        "latent_conditions_own_positions", "documents_separate", "packed_equals_separate", "cached_equals_uncached",
        "given_latents_used", likelihood=("leak_found_out",),
    ),
    ("injection", "unused_weight"): bug("gradients_reach_parts"),
    ("injection", "offset"): bug("zero_injection_equals_vanilla"),
    ("decoder", "not_causal"): bug(
        "causal_given_z", "latent_conditions_own_positions", "padding_ignored", "documents_separate", "packed_equals_separate",
        "batch_independent", "zero_injection_equals_vanilla", "cached_equals_uncached", "given_latents_used",
    ),
    ("decoder", "leaking_scores"): bug(
        "probabilities_sum_to_one", "prior_causal", "gradients_reach_parts", "step_equals_forward",
        "draws_equal_teacher_forced",
        likelihood=("probabilities_sum_to_one", "leak_found_out", "sampler_agrees"),
    ),
    ("decoder", "trunk_reads_z"): bug(
        "trunk_free_of_z", "cached_equals_uncached", "batched_equals_single", "select_forks", "given_latents_used",
        "step_equals_forward",
    ),
    ("decoder", "stale_cache"): bug("cached_equals_uncached", "given_latents_used", "step_equals_forward"),
    ("decoder", "forks_share"): bug("select_forks"),
    ("decoder", "loses_state"): bug("state_round_trip"),
    ("decoder", "dropout"): bug("random_state_untouched"),
    ("decoder", "completes_twice"): bug("config_round_trip"),
    ("decoder", "wrong_rows"): bug("samples_equal_one_by_one"),
    ("decoder", "spare"): bug("backbone_hears_loss"),
    ("decoder", "ascends"): bug("training_lowers_loss"),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def offered() -> Iterator[None]:
    """The parts, in this process."""
    broken_parts.register()
    yield
    broken_parts.unregister()


def subject(socket: str, name: str) -> Subject:
    """The right decoder with one part exchanged, or the wrong decoder with the right parts."""
    return Subject(name) if socket == "decoder" else Subject("right", model={socket: name})


def failing(subject: Subject, groups: tuple[str, ...]) -> set[str]:
    """Names of the checks of these groups that fail."""
    found = set()
    for name, check in CHECKS.items():
        if check.group in groups:
            try:
                check(subject)
            except NotApplicable:
                continue
            except Exception:
                found.add(name)
    return found


@pytest.mark.parametrize(("socket", "name"), FOUND_BY, ids=lambda value: value)
def test_the_bug_is_found_by_the_check_meant_for_it(socket: str, name: str) -> None:
    """With a message of the kit's own, not with a crash."""
    with pytest.raises(AssertionError):
        CHECKS[FOUND_BY[socket, name].meant](subject(socket, name))


@pytest.mark.parametrize(("socket", "name"), FOUND_BY, ids=lambda value: value)
def test_and_by_these_others_alone(socket: str, name: str) -> None:
    expected = FOUND_BY[socket, name]
    meant = {expected.meant} - expected.likelihood
    assert failing(subject(socket, name), QUICK) == meant | expected.also


@pytest.mark.parametrize(
    ("socket", "name"), [key for key, expected in FOUND_BY.items() if expected.likelihood], ids=lambda value: value
)
def test_dishonest_scores_are_found_out(socket: str, name: str) -> None:
    expected = FOUND_BY[socket, name]
    assert failing(subject(socket, name), ("likelihood",)) == expected.likelihood


def test_a_part_that_leaves_a_tensor_unset_cannot_be_built() -> None:
    with pytest.raises(PluginError, match=r"LeavesUnset\.init_weights leaves shift unset"):
        CHECKS["initialisation_complete"](Subject("right", model={"encoder": "leaves_unset"}))


@pytest.mark.parametrize("decoder", ["right", "encoderless"])
@pytest.mark.parametrize("check", [name for name, check in CHECKS.items() if check.group in QUICK])
def test_the_decoder_without_bugs_passes(decoder: str, check: str) -> None:
    if check == "fitted_posterior_fits" or (decoder == "encoderless" and check in ENCODERS):
        with pytest.raises(NotApplicable):
            CHECKS[check](Subject(decoder))
    else:
        CHECKS[check](Subject(decoder))


def test_training_that_global_randomness_decides_is_found() -> None:
    with pytest.raises(AssertionError, match="two trainings with one seed differ"):
        CHECKS["noise_alone_decides_training"](Subject("dropout"))


def test_a_schedule_that_forgets_its_state_is_found() -> None:
    with pytest.raises(AssertionError, match="state that the checkpoint does not hold"):
        CHECKS["resume_exact"](Subject("right", model={"kl_schedule": "forgets_state"}))


@pytest.mark.slow
def test_a_part_that_is_another_when_compiled_is_found() -> None:
    with pytest.raises(AssertionError, match="the compiled loss"):
        CHECKS["compiled_equals_eager"](Subject("right", model={"injection": "other_compiled"}))


def test_every_broken_part_is_here() -> None:
    wrong = {(s, n) for s, parts in broken_parts.PARTS.items() for n in parts if not n.startswith("right")}
    elsewhere = {"leaves_unset", "encoderless", "forgets_state", "other_compiled"}
    assert {name for _, name in wrong - set(FOUND_BY)} == elsewhere


def test_every_quick_check_finds_something() -> None:
    """A check that no bug here trips would be unproven."""
    proven = {check for expected in FOUND_BY.values() for check in (expected.meant, *expected.also)}
    assert {name for name, check in CHECKS.items() if check.group in QUICK} - proven == set()


def test_a_case_reports_what_a_test_needs() -> None:
    """Cases of a subject pass, fail and skip as its checks do."""
    check = "zero_injection_equals_vanilla"
    (case,) = [param.values[0] for param in cases("right", model={"injection": "offset"}, checks=[check])]
    assert isinstance(case, Case)
    with pytest.raises(AssertionError, match="hidden states with an injection of zeros"):
        case()
