"""Compiling, stopping and resuming.

Compiled with the backends that trace without generating code ("aot_eager"), so that no compiler is needed: what is checked is
that the parts can be traced and mean the same, not that they get faster.
"""

from __future__ import annotations

import copy
import functools
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

from latentlm import plugins
from latentlm.config import SOCKETS, Recipe, parse
from latentlm.errors import UserError
from latentlm.interface import LatentDecoder, Noise, noise_of
from latentlm.testing.checks.gradients import parts_of
from latentlm.testing.comparing import TEXTS, assert_close, pack
from latentlm.testing.registry import check, need
from latentlm.testing.subject import Subject, noise
from latentlm.tokenizer import load_tokenizer
from latentlm.training.loop import train
from latentlm.training.record.checkpoint import checkpoints
from latentlm.training.record.metrics import read_metrics
from latentlm.training.trainer import Trainer

_STEPS, _STOP = 6, 3
_WORDS = ("the", "red", "blue", "cat", "dog", "bird", "tree", "sees", "likes", "under", "over", "then")


@check("engine")
def compiled_equals_eager(subject: Subject) -> None:
    """Blocks and parts compiled by torch.compile give the same loss and the same gradients."""
    batch = pack(TEXTS, vocabulary=subject.exact_config.backbone.vocabulary)
    results = []
    for compiled in (False, True):
        model = copy.deepcopy(subject.exact).train()
        torch._dynamo.reset()
        if compiled:
            for module in _compilable(model):
                module.compile(backend="aot_eager")
        loss = model.loss(batch, step=0, noise=noise(2))
        (loss.total + loss.reconstruction.mean()).backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        results.append((loss.reconstruction.detach(), gradients))
    torch._dynamo.reset()
    (eager, slopes), (traced, other) = results
    assert_close(traced, eager, "the compiled loss")
    assert slopes.keys() == other.keys(), f"compiled, gradients reach others: {sorted(slopes.keys() ^ other.keys())}"
    for name in slopes:
        assert_close(other[name], slopes[name], f"the compiled gradient of {name}")


def _compilable(model: LatentDecoder) -> Iterator[nn.Module]:
    """The blocks one by one, and each part; a decoder of another make as a whole."""
    backbone = getattr(model, "backbone", None)
    if backbone is None:
        yield model
        return
    yield from backbone.blocks
    for part in parts_of(model).values():
        # An encoder without a network differentiates within its forward pass, which is not traced.
        if not getattr(part, "needs_objective", False):
            yield part


@check("engine")
@torch.no_grad()
def compiled_steps_equal_steps(subject: Subject) -> None:
    """Steps of generation as one graph give the logits and latents of steps that are not compiled, or are refused."""
    model = subject.copied()
    tokens, fed = (torch.tensor(subject.tokens(2, count, seed=count)) for count in (6, 20))
    begun = [model.prefill(tokens, torch.tensor([6, 3]), noise=noise(2), capacity=26) for _ in range(2)]
    names, temperature = list(model.latents), 0.7
    own = {name: noise_of(noise(2), name, names) for name in names}
    torch._dynamo.reset()
    with mock.patch("torch.compile", functools.partial(torch.compile, backend="aot_eager")):
        try:
            steps = model.compiled_steps(begun[0], capacity=26)
            found = steps.step(fed[:, 0], noise=own, prior_temperature=dict.fromkeys(names, temperature))
        except UserError as refused:  # before there is a graph
            need(False, str(refused))
        state = model.step(begun[1], fed[:, 0], noise=own, prior_temperature=temperature)
        for place in range(1, fed.shape[1]):
            found = steps.step(fed[:, place], noise=own, prior_temperature=dict.fromkeys(names, temperature))
            state = model.step(state, fed[:, place], noise=own, prior_temperature=temperature)
            assert_close(found.logits, state.logits, f"the logits of a compiled step, {place + 1} tokens after the prompt")
            for name in names:
                sites = state.met[name].value.shape[1]
                assert_close(found.met[name].value[:, :sites], state.met[name].value, f"latents of {name} in compiled steps")
    torch._dynamo.reset()


