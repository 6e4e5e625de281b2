"""Names of tasks are resolved as lm-eval does, and what cannot be run is refused before any long work."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentlm.errors import UserError
from latentlm_evals.evaluation import check_tasks, task_manager
from latentlm_evals.suites import SUITE_TASKS
from latentlm_evals.task_names import resolve_tasks

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{q}}}}"
doc_to_target: "{{{{a}}}}"
metric_list: [{{metric: exact_match}}]
"""


def task(folder: Path, name: str, *, more: str = "", data: str | None = None) -> Path:
    (folder / "items.jsonl").write_text('{"q": "1 + 1 =", "a": "2"}\n', encoding="utf-8")
    file = folder / f"{name}.yaml"
    file.write_text(TASK.format(name=name, data=data or folder / "items.jsonl") + more, encoding="utf-8")
    return file


def test_a_pattern_names_every_task() -> None:
    assert resolve_tasks(["latentlm_*"]) == ["latentlm_short"]  # the group holds the others
    assert resolve_tasks(["latentlm_[cb]*"]) == ["latentlm_brackets", "latentlm_copy"]


@pytest.mark.conformance
def test_a_pattern_names_every_task_of_others_and_none_twice(tmp_path: Path) -> None:
    """Of lm-eval's own too, which take seconds to read."""
    task(tmp_path, "mine_one")
    task(tmp_path, "mine_two")
    assert resolve_tasks(["mine_*", "latentlm_copy", "mine_one"], tmp_path) == ["mine_one", "mine_two", "latentlm_copy"]


def test_names_groups_and_files_are_taken_as_they_are(tmp_path: Path) -> None:
    assert resolve_tasks(SUITE_TASKS) == list(SUITE_TASKS)
    assert resolve_tasks(["latentlm_short"]) == ["latentlm_short"]
    file = str(task(tmp_path, "mine"))
    assert resolve_tasks([file]) == [file]
    assert resolve_tasks([str(tmp_path / "m*.yaml")]) == [file]


@pytest.mark.parametrize("name", ["latentlm_mine", "latentlm_[m]ine", "latentlm_mine.YAML"])
def test_a_name_is_no_file_that_happens_to_be_called_so(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could hold code, and a recipe's tasks are names."""
    monkeypatch.chdir(tmp_path)
    task(tmp_path, "mine").rename(name)
    for look in (resolve_tasks, check_tasks, lambda names: task_manager([]).load(names)):
        with pytest.raises(UserError, match="Unknown task"):
            look([name])
    assert resolve_tasks([f"./{name}"]) == [f"./{name}"]


def test_a_pattern_that_a_file_is_called_by_is_a_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    task(tmp_path, "mine").rename("latentlm_[cb]*")
    assert resolve_tasks(["latentlm_[cb]*"]) == ["latentlm_brackets", "latentlm_copy"]


def test_unknown_names_and_patterns_say_what_is_near() -> None:
    with pytest.raises(UserError, match='Did you mean "latentlm_copy"'):
        resolve_tasks(["latentlm_short", "latentlm_cpoy"])
    with pytest.raises(UserError, match=r'Unknown task "latentlm_coopy\*". Did you mean "latentlm_copy"'):
        resolve_tasks(["latentlm_coopy*"])
    with pytest.raises(UserError, match="names no task"):
        resolve_tasks([])


def test_a_task_without_its_data_is_refused_by_name(tmp_path: Path) -> None:
    task(tmp_path, "mine", data="/nowhere.jsonl")
    with pytest.raises(UserError, match=r"the task mine cannot be loaded \(FileNotFoundError: .*\): are its data"):
        resolve_tasks(["mine"], tmp_path)


def test_of_a_group_the_task_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    task(tmp_path, "mine")
    task(tmp_path, "other", data="/nowhere.jsonl")
    (tmp_path / "both.yaml").write_text("group: both\ntask: [mine, other]\n")
    with pytest.raises(UserError, match=r"the task other, of both, cannot be loaded \(FileNotFoundError"):
        resolve_tasks(["both"], tmp_path)


def test_a_task_that_runs_the_models_code_is_refused(tmp_path: Path) -> None:
    task(tmp_path, "mine", more="unsafe_code: true\n")
    with pytest.raises(UserError, match="mine runs code that a model wrote"):
        resolve_tasks(["mine"], tmp_path)


def test_a_metric_that_wants_to_be_allowed_to_run_code_says_how(tmp_path: Path) -> None:
    banner = "\\n" + "#" * 40 + "\\nThe metric runs code: set HF_ALLOW_CODE_EVAL.\\n"
    (tmp_path / "metric.py").write_text(f'raise ValueError("{banner}")')
    task(tmp_path, "mine", more="process_results: !function metric.results\n")
    with pytest.raises(UserError, match=r"\(ValueError: The metric runs code.*which HF_ALLOW_CODE_EVAL=1 in the environment"):
        resolve_tasks(["mine"], tmp_path)


def test_a_missing_folder_of_tasks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        resolve_tasks(["latentlm_copy"], tmp_path / "none")
