"""Latents that a caller gives: to prefill and step as tensors or `Latent`, to generate by name; what is neither is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from latentlm.composed import ComposedDecoder, build
from latentlm.config import ModelConfig
from latentlm.errors import UserError
from latentlm.interface import Latent, Noise
from samples import small_config

TOKENS, LENGTHS = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]]), torch.tensor([4, 2])
NOISE = Noise.keyed(0, ["a", "b"])


def made(config: ModelConfig) -> ComposedDecoder:
    model = build(config, seed=1).eval()
    assert isinstance(model, ComposedDecoder)
    return model


@pytest.fixture(scope="module")
def one() -> ComposedDecoder:
    return made(small_config("free", bits=3))


@pytest.fixture(scope="module")
def two() -> ComposedDecoder:
    latents = {"intent": {"like": "gaussian", "dims": 2}, "bits": {"like": "free", "dims": 3}}
    return made(ModelConfig.model_validate({"decoder": "composed", "backbone": small_config().backbone, "latents": latents}))


def test_a_tensor_given_to_prefill_counts_as_a_latent_does(one: ComposedDecoder, two: ComposedDecoder) -> None:
    value = torch.ones(2, 4, 3)
    for model, wrap in ((one, lambda given: given), (two, lambda given: {"bits": given})):
        plain = model.prefill(TOKENS, LENGTHS, noise=NOISE, latents=wrap(value))
        latent = model.prefill(TOKENS, LENGTHS, noise=NOISE, latents=wrap(Latent(value)))
        drawn = model.prefill(TOKENS, LENGTHS, noise=NOISE)
        assert torch.equal(plain.logits, latent.logits)
        assert not torch.equal(plain.logits, drawn.logits)
        assert plain.met[model.name_of("bits" if model is two else "z")].value[0].eq(1).all()


@pytest.mark.parametrize("shape", [(2, 4, 9), (1, 4, 3), (2, 3), (2, 4, 3, 1)])
def test_values_of_another_shape_are_refused(one: ComposedDecoder, shape: tuple[int, ...]) -> None:
    for given in (torch.ones(shape), Latent(torch.ones(shape))):
        with pytest.raises(UserError, match=r"given for z have shape .* 2 rows of sites of 3 dimensions"):
            one.prefill(TOKENS, LENGTHS, noise=NOISE, latents=given)
    with pytest.raises(UserError, match="cover 2 sites, but the prompt has 4"):
        one.prefill(TOKENS, LENGTHS, noise=NOISE, latents=torch.ones(2, 2, 3))


@pytest.mark.parametrize("given", [None, 3, [1.0], {"z": None}])
def test_what_is_neither_a_word_nor_values_is_refused(one: ComposedDecoder, given: Any) -> None:
    with pytest.raises(UserError, match=r'given for z are \w+: give "posterior", "prior", or values \(B, S, E\)'):
        one.prefill(TOKENS, LENGTHS, noise=NOISE, latents=given)
    state = one.prefill(TOKENS, LENGTHS, noise=NOISE)
    for odd in (given, Latent(torch.ones(2, 1, 3))):
        with pytest.raises(UserError, match=r"given for z are \w+: give \"prior\", or the token's values"):
            one.step(state, torch.tensor([1, 2]), noise=NOISE, latents=odd)


@pytest.mark.parametrize("temperature", [-1.0, 0.0, float("nan"), {"z": -1.0}])
def test_a_prior_temperature_that_is_not_positive_is_refused(one: ComposedDecoder, temperature: Any) -> None:
    with pytest.raises(UserError, match=r"prior_temperature must be .*above 0"):
        one.prefill(TOKENS, LENGTHS, noise=NOISE, prior_temperature=temperature)
    state = one.prefill(TOKENS, LENGTHS, noise=NOISE)
    with pytest.raises(UserError, match=r"prior_temperature must be .*above 0"):
        one.step(state, torch.tensor([1, 2]), noise=NOISE, prior_temperature=temperature)


# ---------------------------------------------------------------------------------------------------------- generate


def test_values_after_the_prompt_of_a_document_latent_are_refused(two: ComposedDecoder) -> None:
    given = Latent(torch.ones(1, 1, 2))
    with pytest.raises(UserError, match=r"intent has one site per document, .* give its value in `latents`"):
        two.generate([[1, 2]], max_tokens=2, continuation_latents={"intent": given})


def test_fresh_after_the_prompt_is_a_word_as_elsewhere(two: ComposedDecoder) -> None:
    plain = two.generate([[1, 2]], max_tokens=4)
    for word in ("fresh", {"intent": "fresh", "bits": "fresh"}):
        assert two.generate([[1, 2]], max_tokens=4, continuation_latents=word)[0].tokens == plain[0].tokens  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r'must be "fresh" or latent values, not .frsh.\. Did you mean "fresh"'):
        two.generate([[1, 2]], max_tokens=4, continuation_latents="frsh")  # type: ignore[arg-type]


@pytest.mark.parametrize(("prompts", "samples", "said"), [(1, 3, "1 or 3"), (2, 1, "1 or 2"), (2, 3, "1, 2 or 6")])
def test_how_many_latents_may_be_given_is_said_once_each(one: ComposedDecoder, prompts: int, samples: int, said: str) -> None:
    with pytest.raises(UserError, match=f"give {said}\\."):
        one.generate([[1]] * prompts, samples=samples, max_tokens=1, latents=Latent(torch.ones(5, 1, 3)))
