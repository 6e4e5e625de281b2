"""Scoring requests and texts: windows, cutting, keys, greediness, refusals, and work done in pieces."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch

from latentlm.composed import ComposedDecoder, build
from latentlm.config import ModelConfig
from latentlm.errors import UserError
from latentlm.interface import Batch, Latent, Latents, Noise
from latentlm.likelihood import (
    bits_per_byte,
    bound_of,
    elbo,
    fit_to_context,
    log_mean_exp,
    nats,
    paired_difference,
    score_continuations,
    score_texts,
    windows,
)
from latentlm.likelihood.nats import path_likelihood
from latentlm.likelihood.paths import classify
from latentlm.likelihood.results import Score
from latentlm.likelihood.texts import Texts
from latentlm.testing.exact import exact_elbo, exact_log_likelihood
from likelihood_parts import tiny
from samples import small_config


@cache
def model() -> ComposedDecoder:
    return tiny(vocabulary=2, events=1)


@cache
def chunked() -> ComposedDecoder:
    return tiny("chunk:2")


def score_of(value: float, error: float = 0.0) -> Score:
    return Score(value=value, standard_error=error, effective_samples=1, samples=0, tokens=1, method="iwae")


# ------------------------------------------------------------------------------------------------- vanilla, by hand


def test_vanilla_score_is_the_sum_of_its_log_probabilities() -> None:
    vanilla = build(small_config("vanilla"))
    context, continuation = [3, 1, 4], [1, 5, 9]
    log_probs = vanilla.logits(vanilla.hidden(vanilla.context(Batch.of([[*context, *continuation]])), None)).log_softmax(-1)
    expected = sum(log_probs[0, 2 + j, token].item() for j, token in enumerate(continuation))
    assert score_continuations(vanilla, [(context, continuation)])[0].value == pytest.approx(expected, abs=1e-5)


def test_vanilla_greediness_is_the_argmax_at_every_step() -> None:
    vanilla = build(small_config("vanilla"))
    text = [3, 1, 4]
    for _ in range(3):
        logits = vanilla.logits(vanilla.hidden(vanilla.context(Batch.of([text])), None))
        text.append(int(logits[0, -1].argmax()))
    wrong = [*text[3:-1], (text[-1] + 1) % 17]
    found = score_continuations(vanilla, [(text[:3], text[3:]), (text[:3], wrong)], greedy=True)
    assert [score.greedy for score in found] == [True, False]


# ------------------------------------------------------------------------------------------------------- greediness


@pytest.mark.parametrize("method", ["operational", "iwae"])
def test_greedy_follows_the_exact_predictive_mixture(method: str) -> None:
    """The argmax of p(next | all before) under the target, by enumeration; the posterior that saw the answer has no say."""
    target = "generation" if method == "operational" else "prior"
    context = [0, 2, 2]
    expected = {}
    for continuation in product(range(3), repeat=2):
        steps = []
        for place, token in enumerate(continuation):
            chances = [
                exact_log_likelihood(chunked(), context, [*continuation[:place], option], target=target) for option in range(3)
            ]
            best, second, _ = sorted(chances, reverse=True)
            steps.append((chances[token] == best, best - second))
        if min(gap for _, gap in steps) > 0.2:  # close calls depend on the sample
            expected[continuation] = all(is_best for is_best, _ in steps)
    requests = [(context, continuation) for continuation in expected]
    found = score_continuations(chunked(), requests, method=method, samples=512, greedy=True)
    assert [score.greedy for score in found] == list(expected.values())
    assert any(expected.values())
    assert not all(expected.values())


class _TwoOpinions:
    """Sample 0 expects token 0 twice, sample 1 expects token 1 twice, and more firmly. What `hidden` returns are logits."""

    latents = ("z",)
    device = torch.device("cpu")
    config = small_config()

    def hidden(self, context: object, latents: Latents) -> torch.Tensor:
        chances = torch.tensor([[[0.9, 0.1], [0.9, 0.1]], [[0.05, 0.95], [0.02, 0.98]]])
        return chances.log()[: latents.rows]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


def test_predictive_mixture_weights_samples_by_the_tokens_so_far() -> None:
    """After a 0, sample 0 is far more credible: the next token is 0, though the plain mean of the two says 1."""
    for text, expected in (([0, 0, 0], [False, True]), ([0, 1, 1], [True, True])):
        texts = Texts.of(model(), [text], [1])
        nats, greedy = path_likelihood(_TwoOpinions(), texts, Latent(torch.zeros(2, 2, 1)), greedy=True)
        assert greedy.tolist() == [expected]
        assert nats[0].exp().tolist() == pytest.approx([0.81, 0.001] if text[1] == 0 else [0.01, 0.931], abs=1e-6)


def test_joint_checks_the_greediness_of_the_continuation_alone() -> None:
    requests = [([0, 0, 0, 1], [option]) for option in range(2)]
    found = score_continuations(model(), requests, method="joint", samples=256, greedy=True)
    assert sum(bool(score.greedy) for score in found) == 1


# ------------------------------------------------------------------------------------------------ requests and texts


def test_joint_of_options_differ_as_joint_log_likelihoods_do() -> None:
    context, options = [0, 1, 1], [[0, 1], [1, 0]]
    found = score_continuations(model(), [(context, option) for option in options], method="joint", samples=2048)
    exact = [exact_log_likelihood(model(), [0], [1, 1, *option], target="prior") for option in options]
    errors = math.hypot(found[0].standard_error, found[1].standard_error)
    assert abs((found[0].value - found[1].value) - (exact[0] - exact[1])) < 4 * errors
    assert found[0].tokens == 4


def test_without_context_a_continuation_is_a_text_after_its_first_token() -> None:
    bare = score_continuations(model(), [([], [0, 1, 1, 0])], samples=64, keys=["one"])[0]
    text = score_continuations(model(), [([0], [1, 1, 0])], method="iwae", samples=64, keys=["one"])[0]
    assert bare.value == pytest.approx(text.value)
    with pytest.raises(UserError, match="end-of-text"):
        score_continuations(model(), [([], [1])])


def test_long_texts_are_scored_in_disjoint_windows() -> None:
    text = [int(bit) for bit in format(0b101100111000101, "b")] * 3
    found = score_texts(model(), [text, text[:9]], samples=8, context=7, keys=["a", "b"])
    assert [score.tokens for score in found] == [len(text) - 1, 8]
    pieces = windows(text, 7)
    assert [piece[1:] for piece in pieces] == [text[i : i + 7] for i in range(1, len(text), 7)]
    assert all(one[-1] == other[0] for one, other in pairwise(pieces))
    parts = [score_texts(model(), [piece], samples=8, keys=["a"])[0] for piece in pieces[:1]]
    assert parts[0].value > found[0].value
    vanilla = build(small_config("vanilla", context=7))
    whole = score_texts(vanilla, [text])[0]
    by_hand = sum(score_continuations(vanilla, [(piece[:1], piece[1:])])[0].value for piece in pieces)
    assert whole.value == pytest.approx(by_hand, abs=1e-4)


def test_text_scores_estimate_the_likelihood_after_the_first_token() -> None:
    text = [0, 1, 1, 0, 1]
    found = score_texts(model(), [text], method="iwae", samples=4096)[0]
    exact = exact_log_likelihood(model(), text[:1], text[1:], target="prior")
    assert abs(found.value - exact) < 4 * found.standard_error
    assert found.standard_error < 0.1


def test_contexts_are_cut_from_the_left_and_continuations_never() -> None:
    assert fit_to_context([1, 2, 3, 4], [5, 6], 4) == ([2, 3, 4], [5, 6])
    assert fit_to_context([1, 2], [5, 6, 7], 3) == ([2], [5, 6, 7])
    assert fit_to_context([1, 2], [5], 9) == ([1, 2], [5])
    with pytest.raises(UserError, match="does not fit"):
        fit_to_context([1], [5, 6, 7], 2)


def test_options_of_one_question_draw_the_same_latents_for_their_context() -> None:
    """One token: nothing but context latents is random, so the options' probabilities add up to 1 exactly, sample by sample."""
    found = score_continuations(model(), [([0, 1, 1], [option]) for option in range(2)], samples=8)
    assert sum(math.exp(score.value) for score in found) == pytest.approx(1, abs=1e-5)
    assert not math.isclose(sum(math.exp(score.value) for score in _with_own_keys()), 1, abs_tol=1e-5)


