"""Latent thought vectors: the parts against computations by hand, and the decoder against its contracts and exact answers."""

from __future__ import annotations

import copy
import math
import re
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from latentlm.backbone import rotation
from latentlm.composed import ComposedDecoder, build, complete
from latentlm.config import BackboneConfig, ModelConfig, PartSpec
from latentlm.errors import UserError
from latentlm.interface import Batch, Gaussian, Latent, LatentShape, Noise, Shape
from latentlm.testing import check_exactness, check_normalisation, check_sampler_agreement, leak_sum, plant
from latentlm.zoo.accounting import count
from latentlm_ltm.adam import Adam, cosine
from latentlm_ltm.encoder import FittedThoughts, FittedThoughtsConfig
from latentlm_ltm.injection import ThoughtInjectionConfig
from samples import VOCABULARY, pack, small_config

BACKBONE = small_config("vanilla").backbone
ENUMERABLE = BackboneConfig(vocabulary=3, width=16, blocks=2, heads=2, context=16, init_std=0.1)
TEXTS = [[[3, 1, 4, 1, 5, 9, 2], [6, 5], [3, 5, 8, 9]], [[2, 7, 1, 8], [2, 8, 1, 8, 2, 8, 4, 5]]]


def config_of(
    *, steps: int = 3, slots: int = 2, shared: bool = False, positions: str = "rotary", event_dims: int = 32, **encoder: object
) -> ModelConfig:
    """Thoughts of 4 dimensions in each of 4 blocks."""
    return ModelConfig(
        decoder="ltm",
        backbone=BACKBONE,
        event_dims=event_dims,
        encoder=PartSpec.model_validate({"name": "fitted_thoughts", "steps": steps, **encoder}),
        injection=PartSpec.model_validate({"name": "thoughts", "slots": slots, "shared": shared, "positions": positions}),
    )


VARIANTS = {
    "layered": config_of(),
    "shared": config_of(shared=True, positions="learned"),
    "unplaced": config_of(positions="none", slots=4),
}


def made(config: ModelConfig) -> ComposedDecoder:
    model = build(config, seed=3)
    assert isinstance(model, ComposedDecoder)
    return model.eval()


@cache
def model_of(variant: str) -> ComposedDecoder:
    return made(VARIANTS[variant])


@cache
def planted() -> ComposedDecoder:
    """Two dimensions, so that every answer is known: one vector of one dimension in each of two blocks."""
    injection = PartSpec.model_validate({"name": "thoughts", "slots": 1})
    return plant(made(ModelConfig(decoder="ltm", backbone=ENUMERABLE, event_dims=2, injection=injection)), steps=120)


def noise(rows: int) -> Noise:
    return Noise.keyed(0, range(rows))


