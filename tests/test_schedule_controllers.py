"""Schedules with a state: each update against numbers worked out by hand, and on simulated plants."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from latentlm import plugins
from latentlm.interface import KLSchedule

BIT = math.log(2)
SITES = torch.tensor([[True, True], [True, False]])
TARGETS = torch.tensor([[True, True, True], [True, True, False]])


def schedule(name: str, **settings: object) -> KLSchedule:
    cls = plugins.get("kl_schedule", name)
    return cls(cls.Config(**settings))


def step(part: KLSchedule, *, kl: float, cross_entropy: float = 0.0, number: int = 0) -> float:
    """One optimiser step in which sites have a KL of `kl` nats on average and tokens a cross-entropy of `cross_entropy` nats;
    returns the penalty in nats per target token. Three sites, five targets."""
    nats = torch.tensor([[[2.0], [0.5]], [[0.5], [math.nan]]], dtype=torch.float64) * kl
    losses = torch.tensor([[3.0, 0.0, 1.0], [1.0, 0.0, 77.0]], dtype=torch.float64) * cross_entropy
    penalty, _ = part.penalty(nats, losses, SITES, TARGETS, step=number)
    part.advance(number)
    return float(penalty)


def weight(part: KLSchedule) -> float:
    _, logs = part.penalty(torch.zeros(1, 1, 1).double(), torch.zeros(1, 1), SITES[:1, :1], TARGETS[:1, :1], step=-1)
    return float(logs["kl_weight"])


# ---------------------------------------------------------------------------------------------------------- by hand


def test_minimum_desired_rate_by_hand() -> None:
    part = schedule("minimum_desired_rate", bits=1.0, rate=0.5, start=0.25)
    # KL + u (r - KL) with u = 1/4, over three sites of 0.4 nats on average and five targets
    assert step(part, kl=0.4) == pytest.approx((3 * 0.4 + 0.25 * (3 * BIT - 3 * 0.4)) / 5)
    multiplier = 0.25 + 0.5 * (BIT - 0.4)
    assert part.state_dict() == pytest.approx({"multiplier": multiplier})
    assert step(part, kl=2.0, number=1) == pytest.approx((6.0 + multiplier * (3 * BIT - 6.0)) / 5)
    assert part.state_dict() == {"multiplier": 0.0}, "0.40 - 0.65 is projected"
    assert weight(part) == 1.0, "the ELBO"


def test_minimum_desired_rate_begins_as_the_authors_do() -> None:
    assert schedule("minimum_desired_rate").state_dict() == {"multiplier": 1.01}


def test_control_vae_by_hand() -> None:
    part = schedule("control_vae", bits=3.0, proportional=0.2, integral=0.05, smallest=0.1, largest=0.3)
    assert step(part, kl=1.0) == pytest.approx(0.1 * 3.0 / 5), "beta_min before the first step"
    # The KL is 1.08 nats too low, which asks for 0.1 + 0.051 - 0.054, less than beta_min: the integral is cut to -0.051.
    first = 0.2 / (1 + math.exp(3 * BIT - 1.0))
    assert part.state_dict() == pytest.approx({"beta": 0.1, "integral": -first})
    step(part, kl=3.0, number=1)
    second = 0.2 / (1 + math.exp(3 * BIT - 3.0))
    integral = -first - 0.05 * (3 * BIT - 3.0)
    assert part.state_dict() == pytest.approx({"beta": 0.1 + second + integral, "integral": integral})
    assert 0.1 < part.state_dict()["beta"] < 0.3


def test_the_weight_of_control_vae_stays_in_bounds_and_its_integral_does_not_wind_up() -> None:
    part = schedule("control_vae", bits=1.0, integral=0.1)
    for number in range(1000):
        step(part, kl=50.0, number=number)
    wound = part.state_dict()["integral"]
    assert part.state_dict()["beta"] == 1.0
    assert wound == pytest.approx(0.99), "without anti-windup it would be near 5,000"
    for number in range(1000, 1200):
        step(part, kl=0.0, number=number)
    assert part.state_dict()["beta"] == 0.0, "and it comes back: 0.07 a step"
    assert part.state_dict()["integral"] > -0.01


def test_geco_by_hand() -> None:
    part = schedule("geco", cross_entropy_bits=1.0, smoothing=0.75, rate=0.5)
    assert step(part, kl=0.4, cross_entropy=2.0) == pytest.approx(3 * 0.4 / 5), "lambda begins at 1"
    first = 2.0 - BIT
    assert part.state_dict() == pytest.approx({"lambda": math.exp(0.5 * first), "constraint": first, "updates": 1})
    assert step(part, kl=0.4, cross_entropy=0.5, number=1) == pytest.approx(3 * 0.4 / 5 / math.exp(0.5 * first))
    second = 0.75 * first + 0.25 * (0.5 - BIT)
    expected = {"lambda": math.exp(0.5 * (first + second)), "constraint": second, "updates": 2}
    assert part.state_dict() == pytest.approx(expected)


def test_geco_stays_finite() -> None:
    part = schedule("geco", rate=1.0)
    for number in range(100):
        step(part, kl=1.0, cross_entropy=1000.0, number=number)
    assert part.state_dict()["lambda"] == pytest.approx(1e6)


def test_the_cross_entropy_is_that_of_the_targets() -> None:
    """77 nats outside the target mask, and a NaN at a padded site, are not seen."""
    part = schedule("geco", cross_entropy_bits=0.0)
    step(part, kl=1.0, cross_entropy=1.0)
    assert part.state_dict()["constraint"] == pytest.approx(1.0)


# ---------------------------------------------------------------------------------------------------- simulated plants


def plant(part: KLSchedule, steps: int, *, marginal: Callable[[float], float], start: float = 0.0) -> list[tuple[float, float]]:
    """A latent whose KL climbs by what a nat of it saves in cross-entropy, less its weight; the cross-entropy follows.

    KL <- max(0, KL + 0.05 (marginal(KL) - weight)), cross-entropy = 3 - integral of marginal = 3 - (1 - exp(-KL))
    for marginal(KL) = exp(-KL). Returns (KL, cross-entropy) of each step, nats."""
    kl, path = start, []
    for number in range(steps):
        charged = weight(part)
        kl = max(0.0, kl + 0.05 * (marginal(kl) - charged))
        cross_entropy = 3.0 - (1.0 - math.exp(-kl))
        path.append((kl, cross_entropy))
        step(part, kl=kl, cross_entropy=cross_entropy, number=number)
    return path


def saving(kl: float) -> float:
    return math.exp(-kl)


@pytest.mark.parametrize("start", [0.0, 3.0])
@pytest.mark.parametrize(
    ("name", "settings"),
    [("minimum_desired_rate", {"rate": 0.01}), ("control_vae", {"integral": 0.005})],
)
def test_the_set_point_is_reached(name: str, settings: dict[str, float], start: float) -> None:
    part = schedule(name, bits=2.0, **settings)
    path = plant(part, 6000, marginal=saving, start=start)
    assert [kl for kl, _ in path[-500:]] == pytest.approx([2 * BIT] * 500, rel=0.02)
    assert weight(part) == pytest.approx(math.exp(-2 * BIT), rel=0.1), "what the last nat saves"


def test_minimum_desired_rate_leaves_more_alone() -> None:
    """Where the ELBO by itself keeps a higher rate than the minimum, the multiplier falls to 0."""
    part = schedule("minimum_desired_rate", bits=1.0, rate=0.01)
    path = plant(part, 6000, marginal=lambda kl: 3.0 * math.exp(-kl))
    assert part.state_dict()["multiplier"] == 0.0
    assert path[-1][0] == pytest.approx(math.log(3.0), rel=0.02)


def test_only_the_multiplier_lifts_a_latent_that_saves_nothing() -> None:
    """A decoder that ignores its latent: marginal(KL) = 0. Free bits and ControlVAE have nothing to push with."""

    def lifted(name: str, **settings: float) -> float:
        return plant(schedule(name, bits=2.0, **settings), 3000, marginal=lambda kl: 0.0)[-1][0]

    assert lifted("minimum_desired_rate", rate=0.01) > BIT
    assert lifted("control_vae", integral=0.005) == 0.0


def test_geco_reaches_its_target() -> None:
    target = 3.0 - (1.0 - math.exp(-1.0))  # a KL of one nat reaches it
    part = schedule("geco", cross_entropy_bits=target / BIT, smoothing=0.9, rate=0.05)
    path = plant(part, 6000, marginal=saving)
    assert path[-1] == pytest.approx((1.0, target), rel=0.02)


def test_a_hinge_does_not_push_below_its_budget() -> None:
    """The penalty's gradient on the sites of a collapsed latent is exactly zero; capacity's and the multiplier's are not."""
    gradients = {}
    for name, settings in {"free_bits": {}, "capacity": {"bits": 2.0, "steps": 1}, "minimum_desired_rate": {}}.items():
        nats = torch.full((2, 2, 3), 1e-4, dtype=torch.float64, requires_grad=True)
        schedule(name, **settings).penalty(nats, torch.zeros(2, 3), SITES, TARGETS, step=1)[0].backward()
        assert nats.grad is not None
        gradients[name] = nats.grad[SITES]
    assert not gradients["free_bits"].any()
    assert (gradients["capacity"] < 0).all()
    assert (gradients["minimum_desired_rate"] < 0).all()
