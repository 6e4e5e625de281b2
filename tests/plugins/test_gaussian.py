"""One Gaussian vector per document: Optimus's parts against formulas written out by hand, and the priors."""

from __future__ import annotations

import copy
import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from latentlm.composed import ComposedDecoder, build, complete
from latentlm.config import BackboneConfig, ModelConfig, PartSpec
from latentlm.errors import UserError
from latentlm.interface import Batch, Context, Gaussian, Latent, Noise, Parts
from latentlm.testing import check_exactness, check_normalisation, check_sampler_agreement, leak_sum, plant
from latentlm_gaussian.mixture import GaussianMixture
from latentlm_gaussian.tower import pooled
from samples import VOCABULARY, pack, small_config

TEXTS = [[[3, 1, 4, 1, 5, 9, 2], [6, 5], [3, 5, 8, 9]], [[2, 7, 1, 8], [2, 8, 1, 8, 2, 8, 4, 5]]]


def spec(name: str, **settings: object) -> PartSpec:
    return PartSpec.model_validate({"name": name, **settings})


def config_of(backbone: BackboneConfig | None = None, **settings: Any) -> ModelConfig:
    parts = {"decoder": "gaussian", "event_dims": 4, "kl_schedule": spec("constant")}
    return ModelConfig(backbone=backbone or small_config("vanilla").backbone, **{**parts, **settings})


CONFIGS = {
    "optimus": config_of(),
    "memory": config_of(injection=spec("gaussian_memory", scheme="memory", slots=2, shared=False)),
    "embedding": config_of(injection=spec("gaussian_memory", scheme="embedding")),
    "bowman": config_of(
        encoder=spec("gaussian_tower", blocks=1, causal=True, pooling="last", pooler=False, embedding="decoder"),
        injection=spec("gaussian_memory", scheme="memory", word_dropout=0.3),
    ),
    "mog": config_of(prior=spec("mog", components=5), encoder=spec("gaussian_tower", blocks=1, pooling="mean")),
    "vamp": config_of(prior=spec("vamp", components=3, length=5), encoder=spec("gaussian_tower", blocks=2)),
    "prompt": config_of(prior=spec("prompt_normal"), encoder=spec("gaussian_tower", blocks=1)),
}
ENUMERABLE = BackboneConfig(vocabulary=3, width=16, blocks=2, heads=2, context=16, init_std=0.1)


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> ComposedDecoder:
    return _built(request.param)


@cache
def _built(name: str) -> ComposedDecoder:
    model = build(CONFIGS[name], seed=3).eval()
    assert isinstance(model, ComposedDecoder)
    return model


def noise(rows: int, samples: int = 1) -> Noise:
    return Noise.keyed(0, range(rows), samples=samples)


