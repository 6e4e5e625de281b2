"""Train a recipe into a run folder.

    result = train(load_recipe("free-tiny"), out=Path("runs/free-tiny"))
    latentlm train free-tiny                       the same from the shell; continue a stopped run with --resume

After kill -9 at any moment, `resume=True` continues to the same weights, bit for bit, as an unbroken run on the same machine:
batches are numbered, noise is keyed, and weights, moments, the KL schedule and the metrics in progress are in the checkpoint.
"""

from __future__ import annotations

import shlex
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import torch

from latentlm.composed import complete
from latentlm.config import Recipe
from latentlm.config.checking import flag, several, shown
from latentlm.errors import UserError, path_of, typed_path
from latentlm.plugins.provenance import changes, explained
from latentlm.tokenizer import FILE as TOKENIZER
from latentlm.tokenizer import load_tokenizer
from latentlm.training.data.packing import PackedStream
from latentlm.training.data.prepared import Prepared, prepare
from latentlm.training.measuring import Evaluator, tasks_of
from latentlm.training.mesh_plan import check_share
from latentlm.training.parallel import Ranks, check_ranks, heard, joined, spreads
from latentlm.training.plan import check_memory, estimate_memory
from latentlm.training.profiling import check_trace
from latentlm.training.recipes import RECIPE
from latentlm.training.record.checkpoint import checkpoints
from latentlm.training.record.folder import (
    CHECKPOINTS,
    begin_anew,
    check_free,
    check_places,
    check_same_recipe,
    is_finished,
    is_started,
    locked,
    saved_recipe,
)
from latentlm.training.record.manifest import read_manifest
from latentlm.training.record.reporting import Reporter
from latentlm.training.record.result import RunResult, read_result
from latentlm.training.run import Run
from latentlm.training.setup import make_model, make_stream, pick_device, resolve
from latentlm.training.trainer import DivergedError, Trainer
from latentlm.training.warm import begin_with, check_source


class InterruptedRun(KeyboardInterrupt):
    """The run was asked to stop, and saved; the message says how to go on."""


def train(
    recipe: Recipe,
    *,
    out: Path,
    resume: bool = False,
    progress: bool = True,
    command: Sequence[str] | None = None,
) -> RunResult:
    """Train `recipe` into the folder `out`; with `resume`, go on where it stopped (or begin, if it never did).

    `progress` shows how it goes on standard error. Raises UserError where the recipe, the data, the folder or the memory will
    not do, DivergedError where the loss is no longer a number, InterruptedRun (a KeyboardInterrupt) on Ctrl-C, SIGTERM or
    SIGHUP, after a checkpoint was saved.
    """
    if not isinstance(recipe, Recipe):
        raise UserError(f"train takes a recipe, as load_recipe gives it, not {shown(recipe)}.")
    out = path_of(out)
    if command is not None and not all(isinstance(word, str) for word in several("command", command, of="texts")):
        raise UserError(f"command must be a list of texts, not of {shown(next(w for w in command if not isinstance(w, str)))}.")
    flag("resume", resume)
    flag("progress", progress)
    with joined() as ranks, ExitStack() as stack:
        reporter = Reporter(recipe.name, steps=recipe.train.steps, quiet=not progress, silent=not ranks.first)
        ranks.from_first(lambda: _claim(out, stack, resume=resume))
        stack.enter_context(_threads(recipe.train.threads))
        if is_finished(out):
            ranks.agreed(lambda: _resumed(recipe, out))
            reporter.note(f"{out} is finished; there is nothing to resume.")
            return read_result(out)
        if resume and not is_started(out):
            reporter.note(f"{out} holds no run to resume; a new one begins.")
        ready = ranks.agreed(lambda: _make_ready(recipe, out=out, reporter=reporter, ranks=ranks))
        run = _set_up(ready, out=out, reporter=reporter, ranks=ranks)
        try:
            run.begin(command)
            _steps(run)
            return run.finish()
        finally:
            run.close()


