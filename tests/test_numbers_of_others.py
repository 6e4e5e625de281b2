"""Numbers and names of numpy and of `fractions` are what Python's own are, wherever a call takes one."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from byte_models import byte_decoder
from latentlm.errors import UserError
from latentlm.generation import encode, generate
from latentlm.interface import LatentDecoder
from latentlm.likelihood import score_continuations, score_texts
from latentlm_evals.evaluation import evaluate

TEXTS = [[1, 2, 3, 4], [5, 6, 7]]


@pytest.fixture(scope="module")
def model() -> LatentDecoder:
    return byte_decoder("free")


def made(model: LatentDecoder, **settings: Any) -> list[list[int]]:
    asked: dict[str, Any] = {"max_tokens": 5, "prior_temperature": 0.5}
    return [each.tokens for each in generate(model, TEXTS, **{**asked, **settings})]


def encoded(model: LatentDecoder, **settings: Any) -> list[Any]:
    return [each.value.tolist() for each in encode(model, TEXTS[0], **settings).values()]


def scored(model: LatentDecoder, **settings: Any) -> list[float]:
    return [each.value for each in score_texts(model, TEXTS, **settings)]


def continued(model: LatentDecoder, **settings: Any) -> list[float]:
    pairs = [(text[:2], text[2:]) for text in TEXTS]
    return [each.value for each in score_continuations(model, pairs, **settings)]


@pytest.mark.parametrize(
    ("call", "theirs", "ours"),
    [
        (made, {"seed": np.int64(5)}, {"seed": 5}),
        (made, {"keys": [np.str_("a"), np.int64(1)]}, {"keys": ["a", 1]}),
        (made, {"keys": [("a", np.int32(2)), 3]}, {"keys": [("a", 2), 3]}),
        (made, {"prior_temperature": Fraction(1, 2)}, {"prior_temperature": 0.5}),
        (made, {"prior_temperature": np.float32(0.5)}, {"prior_temperature": 0.5}),
        (made, {"samples": np.uint8(100), "batch_size": np.uint8(200)}, {"samples": 100, "batch_size": 200}),
        (made, {"max_tokens": np.int8(30), "top_k": np.uint8(4)}, {"max_tokens": 30, "top_k": 4}),
        (encoded, {"temperature": Fraction(1, 2), "samples": np.int8(3)}, {"temperature": 0.5, "samples": 3}),
        (encoded, {"seed": np.uint64(2**63 - 1)}, {"seed": 2**63 - 1}),
        (scored, {"samples": np.int64(4), "seed": np.int64(0)}, {"samples": 4, "seed": 0}),
        (scored, {"samples": 4, "tolerance": Fraction(1, 8)}, {"samples": 4, "tolerance": 0.125}),
        (scored, {"samples": 4, "context": np.int8(2), "batch_size": np.int8(2)}, {"samples": 4, "context": 2}),
        (continued, {"samples": np.int16(4), "defensive": Fraction(1, 4)}, {"samples": 4, "defensive": 0.25}),
        (continued, {"samples": 2, "tolerance": np.float32(0.5)}, {"samples": 2, "tolerance": 0.5}),
        (continued, {"samples": 2, "tolerance": [Fraction(1, 2), 1]}, {"samples": 2, "tolerance": [0.5, 1.0]}),
    ],
)
def test_a_number_is_what_it_says(
    call: Callable[..., Any], theirs: dict[str, Any], ours: dict[str, Any], model: LatentDecoder
) -> None:
    torch.testing.assert_close(call(model, **theirs), call(model, **ours))


@pytest.mark.parametrize("limit", [True, 1.5, 0, -1, float("nan"), "3"])
def test_a_limit_of_items_is_a_number_of_them_or_a_share(limit: Any, model: LatentDecoder) -> None:
    with pytest.raises(UserError, match="limit"):
        evaluate(model, ["latentlm_copy"], limit=limit)
