"""Likelihoods that are sums over everything that the latents can be, against sums written apart from them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from latentlm.composed import ComposedDecoder, build
from latentlm.config import ModelConfig, parse
from latentlm.errors import UserError
from latentlm.interface import Bits, Categorical, Context
from latentlm.likelihood import EXACT, score_continuations, score_texts
from latentlm.likelihood.planning import plan
from latentlm.likelihood.scoring import texts_to_score
from latentlm.testing.exact import exact_log_likelihood
from likelihood_parts import PointBits, StandardNormal, StickyBits, tiny

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


def test_greedy_weighs_what_the_encoder_says() -> None:
    """An encoder that is sure of one value of four: its prediction is what counts, and not what the four say together."""
    model, found = tiny(**KINDS["bits per document"]), set()
    with torch.no_grad():
        model.injection.map.weight.mul_(10.0)
    for value in ([-9.0, -9.0], [9.0, -9.0], [-9.0, 9.0], [9.0, 9.0]):
        model.encoder.forward = lambda context, objective=None, value=value: Bits(
            torch.tensor(value).expand(context.rows, context.sites, 2)
        )
        greedy = predicted(model, [0, 1], 3)
        found.add(tuple(greedy))
        (score,) = score_continuations(model, [([0, 1], greedy)], method="auto", samples=4, greedy=True)
        assert (score.method, score.greedy) == (EXACT, True)
    assert len(found) > 1


def test_values_of_several_latents_are_gone_through_together() -> None:
    latents = {"plan": {"like": "free", "dims": 2, "granularity": "document"}, "bits": {"like": "free", "dims": 1}}
    backbone = {"vocabulary": 17, "width": 32, "blocks": 4, "heads": 4, "context": 64, "init_std": 0.3}
    config = {"decoder": "composed", "backbone": backbone, "latents": latents}
    model = build(parse(ModelConfig, config, source="test"), seed=1).eval()
    given, continuation = [1, 2], [3, 4, 5]
    for most, method in ((64, EXACT), (63, "operational")):  # 4 values of the one, 2^4 of the other
        (score,) = score_continuations(model, [(given, continuation)], method="auto", samples=most)
        assert score.method == method
        if method == EXACT:
            truth = exact_log_likelihood(model, given, continuation, target="generation")
            assert score.value == pytest.approx(truth, abs=1e-5)


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


def test_broken_weights_are_refused_and_progress_is_told() -> None:
    model, told = tiny(**KINDS["bits per document"]), list[tuple[int, int]]()
    score_texts(model, [[1, 0], [0, 1, 1]], method="auto", samples=4, progress=lambda done, every: told.append((done, every)))
    assert told == [(1, 2), (2, 2)]
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match="not a number"):
        score_texts(model, [[1, 0, 1, 1]], method="auto", samples=4)


def test_a_plan_says_that_nothing_is_drawn() -> None:
    model = tiny(**KINDS["bits per chunk"])
    for text, exact in (([1, 0, 1, 1], True), ([1, 0] * 6, False)):
        requests, _, how = texts_to_score(model, [text], max_samples=64)
        found = plan(model, requests, how)
        assert (found.samples == (0, 0)) is exact
        assert (found.lines()["samples of each"] == "none (exact)") is exact


def test_an_encoder_with_other_values_than_the_prior_is_estimated() -> None:
    """Its values would be taken for the nearest of the prior's; a point mass has no probabilities to ask for."""
    model = tiny(**KINDS["bits per document"])
    encode = model.encoder.forward
    model.encoder.forward = lambda context, objective=None: PointBits(encode(context).logits)
    (score,) = score_continuations(model, REQUESTS[:1], method="auto", samples=64)
    assert score.method == "operational"

    def others(context: Context, objective: object = None) -> Categorical:
        logits = encode(context).logits
        return Categorical(logits.new_zeros(*logits.shape[:2], 3), torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]))

    model.encoder.forward = others
    (score,) = score_continuations(model, REQUESTS[:1], method="auto", samples=64)
    assert score.method == "operational"
