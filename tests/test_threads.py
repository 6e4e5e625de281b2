"""Threads share a model: each gets the numbers that it would get alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from latentlm.composed import build
from latentlm.composed.objective import _frozen
from latentlm.config import ModelConfig
from latentlm.interface import LatentDecoder
from latentlm.likelihood import score_texts
from samples import small_config

TEXTS = [[0, *range(1, 4 + number % 5), 2, 7, number % 11] for number in range(8)]


def _ltm() -> LatentDecoder:
    config = ModelConfig.model_validate({"decoder": "ltm", "encoder": {"steps": 3}, "backbone": small_config().backbone})
    return build(config, seed=0).eval()


def _free() -> LatentDecoder:
    return build(small_config("free"), seed=0).eval()


@pytest.mark.parametrize("make", [_ltm, _free])
def test_eight_threads_score_as_one(make: type) -> None:
    model = make()

    def score(text: list[int]) -> float:
        return score_texts(model, [text], method="iwae", samples=4)[0].value

    alone = [score(text) for text in TEXTS]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(score, TEXTS))
    assert together == pytest.approx(alone, abs=2e-5)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_thread_that_leaves_thaws_nothing_for_one_that_stays() -> None:
    """A fitted posterior freezes the decoder's weights while it descends."""
    model = _ltm()
    first, second = _frozen(model), _frozen(model)  # type: ignore[arg-type]
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    second.__exit__(None, None, None)
    assert all(parameter.requires_grad for parameter in model.parameters())