def _claim(out: Path, stack: ExitStack, *, resume: bool) -> None:
    """Take the folder for this run until the stack unwinds; where the run is finished, nothing is written. Raises UserError
    where it is someone else's."""
    check_free(out, resume=resume)
    if is_finished(out):
        return
    stack.enter_context(locked(out))
    check_free(out, resume=resume)  # another process may have come first
    if not resume:
        begin_anew(out)
    if not is_finished(out):
        check_places(out)


@dataclass(frozen=True)
class _Ready:
    """What a run is set up from, with its recipe resolved."""

    recipe: Recipe
    device: torch.device
    prepared: Prepared
    stream: PackedStream
    source: str | None
    """What it begins with: `train.init`, where it is at its beginning."""
    tasks: Evaluator | None


def _make_ready(recipe: Recipe, *, out: Path, reporter: Reporter, ranks: Ranks) -> _Ready:
    """Refuses before the long work what can be refused, and reads the data."""
    device = pick_device(recipe.train.device, ranks)
    check_ranks(recipe.train, ranks)
    if is_started(out):
        before = read_manifest(out).get("plugins", {})
        with explained(before, what=f"{out} was started"):
            recipe = _resumed(recipe, out)
        if said := changes(before):
            reporter.warn(f"since {out} was started, {'; '.join(said)}: what follows may not continue what came before.")
    resolve(recipe)  # wrong parts and settings are found before the data are read
    source = None if checkpoints(out / CHECKPOINTS) else recipe.train.init
    if source is not None:
        check_source(source)
    check_trace(recipe.train.profile, out)
    tasks = tasks_of(recipe.train)
    reporter.note("reading the data")
    if is_started(out):
        prepared, recipe = _prepared_again(recipe, out, reporter)
    else:
        prepared = prepare(recipe.data)
    recipe = resolve(recipe, tokenizer=prepared.tokenizer)
    stream = make_stream(recipe, prepared)
    if ranks.size == 1:
        check_memory(estimate_memory(recipe), device)
    else:
        check_share(recipe, ranks, device)
    if recipe.train.dtype == "bfloat16" and device.type == "cpu":
        reporter.warn("bfloat16 is many times slower than float32 on a CPU; set train.dtype=float32.")
    return _Ready(recipe, device, prepared, stream, source, tasks)


def _set_up(ready: _Ready, *, out: Path, reporter: Reporter, ranks: Ranks) -> Run:
    """The model with its first weights, spread over the processes."""
    recipe, prepared, source = ready.recipe, ready.prepared, ready.source
    model = ranks.agreed(lambda: make_model(recipe, "meta" if ranks.size > 1 else ready.device))
    if ranks.size > 1 and not spreads(model):
        model = ranks.agreed(lambda: make_model(recipe, ready.device))
    trainer = Trainer(model, recipe.train, ready.stream, ranks, device=ready.device)
    begun = None if source is None else ranks.agreed(lambda: begin_with(model, source, prepared.tokenizer, reporter))
    return Run(recipe, trainer, prepared, out=out, reporter=reporter, begun=begun, tasks=ready.tasks)


def _prepared_again(recipe: Recipe, out: Path, reporter: Reporter) -> tuple[Prepared, Recipe]:
    """The data of the run in `out`, wherever they lie now, and the recipe with the paths that the run was started with: a run
    keeps one record, and its documents their names. Raises UserError where the data are other ones."""
    saved = saved_recipe(out).data
    before, moved = saved.path, recipe.data.path != saved.path
    try:
        prepared = prepare(recipe.data, folder=out, called=before if moved else None)
    except UserError as error:
        if moved or before == "stdlib" or typed_path(before).exists():
            raise
        raise UserError(f"{error} If the data of {out} have moved, say where they are: data.path=PATH.") from None
    known = read_manifest(out).get("data", {}).get("fingerprint")
    if moved and known is not None and known != prepared.fingerprint:
        raise UserError(
            f"the data in {recipe.data.path} are not those that {out} was started with, which were in {before}. Give the place "
            "where these are now, or train into another folder with --out."
        )
    if moved:
        reporter.note(f"the data have moved from {before} to {recipe.data.path}; they are the same")
    paths = {"path": before, "tokenizer": saved.tokenizer}
    return prepared, recipe.model_copy(update={"data": recipe.data.model_copy(update=paths)})


