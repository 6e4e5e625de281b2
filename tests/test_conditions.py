"""What each condition slot adds to a block or to the readout, and that an empty one adds nothing.

Legend: R rows, T tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from latentlm.backbone import Block, CrossAttention, KVCache, Mask, rotation
from latentlm.composed import build
from latentlm.config import BackboneConfig
from latentlm.interface import Batch, BlockCondition, Condition, Injection, Latent
from samples import small_config

CONFIG = BackboneConfig(width=16, blocks=2, heads=4, kv_heads=2, context=16, vocabulary=11)
DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1], [0, 0, -1, -1, -1]])


def filled(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def block() -> Block:
    made = Block(CONFIG)
    generator = torch.Generator().manual_seed(1)
    for parameter in made.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0.0, 0.3, generator=generator)
    return made.double()


def run(made: Block, x: Tensor, condition: BlockCondition | None) -> Tensor:
    mask = Mask(DOCUMENTS, DOCUMENTS)
    return made(x, mask=mask, rotation=rotation(CONFIG, torch.arange(5).expand(2, -1)), condition=condition)


def test_film_scales_and_shifts_what_the_feed_forward_reads() -> None:
    made, x = block(), filled(2, 5, 16).double()
    scale, shift = filled(2, 5, 16, seed=2).double(), filled(2, 1, 16, seed=3).double()
    plain = run(made, x, None)
    middle = plain - made.feed_forward(made.feed_forward_norm(_middle(made, x)))
    expected = middle + made.feed_forward(made.feed_forward_norm(_middle(made, x)) * (1 + scale) + shift)
    torch.testing.assert_close(run(made, x, BlockCondition(film_scale=scale, film_shift=shift)), expected)


def _middle(made: Block, x: Tensor) -> Tensor:
    """The stream between attention and feed-forward."""
    normed = made.attention_norm(x)
    mixed = made.attention(
        normed,
        normed,
        mask=Mask(DOCUMENTS, DOCUMENTS),
        rotation=rotation(CONFIG, torch.arange(5).expand(2, -1)),
        prefix=None,
        value_gate=None,
        cache=None,
        index=0,
    )
    return x + mixed


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


def test_memory_slots_are_made_once_and_follow_their_rows() -> None:
    layer, cache = CrossAttention(CONFIG), KVCache(2, capacity=4)
    made = layer.memory(filled(2, 3, 16), torch.zeros(2, 3, dtype=torch.long))
    assert cache.cross(1, None) is None
    assert cache.cross(1, made) is made
    assert cache.cross(1, layer.memory(filled(2, 3, 16, seed=9), torch.zeros(2, 3, dtype=torch.long))) is made
    chosen = cache.select(torch.tensor([1, 1])).crosses[1]
    torch.testing.assert_close(chosen.key, made.key[[1, 1]])
    assert chosen.layer is layer


class OneSlot(Injection):
    """The latent's bits, spread over the width, in the slot under test."""

    latents = "bits"

    def __init__(self, slot: str, condition: object, block: int = 2) -> None:
        torch.nn.Module.__init__(self)
        self.slots, self.sites, self.make = (slot,), (block,), condition

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
