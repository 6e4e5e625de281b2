"""One code per chunk: pooling, table and slots, the recurrence of the learned priors, honest scores. The grid of finite scalar
quantisation has its own tests (test_chunk_levels.py).

Run: ``pytest tests/plugins/test_chunk.py``
"""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from latentlm.composed import ComposedDecoder, build
from latentlm.config import BackboneConfig, ModelConfig
from latentlm.errors import UserError
from latentlm.interface import Batch, Bits, Codes, Context, Distribution, Latent, Noise
from latentlm.likelihood import score_continuations
from latentlm.testing import check_exactness, check_normalisation, check_sampler_agreement, plant
from latentlm.testing.exact import exact_log_likelihood
from latentlm_chunk.levels import JointLevels, Levels
from latentlm_chunk.point import PointLevels
from latentlm_chunk.tower import pool_sites
from samples import VOCABULARY, pack, small_config

BACKBONE = small_config("vanilla").backbone
TINY = BackboneConfig(vocabulary=3, width=16, blocks=2, heads=2, context=16, init_std=0.1)
TEXTS = [[[3, 1, 4, 1, 5, 9, 2], [6, 5], [3, 5, 8, 9]], [[2, 7, 1, 8], [2, 8, 1, 8, 2, 8, 4, 5]]]


def spec(backbone: BackboneConfig = BACKBONE, **settings: object) -> ModelConfig:
    return ModelConfig.model_validate({"decoder": "chunk", "backbone": backbone, "granularity": "chunk:3", **settings})


FSQ = {"name": "fsq", "levels": [4, 3]}
CONFIGS = {
    "codes": spec(event_dims=3),
    "bits, film in two blocks": spec(
        event_dims=3,
        encoder={"name": "chunk_codes", "family": "bits", "pool": "mean"},
        injection={"name": "chunk_codes", "slot": "film", "blocks": [3, 2]},
    ),
    "codes, keys and values": spec(event_dims=2, injection={"name": "chunk_codes", "slot": "kv"}),
    "codes, logits": spec(event_dims=2, injection={"name": "chunk_codes", "slot": "logit_bias"}),
    "codes per token": spec(event_dims=2, granularity="token"),
    "levels": spec(encoder=FSQ),
    "levels, joint": spec(encoder=FSQ, prior={"name": "causal_levels", "within": "joint"}),
    "levels, uniform": spec(encoder=FSQ, prior="uniform_levels"),
    "levels per document": spec(encoder=FSQ, prior="uniform_levels", granularity="document"),
}
LEARNED = [name for name in CONFIGS if "uniform" not in name and "document" not in name]


def lively(config: ModelConfig) -> ComposedDecoder:
    """Built, with latents that matter and a prior that has something to say."""
    model = build(config, seed=3).eval()
    assert isinstance(model, ComposedDecoder)
    with torch.no_grad():
        for part in (model.encoder, model.prior_part):
            if hasattr(part, "readout"):
                part.readout.weight.mul_(8.0)
    return model


@pytest.fixture(params=CONFIGS, scope="module")
def model(request: pytest.FixtureRequest) -> ComposedDecoder:
    return lively(CONFIGS[request.param])


@pytest.fixture(params=LEARNED, scope="module")
def learned(request: pytest.FixtureRequest) -> ComposedDecoder:
    return lively(CONFIGS[request.param])


def noise(rows: int) -> Noise:
    return Noise.keyed(0, range(rows))


def drawn(model: ComposedDecoder, context: Context) -> Latent:
    """Values that are in no way special."""
    zeros = torch.zeros(context.rows, context.sites, model.event_dims)
    values = model.prior(context, latents=Latent(zeros)).support()
    index = torch.randint(len(values), zeros.shape[:2], generator=torch.Generator().manual_seed(1))
    return Latent(values[index])


def numbers(p: Distribution) -> Tensor:
    """Parameters of a distribution, (B, S, N)."""
    if isinstance(p, Bits):
        return p.logits
    if isinstance(p, PointLevels):
        return p.raw
    assert isinstance(p, Codes | Levels | JointLevels)
    return p.log_probs.flatten(2).masked_fill(p.log_probs.flatten(2).isinf(), 0.0)


