"""Evaluations are compared item by item, whatever the aggregation; what is not the same is refused by name."""

from __future__ import annotations

import copy
import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console
from scipy import stats

from guessing import evaluated, logged
from latentlm.errors import UserError
from latentlm_evals import report
from latentlm_evals.logged import Evaluation, samples_folder, write_evaluation
from latentlm_evals.paired import mcnemar
from latentlm_evals.paired_tables import show_tasks
from latentlm_evals.results import TaskComparison, TaskDifference
from latentlm_evals.task_comparison import Model, compare_tasks

TASKS = ("latentlm_next_line", "latentlm_heldout")


@pytest.fixture(scope="module")
def results() -> list[dict[str, Any]]:
    return [evaluated(seed, ["latentlm_short"]) for seed in range(4)]


def model(name: str, *runs: dict[str, Any]) -> Model:
    return Model(name, tuple(Evaluation.of(f"{name}-{number}", run) for number, run in enumerate(runs)))


def found(comparison: TaskComparison, name: str, metric: str) -> TaskDifference:
    (one,) = [one for one in comparison.differences if (one.name, one.metric) == (name, metric)]
    return one


def test_accuracies_are_paired_by_item_with_mcnemars_test(results: list[dict[str, Any]]) -> None:
    one = found(compare_tasks([model("a", results[0]), model("b", results[1])]), "latentlm_next_line", "acc")
    own, other = ({s["doc_id"]: s["acc"] for s in run["samples"]["latentlm_next_line"]} for run in results[:2])
    only = [sum(1 for item in own if (own[item], other[item]) == pair) for pair in ((1.0, 0.0), (0.0, 1.0))]
    assert (one.only_first, one.only_second) == tuple(only)
    assert one.mcnemar == mcnemar(*only)
    assert one.difference == pytest.approx((only[1] - only[0]) / 10)
    assert one.higher_is_better is True


def test_ratios_of_sums_have_the_value_that_lm_eval_reports(results: list[dict[str, Any]]) -> None:
    one = found(compare_tasks([model("a", results[0]), model("b", results[1])]), "latentlm_heldout", "bits_per_byte")
    reported = [run["results"]["latentlm_heldout"]["bits_per_byte,none"] for run in results[:2]]
    assert (one.first_value, one.second_value) == pytest.approx(tuple(reported))
    assert one.difference == pytest.approx(reported[1] - reported[0])
    assert one.mcnemar is None
    assert one.higher_is_better is False
    nats = [np.array([s["bits_per_byte"] for s in run["samples"]["latentlm_heldout"]]).T for run in results[:2]]
    size = nats[0][1].sum()
    rest = [-(values - values.sum() / size * sizes) / size / math.log(2) for values, sizes in nats]
    by_delta = math.sqrt(((rest[1] - rest[0]) ** 2).sum() * 10 / 9)
    assert one.items_error == pytest.approx(by_delta, rel=0.15)


def test_a_group_is_pooled_over_the_tasks_that_have_the_metric(results: list[dict[str, Any]]) -> None:
    comparison = compare_tasks([model("a", results[0]), model("b", results[1])])
    pooled = found(comparison, "latentlm_short", "exact_match")
    assert pooled.tasks == ["latentlm_copy", "latentlm_brackets"]
    parts = [found(comparison, name, "exact_match") for name in pooled.tasks]
    assert pooled.items == 20
    assert pooled.difference == pytest.approx(sum(part.difference for part in parts) / 2)
    assert pooled.only_first == sum(part.only_first or 0 for part in parts)
    assert [one.metric for one in comparison.differences if one.tasks] == ["exact_match"]  # others are of one task


