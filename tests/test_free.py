"""The Free Transformer against itself written out by hand (free_by_hand.py): encoder, injection, generation, initialisation.

Run: ``pytest tests/test_free.py``
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import get_args

import pytest
import torch
from torch import Tensor

import free_by_hand as hand
from latentlm.composed import ComposedDecoder, build
from latentlm.config import PartSpec
from latentlm.generation import generate
from latentlm.interface import Batch, Codes, Latent, Noise
from latentlm_free.table import Kind
from samples import VOCABULARY, small_config

TOKENS = torch.randint(1, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))
CLOSE = {"rtol": 0.0, "atol": 1e-5}


def free(
    blocks: int = 4,
    *,
    bits: int = 4,
    encoder: dict[str, object] | None = None,
    injection: dict[str, object] | None = None,
    dtype: torch.dtype = torch.float64,
) -> ComposedDecoder:
    """A small Free Transformer with random numbers everywhere, norms and biases too. In float64, since large weights make for
    large rounding errors."""
    specs = {
        "encoder": PartSpec.model_validate({"name": "free", **(encoder or {})}),
        "injection": PartSpec.model_validate({"name": "free", **(injection or {})}),
    }
    model = build(small_config("free", bits=bits, blocks=blocks).model_copy(update=specs))
    assert isinstance(model, ComposedDecoder)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, 0.3, generator=generator)
    return model.eval().to(dtype)


def latent(bits: int = 4, seed: int = 0) -> Latent:
    drawn = torch.randint(0, 2, (*TOKENS.shape, bits), generator=torch.Generator().manual_seed(seed))
    return Latent(drawn.double())


def decoded(model: ComposedDecoder, z: Latent) -> Tensor:
    """The model's own logits, (B, T, V)."""
    return model.logits(model.hidden(model.context(Batch.of(TOKENS.tolist())), z))


def encoded(model: ComposedDecoder, tokens: Tensor = TOKENS) -> Tensor:
    """The model's own bit logits, (B, T, H)."""
    return model.posterior(model.context(Batch.of(tokens.tolist()))).logits


@pytest.fixture(autouse=True)
def _without_gradients(request: pytest.FixtureRequest) -> Iterator[None]:
    with torch.set_grad_enabled("gradient" in request.node.name):
        yield


# ------------------------------------------------------------------------------------------------------------ forward pass


