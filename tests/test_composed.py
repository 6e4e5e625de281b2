"""ComposedDecoder with the first-party parts: causality, packing, caches, gradients, initialisation."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from latentlm import plugins
from latentlm.composed import build
from latentlm.config import ModelConfig, PartSpec
from latentlm.errors import UserError
from latentlm.generation import encode, generate
from latentlm.interface import Batch, Latent, LatentDecoder, Noise, Prior
from latentlm_free import UniformBits
from likelihood_parts import FairBits, StickyBits, tiny
from samples import VOCABULARY, pack, small_config

Maker = Callable[..., LatentDecoder]
GRANULARITIES = ["token", "chunk:3", "document"]


def noise(rows: int, seed: int = 0) -> Noise:
    return Noise.keyed(seed, range(rows))


def sampled(model: LatentDecoder, batch: Batch) -> tuple[torch.Tensor, Latent | None]:
    context = model.context(batch)
    latent = model.posterior(context).sample(noise(context.rows)) if model.has_latents else None
    return model.logits(model.hidden(context, latent)), latent


def test_decoder_is_causal_given_z(small: Maker) -> None:
    model = small("free")
    tokens = torch.randint(1, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % VOCABULARY
    logits, latent = sampled(model, Batch.of(tokens.tolist()))
    other = model.logits(model.hidden(model.context(Batch.of(changed.tolist())), latent))
    assert torch.equal(logits[:, :7], other[:, :7])
    assert not torch.allclose(logits[:, 7:], other[:, 7:])


def test_latent_of_a_position_moves_predictions_from_there_on(small: Maker) -> None:
    model = small("free")
    batch = Batch.of([list(range(1, 13))])
    logits, latent = sampled(model, batch)
    assert latent is not None
    value = latent.value.clone()
    value[:, 5] = 1 - value[:, 5]
    other = model.logits(model.hidden(model.context(batch), Latent(value)))
    assert torch.equal(logits[:, :5], other[:, :5])
    assert (logits[:, 5:] - other[:, 5:]).abs().amax(-1).min() > 0


def test_posterior_sees_the_future_and_differs_between_positions(small: Maker) -> None:
    model = small("free")
    first = model.posterior(model.context(Batch.of([[1, 2, 3, 4, 5, 6]]))).logits
    second = model.posterior(model.context(Batch.of([[1, 2, 3, 4, 5, 7]]))).logits
    assert (first[:, 0] - second[:, 0]).abs().max() > 1e-6
    assert (first[:, 0] - first[:, 1]).abs().max() > 1e-4


def test_without_rotation_the_encoder_gives_one_posterior_to_all_positions() -> None:
    config = small_config("free").model_copy(update={"encoder": PartSpec.model_validate({"name": "free", "rope": False})})
    logits = build(config).posterior(build(config).context(Batch.of([[1, 2, 3, 4, 5, 6]]))).logits
    torch.testing.assert_close(logits, logits[:, :1].expand_as(logits))


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("decoder", ["free", "vanilla"])
def test_packed_documents_equal_separate_documents(small: Maker, decoder: str, granularity: str) -> None:
    model = small(decoder, granularity=granularity)
    texts = [[[3, 1, 4, 1, 5, 9, 2], [6, 5], [3, 5, 8, 9]], [[2, 7, 1, 8], [2, 8, 1, 8, 2, 8, 4, 5]]]
    batch = pack(texts)
    context = model.context(batch)
    value = model.posterior(context).sample(noise(2)).value if model.has_latents else None
    logits = model.logits(model.hidden(context, None if value is None else Latent(value)))
    posterior = model.posterior(context).logits if model.has_latents else None
    for row, documents in enumerate(texts):
        for number, text in enumerate(documents):
            inside = batch.documents[row] == number
            alone = model.context(Batch.of([text]))
            latent = None
            if model.has_latents:
                sites = context.site_of[row][inside].unique()
                torch.testing.assert_close(model.posterior(alone).logits[0], posterior[row, sites], atol=1e-5, rtol=1e-4)
                latent = Latent(value[row, sites][None])
            torch.testing.assert_close(model.logits(model.hidden(alone, latent))[0], logits[row, inside], atol=1e-4, rtol=1e-4)


def test_padding_changes_nothing(small: Maker) -> None:
    model = small("free")
    short, long = [5, 3, 2, 9], list(range(1, 11))
    alone = model.posterior(model.context(Batch.of([short]))).logits
    beside = model.posterior(model.context(Batch.of([short, long]))).logits
    torch.testing.assert_close(alone[0], beside[0, :4], atol=1e-5, rtol=1e-4)


def test_hiding_later_tokens_equals_encoding_the_shorter_text(small: Maker) -> None:
    model = small("free")
    text = list(range(1, 11))
    context = model.context(Batch.of([text, text])).before(torch.tensor([4, 7]))
    hidden = model.posterior(context).logits
    for row, length in enumerate((4, 7)):
        short = model.posterior(model.context(Batch.of([text[:length]]))).logits
        torch.testing.assert_close(hidden[row, :length], short[0], atol=1e-5, rtol=1e-4)
    assert context.site_mask.sum(-1).tolist() == [4, 7]


def test_many_latents_per_row_equal_one_at_a_time(small: Maker) -> None:
    model = small("free")
    batch = Batch.of([[1, 2, 3, 4], [5, 6, 7]])
    context = model.context(batch)
    rows = torch.arange(2).repeat_interleave(3)
    latent = model.posterior(context).select(rows).sample(Noise.keyed(1, range(2), samples=3))
    wide = model.hidden(context, latent)
    for k in range(3):
        one = model.hidden(context, Latent(latent.value[k::3]))
        torch.testing.assert_close(wide[k::3], one, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("decoder", ["free", "vanilla"])
def test_cached_equals_uncached_for_unequal_prompts(small: Maker, decoder: str, granularity: str) -> None:
    model = small(decoder, granularity=granularity)
    prompts = torch.tensor([[3, 1, 4, 1, 5], [2, 7, 0, 0, 0]])
    lengths = torch.tensor([5, 2])
    state = model.prefill(prompts, lengths, noise=noise(2))
    texts = [prompts[row, : lengths[row]].tolist() for row in range(2)]
    cached = [state.logits]
    for token in (6, 11, 2, 9, 8):
        state = model.step(state, torch.tensor([token, token + 1]), noise=noise(2))
        cached.append(state.logits)
        for row in range(2):
            texts[row].append(token + row)
    for row in range(2):
        context = model.context(Batch.of([texts[row]]))
        latent = None if state.latents is None else Latent(state.latents[row : row + 1, : context.sites])
        full = model.logits(model.hidden(context, latent))[0, int(lengths[row]) - 1 :]
        torch.testing.assert_close(torch.stack([step[row] for step in cached]), full, atol=1e-4, rtol=1e-4)


def test_selected_rows_continue_as_before(small: Maker) -> None:
    model = small("free")
    state = model.prefill(torch.tensor([[3, 1, 4], [2, 7, 1]]), torch.tensor([3, 3]), noise=noise(2))
    rows = torch.tensor([1, 0, 1])
    forked = model.select(state, rows)
    straight = model.step(state, torch.tensor([5, 6]), noise=noise(2))
    after = model.step(forked, torch.tensor([6, 5, 6]), noise=noise(2).select(rows))
    torch.testing.assert_close(after.logits, straight.logits[rows], atol=1e-5, rtol=1e-4)
    assert torch.equal(after.latents, straight.latents[rows])


def test_last_latent_of_a_prompt_may_come_from_the_prior(small: Maker) -> None:
    model = small("free", bits=12)
    tokens, lengths = torch.tensor([[3, 1, 4, 1], [2, 7, 1, 0]]), torch.tensor([4, 3])
    posterior = model.prefill(tokens, lengths, noise=noise(2)).latents
    mixed = model.prefill(tokens, lengths, noise=noise(2), last_latent="prior").latents
    prior = model.prefill(tokens, lengths, noise=noise(2), latents="prior").latents
    for row, last in enumerate((3, 2)):
        assert torch.equal(mixed[row, :last], posterior[row, :last])
        assert torch.equal(mixed[row, last], prior[row, last])
    assert not posterior[1, 3].any()


def test_loss_reaches_every_part(small: Maker, packed: Batch) -> None:
    model = small("free").train()
    loss = model.loss(packed, step=0, noise=noise(2))
    loss.total.backward()
    silent = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert silent == []


def test_loss_is_cross_entropy_plus_the_hinge_on_each_token(small: Maker, packed: Batch) -> None:
    model = small("free")
    loss = model.loss(packed, step=0, noise=noise(2))
    probability = torch.sigmoid(loss.posterior.logits.double())
    entropy = -(probability * probability.log() + (1 - probability) * (1 - probability).log())
    kl = (math.log(2) - entropy).sum(-1)
    hinge = (kl - 0.5 * math.log(2)).clamp(min=0)[packed.target_mask]
    tokens = packed.target_mask.sum()
    expected = loss.reconstruction.sum() / tokens + hinge.sum() / tokens
    torch.testing.assert_close(loss.total.double(), expected.double(), atol=1e-5, rtol=1e-5)
    assert loss.reconstruction[~packed.target_mask].abs().sum() == 0


def test_zeroed_injection_equals_vanilla(small: Maker, packed: Batch) -> None:
    free, vanilla = small("free"), small("vanilla")
    vanilla.load_state_dict({name: free.state_dict()[name] for name in vanilla.state_dict()})
    free.injection.table.weight.data.zero_()
    torch.testing.assert_close(sampled(free, packed)[0], sampled(vanilla, packed)[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("decoder", ["free", "vanilla"])
def test_initialisation_leaves_nothing_unset(decoder: str) -> None:
    model = build(small_config(decoder), init=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    model.init_weights(torch.Generator().manual_seed(0))
    assert [name for name, parameter in model.named_parameters() if parameter.isnan().any()] == []


def test_same_seed_builds_the_same_model_without_touching_global_state() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, second, third = (build(small_config(), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)
    assert not torch.equal(first.encoder.zeta, third.encoder.zeta)


def test_parts_that_do_not_fit_are_refused() -> None:
    config = small_config("free")
    for update, words in [
        ({"injection": PartSpec.model_validate({"name": "free", "block": 9})}, "blocks"),
        ({"encoder": PartSpec.model_validate({"name": "free", "tap": 3})}, "free of z"),
        ({"encoder": PartSpec.model_validate({"name": "free", "ropes": False})}, "Did you mean"),
    ]:
        with pytest.raises(UserError, match=words):
            build(config.model_copy(update=update))
    with pytest.raises(UserError, match="has no encoder"):
        build(ModelConfig(decoder="vanilla", encoder="free"))


def test_a_posterior_without_encoder_is_refused_where_the_prior_goes_site_by_site() -> None:
    model = tiny(prior=StickyBits, encoder=False, steps=0)
    with pytest.raises(UserError, match=r"no encoder.*StickyBits.*sample_prior"):
        model.posterior(model.context(Batch.of([[0, 1, 2]])))


@pytest.mark.parametrize("prior", [FairBits, StickyBits])
def test_encoding_without_encoder_draws_from_the_prior(prior: type[Prior]) -> None:
    """The latents that a generation from the same prompt meets."""
    model = tiny("chunk:2", prior=prior, encoder=False, steps=0)
    latent = encode(model, [0, 1, 2, 1, 0], samples=3)
    assert latent.value.shape == (3, 3, 2)
    drawn = generate(model, [[0, 1, 2, 1, 0]], samples=3, max_tokens=1)
    assert all(torch.equal(latent.value[row], one.latents.value[0, :3]) for row, one in enumerate(drawn))
    assert encode(model, [0, 1, 2, 1, 0], temperature=0).value.shape == (1, 3, 2)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_padding_points_at_some_site(small: Maker, granularity: str) -> None:
    """Whoever gathers by it stays in range, and no site is real for the sake of padding."""
    context = small("free", granularity=granularity).context(Batch.of([[1, 2, 3, 4, 5, 6, 7], [1, 2]]))
    assert context.site_of.min() >= 0
    assert context.site_of.max() < context.sites
    assert context.site_mask.sum(1).tolist() == {"token": [7, 2], "chunk:3": [3, 1], "document": [1, 1]}[granularity]


def test_injection_without_encoder_draws_from_the_prior(packed: Batch) -> None:
    config = ModelConfig(
        decoder="composed", event_dims=4, prior="uniform_bits", injection="free", backbone=small_config().backbone
    )
    model = build(config)
    posterior = model.posterior(model.context(packed))
    assert not model.has_encoder
    assert posterior.logits.abs().sum() == 0
    assert torch.isfinite(model.loss(packed, step=0, noise=noise(2)).total)


def test_parts_that_disagree_on_what_z_is_are_refused_by_name() -> None:
    class RealPrior(UniformBits):
        family = "real"

    plugins.register("prior", "real_prior", RealPrior)
    try:
        with pytest.raises(UserError, match=r'encoder "free": bits, prior "real_prior": real.*parts of one kind'):
            build(small_config("free").model_copy(update={"prior": PartSpec(name="real_prior")}), device="meta")
    finally:
        plugins.unregister("prior", "real_prior")


def test_a_part_that_does_not_serve_the_granularity_says_which_it_serves() -> None:
    class PerChunk(UniformBits):
        granularities = ("chunk", "document")

    plugins.register("prior", "per_chunk", PerChunk)
    try:
        said = 'prior "per_chunk" does not serve granularity "token": set it to "chunk:n" or "document"'
        with pytest.raises(UserError, match=said):
            build(small_config("free").model_copy(update={"prior": PartSpec(name="per_chunk")}), device="meta")
    finally:
        plugins.unregister("prior", "per_chunk")
