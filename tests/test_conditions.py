"""What each condition slot adds to a block or to the readout, and that an empty one adds nothing.

Legend: R rows, T tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from latentlm.backbone import CrossAttention
from latentlm.composed import build
from latentlm.interface import Batch, BlockCondition, Condition, Injection, Latent, ValueMap, merged
from one_block import CONFIG, DOCUMENTS, Experts, block, filled, middle, run
from samples import small_config


def test_film_scales_and_shifts_what_the_feed_forward_reads() -> None:
    made, x = block(), filled(2, 5, 16).double()
    scale, shift = filled(2, 5, 16, seed=2).double(), filled(2, 1, 16, seed=3).double()
    plain = run(made, x, None)
    between = plain - made.feed_forward(made.feed_forward_norm(middle(made, x)))
    expected = between + made.feed_forward(made.feed_forward_norm(middle(made, x)) * (1 + scale) + shift)
    torch.testing.assert_close(run(made, x, BlockCondition(film_scale=scale, film_shift=shift)), expected)


def test_cross_attention_reads_the_slots_of_the_own_document_only() -> None:
    layer = CrossAttention(CONFIG, memory_width=6).double()
    x, slots = filled(2, 5, 16).double(), filled(2, 4, 6, seed=1).double()
    owners = torch.tensor([[0, 0, 1, 1], [0, -1, -1, 0]])
    read = layer(x, layer.memory(slots, owners), DOCUMENTS)
    moved = slots.clone()
    moved[0, 2:] += 1.0  # document 1's slots, and
    moved[1, 1:3] += 1.0  # slots of nobody
    again = layer(x, layer.memory(moved, owners), DOCUMENTS)
    torch.testing.assert_close(read[0, :3], again[0, :3])
    torch.testing.assert_close(read[1], again[1])
    assert (read[0, 3:] - again[0, 3:]).abs().amax(-1).min() > 1e-4


def test_documents_without_slots_read_nothing_and_leave_gradients_finite() -> None:
    layer = CrossAttention(CONFIG, memory_width=6)
    slots = filled(2, 2, 6, seed=1).requires_grad_()
    read = layer(filled(2, 5, 16), layer.memory(slots, torch.tensor([[0, 0], [-1, -1]])), DOCUMENTS)
    assert read[0, 3:].abs().max() == 0
    assert read[1].abs().max() == 0
    (slope,) = torch.autograd.grad(read.square().sum(), slots)
    assert slope.isfinite().all()
    assert slope[0].any()
    assert not slope[1].any()


def test_experts_chosen_by_z_stand_in_the_feed_forwards_place() -> None:
    made, x, layer = block(), filled(2, 5, 16).double(), Experts(16)
    z = torch.tensor([[0, 1, 1, 0, 1], [1, 0, 0, 1, 1]])
    scale = filled(2, 1, 16, seed=2).double()
    condition = BlockCondition(film_scale=scale, feed_forward=ValueMap(layer, torch.eye(2).double()[z]))
    between = middle(made, x)
    normed = made.feed_forward_norm(between) * (1 + scale)
    expected = torch.stack([torch.stack([layer.weight[z[r, t]] @ normed[r, t] for t in range(5)]) for r in range(2)])
    torch.testing.assert_close(run(made, x, condition), between + expected)


def test_an_adapter_is_added_to_the_feed_forward() -> None:
    made, x, layer = block(), filled(2, 5, 16).double(), Experts(16)
    factor = filled(2, 1, 2, seed=4).double().requires_grad_()
    between = middle(made, x)
    normed = made.feed_forward_norm(between)
    out = run(made, x, BlockCondition(feed_forward=ValueMap(layer, factor, added=True)))
    torch.testing.assert_close(out, between + made.feed_forward(normed) + layer(normed, factor))
    (slope,) = torch.autograd.grad(out.square().sum(), factor)
    assert (slope != 0).all()


def test_feed_forwards_of_several_latents_add() -> None:
    made, x = block(), filled(2, 5, 16).double()
    first, second = Experts(16), Experts(16)
    second.weight.data.mul_(-0.5).add_(0.1)
    one, two = filled(2, 5, 2, seed=4).double(), filled(2, 1, 2, seed=5).double()
    between = middle(made, x)
    normed = made.feed_forward_norm(between)
    own = made.feed_forward(normed)
    for added, expected in (
        ((True, True), own + first(normed, one) + second(normed, two)),
        ((False, True), first(normed, one) + second(normed, two)),
        ((False, False), first(normed, one) + second(normed, two)),
    ):
        maps = (ValueMap(first, one, added[0]), ValueMap(second, two, added[1]))
        conditions = [Condition({0: BlockCondition(feed_forward=each)}) for each in maps]
        torch.testing.assert_close(run(made, x, merged(conditions).blocks[0]), between + expected)


class OneSlot(Injection):
    """The latent's bits, spread over the width, in the slot under test."""

    family = "bits"

    def __init__(self, slot: str, condition: object, block: int = 2) -> None:
        torch.nn.Module.__init__(self)
        self.slots, self.blocks, self.make = (slot,), (block,), condition

    def forward(self, latent: Latent, context: object) -> Condition:
        return self.make(latent)  # type: ignore[operator, no-any-return]


def test_a_logit_bias_is_read_out_like_the_stream() -> None:
    model = build(small_config("free"), seed=0).eval()
    batch = Batch.of([[1, 2, 3, 4]])
    context = model.context(batch)
    latent = Latent(torch.zeros(1, 4, 4))
    bias = filled(1, 4, 32)
    model.injection = OneSlot("logit_bias", lambda z: Condition())
    plain = model.logits(model.hidden(context, latent))
    model.injection = OneSlot("logit_bias", lambda z: Condition(logit_bias=bias))
    torch.testing.assert_close(model.logits(model.hidden(context, latent)), plain + model.logits(bias))


def test_an_auxiliary_loss_is_added_in_training_only() -> None:
    from latentlm.interface import Noise

    class Extra(type(build(small_config("free"), device="meta").injection)):  # type: ignore[misc]
        def auxiliary(self, latent: Latent, context: object, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            return torch.tensor(0.25), {"extra": torch.tensor(0.25)}

    model = build(small_config("free"), seed=0)
    batch, noise = Batch.of([[1, 2, 3, 4]]), Noise.keyed(0, [0])
    before = {mode: model.train(mode).loss(batch, step=0, noise=noise).total for mode in (True, False)}
    model.injection.__class__ = Extra
    trained = model.train().loss(batch, step=0, noise=noise)
    torch.testing.assert_close(trained.total, before[True] + 0.25)
    assert trained.logs["extra"] == 0.25
    torch.testing.assert_close(model.eval().loss(batch, step=0, noise=noise).total, before[False])
