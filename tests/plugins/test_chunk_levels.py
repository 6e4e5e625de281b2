"""The grid of finite scalar quantisation and the distributions over it, against the paper's formulas and enumeration.

Run: ``pytest tests/plugins/test_chunk_levels.py``
"""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from latentlm.composed import build
from latentlm.config import ModelConfig
from latentlm.errors import UserError
from latentlm.interface import Batch, Latent, Noise
from latentlm_chunk.grid import Grid
from latentlm_chunk.levels import CategoricalOnGrid, JointLevels, Levels
from latentlm_chunk.point import PointLevels
from latentlm_chunk.usage import code_usage
from samples import small_config

GRID = Grid((4, 3))


def noise(rows: int) -> Noise:
    return Noise.keyed(0, range(rows))


def close(one: Tensor, other: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(one, other, atol=tolerance, rtol=1e-5)


def random_logits(kind: type[Levels] | type[JointLevels], seed: int = 0, rows: int = 2) -> Tensor:
    return 2 * torch.randn(rows, 3, 7 if kind is Levels else 12, generator=torch.Generator().manual_seed(seed))


def random(kind: type[Levels] | type[JointLevels], seed: int = 0, rows: int = 2) -> Levels | JointLevels:
    return kind(random_logits(kind, seed, rows), GRID)


KINDS = pytest.mark.parametrize("kind", [Levels, JointLevels])


def chances(p: CategoricalOnGrid) -> Tensor:
    """Probability of every code, (B, S, N)."""
    rows, sites, _ = p.shape
    return torch.stack([p.log_prob(Latent(v.expand(rows, sites, -1))) for v in p.support()], dim=-1).exp()


# ---------------------------------------------------------------------------------------------------------------- grid


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6, 7, 8])
def test_a_dimension_has_exactly_its_levels(count: int) -> None:
    """From far left to far right: -floor(L/2) .. ceil(L/2) - 1 over floor(L/2), each of them, in order."""
    grid = Grid((count,))
    raw = torch.linspace(-12, 12, 4001)[:, None]
    found = PointLevels(raw[None], grid).expected()[0, :, 0]
    expected = torch.tensor([(i - count // 2) / (count // 2) for i in range(count)])
    assert torch.equal(found.unique(), expected)
    assert bool((found.diff() >= 0).all())
    assert torch.equal(grid.values(torch.arange(count)[:, None])[:, 0], expected)
    assert torch.equal(grid.index(expected[:, None])[:, 0], torch.arange(count))


def test_the_bound_is_that_of_the_published_code() -> None:
    """Levels 8 and 5 by hand: half = 3.4965 and 1.998, the shift tan(0.5 / 3.4965) for the even one."""
    raw = torch.tensor([[0.0, 0.0], [0.7, 0.7], [-3.0, 9.0]])
    found = Grid((8, 5)).bound(raw)
    for row in range(3):
        even, odd = float(raw[row, 0]), float(raw[row, 1])
        assert math.isclose(found[row, 0], math.tanh(even + math.tan(0.5 / 3.4965)) * 3.4965 - 0.5, abs_tol=1e-5)
        assert math.isclose(found[row, 1], math.tanh(odd) * 1.998, abs_tol=1e-5)
    assert found[0].abs().max() < 1e-3, "nothing in, about nothing out"


def test_codes_are_numbered_with_the_first_dimension_fastest() -> None:
    index = GRID.every_index()
    assert index[:5].tolist() == [[0, 0], [1, 0], [2, 0], [3, 0], [0, 1]]
    assert torch.equal(GRID.code(index), torch.arange(12))
    with pytest.raises(UserError, match="at most"):
        Grid((8,) * 6).every_index()
    assert PointLevels(torch.zeros(1, 1, 6), Grid((8,) * 6)).support() is None


# ------------------------------------------------------------------------------------------------------- distributions


@KINDS
def test_probabilities_sum_to_one_and_samples_follow_them(kind: type[Levels] | type[JointLevels]) -> None:
    p = random(kind, rows=1)
    close(chances(p).sum(-1), torch.ones(1, 3))
    draws = 5000
    value = p.select(torch.zeros(draws, dtype=torch.long)).sample(noise(draws)).value  # (draws, S, E)
    close(value.mean(0), p.expected()[0], 0.06)
    for site in range(3):
        counts = Counter(GRID.code(GRID.index(value[:, site])).tolist())
        for code, chance in enumerate(chances(p)[0, site].tolist()):
            assert abs(counts[code] / draws - chance) < 5 * math.sqrt(chance * (1 - chance) / draws) + 1e-4


@KINDS
@pytest.mark.parametrize("other", [Levels, JointLevels])
def test_kl_is_the_sum_over_all_codes(kind: type[Levels], other: type[Levels]) -> None:
    q, p = random(kind), random(other, seed=1)
    expected = (chances(q) * (chances(q) / chances(p)).log()).sum(-1)
    kl = q.kl(p, Latent(torch.zeros(2, 3, 2)))
    assert kl.shape[-1] == (2 if kind is other is Levels else 1)
    close(kl.sum(-1), expected)
    assert q.kl(q, Latent(torch.zeros(2, 3, 2))).abs().max() < 1e-6


@KINDS
def test_expected_narrow_tempered_and_leaning(kind: type[Levels]) -> None:
    p = random(kind)
    close(p.expected(), chances(p) @ p.support())
    close(chances(p.narrow(1, 2)), chances(p)[:, 1:])
    powers = chances(p) ** 2
    close(chances(p.tempered(0.5)), powers / powers.sum(-1, keepdim=True))
    close(chances(p.select(torch.tensor([1, 0, 1]))), chances(p)[[1, 0, 1]])
    assert torch.equal(p.mapped(Tensor.detach).log_probs, p.log_probs)
    signs = torch.tensor([1.0, -1.0]).expand(2, 3, 2)
    leant = p.leaning(signs, 4.0)
    means = leant.expected() - p.leaning(0 * signs, 4.0).expected()
    assert bool((means * signs > 0.3).all())


@KINDS
def test_near_ties_are_the_draws_that_rounding_can_change(kind: type[Levels]) -> None:
    logits, rounding = random_logits(kind, rows=400), 1e-2
    p = kind(logits, GRID)
    base = p.sample(noise(400)).value
    ties = p.near_ties(noise(400), rounding)
    uniform = kind(torch.zeros_like(logits), GRID)
    for constant in (uniform, uniform.tempered(0.7), JointLevels.of(Levels(torch.zeros(400, 3, 7), GRID))):
        assert constant.near_ties(noise(400), rounding).sum() == 0, "a uniform prior is a constant"
    shift = 5e-3 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(5))
    moved = kind(logits + shift, GRID).sample(noise(400)).value
    changed = (moved != base).any(-1)
    assert changed.any()
    assert not bool((changed & (ties == 0)).any())
    assert (ties > 0).float().mean() < 0.3


# ---------------------------------------------------------------------------------------------------------- point mass


def point(seed: int = 0, **settings: bool) -> PointLevels:
    raw = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(seed))
    return PointLevels(raw.requires_grad_(), GRID, **settings)


def test_the_value_is_on_the_grid_and_its_gradient_straight_through() -> None:
    q = point()
    latent = q.sample(noise(2), differentiable=True)
    values = {tuple(row) for row in GRID.every_value().tolist()}
    assert all(tuple(row) in values for row in latent.value.flatten(0, 1).tolist())
    latent.value.sum().backward()
    half = torch.tensor([3.0, 2.0]) * 0.999 / 2
    shift = torch.tensor([math.tan(0.5 / (3 * 0.999 / 2)), 0.0])
    expected = (1 - torch.tanh(q.raw.detach() + shift) ** 2) * half / torch.tensor([2.0, 1.0])
    close(q.raw.grad, expected)


@KINDS
def test_its_kl_is_the_surprise_and_has_the_slope_between_neighbours(kind: type[Levels]) -> None:
    """dKL/db_e = log p(lower) - log p(upper), neighbours written out by hand; none where `pays` is false."""
    q, p = point(), random(kind, seed=3)
    latent = q.sample(noise(2))
    kl = q.kl(p, latent)
    close(kl.sum(-1), -p.log_prob(latent))
    (slope,) = torch.autograd.grad(kl.sum(), q.raw)
    bounded = GRID.bound(q.raw)
    (stretch,) = torch.autograd.grad(bounded.sum(), q.raw)
    for e, middle in enumerate((2, 1)):
        low, high = latent.value.clone(), latent.value.clone()
        low[..., e] = bounded[..., e].detach().floor() / middle
        high[..., e] = (bounded[..., e].detach().floor() + 1) / middle
        expected = (p.log_prob(Latent(low)) - p.log_prob(Latent(high))) * stretch[..., e]
        close(slope[..., e], expected)
    free = point(pays=False).kl(p, latent)
    assert not free.requires_grad
    close(free, kl.detach())


def test_under_a_uniform_prior_it_costs_the_same_whatever_the_text() -> None:
    q, uniform = point(), Levels(torch.zeros(2, 3, 7), GRID)
    kl = q.kl(uniform, q.sample(noise(2)))
    close(kl.sum(-1), torch.full((2, 3), math.log(12)))
    (gradient,) = torch.autograd.grad(kl.sum(), q.raw)
    assert gradient.abs().max() == 0


def test_a_point_mass_says_so_and_is_certain() -> None:
    q = point()
    assert q.deterministic
    assert torch.equal(q.log_prob(q.sample(noise(2))), torch.zeros(2, 3))
    assert bool((q.log_prob(Latent(torch.ones(2, 3, 2))) == float("-inf")).any())
    assert torch.equal(q.sample(noise(2)).value, q.sample(Noise.keyed(9, range(2))).value)
    on_edge = PointLevels(torch.zeros(1, 1, 2), Grid((3, 3)))
    assert int(on_edge.near_ties(noise(1), 1e-3)) == 0
    edge = torch.atanh(torch.tensor(0.5 / 0.999)).expand(1, 1, 2)
    assert int(PointLevels(edge, Grid((3, 3))).near_ties(noise(1), 1e-3)) == 2


# --------------------------------------------------------------------------------------------------------------- usage


def test_usage_counts_the_codes_of_the_aggregate_posterior() -> None:
    """The classes are counted by hand from the posterior, site by site, padding left out."""
    for settings in ({"event_dims": 3}, {"encoder": {"name": "fsq", "levels": [4, 3]}}):
        config = {"decoder": "chunk", "granularity": "chunk:3", "backbone": small_config("vanilla").backbone, **settings}
        model = build(ModelConfig.model_validate(config), seed=3)
        with torch.no_grad():
            model.encoder.readout.weight.mul_(8.0)
        texts = [[(3 * i * i + 5 * j) % 17 for j in range(4 + i)] for i in range(9)]
        counts, certain = torch.zeros(8 if "event_dims" in settings else 12, dtype=torch.double), set()
        for text in texts:
            q = model.posterior(model.context(Batch.of([text])))
            p = torch.stack([q.log_prob(Latent(v.expand(*q.shape[:2], -1)))[0] for v in q.support()], dim=-1).exp()
            counts += p.sum(0)
            certain |= set(p.argmax(-1).tolist())
        found = code_usage(model, texts, batch_size=4)
        share = counts / counts.sum()
        assert math.isclose(found.perplexity, float(torch.special.entr(share).sum().exp()), rel_tol=1e-4)
        assert (found.used, found.codes, found.sites) == (len(certain), len(counts), round(float(counts.sum())))
        assert found.used > 2


def test_levels_are_made_of_log_probabilities_of_every_level() -> None:
    """The shorter dimension's last column counts for nothing; a constant for each dimension neither."""
    p = random(Levels)
    moved = p.log_probs + torch.tensor([0.5, -2.0])[:, None]
    moved[..., 1, 3] = 7.0
    close(Levels.of_log_probs(moved, GRID).log_probs.exp(), p.log_probs.exp())


def test_usage_of_what_has_no_codes_is_refused() -> None:
    large = {"encoder": {"name": "fsq", "levels": [300, 300]}, "prior": "uniform_levels", "granularity": "chunk:3"}
    backbone = small_config("vanilla").backbone
    with pytest.raises(UserError, match="90000: take a model with fewer levels"):
        code_usage(build(ModelConfig.model_validate({"decoder": "chunk", "backbone": backbone, **large})), [[1, 2]])
    with pytest.raises(UserError, match="no encoder"):
        code_usage(build(small_config("vanilla")), [[1, 2]])
