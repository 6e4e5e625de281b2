"""The learned causal priors: formulas, steps against the whole text, what they see, how they learn, and honest scores.

Run: ``pytest tests/plugins/test_causal.py``
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from latentlm.composed import ComposedDecoder, build
from latentlm.composed.ancestral import sample_autoregressive
from latentlm.config import BackboneConfig, ModelConfig, PartSpec
from latentlm.errors import UserError
from latentlm.interface import Batch, Bits, Codes, Context, Latent, LatentDecoder, Noise
from latentlm.testing import check_exactness, check_normalisation, check_sampler_agreement, plant
from samples import VOCABULARY, pack, small_config

BACKBONE = small_config("vanilla").backbone
TINY = BackboneConfig(vocabulary=3, width=16, blocks=2, heads=2, context=16, init_std=0.1)
TEXTS = [[[3, 1, 4, 1, 5, 9, 2], [6, 5], [3, 5, 8, 9]], [[2, 7, 1, 8], [2, 8, 1, 8, 2, 8, 4, 5]]]


def part(name: str, **settings: object) -> PartSpec:
    return PartSpec.model_validate({"name": name, **settings})


def config(
    prior: str = "causal_bits",
    *,
    bits: int = 4,
    granularity: str = "token",
    backbone: BackboneConfig = BACKBONE,
    **settings: object,
) -> ModelConfig:
    spec = part(prior, **{"start": "random", **settings})
    return ModelConfig(decoder="causal", event_dims=bits, granularity=granularity, prior=spec, backbone=backbone)


CONFIGS = {
    "trunk": config("trunk_bits"),
    "trunk, joint": config("trunk_bits", within="joint"),
    "trunk, prompt": config("trunk_bits", reads="prompt"),
    "trunk, chunks": config("trunk_bits", granularity="chunk:3"),
    "trunk, documents": config("trunk_bits", granularity="document", reads="prompt"),
    "causal": config(),
    "causal, joint": config(within="joint", hidden=0),
    "causal, prompt": config(reads="prompt"),
    "causal, chunks": config(granularity="chunk:3", reads="prompt"),
}


@pytest.fixture(params=CONFIGS, scope="module")
def model(request: pytest.FixtureRequest) -> ComposedDecoder:
    return lively(CONFIGS[request.param])


def lively(spec: ModelConfig) -> ComposedDecoder:
    """A built model, with a prior that has something to say."""
    made = build(spec, seed=3).eval()
    with torch.no_grad():
        made.prior_part.readout.output.weight.mul_(8.0)
    return made


def noise(rows: int) -> Noise:
    return Noise.keyed(0, range(rows))


def drawn(model: ComposedDecoder, context: Context) -> Latent:
    """Bits that are in no way special."""
    shape = (context.rows, context.sites, model.event_dims)
    return Latent(torch.randint(2, shape, generator=torch.Generator().manual_seed(1)).float())


def parameters(p: Bits | Codes) -> Tensor:
    return p.logits if isinstance(p, Bits) else p.log_probs


def close(one: Tensor, other: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(one, other, atol=tolerance, rtol=1e-5)


# ------------------------------------------------------------------------------------------------------------ formulas


def test_the_prior_is_the_formula() -> None:
    """u, gates, memory and readout, site by site from the module's docstring."""
    model = lively(CONFIGS["causal"])
    prior, context = model.prior_part, model.context(Batch.of([[3, 1, 4, 1, 5]]))
    latent = drawn(model, context)
    h = torch.zeros(prior.gate.out_features)
    for s in range(5):
        stream = context.taps[2][0, s]
        normed = stream / (stream.square().mean() + BACKBONE.norm_eps).sqrt() * prior.norm.weight
        before = 2 * latent.value[0, s - 1] - 1 if s else torch.zeros(4)
        u = torch.cat((normed, before))
        a = torch.sigmoid(prior.gate.weight @ u + prior.gate.bias)
        h = a * h + (1 - a) * (prior.candidate.weight @ u + prior.candidate.bias)
        x = prior.readout.hidden.weight @ torch.cat((u, h)) + prior.readout.hidden.bias
        logits = prior.readout.output.weight @ (x * torch.sigmoid(x)) + prior.readout.output.bias
        close(model.prior(context, latents=latent).logits[0, s], logits)


