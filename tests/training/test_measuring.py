"""`train.evaluate`: tasks and honest likelihoods in the loop are those of the finished model, and move no weight."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lm_eval.api.metrics
import pytest
import torch
from lm_eval.api.metrics import stderr_for_metric
from safetensors.torch import load_file

from latentlm import zoo
from latentlm.config import Recipe
from latentlm.errors import UserError
from latentlm.interface.ranks import alone, gathered, place
from latentlm.likelihood import bits_per_byte, score_texts
from latentlm.training import InterruptedRun, measuring, prepare, train
from latentlm.training.gpus import GPUS, peak_by_name, peak_of
from latentlm.training.loop import StopRequest
from latentlm.training.record.checkpoint import checkpoints
from latentlm.training.record.metrics import read_metrics
from latentlm.training.run import Run
from latentlm.zoo.accounting import cost_of
from latentlm_evals.adapter import LatentLM
from latentlm_evals.evaluation import run_tasks, task_results
from latentlm_evals.in_training import _as_the_only_one

Make = Callable[..., Recipe]
ASKED = ["train.evaluate.every=6", "train.evaluate.documents=3", "train.evaluate.max_samples=32"]
TASKS = ["model.backbone.context=256", 'train.evaluate.tasks=["latentlm_next_line","latentlm_copy"]', "train.evaluate.limit=4"]


def evaluations(out: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(out / "metrics.jsonl") if line["split"] == "evaluation"]


def test_the_last_evaluation_is_that_of_the_finished_model(
    recipe: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = recipe(*ASKED, *TASKS)
    train(asked, out=tmp_path / "run")
    said = capfd.readouterr().err
    lines = evaluations(tmp_path / "run")
    assert [line["step"] for line in lines] == [6, 12]
    assert "step 12/12  evaluated: likelihood " in said
    assert "latentlm_next_line acc " in said
    assert "it/s" not in said  # the run has a bar of its own

    model = zoo.load(tmp_path / "run")
    found = lines[-1]["tasks"]
    assert list(found) == ["latentlm_copy", "latentlm_next_line"]
    for row in task_results(run_tasks(LatentLM(model), list(found), limit=4)):
        assert found[row.task]["items"] == 4
        name = row.metric if row.filter == "none" else f"{row.metric},{row.filter}"
        assert found[row.task]["metrics"][name]["value"] == row.value

    held_out = prepare(asked.data).held_out[:3]
    assert lines[-1]["likelihood"]["documents"] == 3
    texts = [[each.end_of_text, *each.tokens.tolist(), each.end_of_text] for each in held_out]
    scores = score_texts(model, texts, max_samples=32, keys=[each.id for each in held_out])
    honest = bits_per_byte(scores, [each.bytes for each in held_out])
    assert lines[-1]["likelihood"]["bits_per_byte"] == pytest.approx(honest.value, abs=1e-6)
    assert lines[0]["likelihood"]["bits_per_byte"] != lines[-1]["likelihood"]["bits_per_byte"]


def test_what_is_evaluated_moves_no_weight(recipe: Make, tmp_path: Path) -> None:
    for name, asked in (("without", TASKS[:1]), ("with", [*ASKED, *TASKS])):
        train(recipe(*asked), out=tmp_path / name, progress=False)
    without, with_it = (load_file(tmp_path / name / "model.safetensors") for name in ("without", "with"))
    assert all(torch.equal(tensor, with_it[name]) for name, tensor in without.items())


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (['train.evaluate.tasks=["latentlm_copi"]'], "latentlm_copy"),
        (['train.evaluate.tasks=["latentlm_next_line"]'], "has 53 tokens, and the model sees 32"),
        (["train.evaluate.documents=2", f"train.evaluate.max_samples={2**62}"], "max_samples=.* takes"),
        (["train.evaluate.every=5"], "nothing is to be evaluated"),
        (['train.evaluate.tasks=["./mine"]'], "is a file, which can hold code"),
        (['train.evaluate.tasks=["mine.yaml"]'], "is a file, which can hold code"),
        (['train.evaluate.tasks=["mine.yml"]'], "is a file, which can hold code"),
        (['train.evaluate.tasks=["mi*.yaml"]'], "is a file, which can hold code"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_first_step(
    asked: list[str], says: str, recipe: Make, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=says):
        train(recipe(*asked), out=tmp_path / "run", progress=False)
    assert not evaluations(tmp_path / "run")


class Odd:
    """Tasks whose answers fail at a step, or are none."""

    asked = 0

    def __init__(self, tasks: list[str], limit: int | None) -> None:
        """Takes any."""

    def check(self, model: object) -> None:
        """Nothing to say."""

    def answer(self, model: object) -> dict[str, Any]:
        Odd.asked += 1
        if Odd.asked == 2:
            raise KeyError("gold")
        return {"a\x1b[31m": {"items": 1, "metrics": {"m\x1b[0m": {"value": None, "standard_error": None}}}}


class Entry:
    """An entry point with what it loads."""

    value = "third.party:Odd"

    def __init__(self, loads: type | Exception) -> None:
        self.loads = loads

    def load(self) -> type:
        if isinstance(self.loads, Exception):
            raise self.loads
        return self.loads


def test_an_evaluation_that_fails_loses_no_step_and_is_made_up_for(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("latentlm.training.measuring.entry_points", lambda **which: [Entry(Odd)])
    Odd.asked = 0
    asked = recipe("train.save_every=100", "train.evaluate.every=3", 'train.evaluate.tasks=["odd"]')
    with pytest.raises(UserError, match=r"an answer cannot be judged \(KeyError: 'gold'\)"):
        train(asked, out=tmp_path / "run")
    assert "a\\x1b[31m m\\x1b[0m unknown" in capsys.readouterr().err
    assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-00000003", "step-00000006"]
    train(asked, out=tmp_path / "run", resume=True, progress=False)
    assert [line["step"] for line in evaluations(tmp_path / "run")] == [3, 6, 9, 12]
    assert Odd.asked == 5  # one failed, and none was made twice


@pytest.mark.parametrize("answer", [{"items": 1}, {"items": 1, "metrics": {"m": {"value": "high", "standard_error": None}}}])
def test_an_answer_that_is_none_is_one_message(
    answer: dict[str, Any], recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Odd, "answer", lambda self, model: {"odd": answer})
    monkeypatch.setattr("latentlm.training.measuring.entry_points", lambda **which: [Entry(Odd)])
    with pytest.raises(UserError, match="an answer cannot be judged"):
        train(recipe('train.evaluate.tasks=["odd"]'), out=tmp_path / "run", progress=False)


def test_a_task_that_ends_the_process_is_one_message(recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(self: Odd, model: object) -> dict[str, Any]:
        raise SystemExit(0)

    monkeypatch.setattr(Odd, "answer", leave)
    monkeypatch.setattr("latentlm.training.measuring.entry_points", lambda **which: [Entry(Odd)])
    with pytest.raises(UserError, match=r"an answer cannot be judged \(SystemExit: 0\)"):
        train(recipe('train.evaluate.tasks=["odd"]'), out=tmp_path / "run", progress=False)


class Long(Odd):
    """Tasks during which someone stops the run, at its second evaluation."""

    def answer(self, model: object) -> dict[str, Any]:
        Odd.asked += 1
        if Odd.asked == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        return {"long": {"items": 1, "metrics": {}}}


@pytest.mark.parametrize("every", [6, 3])
def test_a_run_that_is_stopped_while_it_is_evaluated_stops_at_once_and_evaluates_when_it_goes_on(
    every: int, recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Odd.asked = 0
    monkeypatch.setattr("latentlm.training.measuring.entry_points", lambda **which: [Entry(Long)])
    asked = recipe("train.save_every=100", f"train.evaluate.every={every}", 'train.evaluate.tasks=["long"]')
    begun = time.monotonic()
    with pytest.raises(InterruptedRun, match=f"stopped and saved at step {2 * every} of 12"):
        train(asked, out=tmp_path / "run", progress=False)
    assert time.monotonic() - begun < 60
    assert [line["step"] for line in evaluations(tmp_path / "run")] == [every]
    Odd.asked = 1  # and again, while what is owed is made up for
    with pytest.raises(InterruptedRun, match=f"stopped and saved at step {2 * every} of 12"):
        train(asked, out=tmp_path / "run", resume=True, progress=False)
    train(asked, out=tmp_path / "run", resume=True, progress=False)
    assert [line["step"] for line in evaluations(tmp_path / "run")] == list(range(every, 13, every))
    assert zoo.load(tmp_path / "run").card.training["steps"] == 12


def test_a_signal_in_a_step_leaves_the_evaluation_after_it_for_later(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Odd.asked = 9
    monkeypatch.setattr("latentlm.training.measuring.entry_points", lambda **which: [Entry(Odd)])
    stepped = Run.step

    def step(run: Run) -> None:
        stepped(run)
        if run.trainer.step == 12:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Run, "step", step)
    asked = recipe("train.evaluate.every=6", 'train.evaluate.tasks=["odd"]')
    with pytest.raises(InterruptedRun, match="stopped and saved at step 12 of 12"):
        train(asked, out=tmp_path / "run", progress=False)
    assert Odd.asked == 10
    train(asked, out=tmp_path / "run", resume=True, progress=False)
    assert Odd.asked == 11


def test_what_was_evaluated_is_not_again_when_a_run_goes_on(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Odd.asked = 9
    monkeypatch.setattr("latentlm.training.measuring.entry_points", lambda **which: [Entry(Odd)])
    asked = recipe("train.save_every=100", "train.evaluate.every=6", 'train.evaluate.tasks=["odd"]')
    stepped = Run.step

    def step(run: Run) -> None:
        if run.trainer.step == 6:
            raise KeyboardInterrupt
        stepped(run)

    monkeypatch.setattr(Run, "step", step)
    with pytest.raises(KeyboardInterrupt):
        train(asked, out=tmp_path / "run", progress=False)
    monkeypatch.setattr(Run, "step", stepped)
    assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-00000006"]
    train(asked, out=tmp_path / "run", resume=True, progress=False)
    assert Odd.asked == 11
    assert [line["step"] for line in evaluations(tmp_path / "run")] == [6, 12]


def test_nothing_is_begun_after_a_signal() -> None:
    stop = StopRequest()
    stop.requested = True
    assert not stop.during(lambda: pytest.fail("begun"), at_once=True)


def test_standard_errors_without_a_closed_form_are_bootstrapped_in_this_process(capfd: pytest.CaptureFixture[str]) -> None:
    values = [math.sin(number) for number in range(200)]
    with _as_the_only_one():
        spread = stderr_for_metric(lm_eval.api.metrics.perplexity, 1000)
        assert spread is not None
        found = spread(values)
    assert capfd.readouterr() == ("", "")
    perplexity = math.exp(-sum(values) / 200)
    assert found == pytest.approx(perplexity * torch.tensor(values).std().item() / 200**0.5, rel=0.1)  # the delta method
    assert lm_eval.api.metrics.bootstrap_stderr.__module__ == "lm_eval.api.metrics"


def test_a_process_that_is_gone_is_no_fault_of_a_task() -> None:
    with pytest.raises(RuntimeError, match="gloo"), measuring._blamed("an answer cannot be judged"):
        raise RuntimeError("[../third_party/gloo/transport] Connection closed by peer")


@pytest.mark.parametrize("found", [[], [Entry(ModuleNotFoundError("no module"))], [Entry(Odd), Entry(Odd)]])
def test_what_should_answer_tasks_and_does_not_is_one_message(
    found: list[Entry], recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentlm.training.measuring.entry_points", lambda **which: found)
    with pytest.raises(UserError, match=r"train\.evaluate\.tasks"):
        train(recipe('train.evaluate.tasks=["odd"]'), out=tmp_path / "run", progress=False)


def test_a_process_alone_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert place() == (1, 2, 1)
    with alone():
        assert place() == (0, 1, 0)
        assert gathered("own") == ["own"]
    assert place() == (1, 2, 1)


def test_the_share_of_a_known_peak_is_logged(recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(recipe("train.steps=2"), out=tmp_path / "unknown", progress=False)
    assert "mfu" not in read_metrics(tmp_path / "unknown" / "metrics.jsonl")[0]
    monkeypatch.setattr("latentlm.training.run.peak_of", lambda device, dtype: 1e12)
    train(recipe("train.steps=2", "train.context=32"), out=tmp_path / "known", progress=False)
    train(recipe("train.steps=2", "model.backbone.context=4096", "train.context=32"), out=tmp_path / "long", progress=False)
    line = read_metrics(tmp_path / "known" / "metrics.jsonl")[0]
    a_token = cost_of(zoo.load(tmp_path / "known"), dtype=torch.float32).training_flops_per_token
    assert line["mfu"] == pytest.approx(line["tokens_per_second"] * a_token / 1e12)
    long = read_metrics(tmp_path / "long" / "metrics.jsonl")[0]
    assert long["mfu"] == pytest.approx(long["tokens_per_second"] * a_token / 1e12)  # by what it is shown, not what it could be


def test_peaks_are_those_of_whole_gpus_by_name() -> None:
    assert peak_by_name("NVIDIA H100 80GB HBM3", "bfloat16") == GPUS["H100"].half
    assert peak_by_name("NVIDIA A100-SXM4-80GB", "float32") == GPUS["A100"].full
    assert peak_by_name("NVIDIA H200", "bfloat16") == GPUS["H200"].half
    others = ("NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA L4", "Tesla T4")
    assert all(peak_by_name(name, "bfloat16") is None for name in others)
    assert peak_of(torch.device("cpu"), "bfloat16") is None
