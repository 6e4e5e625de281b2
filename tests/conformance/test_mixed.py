"""What the kit sums over: a site of several families, point masses, real numbers that no grid fits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conformance.subjects import MORE
from latentlm import plugins
from latentlm.config import Strict
from latentlm.interface import (
    Batch,
    Bits,
    BlockCondition,
    Condition,
    Context,
    Distribution,
    Encoder,
    Gaussian,
    Injection,
    Latent,
    Objective,
    Prior,
    Product,
    Shape,
)
from latentlm.testing import CHECKS, QUICK, NotApplicable, Subject
from latentlm.testing.exact import enumeration_limit, latent_values
from latentlm.testing.likelihood import check_coverage, check_shrinking_error


def product(x: Tensor) -> Product:
    """One real number and E - 1 bits, from (B, S, E) numbers."""
    return Product(Gaussian(x[..., :1], torch.full_like(x[..., :1], -0.5)), Bits(x[..., 1:]))


class MixedEncoder(Encoder):
    """The mean of a document's embeddings, mapped."""

    Config, family, sees_future, taps = Strict, "real and bits", True, (0,)

    def __init__(self, config: Any, shape: Shape) -> None:
        super().__init__(config, shape)
        self.map = nn.Linear(shape.width, shape.latent.dims)

    def forward(self, context: Context, objective: Objective | None = None) -> Distribution:
        real = (context.documents >= 0)[..., None]
        index = context.site_of[..., None].expand(-1, -1, self.shape.width)
        sums = torch.zeros(context.rows, context.sites, self.shape.width).scatter_add(1, index, context.taps[0] * real)
        return product(4.0 * self.map(sums))


class MixedPrior(Prior):
    """Standard normal, fair coins; `far` puts the number where no grid of the kit is."""

    Config, family = Strict, "real and bits"
    far = 0.0

    def forward(self, context: Context, latent: Latent | None = None) -> Distribution:
        return self._of(context.rows, context.sites)

    def step(
        self, state: Any, taps: Mapping[int, Tensor], previous: Tensor | None, starts: Tensor, above: Mapping[str, Tensor]
    ) -> tuple[Distribution, Any]:
        return self._of(len(starts), 1), state

    def _of(self, rows: int, sites: int) -> Distribution:
        zeros = torch.zeros(rows, sites, self.shape.latent.dims - 1)
        return Product(Gaussian(zeros[..., :1] + self.far, zeros[..., :1]), Bits(zeros))


class FarPrior(MixedPrior):
    """Beyond the grid."""

    far = 40.0


class MixedInjection(Injection):
    """A linear map into block 0, bits straight through."""

    Config, family, blocks, slots = Strict, "real and bits", (0,), ("residual",)

    def __init__(self, config: Any, shape: Shape) -> None:
        super().__init__(config, shape)
        self.map = nn.Linear(shape.latent.dims, shape.width)

    def forward(self, latent: Latent, context: Context) -> Condition:
        value = latent.value
        if isinstance(latent.distribution, Product):
            bits = latent.distribution.components[1]
            assert isinstance(bits, Bits)
            soft = bits.probabilities
            value = torch.cat((value[..., :1], value[..., 1:] + soft - soft.detach()), dim=-1)
        rows = self.map(value).gather(1, context.site_of[..., None].expand(-1, -1, self.shape.width))
        return Condition({0: BlockCondition(residual=rows)})


PARTS: dict[str, dict[str, type]] = {
    "encoder": {"mixed": MixedEncoder}, "prior": {"mixed": MixedPrior, "far": FarPrior}, "injection": {"mixed": MixedInjection},
}  # fmt: skip


@pytest.fixture(autouse=True)
def offered() -> Any:
    """The parts, in this process."""
    for socket, parts in PARTS.items():
        for name, part in parts.items():
            plugins.register(socket, name, part)
    yield
    for socket, parts in PARTS.items():
        for name in parts:
            plugins.unregister(socket, name)


def subject(prior: str = "mixed") -> Subject:
    sockets = {"encoder": "mixed", "prior": prior, "injection": "mixed", "granularity": "document"}
    return Subject("composed", model=sockets, exact={"event_dims": 3})


@pytest.mark.parametrize("check", [name for name, check in CHECKS.items() if check.group in QUICK])
def test_a_number_and_bits_in_one_site_pass(check: str) -> None:
    try:
        CHECKS[check](subject())
    except NotApplicable as reason:
        pytest.skip(str(reason))


def test_their_values_are_a_grid_times_every_bit() -> None:
    model = subject().exact
    context = model.context(Batch.of([[0, 1, 1]]))
    values, cell = latent_values(model, context)
    assert tuple(values.value.shape) == (141 * 4, 1, 3)
    assert set(values.value[..., 1:].flatten().tolist()) == {0.0, 1.0}
    assert cell == pytest.approx(math.log(0.1))


@pytest.mark.parametrize("check", ["scores_exact_own_encoder", "scores_exact_planted", "sampler_agrees"])
def test_their_scores_are_exact(check: str) -> None:
    CHECKS[check](subject())


def test_real_numbers_that_no_grid_fits_are_not_summed_over() -> None:
    limit = enumeration_limit(subject("far").exact, [0, 1], [1, 1])
    assert limit is not None
    assert "the prior of z (Product) has probability 0.000 on the values that the kit sums over" in limit
    with pytest.raises(NotApplicable, match="write `support` where it is discrete"):
        CHECKS["scores_exact_own_encoder"](subject("far"))


def test_the_exact_value_without_an_error_is_covered() -> None:
    """One chunk holds the whole text, and its code is certain: nothing is drawn."""
    setting = MORE["fsq_document"]
    model = Subject(setting.decoder, model=setting.model, exact=setting.exact).exact
    assert check_coverage(model, [0, 1], [1, 1], samples=8, trials=5) == 1.0
    assert math.isnan(check_shrinking_error(model, [0, 1], [1, 1], samples=8, trials=2))
