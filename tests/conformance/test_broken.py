"""The kit proves itself: parts and decoders with one bug each are found by the check that is meant for the bug, and the same
decoder without bugs passes all of them.

`FOUND_BY` says which check is meant, and which others of the quick groups see the bug too. Both are compared exactly, so a
check that loses its power shows here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple
from unittest import mock

import pytest

from conformance.broken import offered as broken_parts
from latentlm.errors import PluginError
from latentlm.interface import Noise
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
    "prefill_draws_posterior",
}  # fmt: skip
"""Checks that are about encoders alone."""
NOT_OF_LINEAR = {
    "fitted_posterior_fits", "posterior_orders_latents", "adding_a_latent_keeps_draws", "loss_moves_no_buffer",
    "advance_empties", "micro_batches_gather_alike",
}  # fmt: skip
"""Checks about what the decoder without bugs has not: a fitted posterior, several latents, moving averages."""
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
        "shapes_and_dtypes", "packed_equals_separate", "kl_not_negative", "gradients_reach_parts", "kl_equals_monte_carlo"
    ),
    ("encoder", "batch_mean_kl"): bug("kl_equals_monte_carlo", "packed_equals_separate"),
    ("encoder", "global_draws"): bug(
        "random_state_untouched", "draws_keyed", "state_round_trip", "padding_ignored", "packed_equals_separate",
        "batch_independent", "batched_equals_single", "select_forks", "steps_along_texts", "latents_draw_apart",
        "latents_shared_by_name", "prefill_draws_posterior",
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
        "given_latents_used",
        # Rows that share a beginning run it by itself.
        likelihood=("estimators_agree", "leak_found_out", "scores_exact_planted", "scores_keyed"),
    ),
    ("injection", "unused_weight"): bug("gradients_reach_parts"),
    ("injection", "offset"): bug("zero_injection_equals_vanilla"),
    ("decoder", "not_causal"): bug(
        "causal_given_z", "latent_conditions_own_positions", "padding_ignored", "documents_separate", "packed_equals_separate",
        "batch_independent", "cached_equals_uncached", "given_latents_used",
    ),
    ("decoder", "leaking_scores"): bug(
        "probabilities_sum_to_one", "prior_causal", "gradients_reach_parts", "step_equals_forward",
        "draws_equal_teacher_forced",
        likelihood=("probabilities_sum_to_one", "leak_found_out", "sampler_agrees", "scores_exact_planted"),
    ),
    ("decoder", "trunk_reads_z"): bug(
        "trunk_free_of_z", "cached_equals_uncached", "batched_equals_single", "select_forks", "steps_along_texts",
        "given_latents_used", "step_equals_forward",
    ),
    ("decoder", "stale_cache"): bug(
        "cached_equals_uncached", "steps_along_texts", "given_latents_used", "step_equals_forward"
    ),
    ("decoder", "forks_share"): bug("select_forks", "steps_along_texts"),
    ("decoder", "resamples_in_place"): bug("steps_along_texts"),
    ("decoder", "loses_state"): bug("state_round_trip"),
    ("decoder", "dropout"): bug("random_state_untouched"),
    ("decoder", "completes_twice"): bug("config_round_trip"),
    ("decoder", "wrong_rows"): bug("samples_equal_one_by_one"),
    ("decoder", "spare"): bug("backbone_hears_loss"),
    ("decoder", "ascends"): bug("training_lowers_loss", "loss_adds_up"),
    ("encoder", "moves_in_loss"): bug("loss_moves_no_buffer", "micro_batches_gather_alike"),
    ("encoder", "never_empties"): bug("advance_empties"),
    ("encoder", "last_batch_alone"): bug("micro_batches_gather_alike"),
    ("prior", "undeclared_tap"): bug("taps_as_declared"),
    ("prior", "no_bits"): bug(
        "values_of_the_family", "distributions_consistent", "kl_equals_monte_carlo", "samples_follow_density",
        "latents_given_by_name",
    ),
    ("prior", "silent_energy"): bug("distributions_consistent", "samples_follow_density"),
    ("injection", "undeclared_slot"): bug("blocks_and_slots_as_declared", "zero_injection_equals_vanilla"),
    ("granularity", "looks_ahead"): bug(
        "sites_begin_causally", "lookback_as_declared", "packed_documents_begin_alike", "packed_equals_separate",
        "batch_independent", "hiding_equals_cutting", "cached_equals_uncached", "batched_equals_single", "given_latents_used",
    ),
    ("granularity", "short_lookback"): bug(
        "lookback_as_declared", "cached_equals_uncached", "given_latents_used", "step_equals_forward",
        "draws_equal_teacher_forced",
    ),
    ("granularity", "across_documents"): bug("packed_documents_begin_alike", "packed_equals_separate"),
    ("granularity", "from_the_row"): bug(
        "packed_documents_begin_alike", "lookback_as_declared", "packed_equals_separate", "latents_given_by_name",
        "cached_equals_uncached", "given_latents_used", "step_equals_forward",
    ),
    ("granularity", "not_at_first"): bug("begins_as_the_contract_says"),
    ("lower prior", "peeks_above"): bug(
        "prior_orders_latents", "documents_separate", "packed_equals_separate", "batch_independent", "step_equals_forward",
        "draws_equal_teacher_forced",
    ),
    ("lower prior", "deaf_to_above"): bug("prior_orders_latents"),
    ("lower encoder", "deaf_encoder"): bug("posterior_orders_latents"),
    ("lower injection", "ignores_sites"): bug(
        "latent_conditions_own_positions", "documents_separate", "packed_equals_separate", "batch_independent",
        "cached_equals_uncached", "batched_equals_single", "given_latents_used",
    ),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def offered() -> Iterator[None]:
    """The parts, in this process."""
    broken_parts.register()
    yield
    broken_parts.unregister()


RIGHT = {"encoder": "right_encoder", "prior": "right_prior", "injection": "right_injection", "kl_schedule": "constant"}


def subject(socket: str, name: str) -> Subject:
    """The right decoder with one part exchanged, or the wrong decoder with the right parts. "lower ..." is a part of the second
    of two latents, which reads the first where it can."""
    if socket == "decoder":
        return Subject(name)
    if socket == "granularity":
        return Subject("free", model={"granularity": name})
    if not socket.startswith("lower "):
        return Subject("right", model={socket: name})
    socket = socket.removeprefix("lower ")
    above = {"above": ["upper"]} if broken_parts.PARTS[socket][name].reads_above else {}
    lower = {"like": "free", "granularity": "chunk:2"} if socket == "injection" else RIGHT
    return Subject("composed", model={"latents": {"upper": RIGHT, "lower": {**lower, socket: {"name": name, **above}}}})


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


@pytest.mark.conformance
@pytest.mark.parametrize(("socket", "name"), FOUND_BY, ids=lambda value: value)
def test_and_by_these_others_alone(socket: str, name: str) -> None:
    expected = FOUND_BY[socket, name]
    meant = {expected.meant} - expected.likelihood
    assert failing(subject(socket, name), QUICK) == meant | expected.also


@pytest.mark.conformance
@pytest.mark.parametrize(
    ("socket", "name"), [key for key, expected in FOUND_BY.items() if expected.likelihood], ids=lambda value: value
)
def test_dishonest_scores_are_found_out(socket: str, name: str) -> None:
    expected = FOUND_BY[socket, name]
    assert failing(subject(socket, name), ("likelihood",)) == expected.likelihood


def test_a_part_that_leaves_a_tensor_unset_cannot_be_built() -> None:
    with pytest.raises(PluginError, match=r"LeavesUnset\.init_weights leaves shift unset"):
        CHECKS["initialisation_complete"](Subject("right", model={"encoder": "leaves_unset"}))


def test_a_block_that_is_not_declared_is_refused_by_the_decoder_itself() -> None:
    with pytest.raises(PluginError, match=r"\(UndeclaredBlock\) conditions blocks \[\d\], but declares `blocks` as \(\d,\)"):
        CHECKS["blocks_and_slots_as_declared"](Subject("right", model={"injection": "undeclared_block"}))


@pytest.mark.parametrize("decoder", ["right", "encoderless"])
@pytest.mark.parametrize("check", [name for name, check in CHECKS.items() if check.group in QUICK])
def test_the_decoder_without_bugs_passes(decoder: str, check: str) -> None:
    if check in NOT_OF_LINEAR or (decoder == "encoderless" and check in ENCODERS):
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


def test_latents_that_share_their_numbers_are_found() -> None:
    for file in ("decoder", "decoding"):
        assert hasattr(importlib.import_module(f"latentlm.composed.{file}"), "noise_of")
    of_two = subject("lower prior", "right_above")
    with _noise_of(lambda noise, name, names: noise), pytest.raises(AssertionError, match="latents may not share a key"):
        CHECKS["latents_draw_apart"](of_two)


def test_numbers_that_depend_on_later_latents_are_found() -> None:
    of_two = subject("lower prior", "right_above")
    behind = pytest.raises(AssertionError, match="with one more latent behind lower")
    with _noise_of(lambda noise, name, names: noise.latent(f"{name} of {len(names)}")), behind:
        CHECKS["adding_a_latent_keeps_draws"](of_two)


@contextmanager
def _noise_of(wrong: Callable[[Noise, str, list[str]], Noise]) -> Iterator[None]:
    """ComposedDecoder draws its latents from other numbers."""
    with mock.patch("latentlm.composed.decoder.noise_of", wrong), mock.patch("latentlm.composed.decoding.noise_of", wrong):
        yield


RIGHT_ONES = [
    ("encoder", "right_average"), ("prior", "right_energy"), ("granularity", "right_pairs"), ("lower prior", "right_above"),
]  # fmt: skip


@pytest.mark.parametrize(("socket", "name"), RIGHT_ONES, ids=lambda value: value)
def test_what_is_right_passes(socket: str, name: str) -> None:
    """A moving average, an unnormalised prior, a granularity that reads tokens, a prior that reads the latent above."""
    assert failing(subject(socket, name), QUICK) == set()


def test_the_decoder_without_likelihood_says_so() -> None:
    """Its scores are refused and its training logs no bound; every other check of likelihoods does not apply."""
    energy = subject("prior", "right_energy")
    CHECKS["unnormalised_refused"](energy)
    CHECKS["no_bound_is_logged"](energy)
    for name, check in CHECKS.items():
        if check.group == "likelihood" and name != "unnormalised_refused":
            with pytest.raises(NotApplicable):
                check(energy)


@pytest.mark.conformance
def test_a_part_that_is_another_when_compiled_is_found() -> None:
    with pytest.raises(AssertionError, match="the compiled loss"):
        CHECKS["compiled_equals_eager"](Subject("right", model={"injection": "other_compiled"}))
    with pytest.raises(AssertionError, match="the logits of a compiled step"):
        CHECKS["compiled_steps_equal_steps"](Subject("right", model={"injection": "other_compiled"}))


def test_every_broken_part_is_here() -> None:
    wrong = {(s, n) for s, parts in broken_parts.PARTS.items() for n in parts if not n.startswith("right")}
    elsewhere = {"leaves_unset", "encoderless", "forgets_state", "other_compiled", "undeclared_block"}
    found = {(socket.removeprefix("lower "), name) for socket, name in FOUND_BY}
    assert {name for _, name in wrong - found} == elsewhere


def test_every_quick_check_finds_something() -> None:
    """A check that no bug here trips would be unproven."""
    proven = {check for expected in FOUND_BY.values() for check in (expected.meant, *expected.also)}
    proven |= {"latents_draw_apart", "adding_a_latent_keeps_draws"}
    assert {name for name, check in CHECKS.items() if check.group in QUICK} - proven == set()


def test_a_case_reports_what_a_test_needs() -> None:
    """Cases of a subject pass, fail and skip as its checks do."""
    check = "zero_injection_equals_vanilla"
    (case,) = [param.values[0] for param in cases("right", model={"injection": "offset"}, checks=[check])]
    assert isinstance(case, Case)
    with pytest.raises(AssertionError, match=r"hidden states with the injection of z \(Offset\) of zeros"):
        case()