@check("engine")
def noise_alone_decides_training(subject: Subject) -> None:
    """Two trainings with one seed end at the same weights, bit for bit."""
    ends = []
    for _ in range(2):
        model = copy.deepcopy(subject.model).train()
        batch = pack(TEXTS, vocabulary=subject.config.backbone.vocabulary)
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for step in range(2):
            loss = model.loss(batch, step=step, noise=Noise.keyed(step, range(2)))
            optimiser.zero_grad()
            loss.total.backward()
            optimiser.step()
        ends.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    other = [name for name in ends[0] if not torch.equal(ends[0][name], ends[1][name])]
    assert not other, f"two trainings with one seed differ in {', '.join(other)}"


@check("engine")
def no_value_is_read_in_a_step(subject: Subject) -> None:
    """A training step reads no value of a tensor on its way forward and back: on a GPU the processor would wait for each.

    Neither by `.item()`, `.tolist()` or `bool(...)`, nor by `nonzero` or a boolean index. Asked on the meta device, where there
    are none.
    """
    model = copy.deepcopy(subject.model).to("meta").train()
    batch = model.counted(pack(TEXTS, vocabulary=subject.config.backbone.vocabulary))
    with mock.patch("torch.autocast", _autocast):
        model.loss(batch.to("meta"), step=0, noise=noise(2)).total.backward()


def _autocast(kind: str, **options: Any) -> torch.autocast:
    """As on the CPU for meta tensors, which have none of their own."""
    return _AUTOCAST("cpu" if kind == "meta" else kind, **options)


_AUTOCAST = torch.autocast


@check("engine")
def resume_exact(subject: Subject) -> None:
    """A training run that crashed and resumed ends at the weights of one that did not, bit for bit."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = _recipe(subject, Path(folder) / "texts")
        whole, crashed = Path(folder) / "whole", Path(folder) / "crashed"
        train(recipe, out=whole, progress=False)
        with _crashing(at=_STOP):
            try:
                train(recipe, out=crashed, progress=False)
            except _Crash:
                pass
            else:
                raise AssertionError("the run did not crash where it was told to")
        train(recipe, out=crashed, resume=True, progress=False)
        _assert_same_run(whole, crashed)


@check("engine")
def no_bound_is_logged(subject: Subject) -> None:
    """Training under a prior that is not normalised goes on, and logs its bound as null with the reason."""
    need(subject.exact.has_latents and not subject.normalised, "its priors are normalised")
    with tempfile.TemporaryDirectory() as folder:
        train(_recipe(subject, Path(folder) / "texts"), out=Path(folder) / "run", progress=False)
        lines = read_metrics(Path(folder) / "run" / "metrics.jsonl")
    splits = {line["split"] for line in lines}
    assert splits >= {"train", "held_out"}, f"the run logs {sorted(splits)}"
    for line in lines:
        assert line["bound"] is None, f"the run logs a bound of {line['bound']} ({line['split']})"
        assert line["bits_per_byte"] is None, f"the run logs {line['bits_per_byte']} bits per byte ({line['split']})"
        assert line.get("no_bound"), f"the run logs no bound, and not why ({line['split']}: `no_bound`)"


@check("engine")
def kill_and_resume_exact(subject: Subject) -> None:
    """A training process that was killed (SIGKILL) and resumed ends at the weights of one that was not, bit for bit."""
    need(os.name == "posix", "SIGKILL is of POSIX")
    need(_installed(subject), "its parts are registered in this process only, and another process has to find them")
    with tempfile.TemporaryDirectory() as folder:
        recipe = _recipe(subject, Path(folder) / "texts", steps=40)
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        train(recipe, out=whole, progress=False)
        file = Path(folder) / "recipe.yaml"
        file.write_text(yaml.safe_dump(recipe.model_dump(mode="json", exclude_unset=True), sort_keys=False), encoding="utf-8")
        _kill_after_a_checkpoint(file, killed)
        assert not (killed / "card.yaml").exists(), "the run was over before it could be killed"
        train(recipe, out=killed, resume=True, progress=False)
        _assert_same_run(whole, killed)


def _recipe(subject: Subject, folder: Path, *, steps: int = _STEPS) -> Recipe:
    """A tiny recipe of the enumerable decoder's parts on random words."""
    folder.mkdir()
    draw = random.Random(0)
    for number in range(12):
        (folder / f"{number:02d}.txt").write_text(" ".join(draw.choices(_WORDS, k=20)) + "\n", encoding="utf-8")
    model = subject.exact_config.model_dump(mode="json", exclude_unset=True)
    model["backbone"] = {**model["backbone"], "vocabulary": 257, "context": 32}
    for holder in (model, *model.get("latents", {}).values()):
        if isinstance(holder.get("granularity"), dict):
            holder["granularity"] = _of_bytes(holder["granularity"])
    data: dict[str, Any] = {
        "name": "conformance",
        "model": model,
        "data": {"path": str(folder), "held_out": 0.25},
        "train": {
            "steps": steps, "batch": 2, "accumulate": 2, "warmup": 2, "log_every": 1, "eval_every": steps, "save_every": 2,
            "eval_documents": 2, "device": "cpu", "threads": 1,
        },
    }  # fmt: skip
    return parse(Recipe, data, source="conformance recipe")


