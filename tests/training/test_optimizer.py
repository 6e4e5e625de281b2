"""The optimiser's groups, its learning rate, and its state as tensors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from latentlm.config import TrainConfig
from latentlm.interface import LatentDecoder
from latentlm.training.optimizer import (
    decayed_names,
    learning_rate_at,
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
)

Small = Callable[..., LatentDecoder]


def test_decay_acts_on_multiplying_matrices_only(small: Small) -> None:
    model = small("free")
    decayed = decayed_names(model)
    assert "backbone.blocks.0.attention.query.weight" in decayed
    assert "encoder.readout.weight" in decayed
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or "norm" in name or "embedding" in name or "table" in name:
            assert name not in decayed, name


def test_a_readout_tied_to_the_embedding_is_not_decayed() -> None:
    model = torch.nn.Module()
    model.embedding = torch.nn.Embedding(5, 3)
    model.readout = torch.nn.Linear(3, 5, bias=False)
    model.readout.weight = model.embedding.weight
    assert decayed_names(model) == set()


def test_decay_shrinks_a_matrix_without_gradient_and_nothing_else(small: Small) -> None:
    model = small("free")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = make_optimizer(model, TrainConfig(learning_rate=0.5, weight_decay=0.1))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        expected = before[name] * (0.95 if name in decayed_names(model) else 1.0)
        torch.testing.assert_close(parameter.detach(), expected)


def test_the_rate_warms_up_linearly_and_ends_at_its_share() -> None:
    config = TrainConfig(steps=110, warmup=10, learning_rate=2.0, min_learning_rate=0.1)
    assert [learning_rate_at(step, config) for step in (0, 4, 9)] == pytest.approx([0.2, 1.0, 2.0])
    assert learning_rate_at(10, config) == pytest.approx(2.0)
    assert learning_rate_at(109, config) == pytest.approx(0.2)
    middle = learning_rate_at(59, config), learning_rate_at(60, config)
    assert sum(middle) / 2 == pytest.approx(1.1, abs=1e-6)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 5), (5, 5), (3, 50)])
def test_short_runs_have_a_rate(steps: int, warmup: int) -> None:
    config = TrainConfig(steps=steps, warmup=warmup)
    assert all(0 < learning_rate_at(step, config) <= config.learning_rate for step in range(steps))


def test_the_state_survives_as_tensors(small: Small) -> None:
    """Also of parameters that never had a gradient, which have no state."""
    model = small("free")
    optimizer = make_optimizer(model, TrainConfig())
    silent = next(iter(model.parameters()))
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = None if parameter is silent else torch.ones_like(parameter)
        optimizer.step()
    saved = optimizer_tensors(optimizer, model)
    other = make_optimizer(model, TrainConfig())
    load_optimizer_tensors(other, model, saved)
    again = optimizer_tensors(other, model)
    assert saved.keys() == again.keys()
    assert len(saved) == 3 * (len(list(model.parameters())) - 1)
    for name in saved:
        torch.testing.assert_close(saved[name], again[name], rtol=0, atol=0)
