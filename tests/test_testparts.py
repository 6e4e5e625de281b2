"""Latents that are not the Free Transformer's, as a third party would write and install them: one Gaussian vector per document
as a key/value prefix of every block, and one code of bits per chunk with a prior learned from the trunk, autoregressive or not.
The distribution is really installed and found through its entry point."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from installing import install
from latentlm import plugins
from latentlm.composed import build
from latentlm.config import ModelConfig, PartSpec
from latentlm.errors import UserError
from latentlm.generation import generate
from latentlm.interface import Batch, Context, Distribution, Latent, LatentDecoder, Noise
from latentlm.likelihood import score_continuations
from samples import VOCABULARY, pack, small_config

BACKBONE = small_config("vanilla").backbone


def config_of(decoder: str, **settings: object) -> ModelConfig:
    return ModelConfig(decoder=decoder, backbone=BACKBONE, **settings)  # type: ignore[arg-type]


CONFIGS = {
    "document": config_of("document_prefix"),
    "learned": config_of("chunk_code"),
    "recurrent": config_of("chunk_code", prior="recurrent_bits", granularity="chunk:3"),
    "kv": config_of("chunk_code", injection=PartSpec.model_validate({"name": "chunk_code", "slot": "kv"})),
    "tokens": config_of("chunk_code", prior="recurrent_bits", granularity="token"),
}


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The distribution, installed where this process finds it."""
    folder = install(tmp_path_factory.mktemp("site"), "latentlm_testparts")
    sys.path.insert(0, str(folder))
    plugins.reset()
    yield
    sys.path.remove(str(folder))
    plugins.reset()


@pytest.fixture(params=CONFIGS, scope="module")
def model(request: pytest.FixtureRequest, installed: None) -> LatentDecoder:
    """Each decoder, with weights large enough for its latents to matter."""
    return build(CONFIGS[request.param], seed=3).eval()


def noise(rows: int, samples: int = 1) -> Noise:
    return Noise.keyed(0, range(rows), samples=samples)


def drawn(model: LatentDecoder, context: Context) -> Latent:
    return model.posterior(context).sample(noise(context.rows))


def parameters(distribution: Distribution) -> Tensor:
    """What the distribution is made of, (B, S, ...)."""
    if hasattr(distribution, "logits"):
        return distribution.logits
    return torch.cat((distribution.mean, distribution.log_std), dim=-1)  # type: ignore[attr-defined]


