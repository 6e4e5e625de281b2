"""Several processes train one model: the losses are those of one, to rounding, for decoders of every kind; a checkpoint goes on
with another number of processes; what is refused is refused once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from latentlm.training import load_recipe, train
from latentlm.training.parallel import Ranks, check_ranks
from latentlm.training.record.checkpoint import latest_checkpoint
from latentlm_schedules.levels import pool

SMALL = [
    "data.path=synthetic:letter", "data.max_documents=200", "model.backbone.width=32", "model.backbone.context=32",
    "train.batch=6", "train.context=32", "train.steps=4", "train.warmup=1", "train.log_every=1", "train.eval_every=4",
    "train.save_every=2", "train.keep=9", "train.eval_documents=3", "train.device=cpu",
]  # fmt: skip


def run(recipe: str, out: Path, *more: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*start, "latentlm", "train", recipe, *SMALL, *more, "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def assert_alike(first: Path, second: Path) -> None:
    for one, other in zip(lines(first), lines(second), strict=True):
        for key in ("cross_entropy", "kl", "loss", "grad_norm", "penalty"):
            assert one[key] == pytest.approx(other[key], rel=2e-5, abs=1e-5) if one[key] is not None else other[key] is None
        for key, value in (one["schedule"] or {}).items():
            assert other["schedule"][key] == pytest.approx(value, rel=2e-5, abs=1e-5)


DECODERS = {
    "free-tiny": ['model.kl_schedule={"name": "free_bits", "bits": 0.5, "level": "batch"}'],  # a hinge on the whole batch
    "chunk-tiny": ['model.kl_schedule={"name": "geco"}'],  # a state that moves by what all processes saw
    "ltm-tiny": [],  # its encoder descends through the decoder
    "vanilla-tiny": [],
    "two-level-tiny": [],
}
LONG = {"free-tiny", "chunk-tiny", "vanilla-tiny", "two-level-tiny"}


@pytest.mark.parametrize(
    "recipe", [pytest.param(name, marks=pytest.mark.conformance if name in LONG else ()) for name in DECODERS]
)
def test_two_processes_train_as_one(recipe: str, tmp_path: Path) -> None:
    train(load_recipe(recipe, [*SMALL, *DECODERS[recipe]]), out=tmp_path / "one", progress=False)
    done = run(recipe, tmp_path / "two", *DECODERS[recipe])
    assert done.returncode == 0, done.stderr
    assert_alike(tmp_path / "one", tmp_path / "two")
    assert "FSDP" not in done.stderr


def test_a_checkpoint_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    """Begun by two, ended by one."""
    hinge = DECODERS["free-tiny"]
    recipe = load_recipe("free-tiny", [*SMALL, *hinge])
    train(recipe, out=tmp_path / "one", progress=False)
    assert run("free-tiny", tmp_path / "two", *hinge).returncode == 0
    assert_alike(tmp_path / "one", tmp_path / "two")
    for step in (2, 4):  # at 4 held-out texts were scored just before it
        for name in ("model", "optimizer"):
            file = f"checkpoints/step-0000000{step}/{name}.safetensors"
            one, two = (load_file(tmp_path / each / file) for each in ("one", "two"))
            assert one.keys() == two.keys()
            assert all(torch.allclose(one[key], two[key], rtol=1e-4, atol=1e-5) for key in one)
    (tmp_path / "two" / "checkpoints" / "step-00000004").rename(tmp_path / "aside")
    for name in ("card.yaml", "model.safetensors"):
        (tmp_path / "two" / name).unlink()
    train(recipe, out=tmp_path / "two", resume=True, progress=False)
    assert_alike(tmp_path / "one", tmp_path / "two")
    resumed = json.loads((tmp_path / "two" / "manifest.json").read_text())["resumed"]
    assert [(each["step"], each["processes"]) for each in resumed] == [(2, 1)]


def test_what_is_refused_is_said_once(tmp_path: Path) -> None:
    done = run("vanilla-tiny", tmp_path / "run", "train.batch=1")
    assert done.returncode != 0
    assert done.stderr.count("2 processes share the rows of a micro-batch, and train.batch is 1.") == 1
    assert "latentlm/training" not in done.stderr


def test_a_process_that_is_killed_ends_the_others(tmp_path: Path) -> None:
    out = tmp_path / "run"
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "latentlm", "train"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    more = ["train.steps=4000", "train.eval_every=4000"]
    with subprocess.Popen([*start, "vanilla-tiny", *SMALL, *more, "--out", str(out)], stderr=subprocess.PIPE, text=True,
                          env=environment) as process:  # fmt: skip
        wait_for(lambda: (out / "checkpoints" / "step-00000004").exists())
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        other = next(child for child in children if b"RANK=1" in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"))
        os.kill(int(other), signal.SIGKILL)
        said = process.communicate(timeout=60)[1]
    assert process.returncode != 0
    assert said.count("What was saved before is intact: go on with --resume.") <= 1
    assert "latentlm/training" not in said
    assert latest_checkpoint(out / "checkpoints", warn=pytest.fail) is not None


def wait_for(condition: Callable[[], bool], *, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.1)


def test_rows_of_a_micro_batch_go_round() -> None:
    assert [list(Ranks(rank, 3).rows(7)) for rank in range(3)] == [[0, 3, 6], [1, 4], [2, 5]]


def test_copies_divide_the_processes() -> None:
    config = load_recipe("vanilla-tiny", ["train.parallel.replicate=2"]).train
    check_ranks(config, Ranks(0, 4))
    with pytest.raises(Exception, match="3 processes do not divide"):
        check_ranks(config, Ranks(0, 3))


def test_a_budget_of_the_batch_is_compared_with_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a batch that is over its budget charges by what the whole is over, not by what itself is."""
    kl, mask = torch.tensor([[[1.0]], [[5.0]]]), torch.ones(2, 1, dtype=torch.bool)
    monkeypatch.setattr("latentlm_schedules.levels.summed", lambda value: value + 4.0)  # the other half is 4 over
    own = pool(kl[:1], mask[:1], level="batch", kappa=2.0)
    assert bool(own.above)
    assert float(own.kl - own.budget) == -1.0
