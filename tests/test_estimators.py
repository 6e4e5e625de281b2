"""Gradient estimators: each against the definition written out with autograd on all 2^H rows, or against sums over all draws.

The benchmark that measures their bias is tested here too: its truth, and its unbiased control.

Run: ``pytest tests/test_estimators.py``
"""

from __future__ import annotations

from itertools import product
from typing import get_args

import pytest
import torch
from torch import Tensor

from benchmarks import estimator_bias
from benchmarks import estimators as benchmark
from latentlm.composed import ComposedDecoder, build, complete
from latentlm.config import ModelConfig, PartSpec
from latentlm.errors import UserError
from latentlm.interface import Batch, Bits, Latent, Noise
from latentlm_free import estimators
from latentlm_free.estimators import Estimator, EstimatorName
from latentlm_free.mapper import bits_of, codes
from latentlm_free.table import GroupedTable, Kind, Table, make_table
from samples import VOCABULARY, small_config

KINDS = get_args(Kind)
ESTIMATORS = [
    Estimator("exact"), Estimator("sampled", samples=3), Estimator("reinmax"), Estimator("reinmax", samples=3),
    Estimator("straight_through"), Estimator("concrete", temperature=0.7),
]  # fmt: skip
BITS, WIDTH, ROWS, SITES = 5, 6, 3, 4  # groups of 3: the last one has 2 bits
CLOSE = {"rtol": 0.0, "atol": 1e-10}


def named(estimator: Estimator) -> str:
    return estimator.name + ("" if estimator.samples is None else str(estimator.samples))


class Prescribed(Noise):
    """Noise that says what it is told: `bits` (R, S, H) for the latent, `extra` (R, S, m H) for its streams."""

    def __init__(self, bits: Tensor, extra: Tensor | None = None) -> None:
        super().__init__(range(len(bits)))
        self._bits, self._extra = bits, extra

    def stream(self, name: str) -> Noise:
        assert self._extra is not None
        return Prescribed(self._extra)

    def uniform(self, sites: int, events: int, *, device: torch.device | str | None = None) -> Tensor:
        assert self._bits.shape[1:] == (sites, events)
        return self._bits.clone()


def built(kind: Kind, estimator: Estimator, *, bits: int = BITS, group: int = 3) -> Table:
    """A table in float64; the seed is one for all, so that only the estimator differs."""
    table = make_table(kind, bits, WIDTH, group=group, estimator=estimator).double()
    table.init_weights(std=1.0, generator=torch.Generator().manual_seed(0))
    return table


def drawn(bits: int = BITS, rows: int = ROWS, seed: int = 1) -> tuple[Tensor, Tensor, Noise, Tensor]:
    """Logits (R, S, H), the bits that their noise draws, that noise, and upstream gradients (R, S, D)."""
    generator = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(rows, SITES, bits, generator=generator, dtype=torch.float64)
    noise = Noise.keyed(seed, range(rows))
    latent = Bits(logits).sample(noise, differentiable=True)
    upstream = torch.randn(rows, SITES, WIDTH, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), latent.value, noise, upstream


def gradient(table: Table, logits: Tensor, bits: Tensor, noise: Noise | None, upstream: Tensor) -> Tensor:
    (result,) = torch.autograd.grad(table(bits, logits, noise), logits, upstream)
    return result


def rows_of(table: Table) -> Tensor:
    """All 2^H rows, (2^H, D), without gradient."""
    return table(bits_of(torch.arange(2**table.bits), table.bits), None).detach()


def groups_of(table: Table) -> list[tuple[slice, Tensor]]:
    """The independent codes that the table adds up: which bits, and the rows (2^g, D) of each of their codes."""
    sizes = {"GroupedTable": [3, 2], "AdditiveTable": [1] * table.bits}.get(type(table).__name__, [table.bits])
    every, result, start = rows_of(table), [], 0
    for size in sizes:
        result.append((slice(start, start + size), every[torch.arange(2**size) << start]))  # the other bits at zero
        start += size
    return result


# ------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_table_gradients_are_the_same_bit_for_bit(kind: Kind) -> None:
    logits, bits, noise, upstream = drawn()
    results = []
    for estimator in ESTIMATORS:
        table = built(kind, estimator).float()
        value = table(bits, logits, noise)
        results.append([value, *torch.autograd.grad(value, list(table.parameters()), upstream.float())])
        assert torch.equal(value, table(bits, None))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_the_default_is_exact() -> None:
    assert Estimator() == Estimator("exact")
    assert make_table("full", 3, 2).estimator == Estimator("exact")


