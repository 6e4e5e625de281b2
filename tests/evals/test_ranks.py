"""Several processes share an evaluation and have the results of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from lm_eval.api.instance import Instance

from latentlm.errors import UserError
from latentlm.interface.ranks import place
from latentlm_evals.ranks import Ranks, build_own_requests, emptied, in_document_order

SCRIPT = Path(__file__).parent / "sharing.py"


def test_without_a_launcher_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    alone = Ranks.join()
    assert (alone.rank, alone.count, alone.gather("x"), alone.device("cuda:1")) == (0, 1, ["x"], "cuda:1")


@pytest.mark.parametrize(
    "said", [{"RANK": "x"}, {"WORLD_SIZE": "-1", "RANK": "0"}, {"RANK": ""}, {"WORLD_SIZE": "2", "RANK": "5"}]
)
def test_what_a_launcher_cannot_have_said_is_refused(monkeypatch: pytest.MonkeyPatch, said: dict[str, str]) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, text in said.items():
        monkeypatch.setenv(name, text)
    with pytest.raises(UserError, match="in the environment is no"):
        place()
    with pytest.raises(UserError, match="in the environment is no"):
        Ranks.join()


def test_each_process_has_a_device_of_its_own_unless_another_kind_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    third = Ranks(rank=6, local_rank=2, count=8)
    assert [third.device(wanted) for wanted in (None, "cuda", "cuda:0", "cpu")] == ["cuda:2", "cuda:2", "cuda:2", "cpu"]


def test_what_is_gathered_is_in_the_order_of_one_process() -> None:
    metrics = [{"task": {("acc", "none"): [0, 3, 6]}}, {"task": {("acc", "none"): [1, 4]}}, {"task": {("acc", "none"): [2, 5]}}]
    assert in_document_order(metrics) == {"task": {("acc", "none"): [0, 1, 2, 3, 4, 5, 6]}}
    samples = [[{"doc_id": n, "filter": f} for f in ("strict", "loose") for n in range(rank, 5, 2)] for rank in range(2)]
    together = in_document_order([{"task": part} for part in samples])["task"]
    assert [(each["filter"], each["doc_id"]) for each in together] == [(f, n) for f in ("strict", "loose") for n in range(5)]
    picked = [[{"doc_id": n, "filter": "none"} for n in part] for part in ((8, 3), (1,))]  # --samples 8,1,3
    assert [each["doc_id"] for each in in_document_order(picked)] == [8, 1, 3]
    assert emptied(in_document_order(metrics)) == {"task": {("acc", "none"): []}}


def test_more_processes_than_documents_are_refused() -> None:
    built: dict[str, Any] = {}

    class Quiz:
        config = SimpleNamespace(task="quiz")
        instances: ClassVar = [Instance("loglikelihood", {}, ("a", "b"), 0, ("quiz", n, 1)) for n in (0, 0, 1)]

        def build_all_requests(self, **options: Any) -> None:
            built.update(options)

    build_own_requests(quiz := Quiz(), 1, 2)
    build_own_requests(quiz, 1, 2)  # whoever evaluates a task again says so again
    quiz.build_all_requests(limit=3, rank=1, world_size=2, tokenizer_name="t")
    assert built == {"limit": 3, "rank": 0, "world_size": 1, "tokenizer_name": "t-1of2"}
    assert [request.doc_id for request in quiz._instances] == [1]
    build_own_requests(quiz, 2, 3)
    with pytest.raises(UserError, match="task quiz has 2 documents to evaluate, which 3 processes cannot share"):
        quiz.build_all_requests()


# --multi_gpu is accelerate's word for several processes, on a CPU too; with --cpu it starts one, whatever else is said.
ACCELERATE = ["--multi_gpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    "accelerate": ["-m", "accelerate.commands.launch", *ACCELERATE, "--main_process_port=0"],
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of one process."""
    return run_shared(tmp_path_factory.mktemp("alone"), [])[0]


def run_shared(folder: Path, launcher: list[str]) -> tuple[dict[str, Any], set[str]]:
    """The results of an evaluation, and what its processes said."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(folder)}  # no configuration of this machine's
    command = [sys.executable, *launcher, str(SCRIPT), str(folder / "results.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "results.json").read_text()), {line for line in done.stdout.splitlines() if "process" in line}


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher", [pytest.param(name, marks=pytest.mark.conformance if name == "accelerate" else ()) for name in LAUNCHERS]
)
def test_two_processes_have_the_results_of_one(tmp_path: Path, alone: dict[str, Any], launcher: str) -> None:
    shared, said = run_shared(tmp_path, LAUNCHERS[launcher])
    assert said == {"process 0 of 2: results", "process 1 of 2: none"}
    assert (shared["latentlm"]["processes"], alone["latentlm"]["processes"]) == (2, 1)
    expected = {**alone, "latentlm": {**alone["latentlm"], "processes": 2}}
    assert_close(shared, expected)


def assert_close(found: Any, expected: Any, where: str = "") -> None:
    """The same but for rounding: the processes' batches are others."""
    if isinstance(expected, dict):
        assert list(found) == list(expected), where
        for key in expected:
            assert_close(found[key], expected[key], f"{where}/{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for number, (each, wanted) in enumerate(zip(found, expected, strict=True)):
            assert_close(each, wanted, f"{where}/{number}")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-4), where
    else:
        assert found == expected, where