def _with_own_keys() -> list[Score]:
    return score_continuations(model(), [([0, 1, 1], [option]) for option in range(2)], samples=8, keys=["a", "b"])


def test_seeds_and_keys_choose_the_numbers() -> None:
    request = [([0, 1], [1, 1, 0])]
    first, again, other = (score_continuations(model(), request, seed=seed)[0] for seed in (0, 0, 1))
    assert first == again
    assert first.value != other.value


def test_pieces_give_the_same_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few samples through the upper blocks and a few positions of logits at a time."""
    requests = [([0, 2], [1, 2, 0, 1, 1]), ([1, 2, 0, 0], [1, 1])]
    whole = score_continuations(chunked(), requests, samples=24, batch_size=2, greedy=True)
    monkeypatch.setattr(nats, "LATENT_TOKENS", 50)
    monkeypatch.setattr(nats, "LOGITS", 2 * 24 * 3 * 2)
    pieces = score_continuations(chunked(), requests, samples=24, batch_size=2, greedy=True)
    for one, other in zip(whole, pieces, strict=True):
        assert one.value == pytest.approx(other.value, abs=1e-5)
        assert one.greedy == other.greedy


@pytest.mark.parametrize("batch_size", [None, 8])
def test_a_batch_holds_no_more_rows_than_their_logits_allow(monkeypatch: pytest.MonkeyPatch, batch_size: int | None) -> None:
    """At one position: samples * vocabulary * rows."""
    requests = [([0, 2], [1, 2, 0]), ([1, 2, 0], [1, 1]), ([1, 1], [0, 2]), ([2, 2], [0]), ([0], [1, 1])]
    whole = score_continuations(chunked(), requests, samples=8)
    decoder, most = chunked(), 2 * 8 * 3
    monkeypatch.setattr(nats, "LOGITS", most)
    sizes = []
    logits = decoder.logits

    def watched(hidden: torch.Tensor) -> torch.Tensor:
        made = logits(hidden)
        sizes.append(made.numel())
        return made

    monkeypatch.setattr(decoder, "logits", watched)
    pieces = score_continuations(decoder, requests, samples=8, batch_size=batch_size)
    assert max(sizes) == most
    assert [score.value for score in pieces] == pytest.approx([score.value for score in whole], abs=1e-5)


@pytest.mark.parametrize("form", [np.array, torch.tensor, lambda tokens: list(np.array(tokens))])
def test_the_type_that_holds_the_tokens_changes_no_score(form: Callable[[list[int]], Any]) -> None:
    context, continuation, text = [0, 1], [1, 1, 0], [0, 1, 1, 0]
    plain = score_continuations(model(), [(context, continuation)], samples=4)
    assert score_continuations(model(), [(form(context), form(continuation))], samples=4) == plain
    assert score_texts(model(), [form(text)], samples=4) == score_texts(model(), [text], samples=4)


@pytest.mark.parametrize("granularity", ["token", "chunk:2", "document"])
def test_for_one_token_nothing_is_proposed(granularity: str) -> None:
    """The posterior has not seen it; so the options share every draw, and their probabilities add up to 1 exactly."""
    decoder = tiny(granularity)
    for last in ("posterior", "prior"):
        texts = Texts.of(decoder, [[0, 1, 1, 2], [0, 1, 1, 2]], [3, 2])
        sites = classify(decoder, texts.context, texts.lengths, target="generation", last_latent=last)
        assert sites["z"].proposed.any(1).tolist() == [False, True]
        found = score_continuations(decoder, [([0, 1, 1], [option]) for option in range(3)], samples=8, last_latent=last)
        assert sum(math.exp(score.value) for score in found) == pytest.approx(1, abs=1e-5)
    found = score_continuations(decoder, [([0, 1, 1], [option]) for option in range(3)], samples=8, method="iwae")
    assert sum(math.exp(score.value) for score in found) == pytest.approx(1, abs=1e-5)


def test_last_token_is_no_input() -> None:
    """No latent is drawn for a token that conditions nothing: a text of n tokens has n-1 inputs."""
    texts = Texts.of(model(), [[0, 1, 1], [1, 0]], [1, 1])
    assert texts.context.tokens.shape == (2, 2)
    assert texts.context.site_mask.tolist() == [[True, True], [True, False]]
    assert texts.positions[0].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "iwea"}, 'Did you mean "iwae"'),
        ({"samples": 0}, "samples must be at least 1, not 0"),
        ({"defensive": 1.0}, "share of paths"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"keys": [1, 2]}, "2 keys for 1 requests"),
        ({"last_latent": "both"}, "last_latent"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        score_continuations(model(), [([0], [1])], **change)


def test_requests_that_cannot_be_scored_are_refused() -> None:
    with pytest.raises(UserError, match="empty continuation"):
        score_continuations(model(), [([0], [])])
    with pytest.raises(UserError, match="fit_to_context"):
        score_continuations(model(), [([0] * 16, [1, 1])])
    with pytest.raises(UserError, match="1 tokens"):
        score_texts(model(), [[0]])
    with pytest.raises(UserError, match="context must be at least 1, not 0"):
        score_texts(model(), [[0, 1]], context=0)
    assert score_continuations(model(), []) == []


# --------------------------------------------------------------------------------------------------- errors and sums


def test_one_sample_has_no_error_bar_and_few_effective_samples_warn() -> None:
    one = score_continuations(model(), [([0, 1], [1, 1])], samples=1)[0]
    assert one.standard_error == math.inf
    assert "one sample" in one.warnings[0]
    value, error = log_mean_exp(torch.tensor([[0.0, -50.0, -50.0, -50.0]]))
    assert float(value) == pytest.approx(-math.log(4))
    assert float(error) > 10, "one weight has it all: the error must say so"


def test_jackknife_equals_leaving_each_sample_out() -> None:
    logs = torch.randn(3, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    _, error = log_mean_exp(logs)
    left = torch.stack([logs[:, [j for j in range(9) if j != k]].logsumexp(1) for k in range(9)], dim=1)
    expected = ((left - left.mean(1, keepdim=True)).square().sum(1) * 8 / 9).sqrt()
    torch.testing.assert_close(error, expected)


def test_training_bound_is_the_elbo_on_average() -> None:
    context, continuation = [0], [1, 1, 0]
    rows = 600
    batch = Batch.of([[*context, *continuation][:-1]] * rows, [continuation] * rows)
    bound = elbo(model(), batch, Noise.keyed(0, range(rows)))
    exact = exact_elbo(model(), context, continuation)
    error = float(bound.value.std()) / math.sqrt(rows)
    assert abs(float(bound.value.mean()) - exact) < 4 * error + 1e-4
    torch.testing.assert_close(bound.value, -(bound.reconstruction + bound.kl))


def test_the_bound_of_a_padded_row_is_that_of_the_row_alone() -> None:
    inputs, targets = [[0, 1, 1, 0, 1, 1, 0], [0, 1]], [[1, 1, 0, 1, 1, 0, 0], [1, 1]]
    decoder = build(small_config("free"))
    loss = decoder.loss(Batch.of(inputs, targets), step=0, noise=Noise.keyed(0, ["long", "short"]))
    assert loss.kl is not None
    assert loss.kl[1, 2:].sum() > 0.01, "the padded sites cost nothing, so that the test shows nothing"
    beside = bound_of(loss)
    for row, key in enumerate(("long", "short")):
        alone = elbo(decoder, Batch.of(inputs[row : row + 1], targets[row : row + 1]), Noise.keyed(0, [key]))
        torch.testing.assert_close(beside.value[row], alone.value[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(beside.kl[row], alone.kl[0], atol=1e-5, rtol=0)
        assert beside.tokens[row] == alone.tokens[0] == len(inputs[row])


def test_a_bound_leaves_the_schedule_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = build(small_config("free"))
    schedule = decoder.kl_schedule
    assert schedule is not None
    monkeypatch.setattr(schedule, "penalty", lambda *_, **__: pytest.fail("the penalty was asked for"))
    elbo(decoder, Batch.of([[1, 2]], [[2, 3]]), Noise.keyed(0, [0]))
    assert decoder.kl_schedule is schedule


def test_bits_per_byte_counts_bits_over_bytes_with_clustered_errors() -> None:
    scores = [score_of(-8 * math.log(2)), score_of(-24 * math.log(2))]
    found = bits_per_byte(scores, [4, 4])
    assert found.value == pytest.approx(4.0)
    assert found.standard_error == pytest.approx(math.sqrt(2 * (8**2 + 8**2)) / 8)
    assert math.isnan(bits_per_byte(scores, [4, 4], documents=["a", "a"]).standard_error)


def test_clusters_widen_the_error_of_repeated_documents() -> None:
    scores = [score_of(-float(nats)) for nats in (5, 9, 7, 12, 6, 8)]
    alone = bits_per_byte(scores, [4] * 6)
    doubled = bits_per_byte(scores * 2, [4] * 12)
    clustered = bits_per_byte(scores * 2, [4] * 12, documents=list(range(6)) * 2)
    assert clustered.standard_error == pytest.approx(alone.standard_error)
    assert doubled.standard_error < 0.8 * alone.standard_error


def test_pairing_takes_out_the_difficulty_of_texts() -> None:
    first = [score_of(-float(nats)) for nats in (10, 200, 3000)]
    second = [score_of(score.value - 1.0, 0.5) for score in first]
    found = paired_difference(first, second, [10, 10, 10])
    assert found.value == pytest.approx(-3 / 30 / math.log(2))
    assert found.standard_error == pytest.approx(0, abs=1e-12)
    assert found.estimator_error == pytest.approx(0.5 * math.sqrt(3) / 30 / math.log(2))


# ------------------------------------------------------------------------------------------------ devices and dtypes


def free_config() -> ModelConfig:
    parts = {"encoder": "free", "prior": "uniform_bits", "injection": "free"}
    return ModelConfig(decoder="composed", event_dims=4, backbone=small_config().backbone, **parts)


def test_bfloat16_scores_come_near_those_of_float32() -> None:
    request = [([3, 1, 4], [1, 5, 9])]
    for method in ("operational", "iwae", "elbo"):
        full = score_continuations(build(free_config()), request, method=method, samples=64)[0]
        half = score_continuations(build(free_config(), dtype=torch.bfloat16), request, method=method, samples=64)[0]
        assert half.value == pytest.approx(full.value, abs=0.3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_scores_on_the_gpu_equal_those_on_the_cpu() -> None:
    requests = [([3, 1, 4], [1, 5, 9]), ([2, 7], [1, 8])]
    for method in ("operational", "iwae", "prior", "elbo", "joint"):
        on_cpu = score_continuations(build(free_config()), requests, method=method, greedy=True)
        on_gpu = score_continuations(build(free_config()).to("cuda"), requests, method=method, greedy=True)
        for one, other in zip(on_cpu, on_gpu, strict=True):
            assert other.value == pytest.approx(one.value, abs=1e-3)
