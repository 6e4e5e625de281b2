"""A run in progress: the trainer, the numbers that are kept between steps, and the files it writes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from latentlm.config import Recipe
from latentlm.errors import CheckpointError, UserError
from latentlm.training.compiling import uncompiled
from latentlm.training.data.prepared import Prepared
from latentlm.training.evaluation import CollapseWatch, evaluate, excerpts
from latentlm.training.gpus import peak_of
from latentlm.training.measuring import Evaluator, Measuring
from latentlm.training.optimizer import load_optimizer_tensors, optimizer_tensors
from latentlm.training.plan import parameters_by_socket
from latentlm.training.profiling import StepProfiler
from latentlm.training.record.checkpoint import (
    Checkpoint,
    latest_checkpoint,
    open_checkpoint,
    save_checkpoint,
    set_aside_newer,
)
from latentlm.training.record.folder import CHECKPOINTS, METRICS, is_started, mark_begun, write_recipe
from latentlm.training.record.manifest import make_manifest, now, read_manifest, write_manifest
from latentlm.training.record.memory import peak_mib
from latentlm.training.record.metrics import KEYS, MetricsFile, Tally, last_line, read_metrics, rewind
from latentlm.training.record.reporting import Reporter, TensorBoard
from latentlm.training.record.result import RunResult, held_out_scores, read_result, training_facts, write_model
from latentlm.training.resuming import check_resumable, schedule_states
from latentlm.training.setup import make_model
from latentlm.training.trainer import Trainer
from latentlm.training.warm import WarmStart
from latentlm.zoo.accounting import cost_of
from latentlm.zoo.weights import load_into, weights_of, whole

if TYPE_CHECKING:
    from latentlm.training.record.sharded import Background


class Run:
    """One training run in its folder. `recipe` is resolved."""

    def __init__(
        self,
        recipe: Recipe,
        trainer: Trainer,
        prepared: Prepared,
        *,
        out: Path,
        reporter: Reporter,
        begun: WarmStart | None = None,
        tasks: Evaluator | None = None,
    ) -> None:
        self.recipe, self.trainer, self.prepared, self.out, self.reporter = recipe, trainer, prepared, out, reporter
        self._begun = begun
        self._profiler = StepProfiler(recipe.train.profile if trainer.ranks.first else None, out)
        self.tokens, self.seconds = 0, 0.0
        self._since = time.perf_counter()
        """When the time of training was last counted, and later by what was none."""
        self.tally, self.watch = Tally(), CollapseWatch()
        self.saved_step: int | None = None
        self.behind = False
        """Whether the run ended between its checkpoint and `measure`, and owes it."""
        assert recipe.train.context is not None, "the recipe is resolved"
        self._texts = excerpts(
            prepared.held_out, prepared.tokenizer, context=recipe.train.context, count=recipe.train.eval_documents
        )
        self._measuring = Measuring(recipe.train, tasks, prepared.held_out, prepared.tokenizer, spread=trainer.ranks.size > 1)
        self.ranks = trainer.ranks
        self._peak = peak_of(trainer.model.device, recipe.train.dtype)
        """Operations a second that the device can do, where that is known."""
        if self._peak is not None:
            backbone = recipe.model.backbone.model_copy(update={"context": recipe.train.context})  # attention's share
            seen = recipe.model_copy(update={"model": recipe.model.model_copy(update={"backbone": backbone})})
            self._operations = cost_of(make_model(seen, "meta"), dtype=torch.float32).training_flops_per_token
        self._background: Background | None = None
        """Writes the checkpoints of several processes."""
        if self.ranks.size > 1:
            from latentlm.training.record.sharded import Background  # a run of one process needs none of it

            self._background = Background(out / CHECKPOINTS, self.ranks)
        self._metrics: MetricsFile | None = None
        self._board: TensorBoard | None = None

    # ----------------------------------------------------------------------------------------------- begin and go on

    def begin(self, command: Sequence[str] | None) -> None:
        """Take up an old run where its last good checkpoint left it; without one, write manifest and recipe and start."""
        with uncompiled(self.recipe.train):
            self.ranks.in_step(lambda: self.trainer.within(lambda: self._measuring.check(self.trainer.model)))
        checkpoint = self._last_checkpoint()
        if checkpoint is not None:
            self.ranks.agreed(lambda: self._restore(checkpoint))
            if (profile := self.recipe.train.profile) is not None and self.trainer.step > profile.start:
                self.reporter.warn(f"train.profile begins at step {profile.start}, which is past: no trace will be written.")
        self.ranks.from_first(lambda: self._open(command, checkpoint))
        self.behind = self.measures and not self.ranks.from_first(self._is_measured)
        self._since = time.perf_counter()

    def _is_measured(self) -> bool:
        return bool(last_line(read_metrics(self.out / METRICS), "evaluation").get("step") == self.trainer.step)

    def _open(self, command: Sequence[str] | None, checkpoint: Checkpoint | None) -> None:
        """The files that only one process writes."""
        if self.recipe.train.tensorboard:
            self._board = TensorBoard(str(self.out / "tensorboard"))
        if checkpoint is None:
            self._write_start(command)
        else:
            self._write_resumed(checkpoint)
        rewind(self.out / METRICS, step=self.trainer.step)
        self._metrics = MetricsFile(self.out / METRICS)

    def _write_start(self, command: Sequence[str] | None) -> None:
        """The recipe comes last: its presence says that the run was started."""
        mark_begun(self.out)
        self.prepared.tokenizer.save(self.out)
        manifest = make_manifest(
            self.recipe,
            device=self.trainer.model.device,
            data=self.prepared.summary(),
            parameters=parameters_by_socket(self.trainer.model),
            command=command,
        )
        manifest["processes"] = self.ranks.size
        if self._begun is not None:
            manifest["init"] = self._begun.facts()
        write_manifest(self.out, manifest)
        write_recipe(self.out, self.recipe)

    def _last_checkpoint(self) -> Checkpoint | None:
        """The newest from which this run can go on: one process looks for it and hashes all, each other what it reads."""
        found: list[Checkpoint] = []

        def look() -> Path | None:
            if not is_started(self.out):
                return None
            good = latest_checkpoint(
                self.out / CHECKPOINTS,
                warn=self.reporter.warn,
                check=lambda checkpoint: check_resumable(checkpoint, self.trainer.model),
            )
            found.extend([] if good is None else [good])
            return None if good is None else good.path

        path = self.ranks.from_first(look)
        return None if path is None else self.ranks.agreed(lambda: found[0] if found else open_checkpoint(path, compare=False))

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Weights, moments, schedule and counts of a checkpoint. Raises UserError where the data are not the run's."""
        model, state = self.trainer.model, checkpoint.state
        if state["data"] != self.prepared.fingerprint:
            raise UserError(
                f"the data have changed since {self.out} was started (their fingerprint differs). Bring the old data back, "
                "or train into another folder with --out."
            )
        if checkpoint.sharded or self.ranks.size > 1:
            from latentlm.training.record import sharded

            sharded.load(checkpoint, model, self.trainer.optimizer)
        else:
            load_into(model, checkpoint.files["model"])
            load_optimizer_tensors(self.trainer.optimizer, model, checkpoint.tensors("optimizer"))
        for name, saved in schedule_states(checkpoint, model).items():
            model.kl_schedules[name].load_state_dict(saved)
        self.trainer.step = self.saved_step = checkpoint.step
        self.tokens, self.seconds = state["tokens"], state["seconds"]
        self.tally, self.watch = Tally.of(state["tally"]), CollapseWatch.of(state["watch"])

    def _write_resumed(self, checkpoint: Checkpoint) -> None:
        """Note where and with what the run goes on, and say what will make sums round otherwise."""
        set_aside_newer(checkpoint.path.parent, step=checkpoint.step)
        manifest, on_cpu = read_manifest(self.out), self.trainer.model.device.type == "cpu"
        here = {"threads": torch.get_num_threads(), "processes": self.ranks.size}
        for what, words in (("threads", "CPU threads"), ("processes", "processes")):
            before = manifest.get(what, 1 if what == "processes" else None)
            if isinstance(before, int) and before != here[what] and (on_cpu or what == "processes"):
                self.reporter.warn(f"{words}: {here[what]} now, {before} at the start; sums round otherwise, and bits differ.")
        manifest.setdefault("resumed", []).append({"step": checkpoint.step, "time": now(), **here})
        write_manifest(self.out, manifest)
        self.reporter.note(f"resuming at step {checkpoint.step} of {self.recipe.train.steps}")

    # ------------------------------------------------------------------------------------------------------ steps

    def step(self) -> None:
        """One optimiser step and what is due after it: a metrics line, the held-out bound, a checkpoint; not `measure`."""
        config = self.recipe.train
        self._profiler.before(self.trainer.step)
        self.trainer.take()
        self.reporter.step(self.trainer.step)
        with self._apart():
            self._trace()
        step, last = self.trainer.step, self.trainer.step == config.steps
        logs, evaluates, saves = (step % n == 0 or last for n in (config.log_every, config.eval_every, config.save_every))
        saves = saves or self.measures  # what goes wrong while it is measured loses no step
        if logs or evaluates or saves:
            self._read()
        with self._apart():
            if logs:
                self._log()
            if evaluates:
                self._evaluate()
            if saves:
                self.save()

    def _trace(self) -> None:
        try:
            trace = self._profiler.after(self.trainer.step - 1)
        except CheckpointError as error:  # no step is lost for a trace
            trace = None
            self.reporter.warn(f"train.profile: {error}")
        if trace is not None:
            self.reporter.note(f"wrote {trace}, which https://ui.perfetto.dev opens")

    @property
    def measures(self) -> bool:
        """Whether `measure` is due after this step."""
        return self._measuring.due(self.trainer.step)

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """What happens within is no time of training."""
        started = time.perf_counter()
        yield
        self._since += time.perf_counter() - started

    def _read(self) -> None:
        """What the steps did that were not read yet, and the time since the last were. Raises DivergedError."""
        every = self.trainer.read()
        if not every:
            return
        for facts in every:
            self.tokens += facts.targets
            self.tally.add(facts)
        before, self._since = self._since, time.perf_counter()
        self.seconds += self._since - before
        self.tally.seconds += self._since - before

    def _log(self) -> None:
        line = self.tally.line(
            step=self.trainer.step,
            tokens=self.tokens,
            elapsed=self.seconds,
            bytes_per_target=self.prepared.bytes_per_target,
        )
        self.tally = Tally()
        if self._peak is not None:
            line["mfu"] = line["tokens_per_second"] * self._operations / (self._peak * self.ranks.size)
        self._write(line)

    def _evaluate(self) -> None:
        with uncompiled(self.recipe.train):
            report = self.trainer.within(lambda: evaluate(self.trainer.model, self._texts, self.recipe.train, self.ranks))
        line = {"split": "held_out", "step": self.trainer.step, "tokens": self.tokens, **report}
        absent = dict.fromkeys(("penalty", "auxiliary", "loss", "schedule", "grad_norm"))
        rate = self.trainer.optimizer.param_groups[0]["lr"]
        line |= {**absent, "learning_rate": rate, "elapsed": self.seconds}
        line["tokens_per_second"] = self.tokens / max(self.seconds, 1e-9)
        warning = self.watch.check(report)
        if warning is not None:
            line["warning"] = warning
            self.reporter.warn(f"at step {self.trainer.step}, {warning}")
        self._write(line)

    def measure(self) -> None:
        """What `train.evaluate` asks for. Where it ends before its time, the run measures again when it goes on."""
        self.wait()  # for the checkpoint that several processes have begun: nothing is lost here
        with uncompiled(self.recipe.train), self._apart():
            found = self.ranks.in_step(lambda: self.trainer.within(lambda: self._measuring.measure(self.trainer.model)))
        now = {"step": self.trainer.step, "tokens": self.tokens, "elapsed": self.seconds}
        self._write({**dict.fromkeys(KEYS), "split": "evaluation", **now, **found})

    def _write(self, line: dict[str, Any]) -> None:
        if not self.ranks.first:
            return
        assert self._metrics is not None, "begin() comes first"
        self._metrics.write(line)
        self.reporter.line(line)
        if self._board is not None:
            self._board.write(line)

    # ------------------------------------------------------------------------------------------------- save and end

    def save(self) -> None:
        """Write a checkpoint of this step, unless there is one. Several processes only begin to: see `wait`. Raises
        DivergedError, and writes none, where a step up to this one was not taken."""
        if self.saved_step == self.trainer.step:
            return
        self._read()
        model, step, keep = self.trainer.model, self.trainer.step, self.recipe.train.keep
        schedules = {name: schedule.state_dict() for name, schedule in model.kl_schedules.items()}
        state = {
            "tokens": self.tokens,
            "seconds": self.seconds,
            "next_batch": self.trainer.step * self.recipe.train.accumulate,
            "schedule": next(iter(schedules.values()), {}) if len(model.latents) <= 1 else schedules,
            "tally": self.tally.state_dict(),
            "watch": self.watch.state_dict(),
            "data": self.prepared.fingerprint,
        }
        weights, moments = weights_of(model), optimizer_tensors(self.trainer.optimizer, model)
        if self._background is None:
            tensors = {"model": weights, "optimizer": moments}
            save_checkpoint(self.out / CHECKPOINTS, step=step, tensors=tensors, state=state, keep=keep)
        else:
            self._background.save(step=step, weights=weights, moments=moments, state=state, keep=keep)
        self.saved_step = step

    def wait(self) -> None:
        """Until the checkpoint that was begun is there. Raises CheckpointError where it could not be written."""
        if self._background is not None:
            self._background.wait()

    @property
    def failed(self) -> bool:
        """Whether this process knows already that `wait` will raise."""
        return self._background is not None and self._background.failed

    def finish(self) -> RunResult:
        """Write the model and its card."""
        self.wait()
        self.close()
        manifest = read_manifest(self.out)
        facts: dict[str, Any] = {
            "parameters": sum(parameter.numel() for parameter in self.trainer.model.parameters()),
            "steps": self.trainer.step,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "peak_memory_mib": round(peak_mib(self.trainer.model.device), 1),
            "finished": now(),
            "device": manifest.get("device", {}).get("name", self.trainer.model.device.type),
        }
        if "init" in manifest:
            facts["init"] = {key: manifest["init"].get(key) for key in ("source", "sha256", "taken")}
        self.ranks.agreed(lambda: self._write_model(facts))
        return read_result(self.out)

    def _write_model(self, facts: dict[str, Any]) -> None:
        """By one process, to which the others bring their parts, one tensor after another."""
        weights = weights_of(self.trainer.model)
        tensors = ((name, whole(tensor)) for name, tensor in weights.items())
        try:
            if self.ranks.first:
                write_model(
                    self.out,
                    recipe=self.recipe,
                    weights=weights,
                    tensors=tensors,
                    tokenizer=self.prepared.tokenizer.save(self.out),
                    training=training_facts(self.recipe, data=self.prepared.summary(), facts=facts),
                    scores=held_out_scores(last_line(read_metrics(self.out / METRICS), "held_out")),
                )
        finally:
            for _ in tensors:  # where the one could not write them, the others still bring theirs
                pass

    def close(self) -> None:
        """Close the files, and take no further step. A checkpoint that was begun comes to its end, whatever it is."""
        self.trainer.close()
        self._profiler.close()
        if self._background is not None:
            self._background.abandon()
        for file in (self._metrics, self._board):
            if file is not None:
                file.close()
        self._metrics = self._board = None
