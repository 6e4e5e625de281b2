"""Every item says what its scores are to be judged by: in the results, and in the samples that lm-eval logs."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.api.instance import Instance

from byte_models import byte_decoder
from latentlm.likelihood import Score, score_continuations
from latentlm_evals.adapter import LatentLM
from latentlm_evals.evaluation import run_tasks, task_manager
from latentlm_evals.logged import Evaluation, samples_folder, write_evaluation
from latentlm_evals.scored import Scored
from latentlm_evals.task_comparison import Model, compare_tasks

CHOOSE, TEXTS, WRITE = "latentlm_next_line", "latentlm_heldout", "latentlm_copy"
NUMBERS = ("value", "standard_error", "quarter", "bias", "uncertainty", "tolerance", "effective_samples", "samples")


def strict(text: str) -> dict[str, Any]:
    """JSON as the standard has it."""

    def refuse(name: str) -> object:
        raise AssertionError(f"{name} is no JSON")

    found: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return found


def known(number: float) -> float | None:
    return number if math.isfinite(number) else None


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """Of a latent decoder with too few samples for a value at a quarter of them."""
    tasks = [CHOOSE, TEXTS, WRITE]
    lm = LatentLM(byte_decoder("free", context=256), samples=2)
    found = lm_eval.simple_evaluate(lm, tasks=tasks, task_manager=task_manager(tasks), limit=3, bootstrap_iters=0)
    assert found is not None
    return dict(found)


def items(scored: Scored, task: str) -> dict[str, list[dict[str, Any]]]:
    told = strict(json.dumps(scored.as_json()))
    found: dict[str, list[dict[str, Any]]] = told["tasks"][task]["items"]
    return found


def test_an_item_has_what_each_of_its_scores_is_judged_by() -> None:
    model, settings = byte_decoder("free"), {"samples": 8, "tolerance": 2.0, "seed": 1}
    lm = LatentLM(model, **settings)  # type: ignore[arg-type]
    asked = [
        Instance("loglikelihood", {}, ("def 1", continuation), number, metadata=("mine", 3, 1))
        for number, continuation in enumerate((" f", " return x"))
    ]
    lm.loglikelihood(asked, disable_tqdm=True)
    found = lm.get_model_info()["latentlm"]["likelihoods"]["tasks"]["mine"]["items"]["3"]
    pairs = [([256, *b"def 1"], list(continuation)) for continuation in (b" f", b" return x")]
    expected = score_continuations(model, pairs, **settings)  # type: ignore[arg-type]
    assert len(found) == 2
    for told, score in zip(found, expected, strict=True):
        assert (told["converged"], told["method"]) == (score.converged, score.method)
        assert [told[name] for name in NUMBERS] == pytest.approx([known(getattr(score, name)) for name in NUMBERS], abs=1e-3)


def test_what_is_not_known_of_a_score_is_null() -> None:
    alone = Score(-2.0, math.inf, 1.0, 1, 3, "iwae", quarter=math.nan, tolerance=0.1)
    (told,) = items(Scored(items={("t", 0): [alone]}), "t")["0"]
    assert [told[name] for name in ("standard_error", "quarter", "bias", "uncertainty")] == [None] * 4
    assert (told["value"], told["samples"], told["converged"]) == (-2.0, 1, False)


def test_an_empty_text_is_exact() -> None:
    lm = LatentLM(byte_decoder("free"), samples=2)
    lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("",), 0, metadata=("texts", 0, 1))], disable_tqdm=True)
    (told,) = lm.get_model_info()["latentlm"]["likelihoods"]["tasks"]["texts"]["items"]["0"]
    assert (told["value"], told["uncertainty"], told["converged"]) == (0.0, 0.0, True)


# -------------------------------------------------------------------------------------------------- logged samples


def test_logged_samples_have_the_scores_of_their_item_beside_its_answers(results: dict[str, Any]) -> None:
    tasks = results["config"]["latentlm"]["likelihoods"]["tasks"]
    for task in (CHOOSE, TEXTS):
        for sample in results["samples"][task]:
            assert sample["likelihoods"] == tasks[task]["items"][str(sample["doc_id"])]
    for sample in results["samples"][CHOOSE]:
        assert [told["value"] for told in sample["likelihoods"]] == [answer[0][0] for answer in sample["resps"]]
    assert not any("likelihoods" in sample for sample in results["samples"][WRITE]), "generated"


def test_the_exact_likelihoods_of_a_decoder_without_latents_are_not_judged() -> None:
    found = run_tasks(LatentLM(byte_decoder("vanilla", context=256)), [CHOOSE], limit=1)
    assert not any("likelihoods" in sample for sample in found["samples"][CHOOSE])


def test_logged_samples_are_json_as_the_standard_has_it(results: dict[str, Any], tmp_path: Path) -> None:
    write_evaluation(copy.deepcopy(results), tmp_path / "run")
    folder = samples_folder(tmp_path / "run")
    assert folder is not None
    lines = [strict(line) for file in folder.glob("samples_*.jsonl") for line in file.read_text(encoding="utf-8").splitlines()]
    told = [score for line in lines for score in line.get("likelihoods", [])]
    assert len(told) == 3 * 4 + 3
    assert all(score["quarter"] is None for score in told), "of two samples"


def test_samples_of_before_without_scores_are_read_and_compared_as_ever(results: dict[str, Any], tmp_path: Path) -> None:
    older = copy.deepcopy(results)
    for told in older["config"]["latentlm"]["likelihoods"]["tasks"].values():
        told["items"] = {number: [score["standard_error"] for score in own] for number, own in told["items"].items()}
    for samples in older["samples"].values():
        for sample in samples:
            sample.pop("likelihoods", None)
    write_evaluation(copy.deepcopy(results), tmp_path / "new")
    write_evaluation(older, tmp_path / "old")
    new, old = (Evaluation.read("run", tmp_path / name) for name in ("new", "old"))
    assert sum(task.likelihoods for task in new.tasks.values()) > 0
    assert {name: replace(task, likelihoods=0, unconverged=0) for name, task in new.tasks.items()} == old.tasks
    differences = compare_tasks([Model("old", (old,)), Model("new", (new,))]).differences
    assert {one.difference for one in differences} == {0.0}