def test_several_runs_put_the_seeds_into_the_interval(results: list[dict[str, Any]]) -> None:
    (shifted := copy.deepcopy(results[2]))["results"]["latentlm_heldout"].pop("bits_per_byte,none")
    for sample in shifted["samples"]["latentlm_heldout"]:
        sample["bits_per_byte"] = (sample["bits_per_byte"][0] * 1.5, sample["bits_per_byte"][1])
    alone = found(compare_tasks([model("a", results[0]), model("b", results[1])]), "latentlm_heldout", "bits_per_byte")
    several = compare_tasks([model("a", results[0]), model("b", results[1], shifted)])
    one = found(several, "latentlm_heldout", "bits_per_byte")
    assert one.runs == (1, 2)
    assert alone.runs_error == 0 < one.runs_error
    assert one.high - one.low > 3 * (alone.high - alone.low)
    assert several.models == {"a": ["a-0"], "b": ["b-0", "b-1"]}
    assert any("Of a one run is given" in note for note in several.notes)
    assert found(several, "latentlm_next_line", "acc").mcnemar is None  # it is a test of one run against one


def test_every_model_is_compared_with_the_first(results: list[dict[str, Any]]) -> None:
    comparison = compare_tasks([model(name, run) for name, run in zip("abc", results, strict=False)], ["latentlm_next_line"])
    assert {(one.first, one.second) for one in comparison.differences} == {("a", "b"), ("a", "c")}
    assert {one.name for one in comparison.differences} == {"latentlm_next_line"}


def test_tasks_are_chosen_by_name_group_or_pattern(results: list[dict[str, Any]]) -> None:
    models = [model("a", results[0]), model("b", results[1])]
    assert len({one.name for one in compare_tasks(models, ["latentlm_short"]).differences}) == 5
    assert {one.name for one in compare_tasks(models, ["*_line", "*_heldout"]).differences} == set(TASKS)
    with pytest.raises(UserError, match='Did you mean "latentlm_copy"'):
        compare_tasks(models, ["latentlm_cpoy"])


def test_other_items_are_refused_with_the_task_and_the_items(results: list[dict[str, Any]]) -> None:
    fewer = evaluated(1, TASKS, limit=7)
    with pytest.raises(UserError, match=r"ran different tasks \(only a-0: latentlm_brackets, latentlm_copy\)"):
        compare_tasks([model("a", results[0]), model("b", fewer)])
    with pytest.raises(UserError, match=r"latentlm_heldout: .*10 and 7 \(doc_id, only a-0: 7, 8, 9\).*--limit"):
        compare_tasks([model("a", results[0]), model("b", fewer)], TASKS)


def test_changed_documents_answers_and_metrics_are_refused(results: list[dict[str, Any]]) -> None:
    def changed(key: str, value: object) -> Model:
        other = copy.deepcopy(results[1])
        other["samples"]["latentlm_next_line"][3][key] = value
        return model("b", other)

    first = model("a", results[0])
    with pytest.raises(UserError, match=r"latentlm_next_line: the documents .* differ at doc_id 3 "):
        compare_tasks([first, changed("doc_hash", "other")])
    with pytest.raises(UserError, match=r"latentlm_next_line: the right answers .* differ at doc_id 3 "):
        compare_tasks([first, changed("target_hash", "other")])
    other = copy.deepcopy(results[1])
    for sample in other["samples"]["latentlm_next_line"]:
        sample["metrics"] = ["acc"]
    with pytest.raises(UserError, match=r"latentlm_next_line: .* different metrics \(only a-0: acc_norm\)"):
        compare_tasks([first, model("b", other)])


def test_other_prompts_are_said_in_a_note(results: list[dict[str, Any]]) -> None:
    other = copy.deepcopy(results[1])
    other["samples"]["latentlm_copy"][0]["prompt_hash"] = "with shots"
    (note,) = compare_tasks([model("a", results[0]), model("b", other)]).notes
    assert "b-0 had other prompts than a-0" in note
    assert note.endswith("latentlm_copy.")


def test_a_folder_of_lm_evals_own_gives_what_its_results_give(tmp_path: Path, results: list[dict[str, Any]]) -> None:
    there = compare_tasks([model("a", results[0]), model("b", results[1])])
    folders = [logged(tmp_path / str(number), copy.deepcopy(run)) for number, run in enumerate(results[:2])]
    assert samples_folder(folders[0]) == folders[0] / "some__guesser"
    back = [Model(name, (Evaluation.read(f"{name}-0", at),)) for name, at in zip("ab", folders, strict=True)]
    assert compare_tasks(back) == there