def close(one: Tensor, other: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(one, other, atol=tolerance, rtol=1e-5)


# ------------------------------------------------------------------------------------------------------------- encoder


@torch.no_grad()
def test_pooling_is_a_softmax_over_the_positions_of_each_site() -> None:
    context = lively(CONFIGS["codes"]).context(pack(TEXTS))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*context.tokens.shape, 8, generator=generator)
    scores = 30 * torch.randn(*context.tokens.shape, 2, generator=generator)
    found = pool_sites(x, scores, context, 2)
    for row in range(2):
        for site in range(context.sites):
            inside = (context.site_of[row] == site) & (context.documents[row] >= 0)
            weights = scores[row, inside].softmax(0)  # (n, 2)
            expected = torch.cat([weights[:, h] @ x[row, inside, 4 * h : 4 * h + 4] for h in range(2)])
            close(found[row, site], expected)
    assert not context.site_mask.all(), "no site without a position: the last case is not tested"


@torch.no_grad()
def test_the_width_need_not_be_a_multiple_of_the_heads() -> None:
    """10 numbers in 4 slices: 3, 3, 2, 2."""
    context = lively(CONFIGS["codes"]).context(Batch.of([list(range(1, 7))]))
    generator = torch.Generator().manual_seed(0)
    x, scores = torch.randn(1, 6, 10, generator=generator), torch.randn(1, 6, 4, generator=generator)
    weights = scores[0, 3:].softmax(0)  # of the second chunk
    bounds = [(0, 0, 3), (1, 3, 6), (2, 6, 8), (3, 8, 10)]
    expected = torch.cat([weights[:, h] @ x[0, 3:, start:end] for h, start, end in bounds])
    close(pool_sites(x, scores, context, 4)[0, 1], expected)
    backbone = BackboneConfig(vocabulary=VOCABULARY, width=60, blocks=2, heads=8, head_dim=16, context=16)
    model = build(spec(backbone, event_dims=2), seed=0)
    model.loss(pack(TEXTS), step=0, noise=noise(2))
    assert model.encoder.pooled(model.context(pack(TEXTS))).shape[-1] == 60


def test_a_slice_of_the_query_pool_can_pick_one_place() -> None:
    """What a mean cannot do: with a large score for place 1, the pooled vector is the stream at the chunk's second token."""
    model = lively(CONFIGS["codes"])
    context = model.context(Batch.of([list(range(1, 10))]))
    pool = model.encoder.pool
    with torch.no_grad():
        pool.places[1] = 100.0
    x = torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(0))
    close(pool_sites(x, pool.scores(x, context), context, 4), x[:, 1::3])


def test_the_posterior_keeps_to_its_document(model: ComposedDecoder) -> None:
    batch = pack(TEXTS)
    context = model.context(batch)
    q = numbers(model.posterior(context))
    for row, documents in enumerate(TEXTS):
        for number, text in enumerate(documents):
            sites = context.site_of[row][batch.documents[row] == number].unique()
            close(numbers(model.posterior(model.context(Batch.of([text]))))[0], q[row, sites])