@pytest.mark.parametrize("blocks", [2, 3, 4, 5])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("norm", ["joint", "separate"])
def test_the_decoder_is_the_one_written_out_by_hand(norm: str, residual: bool, blocks: int) -> None:
    model, z = free(blocks, injection={"norm": norm, "residual": residual}), latent()
    r = hand.rows_of(model, z.value, "full", group=4)
    expected = hand.token_logits(model, TOKENS, r, site=blocks // 2, norm=norm, residual=residual)
    torch.testing.assert_close(decoded(model, z), expected, **CLOSE)


@pytest.mark.parametrize("blocks", [4, 5])
def test_by_default_queries_and_stream_are_free_of_the_latent(blocks: int) -> None:
    """The reading of the paper that a user gets who asks for nothing; every other one is far from it."""
    model, z = free(blocks), latent()
    r = hand.rows_of(model, z.value, "full", group=4)
    found = decoded(model, z)
    torch.testing.assert_close(found, hand.token_logits(model, TOKENS, r, site=blocks // 2), **CLOSE)
    others = [("joint", True, blocks // 2), ("separate", False, blocks // 2), ("joint", False, blocks // 2 - 1)]
    for norm, residual, site in others:
        other = hand.token_logits(model, TOKENS, r, site=site, norm=norm, residual=residual)
        assert (found - other).abs().max() > 0.1, (norm, residual, site)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_every_table_puts_its_row_into_the_injected_block(kind: Kind) -> None:
    """Six bits in groups of four: the second group is smaller."""
    model, z = free(bits=6, injection={"table": kind, "group": 4}), latent(6)
    r = hand.rows_of(model, z.value, kind, group=4)
    torch.testing.assert_close(decoded(model, z), hand.token_logits(model, TOKENS, r, site=2), **CLOSE)


def test_the_injected_block_can_be_another() -> None:
    model, z = free(injection={"block": 3}), latent()
    r = hand.rows_of(model, z.value, "full", group=4)
    torch.testing.assert_close(decoded(model, z), hand.token_logits(model, TOKENS, r, site=3), **CLOSE)
    torch.testing.assert_close(encoded(model), hand.bit_logits(model, hand.trunk(model, TOKENS, 2)), **CLOSE)


@pytest.mark.parametrize("blocks", [4, 5])
def test_the_latent_enters_through_the_values_and_keys_of_one_block_alone(blocks: int) -> None:
    """With that block's attention silenced, nothing else carries it: neither the stream nor the next block."""
    model = free(blocks)
    assert (decoded(model, latent()) - decoded(model, latent(seed=1))).abs().max() > 0.1
    model.backbone.blocks[blocks // 2].attention.output.weight.zero_()
    assert torch.equal(decoded(model, latent()), decoded(model, latent(seed=1)))


@pytest.mark.parametrize("blocks", [4, 5])
def test_every_block_runs_once(blocks: int) -> None:
    """The paper's algorithm 2 names the injected block twice; it is run once."""
    model, runs = free(blocks), Counter[int]()
    for index, block in enumerate(model.backbone.blocks):
        block.register_forward_hook(lambda *_, index=index: runs.update([index]))
    decoded(model, latent())
    assert runs == dict.fromkeys(range(blocks), 1)


# ----------------------------------------------------------------------------------------------------------------- encoder


@pytest.mark.parametrize("blocks", [2, 3, 4, 5])
def test_the_encoder_is_the_one_written_out_by_hand(blocks: int) -> None:
    model = free(blocks)
    expected = hand.bit_logits(model, hand.trunk(model, TOKENS, blocks // 2))
    torch.testing.assert_close(encoded(model), expected, **CLOSE)


@pytest.mark.parametrize("zeta_residual", [False, True])
@pytest.mark.parametrize("rope", [False, True])
def test_the_encoders_settings_mean_what_they_say(rope: bool, zeta_residual: bool) -> None:
    model = free(encoder={"rope": rope, "zeta_residual": zeta_residual})
    x = hand.trunk(model, TOKENS, 2)
    torch.testing.assert_close(encoded(model), hand.bit_logits(model, x, rope=rope, zeta_residual=zeta_residual), **CLOSE)
    for other in ({"rope": not rope, "zeta_residual": zeta_residual}, {"rope": rope, "zeta_residual": not zeta_residual}):
        assert (encoded(model) - hand.bit_logits(model, x, **other)).abs().max() > 0.1


def test_the_bit_logits_can_have_a_bias() -> None:
    model = free(encoder={"readout_bias": True})
    assert free().encoder.readout.bias is None
    torch.testing.assert_close(encoded(model), hand.bit_logits(model, hand.trunk(model, TOKENS, 2)), **CLOSE)


def started(encoder: dict[str, object]) -> ComposedDecoder:
    """A small Free Transformer as training begins with it."""
    model = build(small_config("free", bits=4).model_copy(update={"encoder": PartSpec.model_validate(encoder)}))
    assert isinstance(model, ComposedDecoder)
    return model.eval()


def test_a_wide_start_of_the_readout_tells_of_the_text_before_any_training() -> None:
    """At the backbone's scale the bits are near coins; at 1 the same text has the same bits."""
    coins, told = (started({"name": "free", "readout_std": std}) for std in (None, 1.0))
    assert told.encoder.readout.weight.std() == pytest.approx(1.0, abs=0.3)
    certain = [float((encoded(model).sigmoid() - 0.5).abs().mean()) for model in (coins, told)]
    assert certain[0] < 0.2 < 0.35 < certain[1]
    same = [name for name, weight in coins.named_parameters() if torch.equal(weight, told.get_parameter(name))]
    assert len(same) >= len(list(coins.parameters())) - 2, "nothing else starts elsewhere but what is drawn after it"


def test_the_encoder_can_read_an_earlier_block() -> None:
    model = free(encoder={"tap": 1})
    torch.testing.assert_close(encoded(model), hand.bit_logits(model, hand.trunk(model, TOKENS, 1)), **CLOSE)


def test_the_encoders_feed_forward_can_be_of_another_width() -> None:
    model = free(encoder={"feed_forward": 24})
    assert model.encoder.block.feed_forward.up.weight.shape == (24, 32)
    assert model.backbone.blocks[0].feed_forward.up.weight.shape == (96, 32)
    assert free().encoder.block.feed_forward.up.weight.shape == (96, 32)
    torch.testing.assert_close(encoded(model), hand.bit_logits(model, hand.trunk(model, TOKENS, 2)), **CLOSE)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "model"])
def test_the_readout_has_the_precision_asked_for(dtype: str, bias: bool) -> None:
    """In a bfloat16 model: what goes into the readout is multiplied in float32, or in bfloat16 and rounded to it."""
    model, seen = free(encoder={"dtype": dtype, "readout_bias": bias}, dtype=torch.bfloat16), []
    model.encoder.norm.register_forward_hook(lambda *call: seen.append(call[-1]))
    found, readout = encoded(model), model.encoder.readout
    assert found.dtype == torch.float32
    wide = seen[0].float() @ readout.weight.float().T + (readout.bias.float() if bias else 0)
    assert torch.equal(found, found.bfloat16().float()) == (dtype == "model")
    tolerance = {"rtol": 1e-2, "atol": 1e-2} if dtype == "model" else CLOSE
    torch.testing.assert_close(found, wide, **tolerance)


def test_the_readout_stays_in_float32_under_autocast() -> None:
    model = free(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = encoded(model)
    assert found.dtype == torch.float32
    assert not torch.equal(found, found.bfloat16().float())


# -------------------------------------------------------------------------------------------------------------- generation


def test_a_prompts_latents_are_drawn_from_the_encoder_run_on_the_prompt() -> None:
    model, noise = free(), Noise.keyed(0, range(2))
    state = model.prefill(TOKENS, torch.tensor([9, 9]), noise=noise)
    assert state.latents is not None
    probabilities = hand.bit_logits(model, hand.trunk(model, TOKENS, 2)).sigmoid()
    assert torch.equal(state.latents, (noise.uniform(9, 4) < probabilities).double())


def test_generated_codes_are_uniform_and_independent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the encoder says: here it draws almost nothing but ones. It is not run after the prompt."""
    rows, length, model = 64, 40, free(encoder={"readout_bias": True})
    model.encoder.readout.weight.zero_()
    model.encoder.readout.bias.fill_(6.0)
    noise = Noise.keyed(0, range(rows))
    state = model.prefill(TOKENS[:1].expand(rows, -1), torch.full((rows,), 9), noise=noise, capacity=9 + length)
    assert state.latents is not None
    assert state.latents.mean() > 0.98

    def refuse(*_: object) -> None:
        raise AssertionError("the encoder was run in a step of generation")

    monkeypatch.setattr(model.encoder, "forward", refuse)
    for _ in range(length):
        state = model.step(state, state.logits.argmax(-1), noise=noise)
    bits = state.latents[:, 9:]  # (B, S, H)
    codes = (bits.long() * 2 ** torch.arange(4)).sum(-1)
    assert codes.shape == (rows, length)
    assert (bits.mean((0, 1)) - 0.5).abs().max() < 4 * 0.5 / math.sqrt(rows * length)
    assert_uniform(codes, 16)
    assert_uniform(16 * codes[:, :-1] + codes[:, 1:], 256)  # a token and the next
    assert_uniform(16 * codes[:-1] + codes[1:], 256)  # a row and the next, at the same token


def assert_uniform(symbols: Tensor, count: int) -> None:
    """Chi-square within six standard deviations of its mean."""
    expected = symbols.numel() / count
    statistic = float((torch.bincount(symbols.flatten(), minlength=count) - expected).square().sum() / expected)
    assert statistic < count - 1 + 6 * math.sqrt(2 * (count - 1))


def test_generation_runs_the_encoder_once_on_the_prompt_alone() -> None:
    model, seen = free(), []
    model.encoder.register_forward_pre_hook(lambda _, arguments: seen.append(tuple(arguments[0].tokens.shape)))
    generate(model, [TOKENS[0].tolist(), TOKENS[1].tolist()], max_tokens=5)
    assert seen == [(2, 9)]


# ------------------------------------------------------------------------------------------------- objective and first step


@pytest.mark.parametrize("bits", [None, 0.25, 1.0, 2.0])
def test_the_default_schedule_frees_k_bits_of_every_token(bits: float | None) -> None:
    """kappa is k log 2, half a bit by default. What one token leaves over does not pay for another."""
    config = small_config("free")
    if bits is not None:
        config = config.model_copy(update={"kl_schedule": PartSpec.model_validate({"name": "free_bits", "bits": bits})})
    kappa = (0.5 if bits is None else bits) * math.log(2)
    of_tokens = kappa * torch.tensor([[0.0, 0.99, 1.01, 3.0]])  # (B, S)
    kl = of_tokens[..., None] * torch.tensor([0.4, 0.3, 0.2, 0.1])  # (B, S, H)
    everywhere = torch.ones(1, 4, dtype=torch.bool)
    penalty, _ = build(config).kl_schedule.penalty(kl, torch.zeros(1, 4), everywhere, everywhere, step=0)
    assert float(penalty) == pytest.approx((0.01 + 2.0) * kappa / 4, rel=1e-4)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("given", "found"), [({}, 1.0), ({"init_std": 0.5}, 0.5), ({"init_std": None}, 0.02)])
def test_the_table_starts_at_unit_scale(bits: int, given: dict[str, float | None], found: float) -> None:
    """Not like a Linear with a fan-in of 2^bits, which would be 1/256 at 16 bits, nor at zero; `None` is the embedding's."""
    config = small_config("free", bits=bits, init_std=0.02, vocabulary=512)
    config = config.model_copy(update={"injection": PartSpec.model_validate({"name": "free", **given})})
    model = build(config)
    assert isinstance(model, ComposedDecoder)
    assert float(model.injection.table.weight.std()) == pytest.approx(found, rel=0.03)
    assert float(model.backbone.embedding.weight.std()) == pytest.approx(0.02, rel=0.03)
    assert float(model.injection.table.weight.mean()) == pytest.approx(0, abs=0.05 * found)


def test_the_first_step_has_a_gradient_for_the_whole_encoder() -> None:
    """Through the latent, from the cross-entropy alone: no KL is over this budget."""
    budget = PartSpec.model_validate({"name": "free_bits", "bits": 100})
    model = build(small_config("free", init_std=0.02).model_copy(update={"kl_schedule": budget}))
    loss = model.loss(Batch.of(TOKENS.tolist()), step=0, noise=Noise.keyed(0, range(2)))
    torch.testing.assert_close(loss.total, loss.reconstruction.sum() / loss.target_mask.sum())
    loss.total.backward()
    silent = [name for name, weight in model.encoder.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert silent == []


@pytest.mark.parametrize("table", ["full", "grouped", "additive"])
def test_codes_get_the_gradient_of_their_mean_row_through_any_table(table: str) -> None:
    """The straight-through gradient of a categorical over codes: that of its mean row."""
    part = PartSpec.model_validate({"name": "free", "table": table})
    model = build(small_config("free", bits=3).model_copy(update={"injection": part}), seed=0)
    context = model.context(Batch.of([[1, 2, 3]]))
    logits = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    latent = Codes(logits).sample(Noise.keyed(0, [0]), differentiable=True)
    rows = model.injection(latent, context).blocks[2].kv
    torch.testing.assert_close(rows, model.injection(Latent(latent.value), context).blocks[2].kv)
    upstream = torch.randn(rows.shape, generator=torch.Generator().manual_seed(1))
    (found,) = torch.autograd.grad((rows * upstream).sum(), logits, retain_graph=True)
    every = model.injection.table(Codes(logits).support(), None).detach()  # (8, D)
    (expected,) = torch.autograd.grad(((logits.softmax(-1) @ every) * upstream).sum(), logits)
    torch.testing.assert_close(found, expected)
    assert found.abs().max() > 1e-4