# ------------------------------------------------------------------------------------------------------------ sampled


def every_draw(estimator: Estimator, bits: int) -> tuple[Tensor, Tensor]:
    """All m codes that could be drawn: uniforms (2^(m H), 1, m H) that draw them whatever p is, and those bits."""
    ones = torch.tensor(list(product([0.0, 1.0], repeat=estimator.draws * bits)), dtype=torch.float64)[:, None]
    return torch.where(ones > 0, 1e-9, 1 - 1e-9), ones


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("estimator", "mean"),
    [
        (Estimator("sampled", samples=1), Estimator("exact")),
        (Estimator("sampled", samples=3), Estimator("exact")),
        (Estimator("reinmax", samples=1), Estimator("reinmax")),
        (Estimator("reinmax", samples=3), Estimator("reinmax")),
    ],
    ids=lambda value: named(value),
)
def test_summed_over_all_draws_the_sampled_form_is_the_full_sum(kind: Kind, estimator: Estimator, mean: Estimator) -> None:
    """Unbiased exactly, with the sampled bits (and so g) held fixed: E over d_1 .. d_m by enumeration."""
    count = 4 if estimator.samples == 3 else 5
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(1, 1, count, generator=generator, dtype=torch.float64)
    bits = torch.randint(2, (1, 1, count), generator=generator).double()
    upstream = torch.randn(1, 1, WIDTH, generator=generator, dtype=torch.float64)
    uniform, ones = every_draw(estimator, count)
    p = logits.sigmoid().repeat(1, 1, estimator.draws)
    weights = torch.where(ones > 0, p, 1 - p).prod(-1, keepdim=True)  # (draws, 1, 1)
    assert weights.sum().item() == pytest.approx(1)

    many = len(uniform)
    wide = logits.expand(many, -1, -1).clone().requires_grad_()
    noise = Prescribed(torch.full((many, 1, count), 0.5), uniform)
    draws = gradient(
        built(kind, estimator, bits=count), wide, bits.expand(many, -1, -1), noise, upstream.expand(many, -1, -1)
    )
    full = gradient(built(kind, mean, bits=count), logits.requires_grad_(), bits, None, upstream)
    torch.testing.assert_close((weights * draws).sum(0), full[0], **CLOSE)
    assert draws.std(0).max() > 1e-3  # the draws do differ


def test_mean_over_many_keys_is_the_exact_gradient_within_error_bars() -> None:
    """4,000 keyed gradients at 8 bits: each component within 4.5 standard errors, which are of the right size."""
    logits, bits, _, upstream = drawn(bits=8, rows=1)
    exact = gradient(built("full", Estimator(), bits=8), logits, bits, None, upstream)
    many = 4000
    wide = logits.detach().expand(many, -1, -1).clone().requires_grad_()
    noise = Noise.keyed(7, range(many))
    table = built("full", Estimator("sampled", samples=4), bits=8)
    draws = gradient(table, wide, bits.expand(many, -1, -1), noise, upstream.expand(many, -1, -1))
    z = (draws.mean(0) - exact[0]) / (draws.std(0) / many**0.5)  # (S, H)
    assert z.abs().max() < 4.5
    assert 0.5 < z.square().mean() < 1.6


def test_sampled_gradient_is_blind_to_a_constant_added_to_every_row() -> None:
    """What the baseline is for: E (u - p) = 0 makes a common score nothing but noise, and it is gone even with one draw."""
    logits, bits, noise, upstream = drawn()
    for samples in (1, 4):
        table = built("full", Estimator("sampled", samples=samples))
        before = gradient(table, logits, bits, noise, upstream)
        with torch.no_grad():
            for weight in table.parameters():
                weight += 1e3
        torch.testing.assert_close(gradient(table, logits, bits, noise, upstream), before, rtol=0, atol=1e-8)


def test_more_draws_scatter_less() -> None:
    logits, bits, _, upstream = drawn(bits=6, rows=1)
    many = 500
    wide = logits.detach().expand(many, -1, -1).clone().requires_grad_()
    spread = {}
    for samples in (2, 16):
        table = built("full", Estimator("sampled", samples=samples), bits=6)
        noise = Noise.keyed(samples, range(many))
        draws = gradient(table, wide, bits.expand(many, -1, -1), noise, upstream.expand(many, -1, -1))
        spread[samples] = draws.var(0).sum().item()
    # (1 + 1/m) / m: the mean of m draws off a baseline that is the mean of m scores.
    assert spread[2] / spread[16] == pytest.approx((1.5 / 2) / (17 / 16 / 16), rel=0.25)


