"""`train.recompute` and `train.head_chunk`: the same step with less in memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from latentlm.config import Recipe
from latentlm.errors import UserError
from latentlm.interface import Noise
from latentlm.training import load_recipe
from latentlm.training.data.prepared import prepare
from latentlm.training.plan import estimate_memory
from latentlm.training.setup import make_model, make_stream, resolve
from latentlm.training.trainer import Trainer

SMALL = ["data.path=synthetic:letter", "data.max_documents=40", "model.backbone.context=32", "train.batch=4",
         "train.context=32", "data.tokenizer=bytes", "train.warmup=1"]  # fmt: skip
RECIPES = ["vanilla-tiny", "free-tiny", "chunk-tiny", "gaussian-tiny", "ltm-tiny", "two-level-tiny"]


def step(recipe: str, *more: str) -> tuple[Tensor, dict[str, Tensor], int]:
    """Losses of the targets, gradients, and bytes that the way forward kept for the way back."""
    known = load_recipe(recipe, [*SMALL, *more])
    prepared = prepare(known.data)
    known = resolve(known, tokenizer=prepared.tokenizer)
    run = Trainer(make_model(known, "cpu").train(), known.train, make_stream(known, prepared))
    batch = run._batches(0)[1][0]
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    noise = Noise.keyed(0, [("train", row) for row in range(len(batch.inputs))])
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = run.model.loss(batch, step=0, noise=noise)
    loss.total.backward()
    gradients = {name: p.grad for name, p in run.model.named_parameters() if p.grad is not None}
    return loss.reconstruction.detach(), gradients, sum(kept.values())


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "ltm-tiny"])
def test_recomputed_blocks_make_the_same_step_to_the_bit(recipe: str) -> None:
    (losses, gradients, kept), (again, others, fewer) = step(recipe), step(recipe, "train.recompute=true")
    assert torch.equal(losses, again)
    assert gradients.keys() == others.keys()
    assert all(torch.equal(gradients[name], others[name]) for name in gradients)
    assert fewer < 0.5 * kept


def test_an_encoder_that_descends_is_refused() -> None:
    with pytest.raises(UserError, match="descends through the decoder"):
        step("ltm-tiny", "train.recompute=true")


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_head_in_chunks_makes_the_same_step(recipe: str) -> None:
    (losses, gradients, kept), (again, others, fewer) = step(recipe), step(recipe, "train.head_chunk=20")
    torch.testing.assert_close(again, losses)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        # Relative to the largest: products of few rows and of many round otherwise.
        near = 1e-5 * float(gradient.abs().max())
        torch.testing.assert_close(others[name], gradient, rtol=1e-4, atol=near, msg=lambda said, name=name: f"{name}: {said}")
    if recipe != "ltm-tiny":  # its descent keeps, and lets go of, the most
        assert fewer < kept


def test_the_plan_counts_them(recipe: Callable[..., Recipe]) -> None:
    def activations(*more: str) -> int:
        return estimate_memory(resolve(recipe(*more), vocabulary=257)).activations

    plain = activations()
    assert activations("train.recompute=true") < plain
    assert activations("train.head_chunk=8") < plain
    assert activations("train.head_chunk=100000") == plain