@pytest.mark.parametrize("prior", ["trunk_bits", "causal_bits"])
def test_by_default_it_starts_as_the_uniform_prior(prior: str) -> None:
    model = build(ModelConfig(decoder="causal", prior=prior, event_dims=4, backbone=BACKBONE), seed=0)
    context = model.context(pack(TEXTS))
    assert model.prior(context, latents=drawn(model, context)).logits.abs().max() == 0


def test_memories_last_from_one_site_to_the_longest() -> None:
    prior = build(config(longest=100.0), seed=0).prior_part
    lengths = 1 / (1 - torch.sigmoid(prior.gate.bias)) - 1
    close(lengths[[0, -1]], torch.tensor([1.0, 100.0]), 1e-2)


# ------------------------------------------------------------------------------------- what it sees, and step by step


@pytest.mark.parametrize("given", [0, 5])
def test_it_sees_what_it_may_and_nothing_later(model: ComposedDecoder, given: int) -> None:
    tokens = list(range(1, 10))
    batch = Batch.of([tokens], given=[given])
    context = model.context(batch)
    latent = drawn(model, context)
    before = parameters(model.prior(context, latents=latent))
    first = context.first_positions()[0]
    seen = first.clamp(min=given - 1) if model.prior_part.config.reads == "prompt" else first
    for place in range(len(tokens)):
        changed = [*tokens[:place], (tokens[place] + 5) % VOCABULARY, *tokens[place + 1 :]]
        other = model.context(Batch.of([changed], given=[given]))
        moved = (parameters(model.prior(other, latents=latent)) - before)[0].abs().amax(-1)  # (S,)
        assert moved[seen < place].sum() == 0
        assert bool((moved[seen == place] > 1e-5).all())


def test_it_depends_on_earlier_latents_where_it_says_so(model: ComposedDecoder) -> None:
    context = model.context(Batch.of([list(range(1, 10))]))
    latent = drawn(model, context)
    before = parameters(model.prior(context, latents=latent))
    for site in range(context.sites):
        value = latent.value.clone()
        value[:, site] = 1.0 - value[:, site]
        moved = (parameters(model.prior(context, latents=Latent(value))) - before)[0].abs().amax(-1)
        assert moved[: site + 1].sum() == 0
        assert not len(moved[site + 1 :]) or bool((moved[site + 1 :] > 1e-7).all()) == model.prior_part.autoregressive


def test_packed_documents_do_not_meet(model: ComposedDecoder) -> None:
    batch = pack(TEXTS)
    context = model.context(batch)
    latent = drawn(model, context)
    p = parameters(model.prior(context, latents=latent))
    for row, documents in enumerate(TEXTS):
        for number, text in enumerate(documents):
            sites = context.site_of[row][batch.documents[row] == number].unique()
            alone = model.context(Batch.of([text]))
            close(parameters(model.prior(alone, latents=Latent(latent.value[row, sites][None])))[0], p[row, sites])


def test_steps_from_nothing_and_from_a_prompt_equal_the_whole(model: ComposedDecoder) -> None:
    texts, given = [[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 9, 7]], [3, 4]
    context = model.context(Batch.of(texts, given=given))
    latent, prior = drawn(model, context), model.prior_part
    whole, first = model.prior(context, latents=latent), context.first_positions()
    for begin in (torch.zeros(2, dtype=torch.long), torch.tensor(given)):
        seen = context.before(begin)
        state = prior.start(seen, latent if int(begin.min()) else None)
        newest = seen.site_mask.sum(-1) - 1
        previous = latent.value[torch.arange(2), newest] if int(begin.min()) else None
        for place in range(7 - int(begin.max())):
            t = begin + place
            site = context.site_of[torch.arange(2), t]
            starts = first[torch.arange(2), site] == t
            p, state = prior.step(state, {k: tap[torch.arange(2), t] for k, tap in context.taps.items()}, previous, starts, {})
            expected = parameters(whole)[torch.arange(2), site]
            close(parameters(p)[starts, 0], expected[starts])
            previous = latent.value[torch.arange(2), site]


