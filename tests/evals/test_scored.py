"""What an evaluation says of its own numbers: broken weights, truncation, per-item errors, counts of this evaluation only."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from lm_eval.api.instance import Instance
from typer.testing import CliRunner

from byte_models import byte_decoder
from latentlm.errors import UserError
from latentlm.generation import generate
from latentlm_evals.adapter import LatentLM
from latentlm_evals.eval_cli import app
from latentlm_evals.evaluation import run_tasks
from latentlm_evals.options import batch_rows
from latentlm_evals.scored import Scored


def strict(text: str) -> object:
    """JSON as the standard has it."""

    def refuse(name: str) -> object:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def asked(context: str, *continuations: str, task: str = "t", document: int = 0) -> list[Instance]:
    return [
        Instance("loglikelihood", {}, (context, each), number, metadata=(task, document, 1))
        for number, each in enumerate(continuations)
    ]


# --------------------------------------------------------------------------------------------------- broken weights


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_when_the_model_is_taken(broken: float) -> None:
    model = byte_decoder("vanilla")
    next(model.parameters()).data[0] = broken
    with pytest.raises(UserError, match="not finite"):
        LatentLM(model)


def test_so_is_a_table_that_is_no_parameter() -> None:
    model = byte_decoder("vanilla")
    model.register_buffer("codes", torch.tensor([1.0, float("nan")]))
    with pytest.raises(UserError, match=r"not finite \(codes\)"):
        LatentLM(model)


@pytest.mark.parametrize("kind", ["vanilla", "free"])
def test_a_score_that_is_no_number_is_refused_as_generate_refuses_it(kind: str) -> None:
    lm = LatentLM(byte_decoder(kind), samples=2)
    lm.model.backbone.norm.weight.data[0] = float("nan")  # type: ignore[union-attr, operator]
    whole = Instance("loglikelihood_rolling", {}, ("def f(x):",), 0)
    for call in (
        lambda: lm.loglikelihood(asked("def", " f", " g"), disable_tqdm=True),
        lambda: lm.loglikelihood_rolling([whole], disable_tqdm=True),
        lambda: generate(lm.model, ["def"], max_tokens=1),
    ):
        with pytest.raises(UserError, match="not finite"):
            call()


# ------------------------------------------------------------------------------------------------------ truncation


def test_contexts_that_are_cut_are_counted_and_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    lm = LatentLM(byte_decoder("vanilla"), max_length=20)
    prompt = Instance("generate_until", {}, ("x" * 50, {"until": [], "max_gen_toks": 2}), 0)
    with caplog.at_level(logging.WARNING, logger="latentlm_evals"):
        lm.loglikelihood([*asked("short", "a"), *asked("x" * 50, "a", "b")], disable_tqdm=True)
        lm.generate_until([prompt], disable_tqdm=True)
    assert len(caplog.records) == 1
    assert "2 of 3 contexts are longer than the 20 tokens" in caplog.text
    assert lm.get_model_info()["latentlm"]["likelihoods"]["truncated"] == 3


# ---------------------------------------------------------------------------------------------------- what is told


def test_every_item_has_its_latent_errors_and_every_task_what_they_come_to() -> None:
    lm = LatentLM(byte_decoder("free"), samples=4)
    requests = [request for n in range(2) for request in asked(f"def {n}", " f", " gg", task="mine", document=n)]
    lm.loglikelihood(requests, disable_tqdm=True)
    whole = Instance("loglikelihood_rolling", {}, ("x" * 200,), 0, metadata=("texts", 7, 1))
    lm.loglikelihood_rolling([whole], disable_tqdm=True)
    told = lm.get_model_info()["latentlm"]["likelihoods"]
    mine = told["tasks"]["mine"]
    assert {document: len(scores) for document, scores in mine["items"].items()} == {"0": 2, "1": 2}
    scores = [score for own in mine["items"].values() for score in own]
    every = [score["standard_error"] for score in scores]
    assert all(error > 0 for error in every)
    assert mine["largest_standard_error"] == max(every) <= told["largest_standard_error"]
    assert mine["mean_standard_error"] == pytest.approx(sum(every) / 4)
    assert mine["unconverged"] == sum(not score["converged"] for score in scores)
    assert list(told["tasks"]["texts"]["items"]) == ["7"]


def test_counts_are_of_one_evaluation() -> None:
    lm = LatentLM(byte_decoder("free"), samples=2)
    for _ in range(2):
        lm.loglikelihood(asked("def", " f", " g"), disable_tqdm=True)
        assert lm.get_model_info()["latentlm"]["likelihoods"]["requests"] == 2
    lm.loglikelihood(asked("def", " f", " g"), disable_tqdm=True)  # cut off: nobody asked for the counts
    results = run_tasks(lm, ["latentlm_next_line"], limit=2)
    assert results is not None
    assert results["config"]["latentlm"]["likelihoods"]["requests"] == 8


@pytest.mark.parametrize("samples", [1, 2])
def test_results_are_json_as_the_standard_has_it(samples: int, tmp_path: Path) -> None:
    strict(json.dumps(Scored().as_json()))  # no likelihood at all: its smallest effective sample is infinite
    lm = LatentLM(byte_decoder("free"), samples=samples)  # the error of one sample is infinite
    lm.loglikelihood(asked("def", " f"), disable_tqdm=True)
    strict(json.dumps(lm.get_model_info()))
    output = tmp_path / "results.json"
    words = ["free-tiny", "--samples", str(samples), "--tasks", "latentlm_next_line", "--limit", "2", "--allow-random"]
    shown = CliRunner().invoke(app, [*words, "--output", str(output), "--json"])
    assert shown.exit_code == 0, shown.output
    strict(shown.stdout)
    strict(output.read_text())


def test_the_real_device_and_the_commit_of_the_code_are_told() -> None:
    info = LatentLM.create_from_arg_obj({"model": byte_decoder("vanilla")}, {"device": "cuda:0"}).get_model_info()["latentlm"]
    assert info["device"] == "cpu"
    assert info["device_name"]
    assert info["commit"] is None or len(info["commit"].rstrip("+")) == 40


# -------------------------------------------------------------------------------------------------------- batches


def test_auto_is_eight_on_a_cpu_where_larger_batches_are_slower() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert [batch_rows(given, None, cpu) for given in (None, "auto", "auto:4", 3, "16")] == [8, 8, 8, 3, 16]
    assert (batch_rows("auto", 4, cpu), batch_rows("auto", None, cuda), batch_rows("auto", 32, cuda)) == (4, None, 32)
    for wrong in ("automatic", "auto:x", 0, "many"):
        with pytest.raises(UserError, match="batch_size"):
            batch_rows(wrong, None, cpu)
