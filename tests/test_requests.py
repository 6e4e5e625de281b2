"""Requests on their way to the estimators: what is no token, how many go together, and how long they take."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from latentlm.composed import ComposedDecoder
from latentlm.errors import UserError
from latentlm.likelihood import nats, planning, score_continuations, score_texts
from latentlm.likelihood import texts as texts_module
from latentlm.likelihood.diagnostics import diagnose
from latentlm.likelihood.planning import plan
from latentlm.likelihood.scoring import texts_to_score
from latentlm.likelihood.texts import Texts
from likelihood_parts import StandardNormal, tiny


@cache
def model() -> ComposedDecoder:
    return tiny(vocabulary=2, events=1)


@pytest.mark.parametrize("token", [2, -1])
def test_what_is_no_token_is_refused_in_every_place(token: int) -> None:
    """A last target is no input: nothing else would notice, and another token's logit would be its score."""
    for request in (([0], [1, token]), ([0], [token, 1]), ([token], [1, 0])):
        with pytest.raises(UserError, match=f"{token} is no token"):
            score_continuations(model(), [request], samples=2)
    with pytest.raises(UserError, match=f"{token} is no token"):
        score_texts(model(), [[0, 1, token]], samples=2)
    with pytest.raises(UserError, match=f"{token} is no token"):
        diagnose(model(), [[0, 1, token]])


def test_a_batch_is_as_large_as_its_longest_row_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contexts that begin alike follow one another, a short one of them before the long ones of the next family."""
    family, other = [0, 1] * 4, [1, 1] * 4
    contexts = [[*family, 0, 0, 0, 1, 0, 1, 0], family[:8], [*other, 0, 1, 0, 1, 0, 1], [*other, 1, 0, 0, 1, 0, 1]]
    requests = [(contexts[0], [1, 0]), (contexts[1], [1]), (contexts[2], [1, 0]), (contexts[3], [1, 0])]
    sizes: list[int] = []
    made = Texts.of

    def watched(decoder: ComposedDecoder, tokens: list[list[int]], *rest: Any, **more: Any) -> Texts:
        sizes.append(len(tokens) * max(map(len, tokens)))
        return made(decoder, tokens, *rest, **more)

    monkeypatch.setattr(texts_module, "LEAST", 8)
    monkeypatch.setattr(nats, "LATENT_TOKENS", 4 * 33)
    monkeypatch.setattr(nats, "CPU_TOKENS", 4 * 33)
    monkeypatch.setattr(nats, "CPU_NUMBERS", 0)
    monkeypatch.setattr(Texts, "of", watched)
    score_continuations(model(), requests, samples=4)
    assert max(sizes) <= 33
    assert len(sizes) < len(requests), "of one row each, the test shows nothing"


def test_a_plan_takes_as_long_as_all_tokens_at_the_speed_of_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [[0, 1, 1, 0, 1, 0] * 2, [0, 1, 1] * 2]  # of more bits than `auto` would go through
    requests, _, how = texts_to_score(model(), texts, method="iwae", max_samples=64)
    monkeypatch.setattr(planning.time, "perf_counter", iter([0.0, 1.0]).__next__)
    assert plan(model(), requests, how).seconds == (pytest.approx(1.5), pytest.approx(3.0))
    requests, _, how = texts_to_score(model(), texts, max_samples=64)  # at most, filters of 64 particles take over all of them
    monkeypatch.setattr(planning.time, "perf_counter", iter([0.0, 1.0, 0.0, 2.0]).__next__)
    assert plan(model(), requests, how).seconds == (pytest.approx(1.5), pytest.approx(1.5 + 2 * 2 * 1.5))


@pytest.mark.parametrize(("method", "times"), [("iwae", 2 * 5), ("elbo", 2), ("smc", 2 * 2 - 1)])
def test_a_plan_has_time_for_refining_anew_where_that_happens(monkeypatch: pytest.MonkeyPatch, method: Any, times: int) -> None:
    vector = tiny("document", prior=StandardNormal, events=1)
    requests, _, how = texts_to_score(vector, [[0, 1, 1, 0]], method=method, max_samples=64, refine=2)
    monkeypatch.setattr(planning.time, "perf_counter", iter([0.0, 1.0]).__next__)
    assert plan(vector, requests, how).seconds == (pytest.approx(1.0), pytest.approx(times))
