"""A training step asks a GPU for nothing that the processor would have to wait for; what steps found is read at once.

On the meta device no tensor has values: whatever reads one (`.item()`, `.tolist()`, `nonzero`, a boolean index, `bool(...)`)
fails there, on any machine. That the loss of every decoder and its gradient read none is a check of the conformance kit
(`no_value_is_read_in_a_step`); here is the whole step. On a GPU, torch itself is asked to raise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from latentlm.training import load_recipe
from latentlm.training.data.ahead import Ahead
from latentlm.training.data.prepared import prepare
from latentlm.training.optimizer import make_optimizer
from latentlm.training.setup import make_model, make_stream, resolve
from latentlm.training.trainer import Trainer
from latentlm.zoo.shelves import zoo_recipes

RECIPES = sorted(name for name in zoo_recipes() if name.endswith("-tiny"))
SMALL = ["data.path=synthetic:letter", "data.max_documents=40", "model.backbone.width=32", "model.backbone.context=32",
         "train.batch=4", "train.context=32", "train.warmup=1", "data.packing=true", "data.tokenizer=bytes"]  # fmt: skip


def trainer(recipe: str, *more: str, device: str) -> Trainer:
    known = load_recipe(recipe, [*SMALL, *more])
    prepared = prepare(known.data)
    known = resolve(known, vocabulary=prepared.tokenizer.vocabulary)
    return Trainer(make_model(known, device), known.train, make_stream(known, prepared))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The trainer's own reads, in which every number is 0; autocast and AdamW as on the CPU for meta tensors."""
    found: list[int] = []

    def read(tensors: list[Tensor]) -> list[list[float]]:
        found.append(len(tensors))
        return [[0.0] * len(tensor) for tensor in tensors]

    def optimizer(*arguments: Any) -> torch.optim.Optimizer:
        made = make_optimizer(*arguments)
        for group in made.param_groups:
            group["fused"] = False  # there are no kernels for tensors without values
        made.register_step_pre_hook(lambda *_: setattr(made, "found_inf", None))  # which only fused ones look at
        return made

    real = torch.autocast
    monkeypatch.setattr("latentlm.training.trainer._on_cpu", read)
    monkeypatch.setattr("latentlm.training.trainer.make_optimizer", optimizer)
    monkeypatch.setattr(torch, "autocast", lambda kind, **options: real("cpu" if kind == "meta" else kind, **options))
    return found


@pytest.mark.parametrize("recipe", ["free-tiny", "chunk-tiny", "two-level-tiny"])
def test_steps_read_nothing_and_their_numbers_are_read_at_once(recipe: str, reads: list[int]) -> None:
    run = trainer(recipe, "train.accumulate=3", device="meta")
    run.take()
    run.take()
    assert reads == []
    assert len(run.read()) == 2
    assert reads == [8]  # of each, three micro-batches and the norm of the gradient
    assert run.read() == []


def test_a_value_that_is_read_is_noticed(reads: list[int]) -> None:
    """Where nothing was counted on the CPU, the model asks for it."""
    run = trainer("free-tiny", device="meta")
    run._own = lambda batch: replace(batch, sites=None, single=None)  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="meta"):
        run.advance()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_gpu_is_not_waited_for(recipe: str) -> None:
    run = trainer(recipe, device="cuda")
    run.advance()  # the first makes what later ones find
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run.take()
        run.take()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(run.read()) == 2


def test_batches_are_made_ahead_by_their_numbers() -> None:
    asked: list[int] = []

    def make(number: int) -> str:
        asked.append(number)
        if number == 3:
            raise ValueError("no third")
        return str(number)

    ahead = Ahead(make)
    assert [ahead.take(number) for number in (0, 1, 7, 8, 2)] == ["0", "1", "7", "8", "2"]
    with pytest.raises(ValueError, match="no third"):
        ahead.take(3)
    assert ahead.take(4) == "4"
    last = Ahead(asked.append, end=31)
    last.take(30)
    last.close()
    ahead.close()
    assert set(asked) - {5} == {0, 1, 2, 3, 4, 7, 8, 9, 30}  # 5 was begun, or was not, when it ended
