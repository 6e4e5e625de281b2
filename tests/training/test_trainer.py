"""One optimiser step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pytest
import torch

from latentlm.config import Recipe
from latentlm.interface import Batch, Loss
from latentlm.training.data.prepared import prepare
from latentlm.training.optimizer import optimizer_tensors
from latentlm.training.setup import make_model, make_stream, resolve
from latentlm.training.trainer import DivergedError, Trainer

Make = Callable[..., Recipe]


@pytest.fixture
def trainer(recipe: Make) -> Callable[..., Trainer]:
    def make(*overrides: str, decoder: str = "free") -> Trainer:
        asked = recipe(*overrides, decoder=decoder)
        prepared = prepare(asked.data)
        resolved = resolve(asked, vocabulary=prepared.tokenizer.vocabulary)
        return Trainer(make_model(resolved, "cpu"), resolved.train, make_stream(resolved, prepared))

    return make


def gradients(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("decoder", ["free", "vanilla"])
def test_accumulated_steps_equal_one_big_batch(trainer: Callable[..., Trainer], decoder: str) -> None:
    """Micro-batches with different numbers of targets, latents and penalty included."""
    unpacked = ("data.packing=false", "model.backbone.context=512", "train.clip=1e9", "model.backbone.init_std=0.2")
    big = trainer("train.batch=6", "train.accumulate=1", *unpacked, decoder=decoder)
    split = trainer("train.batch=2", "train.accumulate=3", *unpacked, decoder=decoder)
    counts = [int(split.stream.batch(index).target_mask.sum()) for index in range(3)]
    assert len(set(counts)) > 1, "the weights matter only where micro-batches differ"
    before = {name: weight.detach().clone() for name, weight in big.model.named_parameters()}
    facts = [each.advance() for each in (big, split)]
    assert facts[0].targets == facts[1].targets == sum(counts)
    assert facts[0].cross_entropy == pytest.approx(facts[1].cross_entropy, rel=1e-6)
    assert facts[0].kl == pytest.approx(facts[1].kl, rel=1e-5)
    assert facts[0].penalty == pytest.approx(facts[1].penalty, rel=1e-4, abs=1e-4)
    expected = gradients(big)
    for name, gradient in gradients(split).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)
    for (name, one), other in zip(big.model.named_parameters(), split.model.parameters(), strict=True):
        # In norm: where a gradient is near zero, Adam's first step is as large as elsewhere, and rounding alone decides it.
        assert (one - other).norm() < 1e-3 * (one - before[name]).norm(), name


def test_the_noise_differs_between_rows_and_steps(trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer("train.batch=2", "train.accumulate=2")
    keys: list[int] = []
    loss = run.model.loss

    def watched(batch: Batch, *, step: int, noise: object) -> Loss:
        keys.extend(noise.keys)  # type: ignore[attr-defined]
        return loss(batch, step=step, noise=noise)  # type: ignore[arg-type]

    monkeypatch.setattr(run.model, "loss", watched)
    run.advance()
    run.advance()
    assert len(keys) == len(set(keys)) == 8


def test_the_step_is_clipped_to_the_global_norm(trainer: Callable[..., Trainer]) -> None:
    run = trainer("train.clip=0.01")
    facts = run.advance()
    assert facts.gradient_norm > 0.01
    norm = torch.stack([gradient.norm() for gradient in gradients(run).values()]).norm()
    assert float(norm) == pytest.approx(0.01, rel=1e-3)


def test_the_schedule_moves_once_per_step(trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer("train.accumulate=3")
    schedule = run.model.kl_schedule
    assert schedule is not None
    calls: list[int] = []
    monkeypatch.setattr(schedule, "advance", calls.append)
    seen: list[int] = []
    penalty = schedule.penalty

    def watched(*arguments: torch.Tensor, step: int) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        seen.append(step)
        return penalty(*arguments, step=step)

    monkeypatch.setattr(schedule, "penalty", watched)
    run.advance()
    run.advance()
    assert calls == [0, 1]
    assert seen == [0, 0, 0, 1, 1, 1]


def state(trainer: Trainer) -> dict[str, torch.Tensor]:
    """A copy of the weights, and of the optimiser's moments and counts."""
    tensors = {**dict(trainer.model.named_parameters()), **optimizer_tensors(trainer.optimizer, trainer.model)}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def break_at(step: int, run: Trainer, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the loss or the gradient of one step be no number."""
    if what == "loss":
        loss = run.model.loss

        def broken(batch: Batch, *, step: int, noise: object) -> Loss:
            found = loss(batch, step=step, noise=noise)  # type: ignore[arg-type]
            return Loss(**{**vars(found), "total": found.total * float("nan")}) if run.step == first else found

        first = step
        monkeypatch.setattr(run.model, "loss", broken)
    else:
        next(iter(run.model.parameters())).register_hook(lambda gradient: gradient * (float("inf") if run.step == step else 1))


def test_steps_that_are_read_together_are_those_that_are_read_one_by_one(trainer: Callable[..., Trainer]) -> None:
    together, one_by_one = (trainer("train.accumulate=2") for _ in range(2))
    for _ in range(4):
        together.take()
    assert together.read() == [one_by_one.advance() for _ in range(4)]
    wanted = state(one_by_one)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in state(together).items())


@pytest.mark.parametrize("what", ["loss", "gradient norm"])
@pytest.mark.parametrize("taken", [1, 3])
def test_no_step_is_taken_from_the_one_on_in_which_a_number_is_not_finite(
    trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch, what: str, taken: int
) -> None:
    run = trainer("train.accumulate=2")
    run.advance()
    run.advance()
    before = state(run)
    break_at(2, run, what, monkeypatch)
    for _ in range(taken):
        run.take()
    with pytest.raises(DivergedError, match=f"{what} is .* at step 3: .*learning_rate"):
        run.read()
    assert run.step == 2
    after = state(run)
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    monkeypatch.undo()
    next(iter(run.model.parameters()))._backward_hooks = None
    run.advance()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in state(run).items()), "it was said, and is over"


@pytest.mark.parametrize("broken", [True, False])
def test_what_fails_after_a_number_that_is_not_finite_fails_because_of_it(
    trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    run = trainer()
    if broken:
        break_at(0, run, "loss", monkeypatch)
    run.take()
    monkeypatch.setattr(run.model, "advance", lambda step: math.isqrt(-1))
    with pytest.raises(DivergedError if broken else ValueError, match="at step 1: " if broken else "nonnegative"):
        run.take()


def test_bfloat16_keeps_float32_weights_and_trains(trainer: Callable[..., Trainer]) -> None:
    run = trainer("train.dtype=bfloat16")
    plain = trainer()
    facts, expected = run.advance(), plain.advance()
    assert facts.cross_entropy == pytest.approx(expected.cross_entropy, rel=1e-2)
    assert facts.cross_entropy != expected.cross_entropy
    assert all(parameter.dtype == torch.float32 for parameter in run.model.parameters())


def test_a_parts_own_loss_is_no_penalty_of_the_schedule(trainer: Callable[..., Trainer]) -> None:
    """A bag of words at no charge for the KL: all of what is not cross-entropy is the part's own."""
    settings = (
        "model.granularity=document", "model.event_dims=4", "model.injection={name: della, bag_of_words: 0.5}",
        "model.kl_schedule={name: constant, weight: 0.0}",
    )  # fmt: skip
    made = trainer(*settings, decoder="della")
    facts = made.advance()
    assert facts.auxiliary / facts.targets > 0.5
    assert facts.penalty == pytest.approx(0.0, abs=1e-3 * facts.targets)
    plain = trainer(*settings[:2], "model.injection=della", settings[3], decoder="della").advance()
    assert plain.auxiliary == 0.0
