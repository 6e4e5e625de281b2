"""The cache keeps each latent's prefixes and memory slots; those of chunks join as chunks begin.

Legend: B rows, T tokens, S sites, E dimensions, M slots, Hkv key/value heads, dh head width.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from latentlm.backbone import CrossAttention, KVCache, Mask, Rotation, Transformer, rotation
from latentlm.composed import ComposedDecoder, build
from latentlm.config import BackboneConfig
from latentlm.interface import (
    PADDING,
    Batch,
    BlockCondition,
    Condition,
    Context,
    Injection,
    Latent,
    Noise,
    Prefix,
    merged,
    owned,
)
from one_block import filled
from samples import pack, small_config

LENGTH = 3  # of a chunk
M = 2


def angles(columns: int) -> Rotation:
    return rotation(BackboneConfig(width=16, heads=4, kv_heads=2, vocabulary=11), torch.arange(columns).expand(2, -1))


class ChunkPrefix(Injection):
    """M slots for each site in blocks 2 and 3, seen from the site's first position on; and a vector in the key/value stream."""

    family = "bits"
    slots = ("prefix", "kv")

    def __init__(self, events: int, width: int) -> None:
        nn.Module.__init__(self)
        self.blocks = (2, 3)
        self.map = nn.Linear(events, 2 * 2 * M * 8)
        self.stream = nn.Linear(events, width)
        generator = torch.Generator().manual_seed(5)
        for parameter in self.parameters():
            parameter.data.normal_(0.0, 1.0, generator=generator)

    def forward(self, latent: Latent, context: Context) -> Condition:
        value = latent.value.to(self.map.weight)
        first = context.first_positions()  # (R, S)
        documents = context.documents.gather(1, first.clamp(max=context.tokens.shape[1] - 1))
        documents = documents.masked_fill(~context.site_mask, PADDING).repeat_interleave(M, 1)
        since = first.repeat_interleave(M, 1)
        key, slot = self.map(value).unflatten(-1, (2, 2, M, 8)).permute(2, 0, 3, 1, 4, 5).flatten(3, 4)  # (R, Hkv, S * M, dh)
        stream = self.stream(value).gather(1, context.site_of[..., None].expand(-1, -1, self.stream.out_features))
        return Condition({i: BlockCondition(kv=stream, prefix=Prefix(key + i, slot, documents, since)) for i in self.blocks})


def decoder() -> ComposedDecoder:
    model = build(small_config("free", granularity=f"chunk:{LENGTH}"), seed=0).eval().double()
    model.injection = ChunkPrefix(4, 32).double()
    assert isinstance(model, ComposedDecoder)
    return model


def bits(*shape: int, seed: int = 0) -> Tensor:
    return (filled(*shape, seed=seed) > 0).double()


def logits(model: ComposedDecoder, batch: Batch, latent: Tensor) -> Tensor:
    return model.logits(model.hidden(model.context(batch), Latent(latent)))


def test_a_chunks_slots_are_seen_from_its_first_position_on() -> None:
    model, batch, z = decoder(), Batch.of([[1, 2, 3, 4, 5, 6, 7, 8]]), bits(1, 3, 4)
    before = logits(model, batch, z)
    z[:, 1] = 1 - z[:, 1]
    moved = (logits(model, batch, z) - before).abs().amax(-1)[0] > 1e-9
    assert moved.tolist() == [False] * 3 + [True] * 5  # the chunk after sees them too


def test_packed_documents_see_their_own_chunks_slots() -> None:
    model, texts = decoder(), [[1, 2, 3, 4], [5, 6, 7, 8, 9]]
    z = bits(2, 2, 4)
    alone = [logits(model, Batch.of([text]), z[i : i + 1])[0] for i, text in enumerate(texts)]
    together = logits(model, pack([texts]), z.flatten(0, 1)[None])[0]
    torch.testing.assert_close(together, torch.cat(alone))


