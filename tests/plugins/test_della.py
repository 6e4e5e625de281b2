"""Layer-wise latents: the chain, the fusion and the losses against formulas written out by hand, and honest scores."""

from __future__ import annotations

import copy
import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentlm.backbone import Block, Mask, rotation
from latentlm.composed import ComposedDecoder, build, complete
from latentlm.config import BackboneConfig, ModelConfig, PartSpec
from latentlm.errors import UserError
from latentlm.interface import Batch, Bits, BlockCondition, Context, Gaussian, Latent, Noise, ValueMap, sampled_kl
from latentlm.testing import check_exactness, check_normalisation, check_sampler_agreement, leak_sum, plant
from latentlm_della.chain import Chain, Recursion
from latentlm_della.fusion import ProductOfSums, SumOfProducts
from latentlm_della.pooling import attended_states, first_states, mean_states
from samples import pack, small_config

TEXTS = [[[3, 1, 4, 1, 5, 9, 2], [6, 5], [3, 5, 8, 9]], [[2, 7, 1, 8], [2, 8, 1, 8, 2, 8, 4, 5]]]
BACKBONE = small_config("vanilla").backbone
ENUMERABLE = BackboneConfig(vocabulary=3, width=16, blocks=2, heads=2, context=16, init_std=0.1)


def spec(name: str = "della", **settings: object) -> PartSpec:
    return PartSpec.model_validate({"name": name, **settings})


def config_of(backbone: BackboneConfig = BACKBONE, **settings: Any) -> ModelConfig:
    plain = {"decoder": "della", "event_dims": 8, "kl_schedule": spec("constant")}
    return ModelConfig(backbone=backbone, **{**plain, **settings})


CONFIGS = {
    "paper": config_of(),
    "tensor": config_of(injection=spec(form="tensor", rank=2), encoder=spec(pooling="mean")),
    "gate": config_of(injection=spec(form="gate"), encoder=spec(pooling="first")),
    "code": config_of(injection=spec(start="random", bag_of_words=0.2)),
    "upper": config_of(injection=spec(layers=[1, 3])),
    "chunk": config_of(granularity="chunk:3"),
    "token": config_of(granularity="token", injection=spec(form="tensor")),
}


@cache
def built(name: str) -> ComposedDecoder:
    model = build(CONFIGS[name], seed=3).eval()
    assert isinstance(model, ComposedDecoder)
    return model


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> ComposedDecoder:
    return built(request.param)


def noise(rows: int, samples: int = 1) -> Noise:
    return Noise.keyed(0, range(rows), samples=samples)


