"""A run that was stopped, in whatever way, ends as one that never was."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from latentlm import plugins
from latentlm.composed import build
from latentlm.config import Recipe, Strict
from latentlm.errors import CheckpointError, UserError
from latentlm.interface import KLSchedule, LatentDecoder
from latentlm.training import run as run_module
from latentlm.training.loop import InterruptedRun, train
from latentlm.training.record.checkpoint import Checkpoint, checkpoints, open_checkpoint
from latentlm.training.record.metrics import read_metrics
from latentlm.training.resuming import check_resumable
from stumbling import stumbling

Make = Callable[..., Recipe]
_TIMES = ("elapsed", "tokens_per_second")


@pytest.fixture
def stop_at() -> Iterator[Callable[..., None]]:
    """Send this process a signal, or raise, at the end of a step, once."""
    with ExitStack() as stack:

        def arrange(step: int, *, number: int = signal.SIGINT, error: BaseException | None = None) -> None:
            def stop() -> None:
                stack.close()
                if error is None:
                    os.kill(os.getpid(), number)

            stack.enter_context(stumbling(at=step, error=error, do=stop))

        yield arrange


def assert_same_run(one: Path, other: Path) -> None:
    """Same weights, moments and metrics, bit for bit; only times may differ."""
    name = checkpoints(one / "checkpoints")[-1].name
    for file in ("model.safetensors", f"checkpoints/{name}/model.safetensors", f"checkpoints/{name}/optimizer.safetensors"):
        first, second = load_file(one / file), load_file(other / file)
        assert first.keys() == second.keys()
        for key in first:
            assert torch.equal(first[key], second[key]), (file, key)
    lines = [
        [{k: v for k, v in line.items() if k not in _TIMES} for line in read_metrics(path / "metrics.jsonl")]
        for path in (one, other)
    ]
    assert lines[0] == lines[1]


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("decoder", ["free", "vanilla"])
@pytest.mark.parametrize("step", [3, 4, 11])
def test_ctrl_c_saves_and_resume_goes_on(
    recipe: Make, tmp_path: Path, stop_at: Callable[..., None], decoder: str, step: int
) -> None:
    """At a step without a checkpoint, with one, and after the last one; between two lines of the metrics."""
    settings = recipe(decoder=decoder)
    train(settings, out=tmp_path / "whole", progress=False)
    stop_at(step)
    with pytest.raises(InterruptedRun, match=rf"saved at step {step} of 12.*\n.*train .*--out .* --resume"):
        train(settings, out=tmp_path / "stopped", progress=False)
    assert checkpoints(tmp_path / "stopped" / "checkpoints")[-1].name == f"step-{step:08d}"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    result = train(settings, out=tmp_path / "stopped", resume=True, progress=False)
    assert result.steps == 12
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_sigterm_and_a_closed_terminal_are_ctrl_c(
    recipe: Make, tmp_path: Path, stop_at: Callable[..., None], number: signal.Signals
) -> None:
    stop_at(2, number=number)
    with pytest.raises(InterruptedRun):
        train(recipe(), out=tmp_path / "run", progress=False)


class GrowingWeight(KLSchedule):
    """A schedule with a state: its weight grows with every optimiser step."""

    Config = Strict

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.weight = 0.0

    def penalty(
        self, kl: Tensor, reconstruction: Tensor, site_mask: Tensor, target_mask: Tensor, *, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        total = self.weight * torch.where(site_mask, kl.sum(-1), 0.0).sum()
        return total / target_mask.sum(), {"weight": torch.tensor(self.weight)}

    def advance(self, step: int) -> None:
        self.weight += 0.1

    def state_dict(self) -> dict[str, float | int]:
        return {"weight": self.weight}

    def load_state_dict(self, state: Mapping[str, float | int]) -> None:
        self.weight = state["weight"]


@pytest.fixture
def growing() -> Iterator[None]:
    """Offer `GrowingWeight` under its name."""
    plugins.register("kl_schedule", "growing", GrowingWeight)
    yield
    plugins.unregister("kl_schedule", "growing")


@pytest.mark.usefixtures("growing")
@pytest.mark.parametrize("schedule", ["linear", "free_bits", "growing"])
def test_a_crash_resumes_from_the_checkpoint_before(
    recipe: Make, tmp_path: Path, stop_at: Callable[..., None], schedule: str
) -> None:
    """Steps after the checkpoint are made again, and so are their lines in the metrics."""
    settings = recipe(f"model.kl_schedule={schedule}", "train.log_every=1")
    train(settings, out=tmp_path / "whole", progress=False)
    stop_at(7, error=RuntimeError("crash"))
    with pytest.raises(RuntimeError, match="crash"):
        train(settings, out=tmp_path / "crashed", progress=False)
    assert read_metrics(tmp_path / "crashed" / "metrics.jsonl")[-1]["step"] == 6
    train(settings, out=tmp_path / "crashed", resume=True, progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "crashed")


def test_before_the_first_checkpoint_resume_begins_again(recipe: Make, tmp_path: Path, stop_at: Callable[..., None]) -> None:
    settings = recipe()
    train(settings, out=tmp_path / "whole", resume=True, progress=False)  # nothing to resume: it begins
    stop_at(3, error=RuntimeError("crash"))
    with pytest.raises(RuntimeError, match="crash"):
        train(settings, out=tmp_path / "crashed", progress=False)
    train(settings, out=tmp_path / "crashed", resume=True, progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "crashed")


def test_a_truncated_checkpoint_costs_a_warning_and_nothing_else(
    recipe: Make, tmp_path: Path, stop_at: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = recipe()
    train(settings, out=tmp_path / "whole", progress=False)
    stop_at(10, error=RuntimeError("crash"))
    with pytest.raises(RuntimeError, match="crash"):
        train(settings, out=tmp_path / "run", progress=False)
    old, new = checkpoints(tmp_path / "run" / "checkpoints")
    os.truncate(new / "optimizer.safetensors", 100)
    capsys.readouterr()
    train(settings, out=tmp_path / "run", resume=True, progress=False)
    said = " ".join(capsys.readouterr().err.split())
    assert "optimizer.safetensors has 100 bytes" in said
    assert f"Going on from the one before it, step {int(old.name[5:])}" in said
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_damaged_checkpoint_does_not_push_out_the_good_one(
    recipe: Make, tmp_path: Path, stop_at: Callable[..., None]
) -> None:
    """It is set aside when the run goes on from the one before it."""
    settings = recipe("train.save_every=1")
    stop_at(5, error=RuntimeError("crash"))
    with pytest.raises(RuntimeError, match="crash"):
        train(settings, out=tmp_path, progress=False)
    folder = tmp_path / "checkpoints"
    assert [path.name for path in checkpoints(folder)] == ["step-00000003", "step-00000004"]
    os.truncate(folder / "step-00000004" / "model.safetensors", 100)
    stop_at(4, error=RuntimeError("crash"))
    with pytest.raises(RuntimeError, match="crash"):
        train(settings, out=tmp_path, resume=True, progress=False)
    assert [path.name for path in checkpoints(folder)] == ["step-00000003"]
    assert (folder / "step-00000004.unused").is_dir()


def test_what_is_exchanged_once_it_was_hashed_is_not_trained_on(
    recipe: Make, tmp_path: Path, stop_at: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another's weights and moments, in the place of the run's own between the hash and the loading."""
    train(recipe(), out=tmp_path / "whole", progress=False)
    for name, settings in {"run": recipe(), "other": recipe("train.seed=1")}.items():
        stop_at(5, error=RuntimeError("crash"))
        with pytest.raises(RuntimeError, match="crash"):
            train(settings, out=tmp_path / name, progress=False)
    (other,) = checkpoints(tmp_path / "other" / "checkpoints")

    def exchanged(checkpoint: Checkpoint, model: LatentDecoder) -> None:
        check_resumable(checkpoint, model)
        for file in ("model.safetensors", "optimizer.safetensors"):
            os.replace(other / file, checkpoint.path / file)

    monkeypatch.setattr(run_module, "check_resumable", exchanged)
    train(recipe(), out=tmp_path / "run", resume=True, progress=False)
    assert not any(other.glob("*.safetensors"))
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_checkpoint_without_a_file_or_with_a_schedule_of_words_is_none_to_go_on_from(
    recipe: Make, tmp_path: Path, stop_at: Callable[..., None]
) -> None:
    stop_at(4)
    with pytest.raises(InterruptedRun):
        train(recipe(), out=tmp_path, progress=False)
    found = open_checkpoint(checkpoints(tmp_path / "checkpoints")[-1])
    model = build(recipe().model)
    check_resumable(found, model)
    with pytest.raises(CheckpointError, match=r"has no optimizer\.safetensors"):
        check_resumable(replace(found, files={"model": found.files["model"]}), model)
    (schedule,) = model.kl_schedules.values()
    schedule.state_dict = lambda: {"level": 0.5}  # type: ignore[method-assign]
    with pytest.raises(CheckpointError, match="level should be a number"):
        check_resumable(replace(found, state={**found.state, "schedule": {"level": "high"}}), model)


