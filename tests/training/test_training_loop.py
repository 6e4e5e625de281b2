"""What a run writes, and what it refuses before the work begins."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from latentlm import zoo
from latentlm.config import Card, Recipe, parse
from latentlm.errors import CheckpointError, UserError
from latentlm.interface import Batch, Noise
from latentlm.training import loop, trainer
from latentlm.training import run as run_module
from latentlm.training.loop import train
from latentlm.training.record import checkpoint
from latentlm.training.record.checkpoint import checkpoints
from latentlm.training.record.folder import locked, saved_recipe
from latentlm.training.record.metrics import read_metrics
from latentlm.training.trainer import DivergedError

Make = Callable[..., Recipe]
_EVERY_LINE = {
    "split", "step", "tokens", "cross_entropy", "kl", "kl_bits_per_token", "bound", "bits_per_byte", "penalty", "loss",
    "schedule", "learning_rate", "grad_norm", "tokens_per_second", "elapsed",
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> Path:
    """A finished run of the Free Transformer, shared by tests that only read."""
    out = tmp_path_factory.mktemp("finished") / "run"
    data = {
        "name": "tiny-free",
        "model": {"decoder": "free", "event_dims": 4, "backbone": {"width": 16, "blocks": 2, "heads": 2, "context": 32}},
        "data": {"path": str(texts), "held_out": 0.25},
        "train": {"steps": 12, "batch": 2, "log_every": 4, "eval_every": 6, "save_every": 4, "eval_documents": 4, "threads": 1},
    }
    train(parse(Recipe, data, source="test"), out=out, progress=False, command=["latentlm", "train", "tiny.yaml"])
    return out


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading data is the first long work: refusals must come before it."""

    def work(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the refusal came too late")

    monkeypatch.setattr(loop, "prepare", work)


# ---------------------------------------------------------------------------------------------------- what is written


def test_the_folder_is_a_model_of_the_zoo(finished: Path) -> None:
    model = zoo.load(str(finished))
    assert model.card is not None
    assert (model.card.status, model.card.name, model.card.plugins) == ("trained", "tiny-free", ["free", "schedules"])
    assert model.tokenizer is not None
    assert model.tokenizer.name == "bytes"
    stored = load_file(checkpoints(finished / "checkpoints")[-1] / "model.safetensors")
    loaded = dict(model.named_parameters())
    assert stored.keys() == loaded.keys()
    assert all(torch.equal(stored[name], loaded[name]) for name in stored)
    batch = Batch.of([[256, 104, 105]])
    assert torch.isfinite(model.loss(batch, step=0, noise=Noise.keyed(0, ["x"])).total)


def test_the_card_tells_how_it_was_trained_and_measured(finished: Path) -> None:
    card = parse(Card, yaml.safe_load((finished / "card.yaml").read_text(encoding="utf-8")), source="card")
    assert card.training["steps"] == 12
    assert card.training["data"]["fingerprint"]
    assert card.training["tokens"] == read_metrics(finished / "metrics.jsonl")[-1]["tokens"]
    last = [line for line in read_metrics(finished / "metrics.jsonl") if line["split"] == "held_out"][-1]
    assert card.scores["held_out_bound"]["bits_per_byte"] == last["bits_per_byte"]


def test_the_recipe_is_written_with_nothing_left_open(finished: Path) -> None:
    recipe = saved_recipe(finished)
    assert recipe.model.encoder is not None
    assert recipe.model.encoder.settings["rope"] is True
    assert recipe.model.kl_schedule is not None
    assert recipe.model.kl_schedule.settings["bits"] == 0.5
    assert recipe.train.context == 32
    assert recipe.model.backbone.vocabulary == 257


def test_the_manifest_has_what_a_repeat_needs(finished: Path) -> None:
    manifest = json.loads((finished / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["command"] == ["latentlm", "train", "tiny.yaml"]
    assert manifest["versions"]["torch"] == torch.__version__
    assert "free (latentlm)" in manifest["versions"]["plugins"]
    assert manifest["device"]["name"]
    assert manifest["seeds"] == {"data": 0, "training": 0}
    assert manifest["data"]["held_out_documents"] > 0
    assert manifest["parameters"]["total"] == sum(v for k, v in manifest["parameters"].items() if k != "total")
    assert manifest["git"] is None or set(manifest["git"]) == {"commit", "dirty"}


def test_every_line_of_the_metrics_has_the_keys_and_the_bound(finished: Path) -> None:
    lines = read_metrics(finished / "metrics.jsonl")
    assert [(line["split"], line["step"]) for line in lines] == [
        ("train", 4), ("held_out", 6), ("train", 8), ("train", 12), ("held_out", 12),
    ]  # fmt: skip
    for line in lines:
        assert line.keys() >= _EVERY_LINE
        assert line["bound"] == pytest.approx(line["cross_entropy"] + line["kl"])
        assert line["kl_bits_per_token"] == pytest.approx(line["kl"] / math.log(2))
        assert line["kl"] > 0
    training = [line for line in lines if line["split"] == "train"]
    assert all(line["loss"] == pytest.approx(line["cross_entropy"] + line["penalty"]) for line in training)
    assert "within_budget" in training[0]["schedule"]
    assert lines[-1].keys() >= {"standard_error", "documents", "kl_by_position", "live_bits", "dimensions"}


def test_training_learns(recipe: Make, tmp_path: Path) -> None:
    result = train(recipe("train.steps=40", "train.batch=4", decoder="vanilla"), out=tmp_path, progress=False)
    first = read_metrics(tmp_path / "metrics.jsonl")[0]
    assert result.held_out["bits_per_byte"] < first["bits_per_byte"] - 1


def test_a_collapse_is_warned_of_in_the_metrics(
    recipe: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the whole KL charged a hundredfold, the latent says nothing."""
    schedule = "model.kl_schedule={name: constant, weight: 100}"
    train(recipe(schedule, "train.eval_every=2"), out=tmp_path, progress=False)
    warned = [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl") if "warning" in line]
    assert len(warned) == 1
    assert "the latent has collapsed" in " ".join(capsys.readouterr().err.split())


# ---------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.usefixtures("no_work")
def test_a_finished_run_is_not_overwritten(recipe: Make, finished: Path) -> None:
    before = (finished / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"finished run.*--out"):
        train(recipe(), out=finished, progress=False)
    again = train(saved_recipe(finished), out=finished, resume=True, progress=False)
    assert (again.name, again.steps) == ("tiny-free", 12)
    assert (finished / "metrics.jsonl").read_bytes() == before


@pytest.mark.usefixtures("no_work")
def test_a_started_run_is_not_overwritten(recipe: Make, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes((finished / "recipe.yaml").read_bytes())
    with pytest.raises(UserError, match="--resume"):
        train(recipe(), out=tmp_path, progress=False)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("resume", [False, True])
def test_other_files_are_not_mixed_with_a_run(recipe: Make, tmp_path: Path, resume: bool) -> None:
    (tmp_path / "thesis.tex").write_text("precious", encoding="utf-8")
    with pytest.raises(UserError, match=r"not empty.*thesis\.tex.*--out"):
        train(recipe(), out=tmp_path, resume=resume, progress=False)


@pytest.mark.usefixtures("no_work")
def test_a_place_that_cannot_be_written_is_refused_first(recipe: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=r"cannot write into .*--out"):
        train(recipe(), out=tmp_path / "file" / "run", progress=False)


@pytest.mark.usefixtures("no_work")
def test_a_folder_without_permission_is_refused_first(recipe: Make, tmp_path: Path) -> None:
    """Root may write anywhere but on a file system that is mounted read-only."""
    if os.geteuid() == 0:
        mount = ["mount", "-t", "tmpfs", "-o", "ro,size=64k", "tmpfs", str(tmp_path)]
        if subprocess.run(mount, check=False, capture_output=True).returncode:
            pytest.skip("cannot mount here")
    else:
        tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError, match=r"cannot write into .*(Read-only|Permission).*--out"):
            train(recipe(), out=tmp_path / "run", progress=False)
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", str(tmp_path)], check=True)
        else:
            tmp_path.chmod(0o700)


@pytest.mark.usefixtures("no_work")
def test_two_processes_do_not_share_a_folder(recipe: Make, tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(UserError, match="another process"):
        train(recipe(), out=tmp_path, progress=False)


def test_too_little_memory_is_refused_before_the_model_is_made(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "make_model", lambda *arguments: pytest.fail("too late"))
    huge = recipe("model.backbone.width=16384", "model.backbone.blocks=400", decoder="vanilla")
    with pytest.raises(UserError, match=r"needs about .* GiB of memory.*train\.batch"):
        train(huge, out=tmp_path, progress=False)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.path=/nowhere/at.txt", "does not exist"),
        ("train.context=64", "train.context is 64, but the model's context is 32"),
        ("train.device=tpu9", "train.device"),
        ("model.encoder=fre", 'Did you mean "free"'),
        ("model.backbone.vocabulary=300", "model.backbone.vocabulary=257"),
        ("plugins=[nowhere]", "nowhere"),
        ("model.encoder={name: free, rop: true}", 'Did you mean "rope"'),
    ],
)
def test_settings_that_cannot_work_leave_nothing_behind(recipe: Make, tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(recipe(override), out=tmp_path / "run", progress=False)
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {".lock"}
    train(recipe("train.steps=1"), out=tmp_path / "run", progress=False)


def test_tensorboard_that_is_missing_names_its_extra(recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"latentlm\[tensorboard\]"):
        train(recipe("train.tensorboard=true"), out=tmp_path, progress=False)


def test_tensorboard_gets_every_number(recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a stand-in for the writer of torch, which needs the package."""
    written: dict[tuple[str, int], float] = {}

    class SummaryWriter:
        def __init__(self, folder: str) -> None:
            assert folder == str(tmp_path / "tensorboard")

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written[name, step] = value

        def close(self) -> None:
            written["closed", 0] = 1.0

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    train(recipe("train.tensorboard=true"), out=tmp_path, progress=False)
    line = [line for line in read_metrics(tmp_path / "metrics.jsonl") if line["split"] == "train"][-1]
    assert written["train/bound", 12] == line["bound"]
    assert written["train/schedule/within_budget", 12] == line["schedule"]["within_budget"]
    assert ("held_out/live_bits", 6) in written
    assert ("closed", 0) in written


# ------------------------------------------------------------------------------------------------ what fails on the way


def test_divergence_keeps_the_last_checkpoint(recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accumulate = trainer.Trainer._accumulate

    def failing(self: Any, *arguments: Any) -> Any:
        found = accumulate(self, *arguments)
        return replace(found, values=found.values * math.nan) if self.step >= 5 else found

    monkeypatch.setattr(trainer.Trainer, "_accumulate", failing)
    with pytest.raises(DivergedError, match=r"loss is nan at step 6.*learning_rate.*Last checkpoint in .*: step 4"):
        train(recipe(), out=tmp_path, progress=False)
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == ["step-00000004"]
    assert not (tmp_path / "card.yaml").exists()


def test_what_is_waited_for_is_time_of_training_and_evaluation_is_not(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And an evaluation between two lines of the log counts all that was trained."""
    now = 0.0

    def taking(seconds: float, work: Any) -> Any:
        def longer(*arguments: Any) -> Any:
            nonlocal now
            now += seconds if arguments[0] else 0.0
            return work(*arguments)

        return longer

    monkeypatch.setattr(run_module, "time", types.SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(trainer, "_on_cpu", taking(0.25, trainer._on_cpu))
    monkeypatch.setattr(run_module, "evaluate", taking(1000.0, run_module.evaluate))
    settings = ("train.steps=4", "train.log_every=4", "train.eval_every=3", "train.save_every=4")
    train(recipe(*settings), out=tmp_path, progress=False)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [(line["split"], line["step"]) for line in lines] == [("held_out", 3), ("train", 4), ("held_out", 4)]
    assert lines[1]["tokens"] > lines[0]["tokens"] > lines[1]["tokens"] / 2
    assert lines[1]["elapsed"] == lines[2]["elapsed"] == 0.5
    assert lines[1]["tokens_per_second"] == lines[1]["tokens"] / 0.5


def test_a_full_disk_on_the_way_loses_nothing(recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = checkpoint.save_file
    calls = 0

    def full(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise OSError(28, "No space left on device")
        save(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(CheckpointError, match=r"step-00000008 could not be written: the disk is full.*intact"):
            train(recipe(), out=tmp_path / "run", progress=False)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000004"]
    resumed = train(recipe(), out=tmp_path / "run", resume=True, progress=False)
    whole = train(recipe(), out=tmp_path / "whole", progress=False)
    assert resumed.held_out["bound"] == whole.held_out["bound"]