def test_generation_draws_from_the_prior_of_the_whole_text(model: ComposedDecoder) -> None:
    """Prompts of unequal lengths: cached logits equal uncached ones, and each latent is the prior's own draw."""
    prompts, lengths = torch.tensor([[3, 1, 4, 1, 5], [2, 7, 0, 0, 0]]), torch.tensor([5, 2])
    state = model.prefill(prompts, lengths, latents="prior", noise=noise(2))
    texts, cached = [prompts[row, : lengths[row]].tolist() for row in range(2)], [state.logits]
    for token in (6, 11, 2, 9, 8):
        state = model.step(model.select(state, torch.arange(2)), torch.tensor([token, token + 1]), noise=noise(2))
        cached.append(state.logits)
        for row in range(2):
            texts[row].append(token + row)
    for row in range(2):
        context = model.context(Batch.of([texts[row]], given=[int(lengths[row])]))
        latent = Latent(state.latents[row : row + 1, : context.sites])
        full = model.logits(model.hidden(context, latent))[0, int(lengths[row]) - 1 :]
        close(torch.stack([step[row] for step in cached]), full, 1e-4)
        assert torch.equal(model.prior(context, latents=latent).sample(noise(2).select([row])).value, latent.value)


# ------------------------------------------------------------------------- ancestral sampling with some sites held


@pytest.mark.parametrize("spec", [CONFIGS["causal"], CONFIGS["causal, chunks"], CONFIGS["causal, joint"]])
@pytest.mark.parametrize("packed", [False, True])
def test_steps_and_whole_passes_draw_the_same_sites(spec: ModelConfig, packed: bool) -> None:
    """The decoder's cheap route against the interface's one pass of the whole prior per site, given the same held sites."""
    model = lively(spec)
    batch = pack(TEXTS) if packed else Batch.of([list(range(1, 12)), [5, 4, 3, 2]], given=[4, 1])
    context, rows = model.context(batch), torch.tensor([0, 0, 1])
    held = drawn(model, context).value[rows]
    needed = context.site_mask[rows] & (torch.arange(context.sites) % 3 != 1)
    held = held * ~needed[..., None]
    wide = context.select(rows)
    cheap = model.sample_sites(wide, noise(3), held=held, needed=needed).value
    slow = LatentDecoder.sample_sites(model, wide, noise(3), held=held, needed=needed).value
    assert torch.equal(cheap[needed], slow[needed])
    assert torch.equal(cheap[~needed], held[~needed])
    assert cheap[needed].any()


def test_held_sites_are_conditioned_on() -> None:
    """A held site changes the draws after it, and only those."""
    model = lively(CONFIGS["causal"])
    context = model.context(Batch.of([list(range(1, 14))] * 64))
    held = drawn(model, context).value
    needed = torch.ones(64, context.sites, dtype=torch.bool)
    needed[:, 4] = False
    other = held.clone()
    other[:, 4] = 1.0 - other[:, 4]
    one = sample_autoregressive(model.prior_part, context, noise(64), 4, held=held, needed=needed).value
    two = sample_autoregressive(model.prior_part, context, noise(64), 4, held=other, needed=needed).value
    assert torch.equal(one[:, :4], two[:, :4])
    assert torch.equal(two[:, 4], other[:, 4])
    assert not torch.equal(one[:, 5:], two[:, 5:])