def _of_bytes(granularity: dict[str, Any]) -> dict[str, Any]:
    """A granularity without what the tokenizer fills in: the ids of the small vocabulary are others among bytes."""
    part: Any = plugins.get("granularity", granularity["name"])
    filled = part.fill({}, load_tokenizer("bytes"))
    return {key: value for key, value in granularity.items() if key not in filled}


class _Crash(RuntimeError):
    """Raised in the middle of a run."""


@contextmanager
def _crashing(*, at: int) -> Iterator[None]:
    """Runs raise _Crash after step `at`, which has no checkpoint."""
    original = Trainer.take

    def taken(trainer: Trainer) -> None:
        original(trainer)
        if trainer.step == at:
            raise _Crash

    with mock.patch.object(Trainer, "take", taken):
        yield


def _installed(subject: Subject) -> bool:
    """Every part comes from an installed plugin."""
    full = subject.complete
    wanted = {("decoder", full.decoder_name)}
    for latent in full.by_latent.values():
        specs = {socket: getattr(latent, socket) for socket in SOCKETS}
        wanted |= {(socket, str(spec.name)) for socket, spec in specs.items() if spec is not None}
        granularity = latent.granularity if isinstance(latent.granularity, str) else str(latent.granularity.name)
        wanted.add(("granularity", granularity.partition(":")[0]))
    listed = [plugin for plugin in plugins.listing() if plugin.entry is not None]
    return all(any(name in plugin.parts.get(socket, {}) for plugin in listed) for socket, name in wanted)


def _kill_after_a_checkpoint(recipe: Path, out: Path) -> None:
    """Train in another process and kill it once it has written a checkpoint."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "latentlm.cli", "train", str(recipe), "--out", str(out)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while process.poll() is None and not checkpoints(out / "checkpoints"):
        assert time.monotonic() < deadline, "no checkpoint in two minutes"
        time.sleep(0.002)
    process.kill()
    _, said = process.communicate(timeout=60)
    assert process.returncode in (0, -9), f"the training process failed:\n{said[-2000:]}"


def _assert_same_run(one: Path, other: Path) -> None:
    """Same weights and moments, bit for bit."""
    name = checkpoints(one / "checkpoints")[-1].name
    for file in ("model.safetensors", f"checkpoints/{name}/optimizer.safetensors"):
        first: dict[str, Tensor] = load_file(one / file)
        second: dict[str, Tensor] = load_file(other / file)
        assert first.keys() == second.keys(), f"{file} has other tensors after resuming"
        differ = [key for key in first if not torch.equal(first[key], second[key])]
        assert not differ, f"after resuming, {', '.join(differ)} in {file} differ: state that the checkpoint does not hold"
