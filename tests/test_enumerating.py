"""Likelihoods that are sums over everything that the latents can be, against sums written apart from them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from latentlm.composed import ComposedDecoder
from latentlm.interface import Batch, Latents
from latentlm.likelihood import EXACT, score_continuations, score_texts
from latentlm.testing.exact import exact_log_likelihood, latent_values
from likelihood_parts import StandardNormal, StickyBits, tiny

KINDS = {
    "bits per token": {"vocabulary": 2, "events": 1},
    "bits per chunk": {"granularity": "chunk:2"},
    "bits per document": {"granularity": "document"},
    "autoregressive bits": {"prior": StickyBits, "vocabulary": 2, "events": 1},
    "autoregressive chunks": {"prior": StickyBits, "granularity": "chunk:2"},
    "no encoder": {"encoder": False, "events": 1},
}
REQUESTS = [([0, 1], [1, 1, 0]), ([1, 1, 0], [1, 0, 0]), ([1], [1, 0, 0]), ([0, 1, 1], [0]), ([1, 0, 1, 1], [0, 1])]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("last_latent", ["posterior", "prior"])
def test_auto_is_the_sum_itself(kind: str, last_latent: str) -> None:
    model = tiny(**KINDS[kind])
    scores = score_continuations(model, REQUESTS, method="auto", samples="auto", max_samples=2**12, last_latent=last_latent)
    for (given, continuation), score in zip(REQUESTS, scores, strict=True):
        truth = exact_log_likelihood(model, given, continuation, target="generation", last_latent=last_latent)
        assert score.value == pytest.approx(truth, abs=1e-5)
        assert (score.method, score.samples, score.standard_error, score.converged) == (EXACT, 0, 0.0, True)


@pytest.mark.parametrize("kind", KINDS)
def test_so_it_is_of_texts(kind: str) -> None:
    model, text = tiny(**KINDS[kind]), [1, 0, 1, 1, 0]
    score = score_texts(model, [text], method="auto", samples="auto", max_samples=2**12)[0]
    assert score.value == pytest.approx(exact_log_likelihood(model, text[:1], text[1:], target="prior"), abs=1e-5)
    assert score.method == EXACT


def predicted(model: ComposedDecoder, given: Sequence[int], length: int) -> list[int]:
    """The most probable token after those before it, by the sum over all latents, again and again."""
    found, vocabulary = list[int](), model.config.backbone.vocabulary
    for _ in range(length):
        sums = [exact_log_likelihood(model, given, [*found, token], target="generation") for token in range(vocabulary)]
        found.append(max(range(vocabulary), key=sums.__getitem__))
    return found


@pytest.mark.parametrize("kind", ["bits per document", "bits per chunk"])
def test_greedy_is_what_the_whole_mixture_predicts(kind: str) -> None:
    model, answers = tiny(**KINDS[kind]), set()
    for given, continuation in REQUESTS:
        greedy = predicted(model, given, len(continuation))
        options = [continuation, greedy, [*greedy[:-1], (greedy[-1] + 1) % 3]]
        scores = score_continuations(
            model, [(given, option) for option in options], method="auto", samples="auto", max_samples=2**12, greedy=True
        )
        assert [score.greedy for score in scores] == [option == greedy for option in options]
        answers |= {score.greedy for score in scores}
    assert answers == {True, False}


def test_what_is_too_much_or_has_no_end_is_estimated() -> None:
    bits, normal = tiny(**KINDS["bits per document"]), tiny("document", prior=StandardNormal, events=1)
    for most, method in ((4, EXACT), (3, "iwae")):  # two bits are four values
        assert score_texts(bits, [[1, 0, 1, 1]], method="auto", samples=most)[0].method == method
    assert score_texts(bits, [[1, 0, 1, 1]], method="iwae", samples=64)[0].method == "iwae"
    assert score_texts(normal, [[1, 0, 1, 1]], method="auto", samples=64)[0].method == "iwae"


def test_scores_do_not_depend_on_the_company() -> None:
    model = tiny(**KINDS["bits per chunk"])
    texts = [[1, 0], [1, 0, 1, 1, 0, 0, 1, 1], [0, 1, 1, 0]]  # of one, four and two sites
    settings = {"method": "auto", "samples": "auto", "max_samples": 2**5}
    together = score_texts(model, texts, keys=[0, 1, 2], **settings)
    alone = [score_texts(model, [text], keys=[number], **settings)[0] for number, text in enumerate(texts)]
    assert [score.method for score in together] == [score.method for score in alone]
    assert len({score.method for score in together}) == 2
    assert [score.value for score in together] == pytest.approx([score.value for score in alone], abs=1e-5)


def test_values_are_those_of_the_kit() -> None:
    """The reference really goes through as many."""
    model = tiny(**KINDS["bits per document"])
    values, _ = latent_values(model, model.context(Batch.of([[1, 0, 1]])))
    assert isinstance(values, Latents)
    assert values.rows == 4
    assert torch.unique(values.value.flatten(1), dim=0).shape[0] == 4
