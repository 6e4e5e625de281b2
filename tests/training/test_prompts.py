"""Rows that begin with given tokens: what the recipe's train.prompts does to batches, steps and runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from latentlm.config import Recipe
from latentlm.errors import UserError
from latentlm.interface import Batch
from latentlm.training.data.prepared import prepare
from latentlm.training.data.prompted import with_prompts
from latentlm.training.loop import train
from latentlm.training.plan import make_plan
from latentlm.training.setup import make_model, make_stream, resolve
from latentlm.training.trainer import Trainer
from stumbling import stumbling

Make = Callable[..., Recipe]
PROMPTED = ("train.prompts=0.7", "data.packing=false")
GAUSSIAN = (
    "model={decoder: gaussian, event_dims: 4, backbone: {width: 16, blocks: 2, heads: 2, context: 32}, prior: prompt_normal, "
    "encoder: {name: gaussian_tower, blocks: 1}, kl_schedule: linear}"
)


def batch_of(rows: int, length: int) -> Batch:
    return Batch.of([list(range(1, length + 1))] * rows, [list(range(2, length + 2))] * rows)


def test_a_prompt_hides_the_targets_inside_it_and_keeps_the_first_after_it() -> None:
    batch = with_prompts(batch_of(400, 6), share=1.0, seed=0, first=0)
    assert batch.given is not None
    assert sorted(set(batch.given.tolist())) == [1, 2, 3, 4, 5]
    for given, mask in zip(batch.given.tolist(), batch.target_mask.tolist(), strict=True):
        assert mask == [t >= given - 1 for t in range(6)]
    assert torch.equal(batch.inputs, batch_of(400, 6).inputs)
    assert torch.equal(batch.targets, batch_of(400, 6).targets)


def test_lengths_are_uniform_and_rows_are_prompted_by_their_share() -> None:
    given = with_prompts(batch_of(6000, 4), share=0.5, seed=1, first=0).given
    assert given is not None
    shares = torch.bincount(given, minlength=4) / 6000
    torch.testing.assert_close(shares, torch.tensor([0.5, 1 / 6, 1 / 6, 1 / 6]), atol=0.026, rtol=0)  # 4 standard errors


def test_short_and_padded_rows_keep_a_target() -> None:
    texts = [[5], [5, 6], [5, 6, 7, 8, 9]]
    batch = with_prompts(Batch.of(texts, texts), share=1.0, seed=0, first=0)
    assert batch.given is not None
    assert batch.given[:2].tolist() == [0, 1]
    assert bool(batch.target_mask.any(1).all())
    assert not batch.target_mask[0, 1:].any()


def test_no_prompts_is_the_batch_itself() -> None:
    batch = batch_of(2, 4)
    assert with_prompts(batch, share=0.0, seed=0, first=0) is batch


def test_a_sequences_prompt_depends_on_its_number_and_the_seed_alone() -> None:
    whole = with_prompts(batch_of(40, 9), share=0.6, seed=3, first=10).given
    parts = [with_prompts(batch_of(8, 9), share=0.6, seed=3, first=10 + 8 * part).given for part in range(5)]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, with_prompts(batch_of(40, 9), share=0.6, seed=4, first=10).given)


def trainer(recipe: Recipe) -> Trainer:
    prepared = prepare(recipe.data)
    resolved = resolve(recipe, vocabulary=prepared.tokenizer.vocabulary)
    return Trainer(make_model(resolved, "cpu"), resolved.train, make_stream(resolved, prepared))


def test_accumulated_steps_equal_one_big_batch(recipe: Make) -> None:
    big, split = (
        trainer(recipe(*PROMPTED, GAUSSIAN, "train.clip=1e9", f"train.batch={batch}", f"train.accumulate={count}"))
        for batch, count in ((6, 1), (2, 3))
    )
    facts = [each.advance() for each in (big, split)]
    assert facts[0].targets == facts[1].targets
    assert facts[0].cross_entropy == pytest.approx(facts[1].cross_entropy, rel=1e-6)
    assert facts[0].kl == pytest.approx(facts[1].kl, rel=1e-5)
    for (name, one), other in zip(big.model.named_parameters(), split.model.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_the_model_sees_the_prompts_and_fewer_targets(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run, plain = trainer(recipe(*PROMPTED, GAUSSIAN)), trainer(recipe("data.packing=false", GAUSSIAN))
    seen: list[Batch] = []
    loss = run.model.loss

    def watched(batch: Batch, **options: object) -> object:
        seen.append(batch)
        return loss(batch, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(run.model, "loss", watched)
    for _ in range(3):
        facts, whole = run.advance(), plain.advance()
        assert facts.targets <= whole.targets
    given = torch.cat([batch.given for batch in seen if batch.given is not None])
    assert len(given) == 12
    assert 0 < int((given > 0).sum()) < 12


def test_a_run_with_prompts_resumes_to_the_same_weights(recipe: Make, tmp_path: Path) -> None:
    settings = recipe(*PROMPTED, GAUSSIAN)
    train(settings, out=tmp_path / "whole", progress=False)
    with pytest.raises(RuntimeError, match="crash"), stumbling(at=7, error=RuntimeError("crash")):
        train(settings, out=tmp_path / "crashed", progress=False)
    train(settings, out=tmp_path / "crashed", resume=True, progress=False)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "crashed"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_packed_rows_are_refused_before_any_work(recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("loop", "plan"):
        monkeypatch.setattr(f"latentlm.training.{module}.prepare", lambda *_, **__: pytest.fail("the data were read"))
    with pytest.raises(UserError, match=r"data\.packing=false"):
        train(recipe("train.prompts=0.5"), out=tmp_path / "run", progress=False)
    with pytest.raises(UserError, match=r"data\.packing=false"):
        make_plan(recipe("train.prompts=0.5"))
