"""Model arguments of lm-eval's `hf`: other names, values that change nothing, what is refused."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import pytest
import torch
from lm_eval.models.huggingface import HFLM

from latentlm.errors import UserError
from latentlm_evals.adapter import LatentLM
from latentlm_evals.options import ALIASES, NEUTRAL, ours

OURS = [name for name in inspect.signature(LatentLM.__init__).parameters if name != "self"]


def test_pretrained_is_another_name_of_model() -> None:
    assert ours({"pretrained": "free-tiny", "samples": 2}, OURS) == {"model": "free-tiny", "samples": 2}
    assert LatentLM.create_from_arg_string("pretrained=vanilla-tiny,trust_remote_code=True").facts()["card"] == "vanilla-tiny"
    with pytest.raises(UserError, match="two values"):
        ours({"pretrained": "free-tiny", "model": "vanilla-tiny"}, OURS)


def test_every_argument_of_hf_is_served_or_neutral_at_its_default() -> None:
    for name, parameter in inspect.signature(HFLM.__init__).parameters.items():
        if name not in ("self", "kwargs", "pretrained"):
            taken = ours({name: None if parameter.default is inspect.Parameter.empty else parameter.default}, OURS)
            assert name in OURS or not taken
    assert not NEUTRAL.keys() & {*OURS, *ALIASES}


@pytest.mark.parametrize(
    ("given", "message"),
    [({"parallelize": True}, "parallelize=True"), ({"peft": "x"}, "peft=None"), ({"smaples": 2}, 'Did you mean "samples"')],
)
def test_what_would_change_something_is_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ours(given, OURS)


@pytest.mark.parametrize("given", [{"samples": "many"}, {"samples": 0}, {"seed": "x"}, {"last_latent": "prio"}])
def test_a_wrong_value_is_one_message(given: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(given))):
        LatentLM.create_from_arg_obj({"model": "vanilla-tiny", **given})


def test_a_seed_of_lm_evals_own_is_said_to_be_unused(caplog: pytest.LogCaptureFixture) -> None:
    state = torch.get_rng_state()
    try:
        for seed, args, told in ((42, {}, 1), (42, {"seed": 7}, 0), (1234, {}, 0)):
            caplog.clear()
            torch.manual_seed(seed)  # as lm-eval does before it makes the model
            with caplog.at_level(logging.WARNING, logger="latentlm_evals"):
                LatentLM.create_from_arg_obj({"model": "vanilla-tiny", **args})
            assert len(caplog.records) == told
    finally:
        torch.set_rng_state(state)
