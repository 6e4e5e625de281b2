"""The adapter scores what `score_continuations` and `score_texts` score, with refined proposals too: the same numbers."""

from __future__ import annotations

import pytest
from lm_eval.api.instance import Instance

from byte_models import byte_decoder
from latentlm.errors import UserError
from latentlm.interface import LatentDecoder
from latentlm.likelihood import score_continuations, score_texts
from latentlm_evals.adapter import LatentLM
from latentlm_evals.fingerprint import claim_cache

CONTEXT = 40
TEXTS = ["def f(x):\n    return x\n" * 4, "", "the quick brown fox", "abc " * 11]


@pytest.fixture(scope="module", params=["free", "gaussian"])
def latent(request: pytest.FixtureRequest) -> LatentDecoder:
    """Latents of tokens, and one of a document, whose proposal can be refined."""
    return byte_decoder(request.param, context=CONTEXT)


@pytest.fixture(scope="module")
def gaussian() -> LatentDecoder:
    return byte_decoder("gaussian", context=CONTEXT)


def rolled(lm: LatentLM, texts: list[str]) -> list[float]:
    """Nats of whole texts."""
    asked = [Instance("loglikelihood_rolling", {}, (text,), number) for number, text in enumerate(texts)]
    return lm.loglikelihood_rolling(asked, disable_tqdm=True)


def texts_of(texts: list[str]) -> list[list[int]]:
    """As `score_texts` takes them: after end-of-text."""
    return [[256, *text.encode()] for text in texts]


# ----------------------------------------------------------------------------------------------------- whole texts


def test_whole_texts_sampled_to_a_tolerance_have_the_scores_of_score_texts(latent: LatentDecoder) -> None:
    lm = LatentLM(latent, samples="auto", max_samples=64)
    found = rolled(lm, TEXTS)
    expected = score_texts(latent, texts_of([text for text in TEXTS if text]), max_samples=64, batch_size=lm.batch_size)
    assert found.pop(1) == 0, "an empty text"
    assert found == pytest.approx([score.value for score in expected], abs=1e-3)
    told = lm.get_model_info()["latentlm"]["likelihoods"]
    assert told["unconverged"] == sum(not score.converged for score in expected)
    assert told["most_samples"] == max(score.samples for score in expected)


@pytest.mark.parametrize("refine", [None, 0, 7])
@pytest.mark.parametrize("samples", [8, "auto"])
def test_the_proposals_of_whole_texts_are_refined_as_score_texts_refines_them(
    gaussian: LatentDecoder, samples: int, refine: int | None
) -> None:
    settings = {"samples": samples, "max_samples": 32, "refine": refine}
    found = rolled(LatentLM(gaussian, **settings), TEXTS[:1])  # type: ignore[arg-type]
    (expected,) = score_texts(gaussian, texts_of(TEXTS[:1]), **settings)  # type: ignore[arg-type]
    assert found == pytest.approx([expected.value], abs=1e-3)


def test_a_refined_proposal_is_another_one(gaussian: LatentDecoder) -> None:
    plain, refined = (rolled(LatentLM(gaussian, samples=8, refine=steps), TEXTS[:1])[0] for steps in (0, 20))
    assert abs(plain - refined) > 0.01


def test_overlapping_windows_are_refined_too(gaussian: LatentDecoder) -> None:
    plain, refined = (
        rolled(LatentLM(gaussian, samples=8, refine=steps, windows="overlapping"), TEXTS[:1])[0] for steps in (0, 20)
    )
    assert abs(plain - refined) > 0.01


# --------------------------------------------------------------------------------------------------- continuations


@pytest.mark.parametrize("refine", [None, 20])
def test_continuations_are_refined_only_where_that_is_asked_for(gaussian: LatentDecoder, refine: int | None) -> None:
    context, continuation = [256, *b"def f(x):"], list(b" return x + 1")
    lm = LatentLM(gaussian, samples="auto", max_samples=32, refine=refine)
    ((value, _),) = lm._loglikelihood_tokens([(("", ""), context, continuation)], disable_tqdm=True)
    (expected,), (other,) = (
        score_continuations(gaussian, [(context, continuation)], samples="auto", max_samples=32, refine=steps)
        for steps in (refine or 0, 0 if refine else 20)
    )
    assert value == pytest.approx(expected.value, abs=1e-4)
    assert abs(value - other.value) > 1e-3


# ----------------------------------------------------------------------------------------------- recorded, refused


def test_the_facts_say_how_many_steps_are_taken(gaussian: LatentDecoder) -> None:
    def steps(model: LatentDecoder, **settings: object) -> tuple[int, int]:
        facts = LatentLM(model, **settings).facts()  # type: ignore[arg-type]
        return facts["refine"], facts["refine_texts"]

    assert steps(gaussian) == (0, 0)
    assert steps(gaussian, samples="auto") == (0, 50)
    assert steps(gaussian, samples="auto", refine=0) == (0, 0)
    assert steps(gaussian, refine=7) == (7, 7)
    assert steps(byte_decoder("vanilla"), refine=7, samples="auto") == (0, 0), "exact"


def test_a_cache_of_other_refinement_is_refused(gaussian: LatentDecoder) -> None:
    database: dict[str, object] = {}
    claim_cache(database, LatentLM(gaussian, samples="auto").facts())
    with pytest.raises(UserError, match="refine_texts was 50, is 0"):
        claim_cache(database, LatentLM(gaussian, samples="auto", refine=0).facts())


def test_fewer_steps_than_none_are_refused_before_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentlm_evals.adapter.load_model", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(UserError, match="refine=-1 is less than 0"):
        LatentLM.create_from_arg_string("model=free-tiny,refine=-1")
