"""Model arguments of lm-eval's `hf`: other names, values that change nothing, what is refused."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

import lm_eval
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import simple_parse_args_string

from latentlm.errors import UserError
from latentlm_evals.adapter import LatentLM
from latentlm_evals.evaluation import task_manager
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


def warnings_of_a_seed(caplog: pytest.LogCaptureFixture, make: Callable[[], Any]) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="latentlm_evals"):
        make()
    return [record.getMessage() for record in caplog.records if "--seed" in record.getMessage()]


@pytest.mark.parametrize(
    ("seeds", "args", "told"),
    [
        ({"torch_random_seed": 42}, "", 1),
        ({"torch_random_seed": 42}, ",seed=7", 0),
        ({}, "", 0),
        ({"torch_random_seed": None}, "", 0),  # the seed in force is the caller's
    ],
)
@pytest.mark.parametrize("kind", [str, dict])
def test_a_seed_of_lm_evals_own_is_said_to_be_unused(
    caplog: pytest.LogCaptureFixture, seeds: dict[str, Any], args: str, told: int, kind: type
) -> None:
    words = f"model=vanilla-tiny{args}"
    model_args = words if kind is str else simple_parse_args_string(words)
    tasks = {"tasks": ["latentlm_copy"], "task_manager": task_manager(["latentlm_copy"]), "limit": 1, "bootstrap_iters": 0}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        said = warnings_of_a_seed(
            caplog, lambda: lm_eval.simple_evaluate("latentlm", model_args=model_args, **tasks, **seeds)
        )
    assert len(said) == told
    assert all("--seed 42" in each for each in said)


def test_a_seed_that_is_not_lm_evals_is_not_spoken_of(caplog: pytest.LogCaptureFixture) -> None:
    lm_evals_own = {"batch_size": 1, "max_batch_size": None, "device": None}
    with torch.random.fork_rng():
        for seed in (torch.manual_seed, lambda _: torch.seed()):
            seed(42)
            for additional in (None, lm_evals_own):
                assert not warnings_of_a_seed(
                    caplog, lambda given=additional: LatentLM.create_from_arg_string("model=vanilla-tiny", given)
                )