# ----------------------------------------------------------------------------------------- definitions by autograd


def reinmax_by_definition(logits: Tensor, bits: Tensor, table: Table) -> Tensor:
    """Liu et al. 2023 on each of the table's codes, with the softmax's own logits theta_d = log G_d: (R, S, D).

    pi_1 = softmax(stopgrad(log((pi + D) / 2) - theta) + theta), and 2 pi_1 - pi / 2 is what the one-hot D passes back.
    """
    total = torch.zeros(())
    for part, rows in groups_of(table):
        every = bits_of(torch.arange(len(rows)), part.stop - part.start).to(logits)  # (2^g, g)
        theta = logits[..., part] @ every.T  # log G up to a constant
        pi = theta.softmax(-1)
        one_hot = torch.nn.functional.one_hot(codes(bits[..., part]), len(rows)).to(logits)
        heun = (((pi + one_hot) / 2).log() - theta).detach() + theta
        passed = 2 * heun.softmax(-1) - pi / 2
        total = total + (one_hot + (passed - passed.detach())) @ (rows - rows[:1] * (part.start > 0))
    return total


@pytest.mark.parametrize("kind", KINDS)
def test_reinmax_is_its_definition_by_autograd(kind: Kind) -> None:
    logits, bits, noise, upstream = drawn()
    table = built(kind, Estimator("reinmax"))
    expected = reinmax_by_definition(logits, bits, table)
    torch.testing.assert_close(expected.detach(), table(bits, None).detach(), **CLOSE)
    (expected_gradient,) = torch.autograd.grad(expected, logits, upstream)
    torch.testing.assert_close(gradient(table, logits, bits, noise, upstream), expected_gradient, **CLOSE)


@pytest.mark.parametrize("bits", [1, 2, 9, 10, 13])
def test_reinmax_in_blocks_is_reinmax_over_all_codes_at_once(bits: int) -> None:
    logits, value, noise, upstream = drawn(bits=bits)
    table = built("full", Estimator("reinmax"), bits=bits)
    (expected,) = torch.autograd.grad(reinmax_by_definition(logits, value, table), logits, upstream)
    torch.testing.assert_close(gradient(table, logits, value, noise, upstream), expected, **CLOSE)


def multilinear(soft: Tensor, rows: Tensor) -> Tensor:
    """sum_d prod_h b_h^{u_h(d)} (1 - b_h)^{1 - u_h(d)} W_d: bits (..., H) anywhere in [0, 1] -> (..., D)."""
    every = bits_of(torch.arange(len(rows)), soft.shape[-1]).bool()
    return torch.where(every, soft.unsqueeze(-2), 1 - soft.unsqueeze(-2)).prod(-1) @ rows


@pytest.mark.parametrize("kind", KINDS)
def test_straight_through_goes_through_the_multilinear_table(kind: Kind) -> None:
    logits, bits, noise, upstream = drawn()
    table = built(kind, Estimator("straight_through"))
    p = logits.sigmoid()
    (expected,) = torch.autograd.grad(multilinear(bits + (p - p.detach()), rows_of(table)), logits, upstream)
    torch.testing.assert_close(gradient(table, logits, bits, noise, upstream), expected, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_concrete_passes_back_the_relaxed_bit_of_the_same_uniform_number(kind: Kind) -> None:
    logits, bits, noise, upstream = drawn()
    table = built(kind, Estimator("concrete", temperature=0.7))
    u = noise.uniform(SITES, BITS).double()
    relaxed = ((logits + (1 - u).log() - u.log()) / 0.7).sigmoid()
    assert torch.equal((relaxed > 0.5).double(), bits)
    (expected,) = torch.autograd.grad(multilinear(bits + (relaxed - relaxed.detach()), rows_of(table)), logits, upstream)
    torch.testing.assert_close(gradient(table, logits, bits, noise, upstream), expected, **CLOSE)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=named)
def test_an_additive_table_is_a_grouped_one_of_single_bits(estimator: Estimator) -> None:
    """The closed forms of `additive` against the general code, the draws included."""
    logits, bits, noise, upstream = drawn()
    additive, grouped = built("additive", estimator), built("grouped", estimator, group=1)
    assert isinstance(grouped, GroupedTable)
    with torch.no_grad():
        for pair, vector in zip(grouped.weights, next(additive.parameters()), strict=True):
            pair.copy_(torch.stack([-vector, vector]))
    expected = gradient(grouped, logits, bits, noise, upstream)
    torch.testing.assert_close(gradient(additive, logits, bits, noise, upstream), expected, **CLOSE)


