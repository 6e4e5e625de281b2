"""Conditions of several latents, slot by slot, are one condition.

Legend: R rows, T tokens, D width, M slots.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from latentlm.backbone import CrossAttention
from latentlm.interface import BlockCondition, Condition, Prefix, ValueMap, merged, owned
from one_block import CONFIG, DOCUMENTS, Experts, block, filled, run

X = filled(2, 5, 16).double()


def slot(width: int = 16, *, seed: int, length: int = 5) -> Tensor:
    return filled(2, length, width, seed=seed).double()


def of(**slots: object) -> Condition:
    return Condition({0: BlockCondition(**slots)})  # type: ignore[arg-type]


def test_a_single_condition_is_returned_as_it_is() -> None:
    one = of(kv=slot(seed=1))
    assert merged([one]) is one
    assert merged([]) == Condition()


@pytest.mark.parametrize("name", ["kv", "kv_normed", "residual", "skip", "film_shift"])
def test_additive_slots_add(name: str) -> None:
    per_token, per_row = slot(seed=1), slot(seed=2, length=1)
    both = merged([of(**{name: per_token}), of(**{name: per_row})]).blocks[0]
    assert torch.equal(getattr(both, name), per_token + per_row)
    assert [field for field, value in vars(both).items() if value is not None] == [name]
    assert not torch.allclose(run(block(), X, both), run(block(), X, of(**{name: per_token}).blocks[0]))


@pytest.mark.parametrize(("name", "width"), [("film_scale", 16), ("value_gate", 8)])
def test_gates_and_scales_multiply(name: str, width: int) -> None:
    first, second, third = (slot(width, seed=seed, length=length) for seed, length in ((1, 5), (2, 1), (3, 5)))
    all_three = merged([of(**{name: each}) for each in (first, second, third)]).blocks[0]
    torch.testing.assert_close(1 + getattr(all_three, name), (1 + first) * (1 + second) * (1 + third))


def test_embeddings_and_logit_biases_add() -> None:
    first, second = slot(seed=1), slot(seed=2, length=1)
    both = merged([Condition(embedding=first, logit_bias=second), Condition(), Condition(embedding=second, logit_bias=first)])
    assert torch.equal(both.embedding, first + second)  # type: ignore[arg-type]
    assert torch.equal(both.logit_bias, first + second)  # type: ignore[arg-type]


def test_blocks_of_one_latent_alone_stay_its_own() -> None:
    first, second = of(kv=slot(seed=1)), Condition({3: BlockCondition(skip=slot(seed=2))})
    both = merged([first, second])
    assert both.blocks[0] is first.blocks[0]
    assert both.blocks[3] is second.blocks[3]


class Shifted(nn.Module):
    """Values to values * factor + 1: what comes before it and what after differ."""

    def forward(self, values: Tensor, factor: Tensor) -> Tensor:
        return values * factor + 1.0


def test_value_maps_and_gates_apply_in_the_order_of_the_latents() -> None:
    made, layer = block(), Shifted()
    factor, *gates = (slot(8, seed=seed) for seed in range(4))
    parts: list[Tensor | ValueMap] = [gates[0], gates[1], ValueMap(layer, factor), gates[2]]
    both = merged([of(value_gate=part) for part in parts]).blocks[0]
    assert len(both.value_gate) == 3  # type: ignore[arg-type]  # gates that meet are one

    class ByHand(nn.Module):
        def forward(self, values: Tensor, factor: Tensor) -> Tensor:
            return layer(values * (1 + gates[0]) * (1 + gates[1]), factor) * (1 + gates[2])

    by_hand = BlockCondition(value_gate=ValueMap(ByHand(), factor))
    torch.testing.assert_close(run(made, X, both), run(made, X, by_hand))
    turned = merged([of(value_gate=part) for part in reversed(parts)]).blocks[0]
    assert not torch.allclose(run(made, X, both), run(made, X, turned))


def test_an_added_value_map_keeps_the_values() -> None:
    made, layer, factor = block(), Experts(8), filled(2, 5, 2, seed=4).double()
    eye = torch.eye(8).double()

    class Kept(nn.Module):
        def forward(self, values: Tensor, factor: Tensor) -> Tensor:
            return values @ eye + layer(values, factor)

    added = run(made, X, BlockCondition(value_gate=ValueMap(layer, factor, added=True)))
    torch.testing.assert_close(added, run(made, X, BlockCondition(value_gate=ValueMap(Kept(), factor))))


def prefix(slots: int, *, seed: int, since: Tensor | None = None) -> Prefix:
    key, value = (filled(2, 2, slots, 4, seed=seed + each).double() for each in (0, 50))
    return Prefix(key, value, torch.zeros(2, slots, dtype=torch.long), since)


def test_prefixes_lie_side_by_side() -> None:
    since = torch.tensor([[0, 2], [1, 2]])
    first, second = prefix(3, seed=1), prefix(2, seed=2, since=since)
    by_hand = Prefix(
        torch.cat((first.key, second.key), 2),
        torch.cat((first.value, second.value), 2),
        torch.cat((first.documents, second.documents), 1),
        torch.cat((torch.zeros_like(first.documents), since), 1),
    )
    both = merged([of(prefix=first), of(prefix=second)]).blocks[0]
    torch.testing.assert_close(run(block(), X, both), run(block(), X, BlockCondition(prefix=by_hand)))
    assert not torch.allclose(run(block(), X, both), run(block(), X, BlockCondition(prefix=first)))


def test_cross_layers_read_one_after_another() -> None:
    made, documents = block(), torch.zeros(2, 3, dtype=torch.long)
    layers = [CrossAttention(CONFIG).double() for _ in range(2)]
    crosses = [layer.memory(slot(seed=seed, length=3), documents) for seed, layer in enumerate(layers)]
    both = merged([of(cross=cross) for cross in crosses]).blocks[0]

    class InTurn(nn.Module):
        """Both layers as one: what the second reads, it reads after the first."""

        def forward(self, x: Tensor, cross: object, documents: Tensor, *, rotation: object) -> Tensor:
            read = layers[0](x, crosses[0], documents)
            return read + layers[1](x + read, crosses[1], documents)

    by_hand = BlockCondition(cross=crosses[0].__class__(InTurn(), crosses[0].key, crosses[0].value, documents))
    torch.testing.assert_close(run(made, X, both), run(made, X, by_hand))


def test_gradients_reach_every_latents_slots() -> None:
    first = {name: slot(seed=seed).requires_grad_() for seed, name in enumerate(("kv", "residual", "film_scale", "film_shift"))}
    second = {name: slot(seed=9, length=1).requires_grad_() for name in first}
    keys = [prefix(2, seed=seed).key.requires_grad_() for seed in (1, 2)]
    slots = [Prefix(key, key, torch.zeros(2, 2, dtype=torch.long)) for key in keys]
    both = merged([of(**first, prefix=slots[0]), of(**second, prefix=slots[1])]).blocks[0]
    out = run(block(), X, both)[DOCUMENTS >= 0]
    for slope in torch.autograd.grad(out.square().sum(), [*first.values(), *second.values(), *keys]):
        assert slope.isfinite().all()
        assert slope.any()


def test_slots_that_a_cache_keeps_know_their_latent() -> None:
    cross = CrossAttention(CONFIG).double().memory(slot(seed=1), torch.zeros(2, 5, dtype=torch.long))
    gated = Condition({0: BlockCondition(prefix=prefix(1, seed=1), cross=(cross, cross)), 1: BlockCondition(kv=slot(seed=1))})
    marked = owned(gated, "intent")
    assert marked.blocks[0].prefix.owner == "intent"  # type: ignore[union-attr]
    assert [each.owner for each in marked.blocks[0].cross] == ["intent", "intent"]  # type: ignore[union-attr]
    assert marked.blocks[1] is gated.blocks[1]
    assert gated.blocks[0].prefix.owner == ""  # type: ignore[union-attr]
