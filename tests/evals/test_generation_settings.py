"""lm-eval's generation arguments: what is served, what is neutral, what is refused before any work."""

from __future__ import annotations

from typing import Any

import pytest
from lm_eval.api.instance import Instance

from byte_models import byte_decoder
from latentlm.errors import UserError
from latentlm_evals.adapter import LatentLM
from latentlm_evals.generation_settings import LENGTHS, GenerationSettings


def of(**given: Any) -> GenerationSettings:
    return GenerationSettings.of(given, 1000)


@pytest.mark.parametrize("name", LENGTHS)
def test_every_name_of_the_length_is_served(name: str) -> None:
    assert of(until=[], **{name: 7}).max_tokens == 7


def test_neutral_arguments_change_nothing() -> None:
    plain = of(until=["\n"], do_sample=True, temperature=0.5)
    neutral = {"num_beams": 1, "top_k": 0, "stop": None, "repetition_penalty": 1.0, "length_penalty": 1, "use_cache": True}
    neutral |= {"top_p": None, "max_new_tokens": None, "pad_token_id": None, "min_p": 0.0, "num_return_sequences": 1}
    assert of(until=["\n"], do_sample=True, temperature=0.5, **neutral) == plain


def test_stop_and_until_stop_both() -> None:
    assert of(until="\n", stop=["\n", "END", ""]).stop == ("\n", "END")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_beams": 4}, "num_beams=4 is not served; num_beams=1"),
        ({"repetition_penalty": 1.2}, "repetition_penalty=1.2"),
        ({"temprature": 1}, 'Did you mean "temperature"'),
        ({"max_gen_toks": 1000}, "choose 1 to 999"),
        ({"max_gen_toks": 0}, "choose 1 to 999"),
        ({"do_sample": True, "temperature": -1}, "temperature"),
        ({"do_sample": True, "top_p": 2}, "top_p"),
        ({"do_sample": True, "top_k": -1}, "top_k"),
        ({"temperature": "warm"}, "not numbers"),
        ({"until": 3}, "no text"),
        ({"do_sample": "false"}, "neither true nor false"),
    ],
    ids=str,
)
def test_what_cannot_be_served_is_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        of(**given)


def test_a_refusal_comes_before_the_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentlm_evals.writing.generate", lambda *_, **__: pytest.fail("generated"))
    given = [{"until": [], "max_gen_toks": 4}, {"until": [], "num_beams": 2}]
    requests = [Instance("generate_until", {}, ("a", settings), 0) for settings in given]
    with pytest.raises(UserError, match="num_beams"):
        LatentLM(byte_decoder("vanilla")).generate_until(requests, disable_tqdm=True)
