"""Where latents can enter a backbone: condition slots per block, one at the embedding, one at the readout.

A decoder of several latents has a condition of each, `merged` slot by slot:

    kv, kv_normed, residual, skip, film_shift, embedding, logit_bias    a + b
    value_gate, film_scale                                              (1 + a)(1 + b) - 1
    prefix                                                              slots side by side
    maps of values, cross                                               one after another, in the order of the latents
    feed_forward                                                        outputs add

Legend: R latent rows, T tokens, D width, M prefix or memory slots, Hkv key/value heads, dh head width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Prefix:
    """Key/value slots ahead of the text, which every position of their document sees, or every one from `since` on. No RoPE.

    Blocks that are given the same tensors `documents` and `since` share one attention mask."""

    key: Tensor
    """(R, Hkv, M, dh)."""
    value: Tensor
    """(R, Hkv, M, dh)."""
    documents: Tensor
    """(R, M) long: the document that sees each slot; -1 = none."""
    since: Tensor | None = None
    """(R, M) long: the first position that sees each slot, counted like `Context.first_positions` (position in the row, not in
    the document); None = all of them see it. In generation the slots of a site are kept from the token on that begins it."""
    owner: str = ""
    """The latent that made it. The decoder fills it in; a part leaves it alone."""


@dataclass(frozen=True)
class Cross:
    """Slots that every position of its document reads through a cross-attention layer of the injection's own, after the block's
    self-attention (Vaswani et al. 2017, section 3.2.3)."""

    layer: nn.Module
    """A `latentlm.backbone.CrossAttention`; it belongs to the injection."""
    key: Tensor
    """(R, Hkv, M, dh), as `CrossAttention.memory` makes it."""
    value: Tensor
    """(R, Hkv, M, dh)."""
    documents: Tensor
    """(R, M) long: the document that reads each slot; -1 = none."""
    owner: str = ""
    """The latent that made it. The decoder fills it in; a part leaves it alone."""


@dataclass(frozen=True)
class ValueMap:
    """A map by a layer of the injection's own, position by position: `layer(x, factor)`, from (R, T, W) to the same.

    In the slot `value_gate` x holds the block's values (W = Hkv*dh), and the cache holds what comes out, so the layer sees each
    position once. In the slot `feed_forward` it holds what the feed-forward reads (W = D): normed, after FiLM."""

    layer: nn.Module
    """It belongs to the injection."""
    factor: Tensor
    """What the layer makes of the latent: (R, T, ...) or (R, 1, ...)."""
    added: bool = False
    """What comes out is added to what the block makes itself (its values; its feed-forward's output: an adapter), instead of
    standing in its place (experts)."""


@dataclass(frozen=True)
class BlockCondition:
    """What a latent adds to one block. A None slot adds nothing. Tensors of shape (R, T, D) or (R, 1, D).

    Example::

        added = BlockCondition(kv=torch.zeros(2, 7, 32))  # keys and values of 7 positions, 2 rows
    """

    kv: Tensor | None = None
    """Added to the key/value stream before the block's norm; queries and residual do not see it."""
    kv_normed: Tensor | None = None
    """Added to the key/value stream after the block's norm."""
    residual: Tensor | None = None
    """Added to the residual stream entering the block: queries, keys, values and skip connection see it."""
    skip: Tensor | None = None
    """Added to the skip connection around attention only."""
    prefix: Prefix | tuple[Prefix, ...] | None = None
    value_gate: Tensor | ValueMap | tuple[Tensor | ValueMap, ...] | None = None
    """(R, T, Hkv*dh) or (R, 1, Hkv*dh): the values of each position are multiplied by 1 + value_gate; or a map of them; or
    several of both, one after another."""
    film_scale: Tensor | None = None
    """The normed input of the feed-forward is multiplied by 1 + film_scale (FiLM; Perez et al. 2018)."""
    film_shift: Tensor | None = None
    """... and shifted by film_shift."""
    feed_forward: ValueMap | tuple[ValueMap, ...] | None = None
    """Stands in the feed-forward's place, or is added to it. Of several the outputs add, with the block's own unless one stands
    in its place."""
    cross: Cross | tuple[Cross, ...] | None = None
    """Several are read one after another."""


SLOTS = (
    "kv", "kv_normed", "residual", "skip", "prefix", "value_gate", "film_scale", "film_shift", "feed_forward",
    "cross", "embedding", "logit_bias",
)  # fmt: skip
"""Every condition slot of these contracts. A backbone says which of them it has; another is an error at build time."""


@dataclass(frozen=True)
class Condition:
    """What a latent adds to the decoder: per block, `embedding`, added to the token embeddings, and `logit_bias`.

    Example::

        condition = Condition({1: BlockCondition(residual=torch.zeros(2, 7, 32))}, logit_bias=torch.zeros(2, 1, 32))
    """

    blocks: Mapping[int, BlockCondition] = field(default_factory=dict)
    embedding: Tensor | None = None
    """(R, T, D) or (R, 1, D); only where the first injected block is block 0."""
    logit_bias: Tensor | None = None
    """(R, T, D) or (R, 1, D), added to the final normed stream: a bias of readout @ logit_bias on the logits."""


def listed(slot: Any) -> tuple[Any, ...]:
    """What a slot holds, none, one or several, as a tuple."""
    if slot is None:
        return ()
    return slot if isinstance(slot, tuple) else (slot,)


def owned(condition: Condition, owner: str) -> Condition:
    """The same condition, its prefixes and memory slots marked as those of the latent `owner`: a cache keeps them apart."""

    def marked(slot: Any) -> Any:
        if isinstance(slot, tuple):
            return tuple(replace(one, owner=owner) for one in slot)
        return None if slot is None else replace(slot, owner=owner)

    def block(slots: BlockCondition) -> BlockCondition:
        if slots.prefix is None and slots.cross is None:
            return slots
        return replace(slots, prefix=marked(slots.prefix), cross=marked(slots.cross))

    return replace(condition, blocks={index: block(slots) for index, slots in condition.blocks.items()})


def merged(conditions: Sequence[Condition]) -> Condition:
    """The conditions of several latents, in their order, as one (module docstring). Shapes (R, T, D) and (R, 1, D) mix; every
    condition has the same rows R. One condition is returned as it is."""
    if len(conditions) == 1:
        return conditions[0]
    blocks: dict[int, BlockCondition] = {}
    embedding, logit_bias = None, None
    for condition in conditions:
        for index, slots in condition.blocks.items():
            blocks[index] = _both(blocks[index], slots) if index in blocks else slots
        embedding = _sum(embedding, condition.embedding)
        logit_bias = _sum(logit_bias, condition.logit_bias)
    return Condition(blocks, embedding=embedding, logit_bias=logit_bias)


def _both(first: BlockCondition, second: BlockCondition) -> BlockCondition:
    """The slots of two latents in one block."""
    return BlockCondition(
        kv=_sum(first.kv, second.kv),
        kv_normed=_sum(first.kv_normed, second.kv_normed),
        residual=_sum(first.residual, second.residual),
        skip=_sum(first.skip, second.skip),
        prefix=_several(first.prefix, second.prefix),
        value_gate=_gates(first.value_gate, second.value_gate),
        film_scale=_product(first.film_scale, second.film_scale),
        film_shift=_sum(first.film_shift, second.film_shift),
        feed_forward=_several(first.feed_forward, second.feed_forward),
        cross=_several(first.cross, second.cross),
    )


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first + second


def _product(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first + second + first * second  # (1 + a)(1 + b) - 1, without the cancellation that loses small gates


def _several(first: Any, second: Any) -> Any:
    """Both, one after the other; a slot that only one latent fills stays what it is."""
    if first is None or second is None:
        return second if first is None else first
    return listed(first) + listed(second)


def _gates(first: Any, second: Any) -> Any:
    """Gates that meet become one; a map keeps its place between them."""
    gates = listed(first)
    for gate in listed(second):
        meets = bool(gates) and isinstance(gates[-1], torch.Tensor) and isinstance(gate, torch.Tensor)
        gates = (*gates[:-1], _product(gates[-1], gate)) if meets else (*gates, gate)
    return gates[0] if len(gates) == 1 else gates or None
