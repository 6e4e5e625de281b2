"""`latentlm eval`, and lm-eval's evaluation loop around the adapter: results, standard errors, facts, caches."""

from __future__ import annotations

import json
import math
import statistics
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.api.registry import Registry
from typer.testing import CliRunner

from latentlm.composed import build
from latentlm.config import BackboneConfig, ModelConfig
from latentlm.errors import UserError
from latentlm.interface import LatentDecoder
from latentlm.tokenizer import ByteTokenizer
from latentlm_evals.adapter import LatentLM
from latentlm_evals.eval_cli import _print_table, app
from latentlm_evals.evaluation import bits_per_byte_error, check_tasks, evaluate, group_results, run_with, task_manager
from latentlm_evals.results import TaskResult
from latentlm_evals.suites import SUITE_TASKS, task_path


@pytest.fixture(scope="module")
def model() -> LatentDecoder:
    config = ModelConfig(decoder="free", event_dims=2, backbone=BackboneConfig(width=16, blocks=2, heads=2, context=256))
    made = build(config).eval()
    made.tokenizer = ByteTokenizer()
    return made


def simple_evaluate(lm: LatentLM, task: str, **settings: Any) -> dict[str, Any]:
    results = lm_eval.simple_evaluate(lm, tasks=[task], task_manager=task_manager([task]), limit=3, **settings)
    assert results is not None
    return dict(results)


def test_every_shipped_task_gives_its_metrics_with_chance_and_error(model: LatentDecoder) -> None:
    rows = evaluate(model, SUITE_TASKS, samples=2, limit=3)
    assert {row.task for row in rows} == set(SUITE_TASKS)
    assert all(row.chance is not None and row.standard_error is not None and row.items == 3 for row in rows)
    (bits,) = [row.value for row in rows if row.metric == "bits_per_byte"]
    assert bits == pytest.approx(8, abs=0.5)  # an untrained model knows nothing


def test_the_error_of_bits_per_byte_is_that_of_the_mean_for_documents_of_one_length() -> None:
    nats = [-50.0, -60.0, -40.0, -55.0]
    rates = [-value / 10 / math.log(2) for value in nats]
    assert bits_per_byte_error([(value, 10) for value in nats]) == pytest.approx(statistics.stdev(rates) / 2)


def test_the_facts_are_in_the_results_of_lm_eval(model: LatentDecoder) -> None:
    config = simple_evaluate(LatentLM(model, samples=2, seed=3), "latentlm_next_line")["config"]
    assert config["latentlm"]["samples"] == 2
    assert config["latentlm"]["seed"] == 3
    assert config["latentlm"]["likelihoods"]["requests"] == 12
    assert 0 < config["latentlm"]["likelihoods"]["largest_standard_error"] < math.inf
    assert config["model_num_parameters"] == sum(parameter.numel() for parameter in model.parameters())


def test_a_use_cache_database_serves_its_own_settings_and_refuses_others(
    model: LatentDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = str(tmp_path / "answers")
    first = simple_evaluate(LatentLM(model, samples=2), "latentlm_next_line", use_cache=cache)
    with monkeypatch.context() as patch:
        patch.setattr("latentlm_evals.adapter.estimated", lambda *_, **__: pytest.fail("asked the model again"))
        again = simple_evaluate(LatentLM(model, samples=2), "latentlm_next_line", use_cache=cache)
    assert first["results"] == again["results"]
    with pytest.raises(UserError, match="samples was 2, is 3"):
        simple_evaluate(LatentLM(model, samples=3), "latentlm_next_line", use_cache=cache)


def test_the_entry_point_of_coming_versions_names_the_defining_module() -> None:
    (entry,) = entry_points(group="lm_eval.models", name="latentlm")
    loaded = entry.load()
    assert loaded is LatentLM
    assert entry.value == f"{LatentLM.__module__}:{LatentLM.__name__}"
    registry: Registry[Any] = Registry("model")
    registry.register("latentlm", target=entry)  # as their discovery does
    assert registry.get("latentlm") is LatentLM


def test_an_unknown_task_is_one_error_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match='Did you mean "latentlm_copy"'):
        check_tasks(["latentlm_copyy"])


def test_the_command_prints_a_table_json_and_the_whole_results(tmp_path: Path) -> None:
    common = ["free-tiny", "--allow-random", "--tasks", "latentlm_brackets", "--limit", "2"]
    output = tmp_path / "results.json"
    shown = CliRunner().invoke(app, [*common, "--output", str(output)])
    assert shown.exit_code == 0, shown.output
    assert "latentlm_brackets" in shown.stdout
    assert "exact_match" in shown.stdout
    assert json.loads(output.read_text())["config"]["latentlm"]["card"] == "free-tiny"
    printed = json.loads(CliRunner().invoke(app, [*common, "--json"]).stdout)
    assert [row["metric"] for row in printed["tasks"]] == ["exact_match"]
    assert printed["facts"]["score"] == "operational"


def test_numbers_are_whole_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    row = TaskResult("a_task_of_a_long_name", "exact_match", 0.1234, 0.0567, chance=0.333, items=1234, filter="flexible")
    counted = {"unconverged": 3, "requests": 40}
    facts = {"score": "iwae", "samples": 4, "seed": 0, "tolerance": 0.01, "max_samples": 0, "likelihoods": counted}
    _print_table("m", [row], [], facts)
    said = capsys.readouterr().out
    assert all(number in said for number in ("0.1234", "0.0567", "0.333", "1234"))
    assert "3 of 40 likelihoods are not good to" in said