def test_only_damaged_checkpoints_is_an_error(recipe: Make, tmp_path: Path, stop_at: Callable[..., None]) -> None:
    stop_at(4)
    with pytest.raises(InterruptedRun):
        train(recipe(), out=tmp_path, progress=False)
    for path in checkpoints(tmp_path / "checkpoints"):
        (path / "state.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"damaged.*no other checkpoint"):
        train(recipe(), out=tmp_path, resume=True, progress=False)


def test_another_recipe_is_refused_by_its_keys(recipe: Make, tmp_path: Path, stop_at: Callable[..., None]) -> None:
    stop_at(4)
    with pytest.raises(InterruptedRun):
        train(recipe(), out=tmp_path, progress=False)
    changed = recipe("train.learning_rate=0.02", "model.kl_schedule.name=free_bits", "model.kl_schedule.bits=2", "train.keep=5")
    with pytest.raises(
        UserError, match=r"model\.kl_schedule\.bits: 0\.5 in the run, 2\.0 now; train\.learning_rate: 0\.01"
    ) as caught:
        train(changed, out=tmp_path, resume=True, progress=False)
    assert "train.keep" not in str(caught.value)


def test_a_finished_run_is_returned_under_its_own_recipe_only(recipe: Make, tmp_path: Path) -> None:
    settings = recipe("train.steps=2", "data.tokenizer=bpe:300")
    result = train(settings, out=tmp_path, progress=False)
    assert train(settings, out=tmp_path, resume=True, progress=False) == result
    with pytest.raises(UserError, match=r"train\.steps: 2 in the run, 3 now"):
        train(recipe("train.steps=3", "data.tokenizer=bpe:300"), out=tmp_path, resume=True, progress=False)


@pytest.mark.usefixtures("ctrl_c")
def test_a_run_from_before_a_part_had_a_setting_goes_on_with_its_default(
    recipe: Make, tmp_path: Path, stop_at: Callable[..., None]
) -> None:
    settings = recipe()
    stop_at(6)
    with pytest.raises(InterruptedRun):
        train(settings, out=tmp_path, progress=False)
    written = (tmp_path / "recipe.yaml").read_text()
    assert "    estimator: exact\n" in written
    (tmp_path / "recipe.yaml").write_text(written.replace("    estimator: exact\n", ""))
    with pytest.raises(UserError, match=r"model\.injection\.estimator: exact in the run, reinmax now"):
        train(recipe("model.injection.estimator=reinmax"), out=tmp_path, resume=True, progress=False)
    assert train(settings, out=tmp_path, resume=True, progress=False).steps == 12


def test_a_resume_with_nothing_to_resume_says_so(
    recipe: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = recipe("train.steps=2")
    train(settings, out=tmp_path, resume=True)
    assert "no run to resume" in " ".join(capsys.readouterr().err.split())
    train(settings, out=tmp_path, resume=True)
    assert "no run to resume" not in " ".join(capsys.readouterr().err.split())


def test_what_does_not_change_the_weights_may_change(recipe: Make, tmp_path: Path, stop_at: Callable[..., None]) -> None:
    train(recipe(), out=tmp_path / "whole", progress=False)
    stop_at(5)
    with pytest.raises(InterruptedRun):
        train(recipe(), out=tmp_path / "run", progress=False)
    train(
        recipe("train.eval_every=5", "train.save_every=3", "train.log_every=1"),
        out=tmp_path / "run",
        resume=True,
        progress=False,
    )
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_other_data_are_refused(recipe: Make, texts: Path, tmp_path: Path, stop_at: Callable[..., None]) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for path in texts.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    settings = recipe(f"data.path={folder}")
    stop_at(4)
    with pytest.raises(InterruptedRun):
        train(settings, out=tmp_path / "run", progress=False)
    (folder / "new.txt").write_text("one more document", encoding="utf-8")
    with pytest.raises(UserError, match="data have changed"):
        train(settings, out=tmp_path / "run", resume=True, progress=False)


def test_a_trained_tokenizer_is_kept(recipe: Make, tmp_path: Path, stop_at: Callable[..., None]) -> None:
    settings = recipe("data.tokenizer=bpe:300")
    train(settings, out=tmp_path / "whole", progress=False)
    stop_at(3)
    with pytest.raises(InterruptedRun):
        train(settings, out=tmp_path / "run", progress=False)
    train(settings, out=tmp_path / "run", resume=True, progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kill -9 is of POSIX")
def test_kill_9_at_random_moments(recipe: Make, tmp_path: Path) -> None:
    """A checkpoint after every step, so that most moments lie within a save."""
    settings = recipe("train.save_every=1", "train.steps=100", "train.log_every=1", "train.eval_every=100")
    train(settings, out=tmp_path / "whole", progress=False)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["latentlm.training.loop", "latentlm_free", "latentlm_schedules"])
    draw, out, kills = random.Random(0), tmp_path / "killed", 0
    for _ in range(20):
        process = context.Process(target=train, args=(settings,), kwargs={"out": out, "resume": True, "progress": False})
        process.start()
        _wait_for_progress(process, out)
        time.sleep(draw.uniform(0.0, 0.1))  # a small part of what the whole run takes, so that some kills meet it alive
        if kills < 4:
            process.kill()
        process.join(timeout=120)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        kills += 1
    assert kills >= 3, "the test is about kills"
    assert (out / "card.yaml").exists()
    assert_same_run(tmp_path / "whole", out)
    assert not list(out.rglob(".*.latentlm")), "what the kills left is cleaned up"


def _wait_for_progress(process: Any, out: Path) -> None:
    """Until this process wrote a checkpoint, or ended."""
    before = [path.name for path in checkpoints(out / "checkpoints")]
    deadline = time.monotonic() + 120
    while [path.name for path in checkpoints(out / "checkpoints")] == before and process.is_alive():
        assert time.monotonic() < deadline, "no checkpoint in two minutes"
        time.sleep(0.002)