def test_our_own_folder_reads_back_and_leaves_the_results_alone(tmp_path: Path, results: list[dict[str, Any]]) -> None:
    before = copy.deepcopy(results[0])
    write_evaluation(results[0], tmp_path / "a")
    assert results[0] == before
    assert Evaluation.read("a", tmp_path / "a").tasks.keys() == results[0]["samples"].keys()
    assert Evaluation.read("a", tmp_path / "a").groups == Evaluation.of("a", results[0]).groups


def test_of_two_evaluations_in_a_folder_the_latest_counts(tmp_path: Path, results: list[dict[str, Any]]) -> None:
    for run in results[:2]:
        logged(tmp_path, copy.deepcopy(run))
    comparison = compare_tasks([model("b", results[1]), Model("folder", (Evaluation.read("folder", tmp_path),))])
    assert {one.difference for one in comparison.differences} == {0.0}
    assert any(note.startswith("folder holds several evaluations of latentlm_brackets") for note in comparison.notes)


def test_without_a_results_file_the_metrics_are_lm_evals_own_and_a_note_says_so(
    tmp_path: Path, results: list[dict[str, Any]]
) -> None:
    folder = logged(tmp_path, copy.deepcopy(results[0]))
    for file in folder.rglob("results_*.json"):
        file.unlink()
    comparison = compare_tasks([model("b", results[1]), Model("bare", (Evaluation.read("bare", folder),))])
    assert found(comparison, "latentlm_heldout", "bits_per_byte").second_value == pytest.approx(
        results[0]["results"]["latentlm_heldout"]["bits_per_byte,none"]
    )
    assert any("bare has no results file" in note for note in comparison.notes)


def test_broken_and_doubled_samples_are_refused(tmp_path: Path, results: list[dict[str, Any]]) -> None:
    folder = logged(tmp_path, copy.deepcopy(results[0]))
    (file,) = folder.rglob("samples_latentlm_copy_*.jsonl")
    text = file.read_text(encoding="utf-8")
    file.write_text(text[:-40], encoding="utf-8")
    with pytest.raises(UserError, match="line 10 is not readable as JSON"):
        Evaluation.read("a", folder)
    file.write_text(text + text, encoding="utf-8")
    with pytest.raises(UserError, match="doc_id 0 twice"):
        Evaluation.read("a", folder)


def test_numbers_that_lm_eval_writes_as_text_are_numbers(results: list[dict[str, Any]]) -> None:
    other = copy.deepcopy(results[1])
    for sample in other["samples"]["latentlm_next_line"]:
        sample["acc"] = str(bool(sample["acc"]))  # as numpy's booleans come out of lm-eval's JSON
    one, same = (compare_tasks([model("a", results[0]), model("b", run)]) for run in (other, results[1]))
    assert found(one, "latentlm_next_line", "acc") == found(same, "latentlm_next_line", "acc")


def test_a_folder_of_several_models_asks_for_one(tmp_path: Path, results: list[dict[str, Any]]) -> None:
    write_evaluation(results[0], tmp_path / "a")
    write_evaluation(results[1], tmp_path / "b")
    with pytest.raises(UserError, match=r"several models; name the folder of one: .*a, .*b"):
        samples_folder(tmp_path)