def test_token_by_token_equals_the_whole_text_for_prompts_of_any_length() -> None:
    """Rows begin chunks at different steps; prompts end within a chunk, with it, and one after."""
    model, noise = decoder(), Noise.keyed(0, [0, 1, 2])
    texts, lengths = torch.arange(27).view(3, 9) % 16 + 1, torch.tensor([5, 3, 1])
    prompt = texts[:, :5].masked_fill(torch.arange(5) >= lengths[:, None], 0)
    state = model.prefill(prompt, lengths, latents="prior", noise=noise)
    for further in range(4):
        state = model.step(state, texts.gather(1, state.lengths[:, None])[:, 0], noise=noise)
        for row in range(3):
            known = int(state.lengths[row])
            assert known == int(lengths[row]) + further + 1
            sites = -(-known // LENGTH)
            whole = logits(model, Batch.of([texts[row, :known].tolist()]), state.latents[row : row + 1, :sites])
            torch.testing.assert_close(state.logits[row], whole[0, -1])
        held = state.cache.prefixes[2]["", 0]
        assert held.documents.shape[1] == M * -(-int(state.lengths.max()) // LENGTH)  # no room for who begins nothing
        assert (held.documents >= 0).sum(1).tolist() == (M * -(-state.lengths // LENGTH)).tolist()


def test_chosen_rows_go_on_with_their_own_slots() -> None:
    model, noise = decoder(), Noise.keyed(0, [0, 1])
    state = model.prefill(torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]]), torch.tensor([4, 2]), latents="prior", noise=noise)
    state = model.step(state, torch.tensor([7, 8]), noise=noise)
    chosen = model.select(state, torch.tensor([1, 0, 1]))
    blocks = [held["", 0] for held in chosen.cache.prefixes.values() if held]
    assert len(blocks) == 2
    assert blocks[0].documents is blocks[1].documents
    drawn = bits(2, 4, seed=3)
    for token in (3, 9):
        state = model.step(state, torch.tensor([token, token + 1]), noise=noise, latents=drawn)
        chosen = model.step(chosen, torch.tensor([token + 1, token, token + 1]), noise=noise, latents=drawn[[1, 0, 1]])
        torch.testing.assert_close(chosen.logits, state.logits[[1, 0, 1]])


def grown(*, made: int, passes: list[tuple[int, list[bool]]]) -> Prefix:
    """The prefix of two rows after a pass of two columns with one site, and then passes of (slots made, rows that begin), of as
    many columns; their slot m is that of a site which begins at column m, or before the first."""
    cache, zeros = KVCache(1, capacity=4), torch.zeros(2, 9, dtype=torch.long)

    def slots(count: int) -> Prefix:
        since = torch.arange(count).expand(2, -1)
        return Prefix(filled(2, 2, count, 4, seed=count), filled(2, 2, count, 4), zeros[:, :count], since, owner="plan")

    cache.extend(zeros[:, :2], rotation=angles(2), plain=True)
    (held,) = cache.prefix(0, slots(made))
    for columns, begins in passes:
        cache.extend(zeros[:, :columns], rotation=angles(columns), plain=True)
        with pytest.raises(AssertionError, match="plan"):  # nobody has said so for this pass
            cache.prefix(0, slots(columns))
        cache.begin("plan", torch.tensor(begins))
        (held,) = cache.prefix(0, slots(columns))
    return held


def test_rows_that_begin_nothing_get_no_slot() -> None:
    same = grown(made=1, passes=[(1, [False, False])])
    assert same.documents.tolist() == [[0], [0]]
    held = grown(made=1, passes=[(1, [False, False]), (1, [False, True])])
    assert held.documents.tolist() == [[0, -1], [0, 0]]
    assert held.since is not None
    assert held.since[1].tolist() == [0, 3]  # the column of the pass
    assert torch.equal(held.key[1, :, 1], filled(2, 2, 1, 4, seed=1)[1, :, 0])


def test_a_pass_may_go_on_with_a_site_and_begin_another() -> None:
    held = grown(made=1, passes=[(2, [False, True])])
    assert held.documents.tolist() == [[0, 0, -1], [0, 0, 0]]
    assert held.since is not None
    assert held.since[0, :2].tolist() == [0, 3]
    assert held.since[1].tolist() == [0, 2, 3]


def test_memory_slots_are_made_once_and_follow_their_rows() -> None:
    config = BackboneConfig(width=16, blocks=2, heads=4, kv_heads=2, context=16, vocabulary=11)
    layer, cache = CrossAttention(config), KVCache(2, capacity=4)
    made = layer.memory(filled(2, 3, 16), torch.zeros(2, 3, dtype=torch.long))
    assert cache.cross(1, None) == ()
    assert cache.cross(1, made)[0] is made
    again = layer.memory(filled(2, 3, 16, seed=9), torch.zeros(2, 3, dtype=torch.long))
    assert cache.cross(1, again)[0] is made
    (chosen,) = cache.select(torch.tensor([1, 1])).cross(1, None)
    torch.testing.assert_close(chosen.key, made.key[[1, 1]])
    assert chosen.layer is layer


def test_latents_keep_their_slots_apart() -> None:
    """A document's prefix and two memories, made once, beside a token's prefix that grows, in the same block: step by step like
    the whole text."""
    config = BackboneConfig(width=16, blocks=2, heads=4, kv_heads=2, context=16, vocabulary=11, init_std=0.3)
    stack, layers = Transformer(config), [CrossAttention(config).double() for _ in range(2)]
    for number, parameter in enumerate(stack.parameters()):
        if parameter.dim() > 1:
            parameter.data.copy_(filled(*parameter.shape, seed=number) * 0.3)
    stack.double()
    x, length = filled(2, 6, 16, seed=1).double(), 6
    zeros = torch.zeros(2, length, dtype=torch.long)
    memory = filled(2, 2, 16, seed=2).double()
    once = tuple(layer.memory(memory + number, zeros[:, :2]) for number, layer in enumerate(layers))
    intent = Prefix(filled(2, 2, 3, 4, seed=3).double(), filled(2, 2, 3, 4, seed=4).double(), zeros[:, :3])
    keys, values = (filled(2, 2, length, 4, seed=seed).double() for seed in (5, 6))
    of_document = owned(Condition({i: BlockCondition(prefix=intent, cross=once) for i in range(2)}), "intent")

    def of_tokens(start: int, stop: int) -> Condition:
        since = torch.arange(stop - start).expand(2, -1)
        made = Prefix(keys[:, :, start:stop], values[:, :, start:stop], zeros[:, start:stop], since)
        return owned(Condition({i: BlockCondition(prefix=made) for i in range(2)}), "bits")

    turn = rotation(config, torch.arange(length).expand(2, -1))
    both = merged([of_document, of_tokens(0, length)])
    whole, _ = stack.run(x, start=0, stop=2, mask=Mask(zeros, zeros), rotation=turn, conditions=both.blocks)
    without, _ = stack.run(x, start=0, stop=2, mask=Mask(zeros, zeros), rotation=turn, conditions=of_document.blocks)
    assert (whole - without).abs().amax(-1).min() > 1e-6

    cache, pieces = KVCache(2, capacity=2), []
    for start, stop in ((0, 2), (2, 3), (3, 4), (4, 6)):  # a later pass may begin several sites
        cache.extend(zeros[:, start:stop], rotation=turn, plain=True)
        cache.begin("bits", torch.tensor([True, True]))
        assert cache.mask is not None
        condition = merged([of_document, of_tokens(0, 2)]) if start == 0 else of_tokens(start, stop)
        part = rotation(config, torch.arange(start, stop).expand(2, -1))
        out, _ = stack.run(
            x[:, start:stop], start=0, stop=2, mask=cache.mask, rotation=part, conditions=condition.blocks, cache=cache
        )
        pieces.append(out)
    torch.testing.assert_close(torch.cat(pieces, 1), whole)
    assert {key: prefix.key.shape[2] for key, prefix in cache.prefixes[1].items()} == {("intent", 0): 3, ("bits", 0): 6}
    assert list(cache.crosses[1]) == [("intent", 0), ("intent", 1)]
    assert replace(cache.prefixes[1]["intent", 0], owner="") == intent


def test_slots_lie_in_front_of_the_columns() -> None:
    """However slots change and columns grow, are picked, resampled and branched: slots, then columns."""
    seen_by = torch.zeros(4, 3, dtype=torch.long)
    order = torch.tensor([1, 1, 3, 2])
    cache, columns, place = KVCache(1, capacity=2), torch.empty(4, 2, 0, 4), 0

    def step(prefixes: tuple[Prefix, ...]) -> None:
        nonlocal columns, place
        cache.extend(torch.zeros(4, 1, dtype=torch.long), rotation=angles(1), plain=True)
        new = filled(4, 2, 1, 4, seed=place)
        columns, place = torch.cat((columns, new), dim=2), place + 1
        whole = torch.cat((*(prefix.key for prefix in prefixes), columns), dim=2)
        for made, wanted in zip(cache.update(0, new, -new, prefixes), (whole, -whole), strict=True):
            torch.testing.assert_close(made, wanted, rtol=0, atol=0)

    def slots(count: int, seed: int) -> Prefix:
        key = filled(4, 2, count, 4, seed=seed)
        return Prefix(key, -key, seen_by[:, :count])

    first, other, more = slots(2, 10), slots(2, 11), slots(3, 12)
    for prefixes in ((first,), (first,), (other,), (other,), (other,), (other,), (other, more), (other, more), (other, more)):
        step(prefixes)  # columns make room for more under slots that stay (3, 5, 9), and slots change where there is room (7)
    lies = [buffer.data_ptr() for buffer in (*cache._keys, *cache._values) if buffer is not None]
    step((other, more))
    assert lies == [buffer.data_ptr() for buffer in (*cache._keys, *cache._values) if buffer is not None], "nothing was copied"
    for pick in (KVCache.select, KVCache.resample):
        cache.prefixes = {0: {("", 0): other, ("", 1): more}}
        cache = pick(cache, order)
        columns = columns[order]
        other, more = cache.prefix(0, None)
        assert torch.equal(more.key[0], more.key[1])
        step((other, more))
    rows = torch.tensor([3, 0])
    branch = cache.branch(rows)
    branch.extend(torch.zeros(2, 1, dtype=torch.long), rotation=angles(1), plain=True)
    new = filled(2, 2, 1, 4, seed=20)
    made, _ = branch.update(0, new, new, branch.prefix(0, None))
    whole = torch.cat((other.key[rows], more.key[rows], columns[rows], new), dim=2)
    torch.testing.assert_close(made, whole, rtol=0, atol=0)
    cache.drop([0])
    cache.start = cache.length = 0
    columns = columns[:, :, :0]
    step((other, more))  # nothing is left in front of a block that begins again