def close(one: Tensor, other: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(one, other, atol=tolerance, rtol=1e-4)


def drawn(model: ComposedDecoder, context: Context) -> Latent:
    return model.posterior(context).sample(noise(context.rows))


def random_chain(layers: int, size: int, *, rows: int = 2, sites: int = 3, seed: int = 0, bias: bool = True) -> Chain:
    """Weights of order one, in float64."""
    generator = torch.Generator().manual_seed(seed)
    recursion = Recursion(layers, size, bias=bias).double()
    for weight in recursion.parameters():
        weight.data.normal_(0.0, 0.8, generator=generator)
    offsets = torch.randn(rows, sites, layers, 2 * size, generator=generator, dtype=torch.float64)
    return Chain(recursion, 0.5 * offsets)


# ------------------------------------------------------------------------------------------------------- configuration


def test_the_defaults_are_the_papers() -> None:
    config = complete(ModelConfig(decoder="della", backbone=BACKBONE))
    assert (config.granularity, config.event_dims) == ("document", 32 * 4)
    assert config.injection is not None
    assert config.injection.settings["form"] == "product"
    schedule = config.kl_schedule
    assert schedule is not None
    assert (schedule.name, schedule.settings["zero"], schedule.settings["rising"], schedule.settings["bits"]) == (
        "optimus", 0.5, 0.25, 0.0,
    )  # fmt: skip
    assert complete(config) == config


def test_one_setting_of_the_layers_is_enough_and_two_must_agree() -> None:
    config = complete(config_of(event_dims=0, encoder=spec(layers=[0, 2])))
    for part in (config.encoder, config.prior, config.injection):
        assert part is not None
        assert part.settings["layers"] == [0, 2]
    assert config.event_dims == 64
    with pytest.raises(UserError, match=r"disagree.*encoder: \[0\], injection: \[1\].*set `layers` in one"):
        complete(config_of(encoder=spec(layers=[0]), injection=spec(layers=[1])))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"event_dims": 10}, r"the latent's dimensions \(10\) must be a multiple of the 4 layers .* set them to 8"),
        ({"event_dims": 2}, r"set them to 4"),
        ({"injection": spec(layers=[0, 4])}, "from 0 to 3"),
        ({"injection": spec(layers=[2, 1])}, "rising"),
        ({"injection": spec(layers=[])}, "rising"),
        ({"injection": spec(form="gate", rank=2)}, r"rank belongs to form .*drop it"),
        ({"injection": spec(form="tensor", start="random")}, 'start "random" belongs to form "product"'),
        ({"encoder": spec(poling="mean")}, r'Did you mean "pooling"'),
    ],
)
def test_settings_that_do_not_fit_are_refused_with_a_remedy(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(config_of(**settings), device="meta")


def test_parts_in_another_decoder_check_themselves() -> None:
    with pytest.raises(UserError, match="multiple of the 4 layers"):
        build(config_of(decoder="composed", event_dims=6, prior=spec(), injection=spec()), device="meta")


def test_a_single_latent_is_a_setting() -> None:
    """The baseline of the comparison in docs/della.md: one latent, in the first block only."""
    model = build(config_of(injection=spec(layers=[0])), seed=1)
    assert isinstance(model, ComposedDecoder)
    assert model.injection is not None
    context = model.context(Batch.of([[1, 2, 3]]))
    assert list(model.injection(drawn(model, context), context).blocks) == [0]
    assert built("upper").cut == 1


# ------------------------------------------------------------------------------------------ the paper's parameter count


def test_the_published_count_of_parameters_is_the_codes_and_ours_differs_by_what_the_docs_say() -> None:
    """193,353,984 (appendix A.1) = GPT-2 with two more tokens, an untied readout, and the latent's parts with r = 4, p = 32
    and a pooling vector per layer."""
    width, layers, size, rank, vocabulary = 768, 12, 32, 4, 50257 + 2
    block = 12 * width**2 + 13 * width
    gpt2 = vocabulary * width + 1024 * width + layers * block + 2 * width
    fusion = layers * rank * width * ((width + 2) + (size + 2))  # a column of ones, and a bias
    readout = layers * 2 * size * (width + size + 1)
    prior = layers * 2 * size * (size + 1)
    recursion = layers * 2 * size * (size + 1)
    pooling = layers * width
    assert gpt2 + vocabulary * width + fusion + readout + prior + recursion + pooling == 193_353_984

    backbone = BackboneConfig(vocabulary=vocabulary, width=width, blocks=layers, heads=12, context=1024)
    model = build(ModelConfig(decoder="della", backbone=backbone), device="meta")
    assert isinstance(model, ComposedDecoder)
    assert model.encoder is not None
    assert model.prior_part is not None
    own = {
        "injection": sum(weight.numel() for weight in model.injection.parameters()),  # type: ignore[union-attr]
        "prior": sum(weight.numel() for weight in model.prior_part.parameters()),
        "encoder": sum(
            weight.numel() for name, weight in model.encoder.named_parameters() if not name.startswith(("tower", "norms"))
        ),
    }
    cells = (layers - 2) * size**2 + (layers - 1) * size * (size + 1)  # one for posterior and one for prior
    assert own == {
        "injection": fusion - layers * rank * width * 2,  # one constant, not two
        "prior": cells + (layers - 1) * 2 * size * (size + 1),  # p(z_1) has no weights
        "encoder": pooling + layers * 2 * size * (width + 1) + (layers - 1) * 2 * size**2 + cells,
    }


# ------------------------------------------------------------------------------------------------------------ the chain


def by_hand(chain: Chain, value: Tensor) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of one site (E,), row 0 and site 0, from the paper's equations with explicit loops."""
    recursion, layers, size = chain.recursion, chain.recursion.layers, chain.recursion.size
    means, stds = [], []
    h = torch.zeros(size, dtype=torch.float64)
    for layer in range(layers):
        parameters = chain.offsets[0, 0, layer].clone()
        if layer > 0:
            take, readout = recursion.take[layer - 1], recursion.readout[layer - 1]
            inside = take.weight @ value[(layer - 1) * size : layer * size] + take.bias
            if layer > 1:
                inside = inside + recursion.carry[layer - 2].weight @ h
            h = torch.tanh(inside)
            parameters = parameters + readout.weight @ h + readout.bias
        means.append(parameters[:size])
        stds.append(torch.exp(0.5 * parameters[size:]))
    return torch.cat(means), torch.cat(stds)


def test_each_layer_is_given_those_below_it_by_the_papers_equations() -> None:
    chain = random_chain(4, 3)
    value = torch.randn(2, 3, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mean, log_std = chain.moments(value)
    hand_mean, hand_std = by_hand(chain, value[0, 0])
    close(mean[0, 0], hand_mean, 1e-10)
    close(log_std[0, 0].exp(), hand_std, 1e-10)
    expected = torch.distributions.Normal(hand_mean, hand_std).log_prob(value[0, 0]).sum()
    close(chain.log_prob(Latent(value))[0, 0], expected, 1e-10)


def test_a_sample_goes_up_the_layers() -> None:
    chain = random_chain(4, 3)
    value = chain.sample(noise(2)).value
    epsilon = noise(2).normal(3, 12)[0, 0]
    mean, std = by_hand(chain, value[0, 0])
    close(value[0, 0], mean + std * epsilon, 1e-10)
    assert (by_hand(chain, torch.zeros(12, dtype=torch.float64))[0][3:] - mean[3:]).abs().min() > 1e-3


def test_log_prob_is_a_density() -> None:
    """Its integral over z_1 and z_2 is one."""
    chain = random_chain(2, 1, rows=1, sites=1)
    axis = torch.linspace(-12, 12, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)[:, None]
    density = chain.select(torch.zeros(len(grid), dtype=torch.long)).log_prob(Latent(grid)).detach().exp()
    assert abs(float(density.sum() * (axis[1] - axis[0]) ** 2) - 1) < 1e-3


@torch.no_grad()
def test_kl_is_an_unbiased_estimate_of_less_variance_than_the_one_sample_estimate() -> None:
    """Against the integral over z_1 of the closed form of layer 2."""
    q, p = random_chain(2, 1, rows=1, sites=1, seed=1), random_chain(2, 1, rows=1, sites=1, seed=2)
    axis = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    grid = torch.stack((axis, torch.zeros_like(axis)), dim=-1)[:, None]
    wide_q, wide_p = (chain.select(torch.zeros(len(axis), dtype=torch.long)) for chain in (q, p))
    terms = wide_q.kl(wide_p, Latent(grid))[:, 0]
    first = torch.distributions.Normal(q.offsets[0, 0, 0, 0], torch.exp(0.5 * q.offsets[0, 0, 0, 1]))
    truth = terms[0, 0] + (first.log_prob(axis).exp() * terms[:, 1]).sum() * (axis[1] - axis[0])

    many = 10_000
    wide_q, wide_p = (chain.select(torch.zeros(many, dtype=torch.long)) for chain in (q, p))
    latent = wide_q.sample(noise(many))
    kl, one = wide_q.kl(wide_p, latent).sum(-1).flatten(), sampled_kl(wide_q, wide_p, latent).flatten()
    assert kl.min() >= 0
    for estimate in (kl, one):
        assert abs(float(estimate.mean() - truth)) < 4 * float(estimate.std()) / math.sqrt(many)
    assert kl.var() < 0.5 * one.var()
    assert not q.exact_kl


def test_kl_of_a_chain_with_itself_is_zero_and_factorises_where_it_can() -> None:
    chain = random_chain(4, 2)
    latent = chain.sample(noise(2))
    assert chain.kl(chain, latent).abs().max() < 1e-12
    gaussian = Gaussian(torch.zeros(2, 3, 8, dtype=torch.float64), torch.zeros(2, 3, 8, dtype=torch.float64))
    close(chain.kl(gaussian, latent), Gaussian(*chain.moments(latent.value)).kl(gaussian, latent), 1e-12)
    other = random_chain(2, 4)
    close(chain.kl(other, latent), sampled_kl(chain, other, latent), 1e-12)  # layers that do not line up
    assert gaussian.kl(chain, latent).shape == (2, 3, 1)
    assert chain.kl(Bits(torch.zeros(2, 3, 8)), Latent(torch.ones(2, 3, 8))).shape == (2, 3, 1)


def test_the_first_layers_prior_is_the_standard_gaussian_and_the_others_are_learned() -> None:
    model = built("paper")
    p = model.prior(model.context(Batch.of([[1, 2]])))
    assert isinstance(p, Chain)
    value = torch.randn(1, 1, 8, generator=torch.Generator().manual_seed(0))
    mean, log_std = p.moments(value)
    assert mean[..., :2].abs().max() == 0
    assert log_std[..., :2].abs().max() == 0
    assert mean[..., 2:].abs().min() > 1e-5


def test_the_expected_value_is_the_mean_over_paths() -> None:
    chain = random_chain(3, 2, rows=1, sites=1)
    many = 10_000
    sampled = chain.select(torch.zeros(many, dtype=torch.long)).sample(noise(many)).value[:, 0]
    error = sampled.std(0) / math.sqrt(many)
    expected = chain.expected()[0, 0]
    close(expected[:2], chain.offsets[0, 0, 0, :2], 1e-12)
    # 16 paths: a quarter of the spread of the conditional means, which tanh bounds by the weights.
    spread = chain.recursion.readout[0].weight[:2].abs().sum(-1).max()
    assert ((expected - sampled.mean(0)).abs() < 4 * error + 0.3 * spread).all()
    along_means = chain.tempered(1e-6).sample(noise(1)).value[0, 0]
    assert (along_means - sampled.mean(0))[2:].norm() > 2 * (expected - sampled.mean(0))[2:].norm()


def test_rows_sites_and_temperatures() -> None:
    chain = random_chain(3, 2)
    latent = chain.sample(noise(2))
    close(chain.select(torch.tensor([1, 1])).log_prob(latent.select(torch.tensor([1, 1])))[0], chain.log_prob(latent)[1], 1e-12)
    close(chain.narrow(1, 2).log_prob(Latent(latent.value[:, 1:])), chain.log_prob(latent)[:, 1:], 1e-12)
    cold = chain.tempered(0.5)
    close(cold.moments(latent.value)[1], chain.moments(latent.value)[1] + math.log(0.5), 1e-12)
    close(cold.select(torch.tensor([0])).moments(latent.value[:1])[1], cold.moments(latent.value)[1][:1], 1e-12)
    signs = torch.tensor([1.0, -1.0] * 3).expand(2, 3, 6)
    leaning = chain.leaning(signs, 4.0)
    assert leaning.shape == chain.shape
    close(leaning.moments(torch.zeros(2, 3, 6))[0][..., :2].double(), signs[..., :2].double())


def test_gradients_go_through_densities_and_differentiable_samples_only() -> None:
    chain = random_chain(3, 2)
    weights = list(chain.recursion.parameters())
    latent = chain.sample(noise(2))
    assert not latent.value.requires_grad
    for objective in (chain.log_prob(latent).sum(), chain.sample(noise(2), differentiable=True).value.sum()):
        gradients = torch.autograd.grad(objective, weights, allow_unused=True)
        assert all(gradient is not None and bool(gradient.any()) for gradient in gradients)


# ---------------------------------------------------------------------------------------------------------- the pooling


def test_pooling_by_hand_over_packed_documents_and_padding() -> None:
    batch = pack(TEXTS)
    context = built("paper").context(batch)
    x = torch.randn(2, 13, 5, generator=torch.Generator().manual_seed(0))
    query = 20.0 * torch.randn(5, generator=torch.Generator().manual_seed(1))
    for row, documents in enumerate(TEXTS):
        for number in range(len(documents)):
            inside = x[row, batch.documents[row] == number]
            close(first_states(x, context)[row, number], inside[0])
            close(mean_states(x, context)[row, number], inside.mean(0))
            close(attended_states(x, query, context)[row, number], torch.softmax(inside @ query, dim=0) @ inside)
    x.requires_grad_(True)
    (gradient,) = torch.autograd.grad(attended_states(x, query, context).sum(), x)
    assert bool(gradient.isfinite().all())
    assert gradient[batch.documents < 0].abs().sum() == 0


# ----------------------------------------------------------------------------------------------------------- the fusion


def test_equation_nine_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    fusion = ProductOfSums(3, 6, rank=4)
    for weight in fusion.parameters():
        weight.data.normal_(generator=generator)
    v, z = torch.randn(2, 5, 6, generator=generator), torch.randn(2, 1, 3, generator=generator)
    of_values = [linear.weight for linear in fusion.of_values]
    of_values[0] = of_values[0] + torch.eye(6)  # W_v^1 = I + D_1
    left = sum(v @ weight.T for weight in of_values) + sum(linear.bias for linear in fusion.of_values)
    right = sum(z @ linear.weight.T for linear in fusion.of_latent) + sum(linear.bias for linear in fusion.of_latent) + 1.0
    close(fusion(v, fusion.factor(z)), left * right)


def test_the_low_rank_product_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    fusion = SumOfProducts(3, 6, rank=2)
    for weight in fusion.parameters():
        weight.data.normal_(generator=generator)
    v, z = torch.randn(2, 5, 6, generator=generator), torch.randn(2, 1, 3, generator=generator)
    expected = v + sum(left(v) * right(z) for left, right in zip(fusion.of_values, fusion.of_latent, strict=True))
    close(fusion(v, fusion.factor(z)), expected)
    # z-dependence of rank 2: the map of the values moves within two directions of matrices, which no product of sums can do.
    maps = [fusion(torch.eye(6)[None], fusion.factor(torch.eye(3)[k][None, None])) for k in range(3)]
    assert torch.linalg.matrix_rank((maps[0] - maps[1])[0]) >= 2


def test_a_value_map_and_a_gate_change_the_values_alone() -> None:
    """The block's slot: a layer that multiplies by 1 + g equals the gate g; the values are multiplied, nothing else."""

    class Times(nn.Module):
        def forward(self, values: Tensor, factor: Tensor) -> Tensor:
            return values * (1.0 + factor)

    block = Block(BACKBONE)
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    documents = torch.zeros(2, 5, dtype=torch.long)
    plain = {"mask": Mask(documents, documents, plain=True), "rotation": rotation(BACKBONE, torch.arange(5).expand(2, -1))}
    gate = torch.full((2, 1, 16), 1.0)
    doubled = copy.deepcopy(block)
    doubled.attention.value.weight.data.mul_(2.0)
    expected = doubled(x, **plain)  # type: ignore[arg-type]
    for slot in (gate, ValueMap(Times(), gate)):
        close(block(x, condition=BlockCondition(value_gate=slot), **plain), expected, 1e-6)  # type: ignore[arg-type]
    assert (block(x, **plain) - expected).abs().max() > 1e-3  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["product", "tensor", "gate"])
def test_starts(form: str) -> None:
    """`zero` is exactly the decoder without z; `identity` is near it, and hears z."""
    vanilla = build(ModelConfig(decoder="vanilla", backbone=BACKBONE), seed=5).eval()
    batch = Batch.of([[1, 2, 3, 4, 5]])
    expected = vanilla.hidden(vanilla.context(batch), None)
    moved = {}
    for start in ("zero", "identity"):
        model = build(config_of(injection=spec(form=form, start=start)), seed=3).eval()
        model.load_state_dict(vanilla.state_dict(), strict=False)
        context = model.context(batch)
        hidden = [model.hidden(context, Latent(torch.full((1, 1, 8), z))) for z in (-2.0, 2.0)]
        moved[start] = (hidden[0] - hidden[1]).abs().max().item()
        if start == "zero":
            assert torch.equal(hidden[0], expected)
    assert moved["zero"] == 0
    assert moved["identity"] > 1e-3


def test_the_authors_start_has_neither_identity_nor_constant_one() -> None:
    model = built("code")
    fusion = model.injection.fusions[0]  # type: ignore[union-attr]
    v, z = torch.randn(1, 400, 16, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 1, 2)
    fused = fusion(v, fusion.factor(z))  # type: ignore[operator, union-attr]
    # Four maps of width 16 and four constants of standard deviation 0.1: (0.8 v + 0.2) * 0.2 or so.
    assert 0.01 < float(fused.detach().std()) < 0.5


# --------------------------------------------------------------------------------------------------------- the decoder


def test_gradients_reach_every_weight(model: ComposedDecoder) -> None:
    trained = copy.deepcopy(model).train()
    loss = trained.loss(pack(TEXTS), step=0, noise=noise(2))
    loss.total.backward()
    silent = [name for name, weight in trained.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert silent == []


def test_the_encoder_hears_from_the_reconstruction_alone(model: ComposedDecoder) -> None:
    assert model.encoder is not None
    loss = model.loss(pack(TEXTS), step=0, noise=noise(2))
    gradients = torch.autograd.grad(loss.reconstruction.sum(), list(model.encoder.parameters()), allow_unused=True)
    # The last layer's variance and the parts that feed it count too: nothing is silent.
    assert all(gradient is not None and bool(gradient.any()) for gradient in gradients)


def test_packed_documents_equal_separate_documents(model: ComposedDecoder) -> None:
    batch = pack(TEXTS)
    context = model.context(batch)
    latent = drawn(model, context)
    hidden, moments = model.hidden(context, latent), model.posterior(context).moments(latent.value)  # type: ignore[attr-defined]
    for row, documents in enumerate(TEXTS):
        for number, text in enumerate(documents):
            inside = batch.documents[row] == number
            sites = context.site_of[row][inside].unique()
            alone, own = model.context(Batch.of([text])), Latent(latent.value[row, sites][None])
            for one, other in zip(model.posterior(alone).moments(own.value), moments, strict=True):  # type: ignore[attr-defined]
                close(one[0], other[row, sites])
            close(model.hidden(alone, own)[0], hidden[row, inside])


@torch.no_grad()
def test_every_layers_posterior_sees_its_whole_document_and_no_other(model: ComposedDecoder) -> None:
    texts, value = [[1, 2, 3, 4, 5], [6, 7, 8]], torch.zeros(1, 8, 8)
    context = model.context(pack([texts]))
    before = model.posterior(context).moments(value[:, : context.sites])[0][0]  # type: ignore[attr-defined]
    for place in range(5):
        changed = [[*texts[0][:place], 9, *texts[0][place + 1 :]], texts[1]]
        other = model.context(pack([changed]))
        moved = (model.posterior(other).moments(value[:, : other.sites])[0][0] - before).abs()  # type: ignore[attr-defined]
        own = context.site_of[0, :5].unique()
        assert moved[own].min() > 0
        assert moved[int(own.max()) + 1 :].max() == 0


@torch.no_grad()
def test_each_layers_latent_enters_at_its_own_block() -> None:
    """Another z_l moves the stream above block l and nothing below it."""
    model = built("paper")
    context = model.context(Batch.of([[1, 2, 3, 4, 5]]))
    latent = drawn(model, context)
    streams: dict[str, list[Tensor]] = {}
    for name in ("as drawn", 0, 1, 2, 3):
        value = latent.value.clone()
        if isinstance(name, int):
            value[..., 2 * name : 2 * name + 2] += 1.0
        streams[str(name)] = []
        hooks = [
            block.register_forward_hook(lambda module, args, out, name=str(name): streams[name].append(out))
            for block in model.backbone.blocks
        ]
        model.hidden(context, Latent(value))
        for hook in hooks:
            hook.remove()
    for layer in range(4):
        moved = [
            float((one - other).abs().max()) for one, other in zip(streams["as drawn"], streams[str(layer)], strict=True)
        ]
        assert moved[:layer] == [0.0] * layer
        assert min(moved[layer:]) > 1e-5


@pytest.mark.parametrize("latents", ["posterior", "prior"])
def test_cached_equals_uncached_for_unequal_prompts(model: ComposedDecoder, latents: Any) -> None:
    prompts, lengths = torch.tensor([[3, 1, 4, 1, 5], [2, 7, 0, 0, 0]]), torch.tensor([5, 2])
    state = model.prefill(prompts, lengths, latents=latents, noise=noise(2))
    texts, cached = [prompts[row, : lengths[row]].tolist() for row in range(2)], [state.logits]
    for token in (6, 11, 2, 9):
        state = model.step(state, torch.tensor([token, token + 1]), noise=noise(2))
        cached.append(state.logits)
        for row in range(2):
            texts[row].append(token + row)
    assert state.latents is not None
    for row in range(2):
        context = model.context(Batch.of([texts[row]]))
        latent = Latent(state.latents[row : row + 1, : context.sites])
        full = model.logits(model.hidden(context, latent))[0, int(lengths[row]) - 1 :]
        close(torch.stack([step[row] for step in cached]), full)


@torch.no_grad()
def test_latents_stay_in_float32_in_a_bfloat16_model() -> None:
    for name in ("paper", "tensor", "gate"):
        losses = {}
        for dtype in (torch.float32, torch.bfloat16):
            model = build(CONFIGS[name], seed=3, dtype=dtype)
            losses[dtype] = model.loss(pack(TEXTS), step=0, noise=noise(2))
        kl = losses[torch.bfloat16].kl
        assert kl is not None
        assert kl.dtype == torch.float32
        close(losses[torch.bfloat16].total, losses[torch.float32].total, 0.05)


# ------------------------------------------------------------------------------------------------------ the bag of words


@torch.no_grad()
def test_the_bag_of_words_by_hand_over_packed_documents_and_padding() -> None:
    model = copy.deepcopy(built("code")).train()
    batch = pack(TEXTS)
    context = model.context(batch)
    latent = drawn(model, context)
    assert model.injection is not None
    extra = model.injection.auxiliary(latent, context, batch)
    assert extra is not None
    words, nats, count = model.injection.words, 0.0, 0
    for row, documents in enumerate(TEXTS):
        for number, text in enumerate(documents):
            z = latent.value[row, number, -2:]  # the last layer's
            logits = words.readout(torch.tanh(words.hidden(z)))  # type: ignore[union-attr, operator]
            for target in [*text[1:], 0]:
                nats -= float(logits.log_softmax(-1)[target])
                count += 1
    assert count == int(batch.target_mask.sum()) < batch.inputs.numel()
    close(extra[1]["bag_of_words"], torch.tensor(nats / count), 1e-5)
    close(extra[0], 0.2 * extra[1]["bag_of_words"], 1e-6)


def test_the_bag_of_words_is_charged_in_training_alone_and_off_by_default() -> None:
    model = copy.deepcopy(built("code"))
    losses = {mode: model.train(mode).loss(pack(TEXTS), step=0, noise=noise(2)) for mode in (True, False)}
    assert "bag_of_words" not in losses[False].logs
    close(losses[True].total - losses[False].total, 0.2 * losses[True].logs["bag_of_words"], 1e-5)
    assert "bag_of_words" not in copy.deepcopy(built("paper")).train().loss(pack(TEXTS), step=0, noise=noise(2)).logs


# -------------------------------------------------------------------------------------------------------- honest scores


@pytest.fixture(scope="module")
def planted() -> ComposedDecoder:
    """Two latents of one dimension, whose posterior knows the future."""
    model = build(ModelConfig(decoder="della", event_dims=2, backbone=ENUMERABLE), seed=3)
    assert isinstance(model, ComposedDecoder)
    return plant(model, steps=120)


def test_scores_are_probabilities(planted: ComposedDecoder) -> None:
    check_normalisation(planted, [0, 1], 3, samples=64)
    check_normalisation(planted, [0, 1], 2, method="iwae", samples=256)
    assert leak_sum(planted, [0, 1], 3) > 1.2


@pytest.mark.parametrize("method", ["operational", "iwae", "prior", "elbo"])
def test_scores_are_the_integrals_over_both_latents(planted: ComposedDecoder, method: Any) -> None:
    check_exactness(planted, [([0, 1], [2, 0, 1]), ([2], [0, 1]), ([1, 1, 2], [0])], method=method, samples=512)


def test_generation_samples_what_is_scored(planted: ComposedDecoder) -> None:
    check_sampler_agreement(planted, [0, 1], 2, draws=4000, samples=512)


def test_the_own_encoders_scores_are_exact_too() -> None:
    backbone = ENUMERABLE.model_copy(update={"init_std": 0.2})
    model = build(ModelConfig(decoder="della", event_dims=2, backbone=backbone), seed=4).eval()
    for method in ("operational", "iwae", "elbo"):
        check_exactness(model, [([0, 1], [2, 0, 1])], method=method, samples=512)  # type: ignore[arg-type]


