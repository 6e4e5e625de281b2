"""A decoder that sees z alone, through a third party's injection: with an estimator whose slope is right on the coin it needs z
for what the text shows of it, and its likelihood is the data's; with the straight-through it ends where the algebra says."""

from __future__ import annotations

import pytest
import torch

from benchmarks import coin
from latentlm.composed import ComposedDecoder
from latentlm.interface import Batch, Latent


@pytest.fixture(scope="module")
def models() -> dict[str, ComposedDecoder]:
    """Trained for 15 seconds each."""
    return {estimator: coin.told(estimator, seed=0) for estimator in ("reinmax", "exact")}


@pytest.mark.conformance
def test_the_decoder_is_told_z_and_sees_no_toss(models: dict[str, ComposedDecoder]) -> None:
    model = models["exact"]
    context = model.context(Batch.of(coin.rows_of([b"H" * 15, b"T" * 15])))
    with torch.no_grad():
        same, other = (model.logits(model.hidden(context, Latent(torch.full((2, 1, 1), bit)))) for bit in (0.0, 1.0))
    torch.testing.assert_close(same[0], same[1])
    assert float((same - other).abs().max()) > 0.5


@pytest.mark.conformance
@pytest.mark.parametrize(("estimator", "wanted"), [("reinmax", coin.optimum()), ("exact", coin.fixed_point())])
def test_training_ends_where_the_closed_form_says(
    models: dict[str, ComposedDecoder], estimator: str, wanted: dict[str, float]
) -> None:
    found = coin.measured(models[estimator], seed=1)
    assert found["kl"] == pytest.approx(wanted["kl"], abs=0.06)
    assert found["given_z"] == pytest.approx(wanted["given_z"], abs=0.15)
    assert found["above"] == pytest.approx(wanted["above"], abs=0.04)


def test_the_two_ends_are_far_apart() -> None:
    right, biased = coin.optimum(), coin.fixed_point()
    assert right["kl"] - biased["kl"] > 0.25
    assert biased["above"] > 0.05
    assert biased["kl"] + biased["given_z"] > sum(right.values()) + 0.25