def close(one: Tensor, other: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(one, other, atol=tolerance, rtol=1e-4)


TEXTS = [[[3, 1, 4, 1, 5, 9, 2], [6, 5], [3, 5, 8, 9]], [[2, 7, 1, 8], [2, 8, 1, 8, 2, 8, 4, 5]]]


def test_the_parts_come_from_the_installed_distribution() -> None:
    (row,) = [plugin for plugin in plugins.listing() if plugin.name == "testparts"]
    assert (row.distribution, row.version, row.status) == ("latentlm-testparts", "0.3.0", "ok")
    assert plugins.get("prior", "recurrent_bits", plugins=["testparts"]).__module__ == "latentlm_testparts.priors"
    assert "distributions" not in sys.modules["latentlm_testparts"].__file__


@pytest.mark.parametrize("name", CONFIGS)
def test_training_reaches_every_part_and_lowers_the_loss(name: str) -> None:
    model = build(CONFIGS[name], seed=3).train()
    batch = pack(TEXTS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    totals = []
    for step in range(12):
        loss = model.loss(batch, step=step, noise=Noise.keyed(step, range(2)))
        optimizer.zero_grad()
        loss.total.backward()
        if step == 1:
            silent = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
            assert silent == []
        optimizer.step()
        totals.append(loss.reconstruction.sum().item())
    assert totals[-1] < 0.9 * totals[0]


def test_the_encoder_hears_from_the_reconstruction_alone(model: LatentDecoder) -> None:
    loss = model.loss(pack(TEXTS), step=0, noise=noise(2))
    weights = list(model.encoder.parameters())
    gradients = torch.autograd.grad(loss.reconstruction.sum(), weights, allow_unused=True)
    assert all(gradient is not None and gradient.any() for gradient in gradients)


def test_the_decoder_is_causal_given_z(model: LatentDecoder) -> None:
    tokens = torch.randint(1, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % VOCABULARY
    context, other = (model.context(Batch.of(rows.tolist())) for rows in (tokens, changed))
    latent = drawn(model, context)
    before, after = model.hidden(context, latent), model.hidden(other, latent)
    close(before[:, :7], after[:, :7], 1e-6)
    assert (before[:, 7:] - after[:, 7:]).abs().amax(-1).min() > 1e-4


def test_every_position_hears_its_own_site_and_none_before_it(model: LatentDecoder) -> None:
    context = model.context(Batch.of([list(range(1, 13))]))
    latent = drawn(model, context)
    hidden = model.hidden(context, latent)
    for site in range(context.sites):
        value = latent.value.clone()
        value[:, site] = 1.0 - value[:, site]
        moved = (model.hidden(context, Latent(value)) - hidden)[0].abs().amax(-1)  # (T,)
        own = context.site_of[0] == site
        first = int(own.nonzero()[0])
        assert moved[:first].max().item() < 1e-6 if first else True
        assert moved[own].min() > 1e-5


@pytest.mark.parametrize("given", [0, 6])
def test_the_prior_sees_the_first_token_of_a_site_or_the_prompt_and_nothing_later(model: LatentDecoder, given: int) -> None:
    tokens = list(range(1, 13))
    context = model.context(Batch.of([tokens], given=[given]))
    latent = drawn(model, context)
    before = parameters(model.prior(context, latents=latent))
    seen_until = context.first_positions()[0].clamp(min=given - 1)  # (S,)
    learned = bool(list(model.prior_part.parameters()))
    for place in range(len(tokens)):
        changed = [*tokens[:place], (tokens[place] + 5) % VOCABULARY, *tokens[place + 1 :]]
        other = model.context(Batch.of([changed], given=[given]))
        moved = (parameters(model.prior(other, latents=latent)) - before)[0].abs().amax(-1)  # (S,)
        assert moved[seen_until < place].abs().sum() == 0
        assert not learned or bool((moved[seen_until == place] > 1e-6).all())


def test_the_prior_of_a_site_depends_on_earlier_latents_only_where_it_says_so(model: LatentDecoder) -> None:
    context = model.context(Batch.of([list(range(1, 13))]))
    latent = drawn(model, context)
    before = parameters(model.prior(context, latents=latent))
    for site in range(context.sites):
        value = latent.value.clone()
        value[:, site] = 1.0 - value[:, site]
        moved = (parameters(model.prior(context, latents=Latent(value))) - before)[0].abs().amax(-1)
        assert moved[: site + 1].sum() == 0
        assert bool((moved[site + 1 :] > 1e-7).all()) == model.prior_part.autoregressive or site == context.sites - 1


def test_packed_documents_equal_separate_documents(model: LatentDecoder) -> None:
    batch = pack(TEXTS)
    context = model.context(batch)
    latent = drawn(model, context)
    hidden, q, p = model.hidden(context, latent), model.posterior(context), model.prior(context, latents=latent)
    for row, documents in enumerate(TEXTS):
        for number, text in enumerate(documents):
            inside = batch.documents[row] == number
            sites = context.site_of[row][inside].unique()
            alone, own = model.context(Batch.of([text])), Latent(latent.value[row, sites][None])
            close(parameters(model.posterior(alone))[0], parameters(q)[row, sites])
            close(parameters(model.prior(alone, latents=own))[0], parameters(p)[row, sites])
            close(model.hidden(alone, own)[0], hidden[row, inside])


def test_padding_and_neighbours_change_nothing(model: LatentDecoder) -> None:
    short, long = [5, 3, 2, 9], list(range(1, 11))
    alone, beside = model.context(Batch.of([short])), model.context(Batch.of([short, long]))
    close(parameters(model.posterior(beside))[0, : alone.sites], parameters(model.posterior(alone))[0])
    latent = drawn(model, beside)
    close(model.hidden(beside, latent)[0, :4], model.hidden(alone, Latent(latent.value[:1, : alone.sites]))[0])


def test_hiding_later_tokens_equals_encoding_the_shorter_text(model: LatentDecoder) -> None:
    text = list(range(1, 11))
    hidden = model.posterior(model.context(Batch.of([text, text])).before(torch.tensor([4, 7])))
    for row, length in enumerate((4, 7)):
        short = parameters(model.posterior(model.context(Batch.of([text[:length]]))))[0]
        close(parameters(hidden)[row, : len(short)], short)


def test_many_latents_per_row_equal_one_at_a_time(model: LatentDecoder) -> None:
    context = model.context(Batch.of([[1, 2, 3, 4, 5], [5, 6, 7]]))
    latent = model.posterior(context).select(torch.arange(2).repeat_interleave(3)).sample(noise(2, samples=3))
    hidden, p = model.hidden(context, latent), parameters(model.prior(context, latents=latent))
    for k in range(3):
        one = Latent(latent.value[k::3])
        close(hidden[k::3], model.hidden(context, one))
        close(p[k::3].expand_as(one.value) if p.shape[0] == 2 else p[k::3], parameters(model.prior(context, latents=one)))


@pytest.mark.parametrize("latents", ["posterior", "prior"])
def test_cached_equals_uncached_for_unequal_prompts(model: LatentDecoder, latents: str) -> None:
    prompts, lengths = torch.tensor([[3, 1, 4, 1, 5], [2, 7, 0, 0, 0]]), torch.tensor([5, 2])
    state = model.prefill(prompts, lengths, latents=latents, noise=noise(2))  # type: ignore[arg-type]
    texts, cached = [prompts[row, : lengths[row]].tolist() for row in range(2)], [state.logits]
    for token in (6, 11, 2, 9, 8):
        state = model.step(state, torch.tensor([token, token + 1]), noise=noise(2))
        cached.append(state.logits)
        for row in range(2):
            texts[row].append(token + row)
    for row in range(2):
        context = model.context(Batch.of([texts[row]]))
        latent = Latent(state.latents[row : row + 1, : context.sites])
        full = model.logits(model.hidden(context, latent))[0, int(lengths[row]) - 1 :]
        close(torch.stack([step[row] for step in cached]), full)


def test_stepwise_latents_are_those_of_the_teacher_forced_prior(model: LatentDecoder) -> None:
    """Every latent of a generation is what the prior, given the same tokens and the latents before, makes of the same noise."""
    prompts, lengths = torch.tensor([[3, 1, 4, 1, 5], [2, 7, 0, 0, 0]]), torch.tensor([5, 2])
    state = model.prefill(prompts, lengths, latents="prior", noise=noise(2))
    texts = [prompts[row, : lengths[row]].tolist() for row in range(2)]
    for token in (6, 11, 2, 9, 8, 3, 1):
        state = model.step(state, torch.tensor([token, token + 1]), noise=noise(2))
        for row in range(2):
            texts[row].append(token + row)
    for row in range(2):
        context = model.context(Batch.of([texts[row]], given=[int(lengths[row])]))
        value = state.latents[row : row + 1, : context.sites]
        again = model.prior(context, latents=Latent(value)).sample(noise(2).select([row])).value
        close(again, value, 1e-5)


@pytest.mark.parametrize("given", [None, [7, 0]])
def test_prior_draws_of_a_text_are_those_of_the_teacher_forced_prior(model: LatentDecoder, given: list[int] | None) -> None:
    context = model.context(Batch.of([list(range(1, 12)), [5, 4, 3, 2]], given=given))
    latent = model.sample_prior(context, noise(2))
    again = model.prior(context, latents=latent).sample(noise(2)).value
    close(again[context.site_mask], latent.value[context.site_mask], 1e-5)


def test_selected_rows_continue_as_before(model: LatentDecoder) -> None:
    state = model.prefill(torch.tensor([[3, 1, 4], [2, 7, 0]]), torch.tensor([3, 2]), noise=noise(2))
    rows = torch.tensor([1, 0, 1])
    forked = model.select(state, rows)
    straight = state
    for token in (5, 6, 7):
        straight = model.step(straight, torch.tensor([token, token + 1]), noise=noise(2))
        forked = model.step(forked, torch.tensor([token + 1, token, token + 1]), noise=noise(2).select(rows))
        close(forked.logits, straight.logits[rows])
        close(forked.latents, straight.latents[rows])


def test_generation_in_a_batch_equals_generation_alone(model: LatentDecoder) -> None:
    prompts = [[3, 1, 4, 1, 5], [2, 7]]
    together = generate(model, prompts, max_tokens=8, seed=1)
    alone = [generate(model, [prompt], max_tokens=8, seed=1)[0] for prompt in prompts]
    for one, other in zip(together, alone, strict=True):
        assert one.tokens == other.tokens
        close(one.latents.value, other.latents.value)


@pytest.mark.parametrize("method", ["operational", "iwae", "prior"])
def test_scores_are_the_same_in_a_batch_and_alone(model: LatentDecoder, method: str) -> None:
    requests = [([3, 1, 4, 1, 5], [9, 2, 6]), ([2, 7], [1, 8, 2, 8])]
    together = score_continuations(model, requests, method=method, samples=8)  # type: ignore[arg-type]
    for request, score in zip(requests, together, strict=True):
        (alone,) = score_continuations(model, [request], method=method, samples=8)  # type: ignore[arg-type]
        assert score.value == pytest.approx(alone.value, abs=1e-3)
        assert -40 < score.value < 0


def test_without_an_encoder_an_autoregressive_prior_trains_on_its_own_draws() -> None:
    config = CONFIGS["recurrent"].model_copy(update={"decoder": "composed", "encoder": None, "event_dims": 6})
    parts = {"injection": PartSpec(name="chunk_code"), "kl_schedule": PartSpec(name="constant")}
    model = build(config.model_copy(update=parts), seed=3)
    context = model.context(pack(TEXTS))
    loss = model.loss(pack(TEXTS), step=0, noise=noise(2))
    assert loss.kl.abs().max() < 1e-6
    expected = model.hidden(context, model.sample_prior(context, noise(2)))
    close(loss.reconstruction, model._cross_entropy(expected, pack(TEXTS)))
    assert len(generate(model, [[3, 1, 4]], max_tokens=3, seed=1)[0].tokens) <= 3


def test_settings_that_do_not_fit_are_refused() -> None:
    deep = PartSpec.model_validate({"name": "chunk_code", "block": 1})
    for config, words in [
        (config_of("document_prefix", granularity="chunk:2"), 'granularity to "document"'),
        (config_of("chunk_code", injection=deep), "free of z"),
        (config_of("chunk_code", encoder="chunk_bit"), "Did you mean"),
    ]:
        with pytest.raises(UserError, match=words):
            build(config)


def test_a_model_builds_on_meta_and_initialises_every_parameter() -> None:
    for config in CONFIGS.values():
        model = build(config, init=False)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(float("nan"))
        model.init_weights(torch.Generator().manual_seed(0))
        assert [name for name, parameter in model.named_parameters() if parameter.isnan().any()] == []