@pytest.mark.parametrize("given", [2, 6])
def test_a_prompt_counts_within_each_document(given: int) -> None:
    """`given` counts tokens of a row: of the first document's 4, and of the second's what is left."""
    model = lively(CONFIGS["causal, prompt"])
    batch = pack([[[3, 1, 4, 1], [6, 5, 3]]] * 16)
    context = model.context(replace(batch, given=torch.full((16,), given)))
    latent = model.sample_prior(context, noise(16))
    assert torch.equal(model.prior(context, latents=latent).sample(noise(16)).value, latent.value)
    whole = model.prior(context, latents=latent).logits
    for begin, text, inside in ((0, [3, 1, 4, 1], min(given, 4)), (4, [6, 5, 3], max(given - 4, 0))):
        alone = model.context(Batch.of([text] * 16, given=[inside] * 16))
        part_of = slice(begin, begin + len(text))
        close(model.prior(alone, latents=Latent(latent.value[:, part_of])).logits, whole[:, part_of])


# ----------------------------------------------------------------------------------------------------- how it learns


def gradients(spec: ModelConfig, **changes: object) -> dict[str, Tensor]:
    model = build(spec.model_copy(update=changes), seed=3).train()
    loss = model.loss(pack(TEXTS), step=0, noise=noise(2))
    loss.total.backward()
    found = {name: torch.zeros_like(w) if w.grad is None else w.grad for name, w in model.named_parameters()}
    return {"": loss.total.detach(), **found}


@pytest.mark.parametrize("prior", ["trunk_bits", "causal_bits"])
def test_under_the_elbo_both_ways_to_learn_are_one(prior: str) -> None:
    schedule = part("constant")
    always, penalty = (gradients(config(prior, learns=learns), kl_schedule=schedule) for learns in ("always", "penalty"))
    for name, gradient in always.items():
        close(gradient, penalty[name], 1e-6)


@pytest.mark.parametrize("prior", ["trunk_bits", "causal_bits"])
def test_below_the_budget_only_always_teaches_the_prior(prior: str) -> None:
    schedule = part("free_bits", bits=100.0)
    for learns in ("always", "penalty"):
        found = gradients(config(prior, learns=learns), kl_schedule=schedule)
        taught = [bool(gradient.any()) for name, gradient in found.items() if name.startswith("prior_part")]
        assert all(taught) if learns == "always" else not any(taught)
        assert all(g.any() for name, g in found.items() if name.startswith(("encoder", "injection")))


def test_the_loss_is_still_cross_entropy_plus_penalty() -> None:
    model = build(config(), seed=3).train()
    loss = model.loss(pack(TEXTS), step=0, noise=noise(2))
    nats = loss.reconstruction.sum() / loss.target_mask.sum()
    penalty = (loss.kl.sum(-1) - 0.5 * math.log(2)).clamp(min=0)[loss.site_mask].sum() / loss.target_mask.sum()
    close(loss.total, nats + penalty, 1e-6)
    close(loss.logs["prior_gap_nats"], loss.kl[loss.site_mask].sum() / loss.target_mask.sum(), 1e-6)


def test_a_noise_control_teaches_its_prior_through_the_injection() -> None:
    """Without an encoder the latents come from the prior, whose gradient must not be cut."""
    spec = config("trunk_bits").model_copy(
        update={"decoder": "composed", "injection": part("free"), "kl_schedule": part("constant")}
    )
    found = gradients(spec)
    assert all(gradient.any() for name, gradient in found.items() if name.startswith("prior_part"))


def test_a_prior_does_not_learn_from_its_own_draws() -> None:
    """Without an encoder an autoregressive prior draws its latents itself, bits that carry no gradient."""
    spec = config().model_copy(update={"decoder": "composed", "injection": part("free"), "kl_schedule": part("constant")})
    found = gradients(spec)
    assert max(float(g.abs().max()) for name, g in found.items() if name.startswith("prior_part")) < 1e-7
    assert any(gradient.any() for name, gradient in found.items() if name.startswith("injection"))


# ------------------------------------------------------------------------------------------------- the known optimum


LENGTH, FLIPS = 5, 0.25


def coin() -> tuple[Tensor, Tensor, Tensor]:
    """A coin Z; the first token tells it, with flips of 1/4; four fair tokens follow: all texts (N, 5), Z and chances (N,)."""
    texts = torch.tensor([[2 + first, *rest] for first in (0, 1) for rest in itertools.product((0, 1), repeat=LENGTH - 1)])
    texts, side = texts.repeat(2, 1), torch.arange(2).repeat_interleave(len(texts))
    return texts, side, torch.where(texts[:, 0] - 2 == side, 1 - FLIPS, FLIPS) / 2**LENGTH