@pytest.mark.parametrize(("kind", "group"), [("additive", 3), ("grouped", 1)])
def test_straight_through_is_exact_where_each_bit_stands_alone(kind: Kind, group: int) -> None:
    logits, bits, noise, upstream = drawn()
    bitwise, exact = (built(kind, Estimator(name), group=group) for name in ("straight_through", "exact"))
    expected = gradient(exact, logits, bits, noise, upstream)
    torch.testing.assert_close(gradient(bitwise, logits, bits, noise, upstream), expected, **CLOSE)


# ------------------------------------------------------------------------------------------------- the true gradient


@pytest.mark.parametrize("kind", KINDS)
def test_reinmax_is_unbiased_for_quadratic_losses_and_exact_straight_through_is_not(kind: Kind) -> None:
    """Summed over every D ~ G, against the derivative of sum_D G_D loss(W_D)."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(1, BITS, generator=generator, dtype=torch.float64).requires_grad_()
    curvature = torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64)
    every = bits_of(torch.arange(2**BITS), BITS).double()[:, None]  # (2^H, 1, H): a row for each code
    probability = torch.where(every > 0, logits.sigmoid(), 1 - logits.sigmoid()).prod(-1)[:, 0]  # (2^H,)

    def loss(r: Tensor) -> Tensor:
        return ((r @ curvature) * r).sum(-1) + r.sum(-1)

    off = {}
    for name in ("reinmax", "exact"):
        table = built(kind, Estimator(name))
        (truth,) = torch.autograd.grad((probability * loss(rows_of(table))).sum(), logits, retain_graph=True)
        wide = logits.detach().expand(2**BITS, 1, BITS).clone().requires_grad_()
        (estimates,) = torch.autograd.grad(loss(table(every, wide, None)).sum(), wide)  # (2^H, 1, H)
        mean = (probability.detach()[:, None, None] * estimates).sum(0)
        off[name] = ((mean - truth).norm() / truth.norm()).item()
    assert off["reinmax"] < 1e-12
    assert off["exact"] > 0.05


# ------------------------------------------------------------------------------------------------------------- draws


DRAWING = [e for e in ESTIMATORS if e.draws or e.name == "concrete"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("estimator", DRAWING, ids=named)
def test_same_keys_same_gradient_whatever_the_global_state(kind: Kind, estimator: Estimator) -> None:
    logits, bits, noise, upstream = drawn()
    table = built(kind, estimator)
    first = gradient(table, logits, bits, noise, upstream)
    state = torch.get_rng_state()
    torch.rand(3)
    assert torch.equal(gradient(table, logits, bits, noise, upstream), first)
    torch.set_rng_state(state)
    gradient(table, logits, bits, noise, upstream)
    assert torch.equal(torch.get_rng_state(), state)
    other = gradient(table, logits, bits, Noise.keyed(99, range(ROWS)), upstream)
    assert not torch.allclose(other, first)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=named)
def test_a_rows_gradient_does_not_depend_on_its_batch_or_padding(kind: Kind, estimator: Estimator) -> None:
    logits, bits, noise, upstream = drawn()
    table = built(kind, estimator)
    whole = gradient(table, logits, bits, noise, upstream)
    rows = torch.tensor([2, 0])
    picked = [x.detach()[rows].requires_grad_() for x in (logits, bits, upstream)]
    torch.testing.assert_close(gradient(table, picked[0], picked[1], noise.select(rows), picked[2]), whole[rows], **CLOSE)
    shorter = [x.detach()[:, :2].requires_grad_() for x in (logits, bits, upstream)]
    torch.testing.assert_close(gradient(table, shorter[0], shorter[1], noise, shorter[2]), whole[:, :2], **CLOSE)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=named)
def test_chunks_of_tokens_do_not_change_the_gradient(estimator: Estimator, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, bits, noise, upstream = drawn()
    table = built("full", estimator)
    whole = gradient(table, logits, bits, noise, upstream)
    monkeypatch.setattr(estimators, "CPU_GATHER", 5 * 7 * WIDTH)  # 5 tokens at 6 codes each, and a rest
    torch.testing.assert_close(gradient(table, logits, bits, noise, upstream), whole, **CLOSE)


@pytest.mark.parametrize("estimator", DRAWING, ids=named)
def test_draws_without_noise_are_refused_with_the_remedy(estimator: Estimator) -> None:
    logits, bits, _, _ = drawn()
    table = built("full", estimator)
    with pytest.raises(UserError, match=f'"{estimator.name}" needs the noise .* differentiable=True'):
        table(bits, logits)
    assert torch.equal(table(bits, logits.detach()), table(bits, None))  # no gradient to come, nothing to draw
    with torch.no_grad():
        assert torch.equal(table(bits, logits), table(bits, None))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=named)
def test_certain_bits_have_gradient_zero_and_nearly_certain_ones_a_small_one(kind: Kind, estimator: Estimator) -> None:
    logits = torch.tensor([[[torch.inf, -torch.inf, 20.0, -20.0, 0.3]]])
    noise = Noise.keyed(0, [0])
    bits = Bits(logits).sample(noise).value
    table = built(kind, estimator).float()
    found = gradient(table, logits.requires_grad_(), bits, noise, torch.ones(1, 1, WIDTH))[0, 0]
    assert torch.isfinite(found).all()
    assert (found[:2] == 0).all()
    assert found[2:4].abs().max() < 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=named)
def test_half_precision_tables_are_scored_in_float32(kind: Kind, estimator: Estimator) -> None:
    logits, bits, noise, upstream = drawn()
    half = built(kind, estimator).bfloat16()
    narrow = logits.detach().float().requires_grad_()
    found = gradient(half, narrow, bits, noise, upstream.bfloat16())
    expected = gradient(half.double(), logits, bits, noise, upstream.bfloat16().double())
    torch.testing.assert_close(found.double(), expected, rtol=0.02, atol=0.02)


# ------------------------------------------------------------------------------------------------------- in a decoder


def decoder(table: Kind = "full", **settings: object) -> ComposedDecoder:
    spec = PartSpec.model_validate({"name": "free", "table": table, **settings})
    model = build(small_config("free", bits=4).model_copy(update={"injection": spec}))
    assert isinstance(model, ComposedDecoder)
    return model


def batch() -> Batch:
    tokens = torch.randint(1, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(0)).tolist()
    return Batch.of(tokens)


@pytest.mark.parametrize("table", ["full", "grouped", "additive"])
def test_losses_are_equal_bit_for_bit_and_the_encoder_gets_a_gradient(table: Kind) -> None:
    losses, gradients = [], []
    for name in get_args(EstimatorName):
        model = decoder(table, estimator=name)
        loss = model.loss(batch(), step=0, noise=Noise.keyed(0, range(2)))
        loss.reconstruction.sum().backward()
        assert model.encoder is not None
        found = model.encoder.get_parameter("readout.weight").grad
        assert found is not None
        assert found.count_nonzero() > 0
        losses.append(loss.total)
        gradients.append(found)
    assert all(torch.equal(loss, losses[0]) for loss in losses)
    assert not torch.allclose(gradients[1], gradients[0])  # sampled, exact
    assert not torch.allclose(gradients[4], gradients[0])  # concrete


def test_a_loss_without_gradient_draws_nothing() -> None:
    model = decoder(estimator="sampled")
    context = model.context(batch())
    posterior = model.posterior(context)
    with torch.no_grad():
        bare = model.hidden(context, Latent(posterior.sample(Noise.keyed(0, range(2))).value, posterior))
    assert torch.isfinite(bare).all()


def test_settings_survive_the_round_trip_of_a_configuration() -> None:
    spec = PartSpec.model_validate({"name": "free", "estimator": "sampled", "samples": 5})
    config = complete(small_config("free").model_copy(update={"injection": spec}))
    again = ModelConfig.model_validate_json(config.model_dump_json())
    assert complete(again) == config
    assert config.injection is not None
    assert config.injection.settings["samples"] == 5
    model = build(again)
    assert isinstance(model, ComposedDecoder)
    assert model.injection is not None
    assert model.injection.get_submodule("table").estimator == Estimator("sampled", samples=5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"estimator": "reinmaxx"}, 'unknown estimator "reinmaxx". Did you mean "reinmax"\\?'),
        ({"estimator": "rebar"}, "Available: exact, sampled, reinmax, straight_through, concrete"),
        ({"samples": 4}, 'samples belongs to estimator "sampled" or "reinmax", but estimator is "exact"'),
        ({"estimator": "sampled", "temperature": 0.5}, 'temperature belongs to estimator "concrete"'),
        ({"estimator": "sampled", "scores": "bfloat16"}, "scores belongs to the exact gradient of a table of rows"),
        ({"table": "additive", "scores": "bfloat16"}, "scores belongs to the exact gradient of a table of rows"),
        ({"estimator": "sampled", "samples": 0}, "samples: .*greater than or equal to 1"),
        ({"estimator": "concrete", "temperature": 0}, "temperature: .*greater than 0"),
        ({"estimator": "concrete", "temprature": 1}, 'Did you mean "temperature"\\?'),
    ],
)
def test_bad_settings_are_refused_at_build_time_with_the_remedy(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        decoder(**settings)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------- the measurements


@pytest.fixture(scope="module")
def case() -> estimator_bias.Enumerated:
    """2 tokens of 3 bits: 64 latents, in float64."""
    model = estimator_bias.model_of("full", {}, seed=0).double()
    return estimator_bias.Enumerated(model, estimator_bias.texts(1, 2, seed=4))


def test_enumerated_costs_are_the_decoders_own_loss(case: estimator_bias.Enumerated) -> None:
    noise = Noise.keyed(0, ["a"])
    loss = case.model.loss(case.batch, step=0, noise=noise)
    assert loss.posterior is not None
    bits = loss.posterior.sample(noise).value
    (index,) = (case.latents == bits).flatten(1).all(1).nonzero().flatten().tolist()
    found = loss.reconstruction.sum() / loss.target_mask.sum()
    torch.testing.assert_close(case.costs[index], found.detach(), **CLOSE)
    assert case.probability.sum().item() == pytest.approx(1)


def test_the_truth_is_the_slope_of_the_expected_cost(case: estimator_bias.Enumerated) -> None:
    """By central differences of sum_z q(z) f(z), without the score function."""

    def expected(logits: Tensor) -> float:
        p = logits.sigmoid()
        return float((torch.where(case.latents > 0, p, 1 - p).flatten(1).prod(1) * case.costs).sum())

    for site, bit in product(range(2), range(3)):
        step = torch.zeros_like(case.logits)
        step[0, site, bit] = 1e-5
        slope = (expected(case.logits + step) - expected(case.logits - step)) / 2e-5
        assert case.truth[site, bit].item() == pytest.approx(slope, abs=1e-9)


def test_reinforce_leave_one_out_is_unbiased_by_enumeration(case: estimator_bias.Enumerated) -> None:
    """Over all 64 x 64 pairs of latents, and not so without the leave-one-out factor."""
    count = len(case.latents)
    pairs = torch.cartesian_prod(torch.arange(count), torch.arange(count))  # (4096, 2)
    weights = case.probability[pairs].prod(1)[:, None, None]
    found = estimator_bias.leave_one_out(case.costs[pairs], case.scores[pairs])
    torch.testing.assert_close((weights * found).sum(0), case.truth, **CLOSE)
    assert found.std(0).max() > 0


def test_a_sampled_form_adds_variance_and_concrete_noise_draws_the_given_bits(case: estimator_bias.Enumerated) -> None:
    exact = case.moments(1)
    for settings in ({"estimator": "sampled", "samples": 2}, {"estimator": "concrete"}):
        model = estimator_bias.model_of("full", settings, seed=0).double()
        drawing = estimator_bias.Enumerated(model, case.batch)
        torch.testing.assert_close(drawing.truth, case.truth, **CLOSE)
        assert (drawing.moments(4)[1] - exact[1]).abs().max() > 0
    p = drawing.logits.sigmoid()
    for noise in drawing.noises(3):
        assert noise is not None
        assert torch.equal((noise.uniform(2, 3) < p).double(), drawing.latents)


@pytest.mark.conformance
def test_the_benchmark_runs_in_its_quick_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "call", lambda *arguments: 1.0)  # memory: each contender would start Python again
    monkeypatch.setattr(estimator_bias, "SETS", 100)
    found = {suite: run(quick=True) for suite, run in benchmark.SUITES.items()}
    for suite, rows in found.items():
        table = benchmark.TABLES[suite](rows)
        assert rows
        assert all(len(cells) == len(table.columns) for cells in table.cells)
    costs = {row["contender"]: row for row in found["cost"] if row["bits"] == 10}
    assert costs["exact"]["ratio"] == 1.0
    assert {*costs} == {*benchmark.CONTENDERS}