def close(one: Tensor, other: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(one, other, atol=tolerance, rtol=1e-4)


# ------------------------------------------------------------------------------------------------------------ settings


def test_the_name_alone_gives_the_papers_model() -> None:
    config = complete(ModelConfig(decoder="ltm", backbone=BACKBONE))
    assert (config.granularity, config.event_dims) == ("document", 8 * BACKBONE.blocks * BACKBONE.width)
    assert config.encoder is not None
    settings = config.encoder.settings
    assert (settings["steps"], settings["rate"], settings["initial_mean"], settings["initial_log_variance"]) == (16, 0.3, 0, -5)
    names = [getattr(config, socket).name for socket in ("encoder", "prior", "injection")]
    assert names == ["fitted_thoughts", "standard_normal", "thoughts"]


@pytest.mark.parametrize(("blocks", "slots", "millions"), [(3, 8, 38), (6, 4, 51), (12, 8, 76)])
def test_parameter_counts_are_those_of_the_paper(blocks: int, slots: int, millions: int) -> None:
    """LTM-Small, -Medium and -Large: 512 dimensions, 8 heads (appendix A.1), GPT-2's vocabulary, embedding counted."""
    backbone = BackboneConfig(vocabulary=50258, width=512, blocks=blocks, heads=8, feed_forward=1376, context=1024)
    injection = PartSpec.model_validate({"name": "thoughts", "slots": slots})
    model = build(ModelConfig(decoder="ltm", backbone=backbone, injection=injection), device="meta")
    assert round(count(model) / 1e6) == millions
    assert model.event_dims == {3: 24, 6: 24, 12: 96}[blocks] * 512


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (config_of(event_dims=30), "no multiple of the 8 thought vectors"),
        (config_of(positions="rotory"), "Did you mean"),
        (config_of(steps=-1), "steps"),
        (config_of(speed=3), "speed"),
        (config_of().model_copy(update={"granularity": "token"}), '"document"'),
        (config_of().model_copy(update={"prior": PartSpec(name="uniform_bits")}), "do not agree"),
    ],
)
def test_settings_that_do_not_fit_are_refused(config: ModelConfig, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build(config)


# ----------------------------------------------------------------------------------------------------------- injection


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_block_reads_its_own_vectors(variant: str) -> None:
    model, (slots, shared) = model_of(variant), (4 if variant == "unplaced" else 2, variant == "shared")
    assert model.injection is not None
    context = model.context(Batch.of([[1, 2, 3, 4]]))
    value = torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(0))
    moved = value.clone()
    moved[..., 32 // (1 if shared else 4) :] += 1.0  # everything but block 0's
    if shared:
        moved = value + 1.0
    before, after = (model.injection(Latent(z), context).blocks for z in (value, moved))
    for block in range(4):
        one, other = before[block].cross, after[block].cross
        assert one is not None
        assert other is not None
        assert one.key.shape[2] == slots
        assert torch.equal(one.value, other.value) == (block == 0 and not shared)


def by_hand(model: ComposedDecoder, latent: Tensor, block: int, x: Tensor, documents: Tensor, positions: Tensor) -> Tensor:
    """Cross-attention of a layered, rotary model, position by position and head by head."""
    layer = model.injection.layers[block]  # type: ignore[union-attr]
    config = model.config.backbone
    width, slots, groups = 8, 2, config.heads // config.kv_heads  # type: ignore[operator]
    vectors = latent.view(latent.shape[0], latent.shape[1], config.blocks, slots, 4)[:, :, block]  # (R, S, M, C)
    places = rotation(config, torch.tensor([[0, config.context // slots]]))
    turns = rotation(config, positions)
    out = torch.zeros_like(x)
    for r in range(x.shape[0]):
        for t in range(x.shape[1]):
            if documents[r, t] < 0:
                continue
            normed = F.rms_norm(x[r, t], (config.width,), layer.norm.weight, config.norm_eps)
            own = vectors[r, documents[r, t]]  # (M, C)
            heads = []
            for head in range(config.heads):
                rows = slice(head * width, (head + 1) * width)
                shared_rows = slice(head // groups * width, (head // groups + 1) * width)
                query, key = layer.query.weight[rows] @ normed, own @ layer.key.weight[shared_rows].T
                query = turned(query, turns.cos[r, 0, t], turns.sin[r, 0, t])
                key = torch.stack([turned(key[m], places.cos[0, 0, m], places.sin[0, 0, m]) for m in range(slots)])
                weights = torch.softmax(key @ query / math.sqrt(width), dim=0)
                heads.append(weights @ (own @ layer.value.weight[shared_rows].T))
            out[r, t] = layer.output.weight @ torch.cat(heads)
    return out


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary by pairs (i, i + dh/2): the sine is stored with its sign."""
    half = len(x) // 2
    return torch.cat((x[:half] * cos[:half] + x[half:] * sin[:half], x[half:] * cos[half:] + x[:half] * sin[half:]))


def test_cross_attention_is_what_it_says() -> None:
    """Grouped heads, rotary places, two documents and padding in a row."""
    model, batch = model_of("layered"), pack(TEXTS)
    context = model.context(batch)
    generator = torch.Generator().manual_seed(1)
    value = torch.randn(2, context.sites, 32, generator=generator)
    x = torch.randn(2, batch.inputs.shape[1], 32, generator=generator)
    assert model.injection is not None
    cross = model.injection(Latent(value), context).blocks[2].cross
    assert cross is not None
    found = cross.layer(x, cross, batch.documents, rotation=rotation(BACKBONE, batch.positions))
    expected = by_hand(model, value, 2, x, batch.documents, batch.positions)
    real = batch.documents >= 0
    close(found[real], expected[real], 1e-5)
    assert expected[real].abs().max() > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_documents_without_slots_read_nothing_and_have_gradients(dtype: torch.dtype) -> None:
    model = build(VARIANTS["unplaced"], dtype=dtype, seed=1)
    layer = model.injection.layers[0]  # type: ignore[union-attr]
    slots = torch.randn(1, 2, 2, dtype=dtype, requires_grad=True)
    x = torch.randn(1, 4, 32, dtype=dtype, requires_grad=True)
    cross = layer.memory(slots, torch.tensor([[0, -1]]))
    out = layer(x, cross, torch.tensor([[0, 1, -1, 0]]))
    assert out.dtype == dtype
    assert out[0, 1:3].abs().sum() == 0
    assert out[0, 0].abs().min() > 0
    gradients = torch.autograd.grad(out.square().sum(), (x, slots))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert gradients[0][0, 1:3].abs().sum() == 0
    assert gradients[1][0, 1].abs().sum() == 0


@pytest.mark.parametrize(("positions", "matters"), [("none", False), ("rotary", True), ("learned", True)])
def test_the_order_of_slots_matters_where_they_have_places(positions: str, matters: bool) -> None:
    model = made(config_of(positions=positions))
    context = model.context(Batch.of([[1, 2, 3, 4]]))
    value = torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(0))
    swapped = value.view(4, 2, 4).flip(1).reshape(1, 1, 32)
    moved = (model.hidden(context, Latent(value)) - model.hidden(context, Latent(swapped))).abs().max().item()
    assert (moved > 1e-3) == matters
    assert matters or moved < 1e-5


# ------------------------------------------------------------------------------------------------------------- encoder


def test_adam_is_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, generator=generator)
    theirs = torch.nn.Parameter(weight.clone())
    optimiser, adam = torch.optim.Adam([theirs], lr=0.3, betas=(0.8, 0.95), eps=1e-3), Adam(0.8, 0.95, 1e-3)
    for _ in range(6):
        gradient = torch.randn(5, generator=generator)
        theirs.grad = gradient.clone()
        optimiser.step()
        weight = weight - 0.3 * adam.direction(gradient)
        close(weight, theirs.detach(), 1e-6)


def test_the_cosine_goes_from_one_to_its_end() -> None:
    assert [cosine(step, 4, end=1.0) for step in range(4)] == [1.0] * 4
    assert [round(cosine(step, 3, end=0.2), 4) for step in range(3)] == [1.0, 0.6, 0.2]
    assert [round(cosine(step, 2, end=0.2), 4) for step in range(2)] == [1.0, 0.2]
    assert cosine(0, 1, end=0.2) == 1.0, "the first step is the whole rate"


@pytest.mark.parametrize(("redraw", "draws"), [(True, (0, 1, 2)), (False, (0, 0, 0))])
def test_a_fit_is_adam_on_the_documents_bound(redraw: bool, draws: tuple[int, ...]) -> None:
    """Three steps by hand: cross-entropy and KL from their formulas, the noise of one site shared by all, and on request one
    draw of it for all steps."""
    model = made(config_of(steps=3, variance_rate=0.5, final_rate=0.2, redraw=redraw))
    tokens = [3, 1, 4, 1, 5, 9]
    with torch.no_grad():
        context = model.context(Batch.of([tokens]))
    mean = torch.zeros(1, 1, 32, requires_grad=True)
    log_variance = torch.full((1, 1, 32), -5.0, requires_grad=True)
    slow, fast = torch.optim.Adam([mean], lr=0.3), torch.optim.Adam([log_variance], lr=0.5)
    for step in range(3):
        for optimiser, rate in ((slow, 0.3), (fast, 0.5)):
            optimiser.param_groups[0]["lr"] = rate * (1.0, 0.6, 0.2)[step]
            optimiser.zero_grad()
        epsilon = Noise.keyed(0, [0]).stream(f"fast step {draws[step]}").normal(1, 32)
        hidden = model.hidden(context, Latent(mean + torch.exp(0.5 * log_variance) * epsilon))
        nats = F.cross_entropy(model.logits(hidden)[0, :-1], torch.tensor(tokens[1:]), reduction="sum")
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum()
        (nats + kl).backward()
        slow.step()
        fast.step()
    fitted = model.posterior(context)
    assert isinstance(fitted, Gaussian)
    close(fitted.mean, mean.detach())
    close(fitted.log_std, 0.5 * log_variance.detach())
    assert not fitted.mean.requires_grad


def test_no_steps_are_the_initial_values_whatever_the_text() -> None:
    model = made(config_of(steps=0, initial_mean=0.5, initial_log_variance=-2.0))
    q = model.posterior(model.context(pack(TEXTS)))
    assert isinstance(q, Gaussian)
    assert (q.mean == 0.5).all()
    assert (q.log_std == -1.0).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_document_is_fitted_alike_alone_in_a_batch_and_in_a_packed_row(variant: str) -> None:
    model, batch = model_of(variant), pack(TEXTS)
    context = model.context(batch)
    packed = model.posterior(context)
    assert isinstance(packed, Gaussian)
    latent = packed.sample(noise(2))
    hidden = model.hidden(context, latent)
    texts = [text for row in TEXTS for text in row]
    together = model.posterior(model.context(Batch.of(texts)))
    assert isinstance(together, Gaussian)
    index = 0
    for row, documents in enumerate(TEXTS):
        for number, text in enumerate(documents):
            alone = model.context(Batch.of([text]))
            q = model.posterior(alone)
            assert isinstance(q, Gaussian)
            for other, place in ((packed, (row, number)), (together, (index, 0))):
                close(q.mean[0, 0], other.mean[place], 1e-5)
                close(q.log_std[0, 0], other.log_std[place], 1e-5)
            inside = batch.documents[row] == number
            close(model.hidden(alone, Latent(latent.value[row, number][None, None]))[0], hidden[row, inside])
            index += 1


def test_sites_that_a_row_lacks_are_read_by_nobody() -> None:
    """A row of one document, as long as its neighbour's two: what stands at the second site changes nothing."""
    model = model_of("layered")
    context = model.context(pack([[[1, 2], [3, 4]], [[5, 6, 7, 8]]]))
    value = torch.randn(2, 2, 32, generator=torch.Generator().manual_seed(0))
    alone = model.hidden(model.context(Batch.of([[5, 6, 7, 8]])), Latent(value[1:, :1]))
    close(model.hidden(context, Latent(value))[1], alone[0], 1e-5)


def test_a_fit_to_a_hidden_end_is_the_fit_to_the_shorter_text() -> None:
    model, text = model_of("layered"), list(range(1, 11))
    hidden = model.posterior(model.context(Batch.of([text, text])).before(torch.tensor([4, 7])))
    assert isinstance(hidden, Gaussian)
    for row, length in enumerate((4, 7)):
        short = model.posterior(model.context(Batch.of([text[:length]])))
        assert isinstance(short, Gaussian)
        close(hidden.mean[row], short.mean[0], 1e-5)
    changed = [*text[:8], 3, 4]
    other = model.posterior(model.context(Batch.of([changed, changed])).before(torch.tensor([4, 7])))
    assert torch.equal(hidden.mean, other.mean)  # type: ignore[attr-defined]


def test_fits_need_no_gradient_mode_and_leave_everything_as_it_was() -> None:
    model, state = model_of("layered"), torch.get_rng_state()
    context = model.context(Batch.of([[3, 1, 4, 1, 5]]))
    with torch.enable_grad():
        graded = model.posterior(context)
    with torch.no_grad():
        quiet = model.posterior(model.context(Batch.of([[3, 1, 4, 1, 5]])))
        assert not torch.is_grad_enabled()
    assert torch.equal(graded.mean, quiet.mean)  # type: ignore[attr-defined]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_fits_work_under_autocast() -> None:
    model = model_of("layered")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        q = model.posterior(model.context(Batch.of([[3, 1, 4, 1, 5]])))
    exact = model.posterior(model.context(Batch.of([[3, 1, 4, 1, 5]])))
    assert isinstance(q, Gaussian)
    assert isinstance(exact, Gaussian)
    assert q.mean.dtype == torch.float32
    assert F.cosine_similarity(q.mean.flatten(), exact.mean.flatten(), dim=0) > 0.9


# ------------------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_hears_from_the_reconstruction(variant: str) -> None:
    model = made(VARIANTS[variant]).train()
    model.loss(pack(TEXTS), step=0, noise=noise(2)).reconstruction.sum().backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()] == []
    for weight in model.parameters():
        weight.grad = None


def test_the_kl_counts_in_the_loss_and_has_no_gradient() -> None:
    """As the paper's slow step: the price of the KL acts on the local parameters alone."""
    model = made(VARIANTS["layered"])
    loss = model.loss(pack(TEXTS), step=0, noise=noise(2))
    assert loss.kl is not None
    tokens = loss.target_mask.sum()
    penalty = loss.kl.masked_fill(~loss.site_mask[..., None], 0.0).sum() / tokens
    close(loss.total, loss.reconstruction.sum() / tokens + penalty)
    assert not loss.kl.requires_grad


def test_more_fast_steps_give_a_better_bound_where_the_decoder_uses_z() -> None:
    model = copy.deepcopy(planted())
    tokens = torch.randint(0, 3, (32, 8), generator=torch.Generator().manual_seed(0)).tolist()
    batch, bounds = Batch.of(tokens), []
    for steps in (0, 2, 8, 32):
        fast = FittedThoughtsConfig(steps=steps, rate=0.1, initial_log_variance=0.0)
        model.encoder = FittedThoughts(fast, Shape(ENUMERABLE, LatentShape("z", 2, "document")))
        loss = model.loss(batch, step=0, noise=Noise.keyed(5, range(32)))
        assert loss.kl is not None
        bounds.append((loss.reconstruction.sum() + loss.kl.sum()).item() / 32)
    assert bounds[3] < bounds[2] < bounds[1] < bounds[0]


# ---------------------------------------------------------------------------------------------- generation, likelihood


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("latents", ["posterior", "prior"])
def test_cached_equals_uncached_for_unequal_prompts(variant: str, latents: str) -> None:
    model = model_of(variant)
    prompts, lengths = torch.tensor([[3, 1, 4, 1, 5], [2, 7, 0, 0, 0]]), torch.tensor([5, 2])
    state = model.prefill(prompts, lengths, latents=latents, noise=noise(2))  # type: ignore[arg-type]
    assert state.latents is not None
    latent = state.latents.clone()
    texts, cached = [prompts[row, : lengths[row]].tolist() for row in range(2)], [state.logits]
    for token in (6, 11, 2):
        state = model.step(state, torch.tensor([token, token + 1]), noise=noise(2))
        cached.append(state.logits)
        for row in range(2):
            texts[row].append(token + row)
    swapped = model.select(state, torch.tensor([1, 0]))
    onward = model.step(swapped, torch.tensor([9, 8]), noise=noise(2).select([1, 0])).logits.flip(0)
    for row in range(2):
        texts[row].append(8 + row)
        context = model.context(Batch.of([texts[row]]))
        full = model.logits(model.hidden(context, Latent(latent[row : row + 1])))[0, int(lengths[row]) - 1 :]
        close(torch.stack([step[row] for step in cached]), full[:-1])
        close(onward[row], full[-1])


def test_the_decoder_is_causal_given_z() -> None:
    model = model_of("layered")
    tokens = torch.randint(1, VOCABULARY, (1, 12), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % VOCABULARY
    contexts = [model.context(Batch.of(rows.tolist())) for rows in (tokens, changed)]
    latent = Latent(torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(1)))
    before, after = (model.hidden(context, latent) for context in contexts)
    close(before[:, :7], after[:, :7], 1e-6)
    assert (before[:, 7:] - after[:, 7:]).abs().amax(-1).min() > 1e-4


REQUESTS = [([0, 1], [1, 1, 0]), ([1, 1, 0], [1, 0, 0])]


@pytest.mark.parametrize("method", ["operational", "iwae", "elbo", "prior"])
def test_scores_equal_the_integral_over_all_thoughts(method: str) -> None:
    check_exactness(planted(), REQUESTS[:1], method=method, samples=256)  # type: ignore[arg-type]


def test_probabilities_of_all_continuations_sum_to_one() -> None:
    check_normalisation(planted(), [0, 1], 2, method="operational", samples=256)


def test_sampled_frequencies_equal_scores() -> None:
    check_sampler_agreement(planted(), [0, 1], 2, draws=2000, samples=256)


@cache
def fitted() -> ComposedDecoder:
    """A decoder that certainly uses z, with its posteriors fitted."""
    model = copy.deepcopy(planted())
    fast = FittedThoughtsConfig(steps=6, rate=0.3, initial_log_variance=-1.0)
    model.encoder = FittedThoughts(fast, Shape(ENUMERABLE, LatentShape("z", 2, "document")))
    return model


def test_a_posterior_fitted_to_the_continuation_leaks_and_scores_do_not() -> None:
    """What reading off p(y | c, z) under the fitted z would sum to, and what the scores sum to."""
    model = fitted()
    assert leak_sum(model, [0, 1], 3) > 1.1
    check_normalisation(model, [0, 1], 3, method="operational", samples=128)
    check_exactness(model, REQUESTS, method="iwae", samples=256)


def test_the_documented_defaults_are_those_of_the_settings() -> None:
    """The table of docs/ltm.md names every setting of encoder and injection, with its default first in the second column."""
    text = (Path(__file__).parents[2] / "docs" / "ltm.md").read_text(encoding="utf-8")
    documented: dict[str, str] = {}
    for names, cell in re.findall(r"^\| (`(?:encoder|injection)\.[^|]*) \| ([^|]*) \|", text, re.MULTILINE):
        socket, *rest = re.findall(r"\w+", names)
        documented |= {f"{socket}.{name}": default for name, default in zip(rest, cell.split(", "), strict=True)}
    fields = {
        f"{socket}.{name}": field.default
        for socket, config in (("encoder", FittedThoughtsConfig), ("injection", ThoughtInjectionConfig))
        for name, field in config.model_fields.items()
    }
    assert documented.keys() == fields.keys()
    for name, default in fields.items():
        word = documented[name].split()[0]
        if default is None:
            assert documented[name] == "the same"
        elif isinstance(default, bool | str):
            assert word == str(default).lower()
        else:
            assert float(word) == default