def test_the_command_passes_on_what_lm_eval_has(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    words = ["free-tiny", "--allow-random", "--samples", "2", "--limit", "2", "--tasks", "latentlm_[bn]*", "--json"]
    words += ["--num-fewshot", "1", "--gen-kwargs", "max_gen_toks=3,until=[\"q\"]", "--model-args", "max_length=200"]
    words += ["--system-instruction", "Be brief.", "--use-cache", str(tmp_path / "answers"), "--output", str(output)]
    first, again = (CliRunner().invoke(app, words) for _ in range(2))
    assert first.exit_code == 0, first.output
    printed = json.loads(first.stdout)
    filters = {row["task"]: row["filter"] for row in printed["tasks"]}
    assert filters == {"latentlm_brackets": "strip", "latentlm_next_line": "none"}
    assert printed["facts"]["max_length"] == 200
    assert json.loads(again.stdout)["tasks"] == printed["tasks"]
    made, kept = (json.loads(each.stdout)["facts"]["likelihoods"] for each in (first, again))
    assert (made.pop("recalled"), kept.pop("recalled")) == (0, 8)
    assert kept == made  # the errors too
    results = json.loads(output.read_text())
    (sample, *_) = results["samples"]["latentlm_brackets"]
    assert sample["arguments"][0][1] | {"max_gen_toks": 3, "until": ["q"]} == sample["arguments"][0][1]
    assert sample["arguments"][0][0].startswith("Be brief.")
    assert results["config"]["latentlm"]["first_token"] == 256


def test_the_answers_are_left_out_of_the_file_where_that_is_said(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    words = ["vanilla-tiny", "--tasks", "latentlm_heldout", "--limit", "3", "--output", str(output), "--json"]
    found = {}
    for word in ("--log-samples", "--no-log-samples"):
        printed = json.loads(CliRunner().invoke(app, [*words, word], catch_exceptions=False).stdout)
        found[word] = "samples" in json.loads(output.read_text())
        assert printed["tasks"][0]["standard_error"] is not None, "which is made from the samples"
    assert found == {"--log-samples": True, "--no-log-samples": False}


def test_the_first_prompt_is_said_where_that_is_asked_for(tmp_path: Path) -> None:
    words = ["vanilla-tiny", "--tasks", "latentlm_brackets", "--limit", "2"]
    (silent, told) = (CliRunner().invoke(app, [*words, *more], catch_exceptions=False) for more in ([], ["--write-out"]))
    assert "context prompt" in told.stderr
    assert "context prompt" not in silent.stderr
    assert "context prompt" not in told.stdout


@pytest.mark.parametrize("said", ["depth=[2, 3],kind=round", '{"depth": [2, 3], "kind": "round"}'])
def test_tasks_get_metadata_and_keep_their_own(tmp_path: Path, said: str) -> None:
    output = tmp_path / "results.json"
    words = ["vanilla-tiny", "--tasks", "latentlm_brackets", "--limit", "2", "--metadata", said, "--output", str(output)]
    CliRunner().invoke(app, words, catch_exceptions=False)
    metadata = json.loads(output.read_text())["configs"]["latentlm_brackets"]["metadata"]
    assert metadata.items() >= {"depth": [2, 3], "kind": "round"}.items()
    assert "chance" in metadata


def test_examples_that_a_task_does_not_take_are_told(model: LatentDecoder, caplog: pytest.LogCaptureFixture) -> None:
    results = run_with(LatentLM(model, samples=2), ["latentlm_copy"], limit=1, num_fewshot=2)
    assert results is not None
    assert results["n-shot"]["latentlm_copy"] == 0
    assert "latentlm_copy: no example is put first, whatever --num-fewshot says" in caplog.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--suite", "healine"], 'Did you mean "headline"'),
        (["--suite", "headline", "--tasks", "x"], "give one of them"),
        (["--gen-kwargs", "temperature"], "NAME=VALUE"),
        (["--metadata", "{a: 1}"], "no JSON object"),
        (["--predict-only", "--no-log-samples"], "leaves nothing"),
        (["--limit", "0"], "leaves nothing to evaluate"),
        (["--model-args", "smaples=3"], 'Did you mean "samples"'),
        (["--apply-chat-template", "--tasks", "latentlm_copy"], "no chat template"),
    ],
)
def test_what_the_command_cannot_do_is_one_message(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CliRunner().invoke(app, ["vanilla-tiny", *words], catch_exceptions=False)


def test_groups_have_rows_of_their_own() -> None:
    metrics = {"acc,none": 0.25, "acc_stderr,none": 0.1, "alias": " - mmlu", "sample_len": 12}
    (row,) = group_results({"groups": {"mmlu": metrics}})
    assert row == TaskResult("mmlu", "acc", 0.25, 0.1, chance=None, items=12, filter="none")


def test_the_command_says_where_the_tasks_are() -> None:
    assert CliRunner().invoke(app, ["--task-path"]).stdout.strip() == str(task_path())


def test_tasks_of_ones_own_come_from_include_path(tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text((task_path() / "data.py").read_text())
    (tmp_path / "copy.jsonl").write_text((task_path() / "copy.jsonl").read_text())
    (tmp_path / "mine.yaml").write_text((task_path() / "copy.yaml").read_text().replace("latentlm_copy", "my_copy"))
    check_tasks(["my_copy"], tmp_path)
    with pytest.raises(UserError, match="not a folder"):
        check_tasks(["my_copy"], tmp_path / "nowhere")


def test_a_system_instruction_that_is_no_text_is_refused() -> None:
    done = CliRunner().invoke(app, ["vanilla-tiny", "--system-instruction", "\udcff"])
    assert isinstance(done.exception, UserError)
    assert str(done.exception) == "--system-instruction is no text in UTF-8."