@pytest.mark.parametrize("prior", ["trunk_bits", "causal_bits"])
def test_a_persistent_latent_costs_what_theory_says(prior: str) -> None:
    """z_t = Z at every t. A uniform prior asks for 5 log 2; a trunk prior for sum_t H(Z | x_<=t) = 5 H(Z | x_1); an
    autoregressive one for H(Z | x_1), once."""
    texts, side, chance = coin()
    backbone = BackboneConfig(vocabulary=4, width=16, blocks=2, heads=2, context=16, init_std=0.1)
    model = build(config(prior, bits=1, backbone=backbone), seed=0).train()
    latent = Latent(side[:, None, None].expand(-1, LENGTH, 1).float())
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(100):
        nats = -model.prior(model.context(Batch.of(texts.tolist())), latents=latent).log_prob(latent).sum(-1) @ chance
        optimiser.zero_grad()
        nats.backward()
        optimiser.step()
    entropy = -(FLIPS * math.log(FLIPS) + (1 - FLIPS) * math.log(1 - FLIPS))
    optimum = entropy if prior == "causal_bits" else LENGTH * entropy
    assert optimum - 1e-4 < nats.item() < optimum + 0.02
    assert LENGTH * math.log(2) > optimum + 0.6


# ----------------------------------------------------------------------------------------------------------- scores


@cache
def planted(prior: str, granularity: str = "token") -> ComposedDecoder:
    return plant(build(config(prior, bits=2, granularity=granularity, backbone=TINY), seed=0), strength=2.5, steps=80)


REQUESTS = [([0, 1], [1, 1, 0]), ([1, 2, 0], [1, 0]), ([1], [1, 0, 2])]


@pytest.mark.parametrize("prior", ["trunk_bits", "causal_bits"])
def test_scores_are_probabilities(prior: str) -> None:
    for method in ("operational", "iwae", "elbo"):
        check_exactness(planted(prior), REQUESTS, method=method, seed=1)
    check_normalisation(planted(prior), [0, 1], 2, samples=256)
    check_sampler_agreement(planted(prior), [1, 1, 0], 2, draws=4000, samples=None, last_latent="prior")


def test_scores_of_chunks_are_exact() -> None:
    check_exactness(planted("causal_bits", "chunk:2"), REQUESTS, method="iwae", seed=1)


# ---------------------------------------------------------------------------------------------------------- settings


def test_the_decoder_completes_itself() -> None:
    made = build(ModelConfig(decoder="causal", backbone=BACKBONE), init=False).config
    names = [made.encoder.name, made.prior.name, made.injection.name, made.kl_schedule.name]
    assert (made.event_dims, *names) == (16, "free", "causal_bits", "free", "free_bits")
    document = build(ModelConfig(decoder="causal", granularity="document", event_dims=4, backbone=BACKBONE), init=False)
    assert document.config.prior.name == "trunk_bits"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (config(within="joint", bits=13), "independent"),
        (config(hiden=3), "Did you mean"),
        (config(tap=3), "free of z"),
        (ModelConfig(decoder="causal", backbone=TINY.model_copy(update={"blocks": 1})), "at least 2 blocks"),
        (ModelConfig(decoder="causal", prior="causal_bit", backbone=TINY), "Did you mean"),
    ],
)
def test_what_does_not_fit_is_refused(spec: ModelConfig, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build(spec)


def test_meta_builds_and_bfloat16_work() -> None:
    for spec in CONFIGS.values():
        model = build(spec, init=False)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(float("nan"))
        model.init_weights(torch.Generator().manual_seed(0))
        assert all(parameter.isfinite().all() for parameter in model.parameters())
        model = model.to(torch.bfloat16)
        context = model.context(Batch.of([[1, 2, 3, 4]]))
        assert parameters(model.prior(context, latents=drawn(model, context))).dtype == torch.float32