def test_the_posterior_sees_the_future_but_not_what_is_hidden(model: ComposedDecoder) -> None:
    one, two = (model.context(Batch.of([[3, 1, 4, 1, 5, 9, last]])) for last in (2, 6))
    assert (numbers(model.posterior(one))[0, 0] - numbers(model.posterior(two))[0, 0]).abs().max() > 1e-6
    lengths = torch.tensor([6])
    hidden = [numbers(model.posterior(context.before(lengths)))[0, : 1 + 5 // 3] for context in (one, two)]
    assert torch.equal(hidden[0], hidden[1])


# ----------------------------------------------------------------------------------------------------------- injection


@pytest.mark.parametrize("family", [Codes, Bits])
def test_the_gradient_of_the_posterior_is_that_of_the_mean_row(family: type[Codes] | type[Bits]) -> None:
    """dLoss/dl for g = dLoss/dR, by autograd on sum_d G_d <g, W_d> with the table fixed; the value is the table's row."""
    injection = lively(CONFIGS["codes"]).injection
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 8 if family is Codes else 3, generator=generator).requires_grad_()
    latent = family(logits).sample(noise(2), differentiable=True)
    rows, g = injection.vectors(latent), torch.randn(2, 4, 32, generator=generator)
    code = (latent.value @ torch.tensor([1.0, 2.0, 4.0])).long()
    assert torch.equal(rows, injection.table.weight[code])
    (rows * g).sum().backward()
    other = logits.detach().clone().requires_grad_()
    every = Codes(torch.zeros(1, 1, 8)).support()
    if family is Codes:
        chances = other.softmax(-1)
    else:
        chances = torch.stack([torch.where(bits > 0, other.sigmoid(), (-other).sigmoid()).prod(-1) for bits in every], dim=-1)
    (chances * (g @ injection.table.weight.detach().T)).sum().backward()
    close(logits.grad, other.grad)
    expected = torch.zeros(8, 32).index_add(0, code.flatten(), g.flatten(0, 1))
    close(injection.table.weight.grad, expected)


def test_the_operations_of_the_surrogate_gradient_are_those_of_its_two_products() -> None:
    """Counted as they run: the mean row of 5 sites forward, the scores of 8 rows of two blocks' vectors backward."""
    model = build(spec(event_dims=3, injection={"name": "chunk_codes", "blocks": [2, 3]}), seed=0)
    q = Codes(torch.zeros(1, 5, 8, requires_grad=True))
    with FlopCounterMode(display=False) as counter:
        model.injection.vectors(Latent(torch.zeros(1, 5, 3), q)).sum().backward()
    assert counter.get_total_flops() == 5 * model.injection.operations().training_per_site == 5 * 4 * 8 * 64


def test_each_position_has_the_vector_of_its_own_chunk(model: ComposedDecoder) -> None:
    context = model.context(pack(TEXTS))
    latent = drawn(model, context)
    vectors = model.injection.vectors(latent)  # (R, S, W)
    condition = model.injection(latent, context)
    for row in range(2):
        for t in range(context.tokens.shape[1]):
            own, size = vectors[row, context.site_of[row, t]], BACKBONE.width
            if condition.logit_bias is not None:
                assert torch.equal(condition.logit_bias[row, t], own)
                continue
            for place, (block, slots) in enumerate(sorted(condition.blocks.items())):
                parts = [part for part in (slots.residual, slots.kv, slots.film_scale, slots.film_shift) if part is not None]
                assert block in model.injection.blocks
                assert len(parts) == len(model.injection.slots)
                for number, part in enumerate(parts):
                    start = (place * len(parts) + number) * size
                    assert torch.equal(part[row, t], own[start : start + size])


def test_a_bias_on_the_logits_is_that_of_the_readout() -> None:
    model = lively(CONFIGS["codes, logits"])
    context = model.context(Batch.of([[3, 1, 4, 1, 5]]))
    latent = drawn(model, context)
    rows = model.injection.vectors(latent)[:, context.site_of[0]]
    zero = Latent(torch.zeros_like(latent.value))
    plain = model.hidden(context, latent) - rows
    with torch.no_grad():
        model.injection.table.weight.zero_()
    close(model.hidden(context, zero), plain)
    close(model.logits(plain + rows) - model.logits(plain), rows @ model.backbone.embedding.weight.T)


def test_gradients_reach_every_part(model: ComposedDecoder) -> None:
    built = build(model.config, seed=3).train()
    loss = built.loss(pack(TEXTS), step=0, noise=noise(2))
    loss.total.backward()
    silent = [name for name, weight in built.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert silent == []


# --------------------------------------------------------------------------------------------------------------- prior


def test_the_prior_is_the_formula() -> None:
    """Site by site from the module's docstring."""
    model = lively(CONFIGS["codes"])
    prior, context = model.prior_part, model.context(Batch.of([[3, 1, 4, 1, 5, 9, 2]]))
    latent = drawn(model, context)
    codes = (latent.value[0] @ torch.tensor([1.0, 2.0, 4.0])).long()
    h = torch.zeros(prior.memory)
    for s in range(3):
        stream = context.taps[2][0, 3 * s]
        normed = stream / (stream.square().mean() + BACKBONE.norm_eps).sqrt() * prior.norm.weight
        u = torch.cat((normed, prior.embedding.weight[codes[s - 1] if s else 8]))
        a = torch.sigmoid(prior.gate.weight @ u + prior.gate.bias)
        h = a * h + (1 - a) * (prior.candidate.weight @ u + prior.candidate.bias)
        x = prior.hidden.weight @ torch.cat((u, h)) + prior.hidden.bias
        logits = prior.readout.weight @ (x * torch.sigmoid(x)) + prior.readout.bias
        close(model.prior(context, latents=latent).log_probs[0, s], logits.log_softmax(-1))


def test_the_prior_sees_the_chunks_first_token_and_nothing_later(learned: ComposedDecoder) -> None:
    tokens = list(range(1, 10))
    context = learned.context(Batch.of([tokens], given=[5]))
    latent = drawn(learned, context)
    before, first = numbers(learned.prior(context, latents=latent)), context.first_positions()[0]
    for place in range(len(tokens)):
        changed = [*tokens[:place], (tokens[place] + 5) % VOCABULARY, *tokens[place + 1 :]]
        other = learned.context(Batch.of([changed], given=[5]))
        moved = (numbers(learned.prior(other, latents=latent)) - before)[0].abs().amax(-1)  # (S,)
        assert moved[first < place].sum() == 0
        assert bool((moved[first == place] > 1e-5).all())


def test_the_prior_depends_on_earlier_codes_alone(learned: ComposedDecoder) -> None:
    context = learned.context(Batch.of([list(range(1, 14))]))
    latent = drawn(learned, context)
    before = numbers(learned.prior(context, latents=latent))
    values = learned.prior(context, latents=latent).support()
    for site in range(context.sites):
        value = latent.value.clone()
        value[:, site] = values[0] if not torch.equal(value[0, site], values[0]) else values[-1]
        moved = (numbers(learned.prior(context, latents=Latent(value))) - before)[0].abs().amax(-1)
        assert moved[: site + 1].sum() == 0
        assert bool((moved[site + 1 :] > 1e-7).all())


def test_packed_documents_have_priors_of_their_own(model: ComposedDecoder) -> None:
    batch = pack(TEXTS)
    context = model.context(batch)
    latent = drawn(model, context)
    p = numbers(model.prior(context, latents=latent))
    for row, documents in enumerate(TEXTS):
        for number, text in enumerate(documents):
            sites = context.site_of[row][batch.documents[row] == number].unique()
            alone = model.context(Batch.of([text]))
            close(numbers(model.prior(alone, latents=Latent(latent.value[row, sites][None])))[0], p[row, sites])


def test_steps_equal_the_whole_from_nothing_and_from_a_prompt(model: ComposedDecoder) -> None:
    texts, given = [[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 9, 7]], [3, 5]
    context = model.context(Batch.of(texts, given=given))
    latent, prior, rows = drawn(model, context), model.prior_part, torch.arange(2)
    whole, first = numbers(model.prior(context, latents=latent)), context.first_positions()
    for begin in (torch.zeros(2, dtype=torch.long), torch.tensor(given)):
        seen, from_prompt = context.before(begin), bool(begin.any())
        state = prior.start(seen, latent if from_prompt else None)
        previous = latent.value[rows, seen.site_mask.sum(-1) - 1] if from_prompt else None
        for place in range(7 - int(begin.max())):
            t = begin + place
            site = context.site_of[rows, t]
            starts = first[rows, site] == t
            taps = {k: tap[rows, t] for k, tap in context.taps.items()}
            p, state = prior.step(state, taps, previous, starts, {})
            close(numbers(p)[starts, 0], whole[rows, site][starts])
            previous = latent.value[rows, site]


def test_generation_equals_the_whole_text(model: ComposedDecoder) -> None:
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


def test_the_uniform_bits_of_another_plugin_fit_and_their_kl_is_exact() -> None:
    model = lively(spec(event_dims=3, prior="uniform_bits"))
    context = model.context(pack(TEXTS))
    q = model.posterior(context)
    kl = q.kl(model.prior(context), q.sample(noise(2)))
    entropy = torch.special.entr(q.log_probs.exp()).sum(-1)
    close(kl[..., 0], 3 * math.log(2) - entropy)
    assert kl.max() > 0.05


# ------------------------------------------------------------------------------------------------- half precision


def test_under_autocast_the_posterior_is_that_of_the_normed_stream_in_float32(
    model: ComposedDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the block's normed output held fixed, autocast changes nothing."""
    context = model.context(pack(TEXTS))
    stream = torch.randn(*context.tokens.shape, 32, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(model.encoder.norm, "forward", lambda x: stream)
    plain = numbers(model.posterior(context))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = numbers(model.posterior(context))
    assert found.dtype == torch.float32
    assert torch.equal(found, plain)


def test_under_autocast_the_prior_is_that_of_the_normed_stream_in_float32(
    learned: ComposedDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All at once and step by step."""
    context = learned.context(Batch.of([list(range(1, 10))]))
    prior, latent = learned.prior_part, drawn(learned, context)
    stream = torch.randn(1, context.sites, 32, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(prior.norm, "forward", lambda x: stream if x.ndim == 3 else stream[:, 0])
    taps, previous = {prior.taps[0]: torch.zeros(1, 32)}, latent.value[:, 0]
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            p = learned.prior(context, latents=latent)
            step, memory = prior.step(torch.ones(1, prior.memory), taps, previous, torch.tensor([True]), {})
            found.append((numbers(p), numbers(step), memory))
    for plain, cast in zip(*found, strict=True):
        assert cast.dtype == torch.float32
        assert torch.equal(cast, plain)


def test_under_autocast_the_prior_learns() -> None:
    """Though its first pass of a training step has no graph, whose casts of the weights autocast would keep."""
    model = build(CONFIGS["levels"], seed=3).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model.loss(pack(TEXTS), step=0, noise=noise(2)).total.backward()
    assert [name for name, weight in model.prior_part.named_parameters() if weight.grad is None or not weight.grad.any()] == []


# ----------------------------------------------------------------------------------------------------- how it learns


def gradients(config: ModelConfig) -> dict[str, Tensor]:
    model = build(config, seed=3).train()
    model.loss(pack(TEXTS), step=0, noise=noise(2)).total.backward()
    return {name: torch.zeros_like(w) if w.grad is None else w.grad for name, w in model.named_parameters()}


@pytest.mark.parametrize("name", ["codes", "levels", "levels, joint"])
def test_under_the_elbo_both_ways_to_learn_are_one(name: str) -> None:
    """But for the encoder of levels (and the trunk below it), whose codes later sites' priors read."""
    base = CONFIGS[name].model_copy(update={"kl_schedule": spec(kl_schedule="constant").kl_schedule})
    completed = build(base, init=False).config
    found = []
    for learns in ("always", "penalty"):
        settings = {**completed.prior.model_dump(), "learns": learns}
        found.append(gradients(completed.model_copy(update={"prior": type(completed.prior)(**settings)})))
    for weight, gradient in found[0].items():
        if name == "codes" or not weight.startswith(("encoder", "backbone")):
            close(gradient, found[1][weight], 1e-6)


@pytest.mark.parametrize(("learns", "kept"), [("always", False), ("penalty", True)])
def test_a_prior_that_learns_apart_keeps_nothing_for_a_backward_pass(learns: str, kept: bool) -> None:
    model = build(spec(event_dims=3, prior={"name": "causal_codes", "learns": learns}), seed=3).train()
    context, saved = model.context(pack(TEXTS)), []
    latent = model.posterior(context).sample(noise(2), differentiable=True)
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda x: x):
        p = model.prior(context, latents=latent)
    assert bool(saved) == p.log_probs.requires_grad == kept


def test_below_the_budget_only_always_teaches_the_prior() -> None:
    for learns in ("always", "penalty"):
        found = gradients(
            spec(
                event_dims=3,
                prior={"name": "causal_codes", "learns": learns},
                kl_schedule={"name": "free_bits", "bits": 100.0},
            )
        )
        taught = [bool(gradient.any()) for name, gradient in found.items() if name.startswith("prior_part")]
        assert all(taught) if learns == "always" else not any(taught)


# -------------------------------------------------------------------------------------------------------------- scores


REQUESTS = [([0, 1], [1, 1, 0]), ([1, 2, 0], [1, 0]), ([1], [1, 0, 2])]
ENUMERABLE = {
    "codes": spec(TINY, event_dims=2, granularity="chunk:2"),
    "levels": spec(TINY, encoder={"name": "fsq", "levels": [3, 2]}, granularity="chunk:2"),
    "joint": spec(
        TINY,
        encoder={"name": "fsq", "levels": [2, 2]},
        prior={"name": "causal_levels", "within": "joint"},
        granularity="chunk:2",
    ),
}


@cache
def planted(name: str) -> ComposedDecoder:
    model = build(ENUMERABLE[name], seed=0)
    assert isinstance(model, ComposedDecoder)
    return plant(model, steps=80)


@pytest.mark.parametrize("name", ENUMERABLE)
def test_scores_are_probabilities(name: str) -> None:
    for method in ("operational", "iwae", "elbo"):
        check_exactness(planted(name), REQUESTS, method=method, seed=1)
    check_normalisation(planted(name), [0, 1], 2, samples=128)
    check_sampler_agreement(planted(name), [1, 1, 0], 2, draws=2000, samples=None)


def test_a_point_mass_is_scored_with_the_prior_as_proposal() -> None:
    """Unbiased, but blind: its paths do not know the text."""
    model = lively(ENUMERABLE["levels"])
    assert model.posterior(model.context(Batch.of([[0, 1]]))).deterministic
    for method, target in (("operational", "generation"), ("iwae", "prior")):
        for number, score in enumerate(score_continuations(model, REQUESTS, method=method, samples=512, seed=2)):
            truth = exact_log_likelihood(model, *REQUESTS[number], target=target)
            assert abs(score.value - truth) < 4.5 * score.standard_error + 2e-5


# ------------------------------------------------------------------------------------------------------------ settings


def test_the_decoder_completes_itself() -> None:
    made = build(ModelConfig(decoder="chunk", backbone=BACKBONE), init=False).config
    names = [made.encoder.name, made.prior.name, made.injection.name]
    assert (made.event_dims, made.granularity, *names) == (8, "chunk:8", "chunk_codes", "causal_codes", "chunk_codes")
    for socket, name in (("encoder", "fsq"), ("prior", "uniform_levels"), ("injection", "fsq")):
        asked = ModelConfig.model_validate({"decoder": "chunk", "backbone": BACKBONE, socket: name})
        made = build(asked, init=False).config
        assert (made.encoder.name, made.injection.name, made.event_dims) == ("fsq", "fsq", 3)
        assert made.prior.name == (name if socket == "prior" else "causal_levels")
    assert build(spec(encoder="fsq", event_dims=4), init=False).prior_part.grid.levels == (8, 5, 5, 5)
    by_prior = build(spec(prior={"name": "causal_levels", "levels": [5, 3]}), init=False)
    assert by_prior.encoder.grid.levels == (5, 3)
    assert build(by_prior.config, init=False).config == by_prior.config


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (spec(encoder={"name": "chunk_codes", "famly": "bits"}), 'Did you mean "family"'),
        (spec(injection={"name": "chunk_codes", "slot": "logit_bias", "blocks": [1]}), "drop blocks"),
        (spec(event_dims=13), "at most 12"),
        (spec(event_dims=4, encoder=FSQ), "set event_dims to 2"),
        (
            spec(encoder={"name": "fsq", "levels": [300, 300]}, prior={"name": "causal_levels", "within": "joint"}),
            'make 90000: take fewer levels, or within: "independent"',
        ),
        (spec(encoder=FSQ, prior={"name": "uniform_levels", "levels": [3, 4]}), "same"),
        (spec(encoder={"name": "fsq", "levels": [8, 1]}), "greater than or equal to 2"),
        (spec(encoder=FSQ, injection="chunk_codes"), "do not agree"),
        (spec(event_dims=3, granularity="document"), "does not serve"),
        (spec(injection={"name": "chunk_codes", "blocks": [7]}), "blocks 0 to 3"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_remedy(config: ModelConfig, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build(config, init=False)