def close(one: Tensor, other: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(one, other, atol=tolerance, rtol=1e-4)


def drawn(model: ComposedDecoder, context: Context) -> Latent:
    return model.posterior(context).sample(noise(context.rows))


# ------------------------------------------------------------------------------------------------------- configuration


def test_the_defaults_are_optimus() -> None:
    filled = complete(ModelConfig(decoder="gaussian"))
    assert (filled.event_dims, filled.granularity) == (32, "document")
    assert [getattr(filled, socket).name for socket in ("encoder", "prior", "injection", "kl_schedule")] == [
        "gaussian_tower", "standard_normal", "gaussian_memory", "optimus",
    ]  # fmt: skip
    assert complete(filled) == filled
    assert ModelConfig.model_validate(filled.model_dump(mode="json")) == filled


def test_the_injection_at_gpt2_size_counts_as_optimus_maps_do() -> None:
    """W_M is (L D, E) and W_D (D, E), both without bias; the head (2 E, D); BERT's pooler (D, D) and a bias."""
    gpt2 = BackboneConfig(vocabulary=50257, width=768, blocks=12, heads=12, feed_forward=3072, context=1024)
    sizes = {}
    for scheme in ("both", "memory", "embedding"):
        injection = spec("gaussian_memory", scheme=scheme)
        built = build(ModelConfig(decoder="gaussian", backbone=gpt2, injection=injection), device="meta")
        sizes[scheme] = sum(weight.numel() for weight in built.injection.parameters())
    assert sizes == {"both": 319_488, "memory": 12 * 768 * 32, "embedding": 768 * 32}
    assert sum(weight.numel() for weight in built.encoder.head.parameters()) == 2 * 32 * 768 + 768 * 768 + 768
    assert len(built.encoder.tower.blocks) == 12


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"encoder": spec("gaussian_towr")}, "Did you mean"),
        ({"encoder": spec("gaussian_tower", poolin="last")}, "Did you mean"),
        ({"encoder": spec("gaussian_tower", causal=True)}, 'set pooling to "last" or "mean"'),
        ({"injection": spec("gaussian_memory", scheme="embedding", slots=2)}, "drop them"),
        ({"granularity": "token"}, 'set granularity to "document"'),
        ({"prior": spec("uniform_bits")}, "do not agree on the kind of latents"),
        ({"prior": spec("vamp", length=65)}, "lower the prior's length"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        build(config_of(**settings))


def test_vamp_without_an_encoder_that_reads_embeddings_is_refused() -> None:
    model = copy.deepcopy(_built("vamp"))
    with pytest.raises(UserError, match=r"this one is none.*gaussian_tower"):
        model.prior_part.bind(Parts(None, model.prior_part, model.injection))


# -------------------------------------------------------------------------------------------------------- any decoder


def test_training_reaches_every_parameter() -> None:
    for name, config in CONFIGS.items():
        model = build(config, seed=3).train()
        model.loss(pack(TEXTS), step=0, noise=noise(2)).total.backward()
        silent = [key for key, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
        assert silent == [], name


def test_the_encoder_hears_from_the_reconstruction_alone(model: ComposedDecoder) -> None:
    loss = model.loss(pack(TEXTS), step=0, noise=noise(2))
    gradients = torch.autograd.grad(loss.reconstruction.sum(), list(model.encoder.parameters()))
    assert all(gradient.any() for gradient in gradients)


def test_the_decoder_is_causal_given_z_and_z_reaches_its_own_document_only(model: ComposedDecoder) -> None:
    batch = pack(TEXTS)
    context = model.context(batch)
    latent = drawn(model, context)
    hidden = model.hidden(context, latent)
    tokens = batch.inputs.clone()
    tokens[:, 9] = (tokens[:, 9] + 1) % VOCABULARY
    moved = (model.hidden(model.context(Batch(**{**vars(batch), "inputs": tokens})), latent) - hidden).abs().amax(-1)
    assert moved[:, :9].max() < 1e-6 < 1e-4 < moved[:, 9].min()
    for site in range(3):
        value = latent.value.clone()
        value[0, site] += 1.0
        moved = (model.hidden(context, Latent(value)) - hidden)[0].abs().amax(-1)
        own = batch.documents[0] == site
        assert moved[~own].max() < 1e-6 < 1e-5 < moved[own].min()


def test_packed_documents_equal_separate_documents(model: ComposedDecoder) -> None:
    batch = pack(TEXTS)
    context = model.context(batch)
    latent = drawn(model, context)
    hidden, q, p = model.hidden(context, latent), model.posterior(context), model.prior(context, latents=latent)
    for row, documents in enumerate(TEXTS):
        for number, text in enumerate(documents):
            alone, own = model.context(Batch.of([text])), Latent(latent.value[row : row + 1, number : number + 1])
            close(model.posterior(alone).mean[0, 0], q.mean[row, number])
            close(model.posterior(alone).log_std[0, 0], q.log_std[row, number])
            close(model.prior(alone, latents=own).log_prob(own)[0, 0], p.log_prob(latent)[row, number])
            close(model.hidden(alone, own)[0], hidden[row, batch.documents[row] == number])


def test_hiding_later_tokens_equals_encoding_the_shorter_text(model: ComposedDecoder) -> None:
    text = list(range(1, 11))
    hidden = model.posterior(model.context(Batch.of([text, text])).before(torch.tensor([4, 7])))
    for row, length in enumerate((4, 7)):
        close(hidden.mean[row], model.posterior(model.context(Batch.of([text[:length]]))).mean[0])


@pytest.mark.parametrize("latents", ["posterior", "prior"])
def test_cached_equals_uncached_for_unequal_prompts(model: ComposedDecoder, latents: str) -> None:
    prompts, lengths = torch.tensor([[3, 1, 4, 1, 5], [2, 7, 0, 0, 0]]), torch.tensor([5, 2])
    state = model.prefill(prompts, lengths, latents=latents, noise=noise(2))  # type: ignore[arg-type]
    texts, cached = [prompts[row, : lengths[row]].tolist() for row in range(2)], [state.logits]
    for token in (6, 11, 2, 9):
        state = model.step(state, torch.tensor([token, token + 1]), noise=noise(2))
        cached.append(state.logits)
        for row in range(2):
            texts[row].append(token + row)
    assert state.latents.shape == (2, 1, 4)
    for row in range(2):
        full = model.logits(model.hidden(model.context(Batch.of([texts[row]])), Latent(state.latents[row : row + 1])))
        close(torch.stack([step[row] for step in cached]), full[0, int(lengths[row]) - 1 :])


def test_the_prior_steps_as_it_goes_forward(model: ComposedDecoder) -> None:
    for given in (0, 3):
        context = model.context(Batch.of([[3, 1, 4, 1, 5], [2, 7, 1, 8, 2]], given=[given, given]))
        state = model.prior_part.start(context.before(torch.zeros(2, dtype=torch.long)), None)
        taps = {k: tap[:, 0] for k, tap in context.taps.items()}
        stepped, state = model.prior_part.step(state, taps, None, torch.ones(2, dtype=torch.bool), {})
        latent = drawn(model, context)
        close(stepped.log_prob(latent), model.prior(context, latents=latent).log_prob(latent))


# ------------------------------------------------------------------------------------------------------------ encoder


@pytest.mark.parametrize("how", ["first", "last", "mean"])
def test_pooling_takes_each_documents_visible_positions(how: str) -> None:
    x = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(0))
    documents = torch.tensor([[0, 0, 0, 1, 1, 2, 2, -1], [0, -1, -1, -1, -1, -1, -1, -1]])
    got = pooled(x, visible=documents >= 0, site_of=documents.clamp(min=0), sites=3, how=how)  # type: ignore[arg-type]
    for row, site in [(0, 0), (0, 1), (0, 2), (1, 0)]:
        own = x[row, documents[row] == site]
        close(got[row, site], {"first": own[0], "last": own[-1], "mean": own.mean(0)}[how], 1e-6)


def test_the_head_is_optimus_formula() -> None:
    """[mean, log variance] = W tanh(W_p h + b); a standard deviation is exp(log variance / 2)."""
    head = _built("optimus").encoder.head
    h = torch.randn(2, 1, 32, generator=torch.Generator().manual_seed(1))
    both = torch.tanh(h @ head.pooler.weight.T + head.pooler.bias) @ head.readout.weight.T
    found = head(h)
    close(found.mean, both[..., :4], 1e-6)
    close(found.log_std.exp().square(), both[..., 4:].exp(), 1e-5)
    biased = build(config_of(encoder=spec("gaussian_tower", pooler=False, bias=True)), seed=3).encoder.head
    torch.nn.init.normal_(biased.readout.bias, generator=torch.Generator().manual_seed(2))
    close(biased(h).mean, (h @ biased.readout.weight.T + biased.readout.bias)[..., :4], 1e-6)


def test_only_the_tower_that_reads_both_ways_looks_back_from_a_documents_first_position() -> None:
    text = [3, 1, 4, 1, 5]
    for name, moves in [("optimus", True), ("bowman", False)]:
        encoder, context = _built(name).encoder, _built(name).context(Batch.of([text, [*text[:4], 9]]))
        x = context.taps[0]
        out = encoder.tower(x, documents=context.documents, positions=context.positions)
        assert bool((out[0, 0] - out[1, 0]).abs().max() > 1e-5) == moves


# ---------------------------------------------------------------------------------------------------------- injection


def test_the_embedding_scheme_adds_one_vector_to_every_embedding() -> None:
    model = _built("embedding")
    context = model.context(Batch.of([[3, 1, 4, 1]]))
    z = torch.randn(1, 1, 4, generator=torch.Generator().manual_seed(0))
    condition = model.injection(Latent(z), context)
    assert condition.blocks == {}
    close(condition.embedding, (z @ model.injection.embedding.weight.T).expand(1, 4, 32), 1e-6)


def test_memory_is_one_more_key_and_value_in_every_block() -> None:
    """Attention of a block by hand: softmax over the slot (without rotation) and the causal keys."""
    model = _built("optimus")
    context = model.context(Batch.of([[3, 1, 4, 1]]))
    z = torch.randn(1, 1, 4, generator=torch.Generator().manual_seed(0))
    condition = model.injection(Latent(z), context)
    assert sorted(condition.blocks) == [0, 1, 2, 3]
    per_block = (model.injection.memory.weight @ z[0, 0]).view(4, 2, 8)  # (L, Hkv, dh): one vector is key and value
    for block, condition_of in condition.blocks.items():
        close(condition_of.prefix.key[0, :, 0], per_block[block], 1e-6)
        close(condition_of.prefix.value[0, :, 0], per_block[block], 1e-6)
    q, k, v = (torch.randn(1, heads, 4, 8, generator=torch.Generator().manual_seed(heads)) for heads in (4, 2, 2))
    from latentlm.backbone import Mask, attend

    slot = condition.blocks[2].prefix
    mask = Mask(context.documents, context.documents).with_prefix(slot.documents)
    got = attend(q, torch.cat((slot.key, k), 2), torch.cat((slot.value, v), 2), mask=mask)
    for head in range(4):
        keys, values = (torch.cat((per_block[2][head // 2][None], part[0, head // 2])) for part in (k, v))
        for t in range(4):
            weights = (keys[: t + 2] @ q[0, head, t] / math.sqrt(8)).softmax(0)
            close(got[0, head, t], weights @ values[: t + 2], 1e-5)


def test_a_slot_starts_as_large_as_a_tokens_key() -> None:
    backbone = BackboneConfig(vocabulary=64, width=128, blocks=4, heads=4, context=64, init_std=0.06)
    model = build(config_of(backbone, event_dims=32), seed=0)
    context = model.context(Batch.of([list(range(48))]))
    z = torch.randn(256, 1, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        condition = model.injection(Latent(z), context.select(torch.zeros(256, dtype=torch.long)))
        block = model.backbone.blocks[0]
        key = block.attention.key(block.attention_norm(context.taps[0]))
        assert float(condition.blocks[0].prefix.key.std() / key.std()) == pytest.approx(1.0, abs=0.15)
        assert float(condition.embedding.std() / context.taps[0].std()) == pytest.approx(1.0, abs=0.15)


def test_word_dropout_hides_words_from_the_decoder_in_training_alone() -> None:
    injection = spec("gaussian_memory", scheme="both", word_dropout=1.0)
    model = build(config_of(injection=injection), seed=3)
    contexts = [model.context(Batch.of([text])) for text in ([3, 1, 4, 1], [3, 5, 9, 2])]
    q = model.posterior(contexts[0])
    latent = q.sample(noise(1), differentiable=True)
    one, other = (model.train().hidden(context, latent) for context in contexts)
    close(one, other, 1e-6)  # only the first token is left, and it is the same
    assert (model.eval().hidden(contexts[0], latent) - model.hidden(contexts[1], latent)).abs().max() > 1e-2
    close(model.train().hidden(contexts[0], Latent(latent.value)), model.eval().hidden(contexts[0], latent), 1e-6)


def test_word_dropout_drops_the_share_asked_for_and_puts_the_unknown_word_in() -> None:
    model = build(config_of(injection=spec("gaussian_memory", scheme="memory", word_dropout=0.3)), seed=3).train()
    context = model.context(Batch.of([[1 + t % 16 for t in range(64)]] * 30))
    latent = model.posterior(context).sample(noise(30), differentiable=True)
    read = context.taps[0] + model.injection(latent, context).embedding
    dropped = (read - model.injection.unknown).abs().amax(-1) < 1e-5
    kept = (read - context.taps[0]).abs().amax(-1) < 1e-6
    assert bool((dropped ^ kept).all())
    assert not dropped[:, 0].any()
    assert float(dropped[:, 1:].float().mean()) == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / (30 * 63)))


# ------------------------------------------------------------------------------------------------------------- priors


def mixture(rows: int = 1, sites: int = 1, events: int = 1) -> GaussianMixture:
    generator = torch.Generator().manual_seed(5)
    mean, log_std = 2 * torch.randn(3, events, generator=generator), 0.5 * torch.randn(3, events, generator=generator)
    return GaussianMixture(mean, log_std, rows=rows, sites=sites)


def test_the_mixtures_density_is_that_of_torch() -> None:
    ours = mixture(4, 2, 5)
    components = torch.distributions.Independent(torch.distributions.Normal(ours.mean, ours.log_std.exp()), 1)
    theirs = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(torch.ones(3)), components)
    value = torch.randn(4, 2, 5, generator=torch.Generator().manual_seed(0))
    close(ours.log_prob(Latent(value)), theirs.log_prob(value), 1e-5)


def test_samples_of_the_mixture_have_its_distribution_function() -> None:
    ours = mixture(4000)
    value = ours.sample(noise(4000)).value[:, 0, 0].sort().values
    normal = torch.distributions.Normal(ours.mean[:, 0], ours.log_std[:, 0].exp())
    expected = normal.cdf(value[:, None]).mean(-1)
    distance = (expected - torch.arange(1, 4001) / 4000).abs().max()
    assert distance < 1.95 / math.sqrt(4000)  # Kolmogorov-Smirnov, p = 0.001
    before = torch.get_rng_state()
    assert torch.equal(ours.sample(noise(4000)).value[:, 0, 0].sort().values, value)
    assert torch.equal(before, torch.get_rng_state())


def test_a_mixture_of_one_is_a_gaussian() -> None:
    one = GaussianMixture(torch.tensor([[0.5, -1.0]]), torch.tensor([[0.2, -0.3]]), rows=3, sites=2)
    gaussian = Gaussian(one.mean.expand(3, 2, 2), one.log_std.expand(3, 2, 2))
    latent = gaussian.sample(noise(3))
    close(one.sample(noise(3)).value, latent.value, 1e-6)
    close(one.log_prob(latent), gaussian.log_prob(latent), 1e-5)
    close(one.tempered(0.5).log_prob(latent), gaussian.tempered(0.5).log_prob(latent), 1e-5)


def test_the_estimated_kl_against_a_mixture_has_the_integral_as_its_mean() -> None:
    rows = 20_000
    q = Gaussian(torch.full((rows, 1, 1), 0.4), torch.full((rows, 1, 1), -0.5))
    kl = q.kl(mixture(rows), q.sample(noise(rows)))
    assert kl.shape == (rows, 1, 1)
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None, None]
    log_q = Gaussian(torch.full_like(grid, 0.4), torch.full_like(grid, -0.5)).log_prob(Latent(grid))
    p = mixture(4001)
    log_p = GaussianMixture(p.mean.double(), p.log_std.double(), rows=4001, sites=1).log_prob(Latent(grid))
    exact = float((log_q.exp() * (log_q - log_p)).sum() * (16 / 4000))
    assert exact > 0.1
    assert float(kl.mean()) == pytest.approx(exact, abs=4 * float(kl.std()) / math.sqrt(rows))


def test_a_pseudo_input_made_of_a_texts_embeddings_has_that_texts_posterior() -> None:
    model = copy.deepcopy(_built("vamp"))
    text = [3, 1, 4, 1, 5]  # as long as the pseudo-inputs
    with torch.no_grad():
        model.prior_part.pseudo_inputs[1] = model.encoder.embedding(torch.tensor(text))
    q = model.posterior(model.context(Batch.of([text])))
    mean, log_std = model.prior_part.components()
    close(mean[1], q.mean[0, 0], 1e-5)
    close(log_std[1], q.log_std[0, 0], 1e-5)


def test_the_vamp_prior_teaches_the_encoder_and_owns_none_of_it() -> None:
    model = build(CONFIGS["vamp"], seed=3)
    assert [name for name, _ in model.prior_part.named_parameters()] == ["pseudo_inputs"]
    assert len(list(model.parameters())) == len({id(weight) for weight in model.parameters()})
    p = model.prior(model.context(Batch.of([[1, 2]])))
    p.log_prob(Latent(torch.ones(1, 1, 4))).sum().backward()
    assert model.encoder.head.readout.weight.grad.any()
    assert model.prior_part.pseudo_inputs.grad.any()


@pytest.mark.parametrize("given", [0, 1, 4])
def test_the_prompts_prior_sees_the_prompt_or_the_first_token_and_nothing_else(given: int) -> None:
    model = _built("prompt")
    rows = [[3, 1, 4, 1, 5, 9], [7, 8]]
    batch = pack([rows])

    def prior(documents: list[list[int]]) -> Tensor:
        packed = pack([documents])
        p = model.prior(model.context(Batch(**{**vars(packed), "given": torch.tensor([given])})))
        return torch.cat((p.mean, p.log_std), -1)[0]

    before = prior(rows)
    for place in range(batch.inputs.shape[1]):
        document, t = (0, place) if place < 6 else (1, place - 6)
        changed = [list(text) for text in rows]
        changed[document][t] = (changed[document][t] + 5) % VOCABULARY
        moved = (prior(changed) - before).abs().amax(-1) > 1e-6
        seen = t < max(1, given) if document == 0 else t == 0
        assert moved.tolist() == [document == 0 and seen, document == 1 and seen]


# --------------------------------------------------------------------------------------------------------- likelihood


@cache
def planted(prior: str) -> ComposedDecoder:
    settings = {"mog": {"components": 3}, "vamp": {"components": 3, "length": 4}}.get(prior, {})
    encoder = spec("gaussian_tower", blocks=1)
    return plant(build(config_of(ENUMERABLE, event_dims=2, prior=spec(prior, **settings), encoder=encoder), seed=1), steps=120)


@pytest.mark.parametrize("prior", ["standard_normal", "vamp", "prompt_normal"])
def test_scores_equal_the_integral_over_z(prior: str) -> None:
    for method in ("operational", "iwae"):
        check_exactness(planted(prior), [([0, 1], [1, 1, 0])], method=method, samples=256)


@pytest.mark.parametrize("prior", ["mog", "prompt_normal"])
def test_probabilities_of_all_continuations_sum_to_one_where_the_leak_does_not(prior: str) -> None:
    found = check_normalisation(planted(prior), [0, 1], 3, samples=512)
    assert leak_sum(planted(prior), [0, 1], 3) > 1 + 6 * found.standard_error


@pytest.mark.parametrize("prior", ["vamp", "prompt_normal"])
def test_the_sampler_draws_what_the_scores_say(prior: str) -> None:
    check_sampler_agreement(planted(prior), [0, 1], 2, draws=2000, samples=512)