def _resumed(recipe: Recipe, out: Path) -> Recipe:
    """The recipe with the vocabulary of the run in `out`. Raises UserError where it is not the run's recipe."""
    if recipe.data.tokenizer == "bytes" or (out / TOKENIZER).is_file():
        spec = "bytes" if recipe.data.tokenizer == "bytes" else TOKENIZER
        recipe = resolve(recipe, tokenizer=load_tokenizer(spec, folder=out))
    begun = saved_recipe(out)
    recipe = resolve(recipe, vocabulary=begun.model.backbone.vocabulary)
    # A plugin that has more settings than then has them at their defaults.
    model = complete(begun.model, plugin_names=begun.plugins or None)
    check_same_recipe(out, begun.model_copy(update={"model": model}), recipe)
    return recipe


def _steps(run: Run) -> None:
    """Step until the end, or until asked to stop."""
    with StopRequest() as stop, heard(run.ranks), run.reporter.start(run.trainer.step):
        alone = run.ranks.size == 1
        if run.behind and not stop.during(run.measure, at_once=alone):
            raise InterruptedRun(_how_to_go_on(run))
        try:
            while run.trainer.step < run.recipe.train.steps:
                run.step()
                stopped = run.ranks.any(stop.requested or run.failed)
                # None of several can leave the others alone in it: there, a signal is heard after the next step.
                measured = not run.measures or (not stopped and stop.during(run.measure, at_once=alone))
                if not measured or (stopped and run.trainer.step < run.recipe.train.steps):
                    run.save()
                    run.wait()
                    raise InterruptedRun(_how_to_go_on(run))
        except DivergedError as error:
            run.wait()
            kept = "none" if run.saved_step is None else f"step {run.saved_step}"
            raise DivergedError(f"{error} Last checkpoint in {run.out}: {kept}.") from None


def _how_to_go_on(run: Run) -> str:
    folder = shlex.quote(str(run.out))
    recipe = shlex.quote(str(run.out / RECIPE))
    ranks = run.ranks
    start = "latentlm" if ranks.size == 1 else f"torchrun --nproc_per_node {ranks.beside} -m latentlm"
    machines = "" if ranks.size == ranks.beside else ", on each machine as this run was started"
    return (
        f"stopped and saved at step {run.trainer.step} of {run.recipe.train.steps}. Go on with{machines}:\n"
        f"  {start} train {recipe} --out {folder} --resume"
    )


_SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


class StopRequest:
    """Ctrl-C, SIGTERM and a closed terminal (SIGHUP) end a run between two steps, with a checkpoint; a second Ctrl-C ends it at
    once.

    Within the block, a first one of these signals sets `requested`; a second one raises KeyboardInterrupt, and the first too in
    what is given to `during`. A signal that is ignored stays so (`nohup`). Signals belong to the main thread: in another one
    the block changes nothing.
    """

    def __init__(self) -> None:
        self.requested = self._at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            asked = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._ask) for number in asked}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._ask:  # else someone has decided otherwise since
                signal.signal(number, handler)

    def during(self, work: Callable[[], None], *, at_once: bool) -> bool:
        """Whether `work`, with which nothing is lost, was done; with `at_once` it ends where one of the signals comes, or does
        not begin where one has come."""
        self._at_once = at_once
        try:
            if at_once and self.requested:
                return False
            work()
        except KeyboardInterrupt:
            if not self.requested:
                raise
            return False
        finally:
            self._at_once = False
        return True

    def _ask(self, number: int, frame: FrameType | None) -> None:
        again, self.requested = self.requested, True
        if self._at_once or (again and number == signal.SIGINT):
            raise KeyboardInterrupt


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Use `count` CPU threads within the block."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