def task_files(folder: Path) -> Path:
    """Two multiple-choice tasks of unequal size in a group that counts them alike, with an F1 and an aggregation of its own."""
    folder.mkdir()
    (folder / "own.py").write_text("def largest(items):\n    return max(items)\n", encoding="utf-8")
    for name, count in (("own_small", 6), ("own_large", 30)):
        lines = [f'{{"q": "question {name} {n}", "a": {n % 2}}}' for n in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}},
            "output_type": "multiple_choice",
            "test_split": "test",
            "doc_to_text": "{{q}}",
            "doc_to_target": "a",
            "doc_to_choice": ["no", "yes"],
            "metric_list": [
                {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
                {"metric": "f1", "aggregation": "f1", "higher_is_better": True},
                {"metric": "acc_norm", "aggregation": "OWN", "higher_is_better": True},
            ],
        }
        text = yaml.safe_dump(task).replace("OWN", "!function own.largest")
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    group = {
        "group": "own_group",
        "task": ["own_small", "own_large"],
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": False}],
    }
    (folder / "group.yaml").write_text(yaml.safe_dump(group), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = task_files(tmp_path_factory.mktemp("tasks") / "own")
    return [evaluated(seed, ["own_group"], limit=None, include_path=folder) for seed in range(2)]


def test_a_group_counts_its_tasks_as_lm_eval_reports_it(own: list[dict[str, Any]]) -> None:
    one = found(compare_tasks([model("a", own[0]), model("b", own[1])]), "own_group", "acc")
    assert one.first_value == pytest.approx(own[0]["results"]["own_group"]["acc,none"])
    assert one.second_value == pytest.approx(own[1]["results"]["own_group"]["acc,none"])


def test_an_f1_is_compared_and_an_aggregation_of_the_tasks_own_is_left_out(own: list[dict[str, Any]]) -> None:
    comparison = compare_tasks([model("a", own[0]), model("b", own[1])])
    one = found(comparison, "own_large", "f1")
    assert one.second_value == pytest.approx(own[1]["results"]["own_large"]["f1,none"])
    assert 0 < one.items_error < 0.3
    assert {one.metric for one in comparison.differences} == {"acc", "f1"}
    assert sum("acc_norm is left out" in note for note in comparison.notes) == 2


def test_where_nothing_can_be_compared_the_notes_are_left(own: list[dict[str, Any]], tmp_path: Path) -> None:
    only = copy.deepcopy(own)
    for run in only:
        for sample in [sample for task in run["samples"].values() for sample in task]:
            sample["metrics"] = ["acc_norm"]
    comparison = compare_tasks([model("a", only[0]), model("b", only[1])])
    out = io.StringIO()
    show_tasks(comparison, console=Console(file=out, width=200))
    for text in (out.getvalue(), report.tasks_page(comparison, "")):
        assert "own_small acc_norm is left out" in text


def test_an_interval_over_items_is_that_of_a_paired_test_from_the_logged_numbers(own: list[dict[str, Any]]) -> None:
    for run in own:
        for sample in run["samples"]["own_large"]:
            sample["likelihood"] = sample["filtered_resps"][0][0]
            sample["metrics"] = [*sample["metrics"], "likelihood"]
    one = found(compare_tasks([model("a", own[0]), model("b", own[1])]), "own_large", "likelihood")
    values = [[sample["likelihood"] for sample in run["samples"]["own_large"]] for run in own]
    known = stats.ttest_rel(values[1], values[0]).confidence_interval(0.95)
    assert (one.low, one.high) == pytest.approx((known.low, known.high))


def test_where_likelihoods_are_not_good_nothing_is_bold_and_a_note_says_it(results: list[dict[str, Any]]) -> None:
    second = copy.deepcopy(results[1])
    for sample in second["samples"]["latentlm_next_line"]:
        sample["likelihoods"] = [{"value": -1.0, "converged": False}, {"value": -2.0, "converged": True}]
    comparison = compare_tasks([model("a", results[0]), model("b", second)])
    one = replace(found(comparison, "latentlm_next_line", "acc"), low=0.1, high=0.3)
    assert (one.unconverged, one.verdict) == (10, "")
    assert replace(one, unconverged=0).verdict == "better"
    (note,) = [note for note in comparison.notes if "not good to the tolerance" in note]
    assert "latentlm_next_line: 10 of 20" in note
    for sample in second["samples"]["latentlm_next_line"]:
        sample["likelihoods"][0]["converged"] = True
    sure = compare_tasks([model("a", results[0]), model("b", second)])
    assert found(sure, "latentlm_next_line", "acc").unconverged == 0
    assert not any("tolerance" in note for note in sure.notes)
