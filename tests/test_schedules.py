"""KL schedules: budgets and weights against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from latentlm import plugins
from latentlm.composed import build, complete
from latentlm.config import PartSpec
from latentlm.errors import UserError
from latentlm.interface import KLSchedule
from samples import small_config

BIT = math.log(2)
# Two rows, three sites, two dimensions, in bits. Row 1 has two real sites; the third is padding and holds rubbish.
KL_BITS = [[[1.0, 0.0], [0.0, 0.25], [2.0, 0.5]], [[0.5, 0.5], [0.0, 0.0], [9.0, 9.0]]]
SITES = torch.tensor([[True, True, True], [True, True, False]])
TARGETS = torch.tensor([[True, True, True, True], [True, True, False, False]])  # N = 6
RECONSTRUCTION = torch.zeros(2, 4)


def schedule(name: str, **settings: object) -> KLSchedule:
    cls = plugins.get("kl_schedule", name)
    return cls(cls.Config(**settings))


def kl(rubbish: float = 9.0) -> Tensor:
    values = torch.tensor(KL_BITS, dtype=torch.float64) * BIT
    values[1, 2] = rubbish
    return values


def cost(part: KLSchedule, nats: Tensor, *, step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    return part.penalty(nats, RECONSTRUCTION, SITES, TARGETS, step=step)


# Over the budget of half a bit, by level, in bits summed over the batch:
#   dimension  1 - 1/2 and 2 - 1/2                        = 2         (each dimension has its own half bit)
#   site       1 - 1/2, 2.5 - 1/2 and 1 - 1/2             = 3
#   sequence   3.75 - 3/2 and 1 - 2/2                     = 2.25
#   batch      4.75 - 5/2                                 = 2.25
LEVELS = [("dimension", 2.0, 8 / 10), ("site", 3.0, 2 / 5), ("sequence", 2.25, 1 / 2), ("batch", 2.25, 0.0)]


@pytest.mark.parametrize(("level", "bits", "within"), LEVELS)
def test_free_bits_grant_the_budget_at_their_level(level: str, bits: float, within: float) -> None:
    penalty, logs = cost(schedule("free_bits", bits=0.5, level=level), kl())
    assert float(penalty) == pytest.approx(bits * BIT / 6)
    assert float(logs["within_budget"]) == pytest.approx(within)
    assert float(logs["free_bits_nats"]) == pytest.approx(0.5 * BIT)


def test_a_budget_that_falls_does_so_by_the_same_factor_in_each_step() -> None:
    part = schedule("free_bits", bits=0.25, start_bits=1.0, hold=10, fall=20)
    steps = {0: 1.0, 10: 1.0, 20: 0.5, 25: 2**-1.5, 30: 0.25, 10**6: 0.25}
    for step, bits in steps.items():
        assert float(cost(part, kl(), step=step)[1]["free_bits_nats"]) == pytest.approx(bits * BIT)
    constant = cost(schedule("free_bits", bits=0.25), kl(), step=3)[0]
    assert torch.equal(cost(part, kl(), step=30)[0], constant)
    assert float(cost(part, kl(), step=0)[0]) < float(constant)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hold": 3}, "set start_bits"),
        ({"fall": 3}, "set start_bits"),
        ({"start_bits": 1.0}, "would last for no step"),
        ({"start_bits": 1.0, "fall": 3, "bits": 0.0}, "set bits above 0"),
    ],
)
def test_a_fall_that_would_do_nothing_is_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schedule("free_bits", **settings)


def test_a_row_within_its_budget_does_not_pay_for_another() -> None:
    nats = torch.tensor([[[4.0], [0.0], [0.0]], [[0.0], [0.0], [0.0]]], dtype=torch.float64) * BIT
    bits = {level: float(cost(schedule("free_bits", bits=1.0, level=level), nats)[0]) * 6 / BIT for level, _, _ in LEVELS}
    assert bits == pytest.approx({"dimension": 3.0, "site": 3.0, "sequence": 1.0, "batch": 0.0})


def test_the_hinge_comes_before_the_mean() -> None:
    # One site over the budget and one under, on average just at it: averaging first would call it free.
    nats = torch.tensor([[[1.0], [0.0], [0.5]], [[0.5], [0.5], [0.0]]], dtype=torch.float64) * BIT
    penalty, _ = cost(schedule("free_bits", bits=0.5), nats)
    assert float(nats.sum(-1)[SITES].mean()) == pytest.approx(0.5 * BIT)
    assert float(penalty) == pytest.approx(0.5 * BIT / 6)


@pytest.mark.parametrize("rubbish", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("form", ["hinge", "maximum", "mask"])
@pytest.mark.parametrize("level", [level for level, _, _ in LEVELS])
def test_the_kl_of_padding_counts_for_nothing(level: str, form: str, rubbish: float) -> None:
    part = schedule("free_bits", level=level, form=form)
    expected, logs = cost(part, kl())
    nats = kl(rubbish).requires_grad_()
    penalty, same = cost(part, nats)
    penalty.backward()
    assert float(penalty.detach()) == pytest.approx(float(expected))
    assert {key: float(value) for key, value in logs.items()} == {key: float(value) for key, value in same.items()}
    assert nats.grad is not None
    assert torch.equal(nats.grad[1, 2], torch.zeros(2, dtype=torch.float64))
    assert nats.grad.isfinite().all()


# The same sites, under max(kappa, KL) and 1[KL > kappa] KL: the hinge's bits plus the budgets of all units, or of those above.
#   dimension  2 + 10/2 and 1 + 2      site  3 + 5/2 and 3 + 3/2      sequence, batch  all above: 2.25 + 5/2 = 4.75
FORMS = [("dimension", 7.0, 3.0), ("site", 5.5, 4.5), ("sequence", 4.75, 3.75), ("batch", 4.75, 4.75)]


@pytest.mark.parametrize(("level", "maximum", "mask"), FORMS)
def test_maximum_and_mask_against_numbers(level: str, maximum: float, mask: float) -> None:
    for form, bits in (("maximum", maximum), ("mask", mask)):
        penalty, logs = cost(schedule("free_bits", bits=0.5, level=level, form=form), kl())
        assert float(penalty) == pytest.approx(bits * BIT / 6), form
        _, of_hinge = cost(schedule("free_bits", bits=0.5, level=level), kl())
        assert logs == of_hinge, "what is free does not depend on the form"


@pytest.mark.parametrize("level", [level for level, _, _ in LEVELS])
def test_the_three_forms_have_one_gradient(level: str) -> None:
    found = []
    for form in ("hinge", "maximum", "mask"):
        nats = kl().requires_grad_()
        cost(schedule("free_bits", bits=0.5, level=level, form=form), nats)[0].backward()
        found.append(nats.grad)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert found[0].abs().sum() > 0


def test_no_gradient_below_the_budget_and_one_over_n_above_it() -> None:
    nats = kl().requires_grad_()
    cost(schedule("free_bits", bits=0.5), nats)[0].backward()
    above = torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    assert nats.grad is not None
    torch.testing.assert_close(nats.grad, (above / 6)[..., None].expand_as(nats))


def test_a_kl_that_does_not_factorise_is_taken_as_one_dimension() -> None:
    nats = kl().sum(-1, keepdim=True)
    site, _ = cost(schedule("free_bits", bits=0.5), nats)
    dimension, _ = cost(schedule("free_bits", bits=0.5, level="dimension"), nats)
    assert float(site) == float(dimension) == pytest.approx(3.0 * BIT / 6)


def test_constant_weight_multiplies_the_whole_kl() -> None:
    penalty, logs = cost(schedule("constant", weight=0.25), kl(), step=12)
    assert float(penalty) == pytest.approx(0.25 * 4.75 * BIT / 6)
    assert float(logs["kl_weight"]) == 0.25


@pytest.mark.parametrize(("step", "weight"), [(0, 0.0), (1, 0.02), (5, 0.1), (10, 0.2), (11, 0.2), (1000, 0.2)])
def test_linear_warmup_reaches_its_end_and_stays(step: int, weight: float) -> None:
    penalty, logs = cost(schedule("linear", steps=10, end=0.2), kl(), step=step)
    assert float(logs["kl_weight"]) == pytest.approx(weight)
    assert float(penalty) == pytest.approx(weight * 4.75 * BIT / 6)


# Fu et al. 2019 with M = 4 cycles and R = 0.5 over 80 steps: a period of 20, rising over the first 10 of each.
CYCLE = [(0, 0.0), (1, 0.1), (5, 0.5), (9, 0.9), (10, 1.0), (19, 1.0), (20, 0.0), (25, 0.5), (39, 1.0), (40, 0.0), (63, 0.3),
         (79, 1.0), (80, 1.0), (85, 1.0), (100, 1.0)]  # fmt: skip


@pytest.mark.parametrize(("step", "weight"), CYCLE)
def test_cyclical_weight_rises_in_every_cycle(step: int, weight: float) -> None:
    _, logs = cost(schedule("cyclical", steps=80, cycles=4, ratio=0.5), kl(), step=step)
    assert float(logs["kl_weight"]) == pytest.approx(weight)


def test_cyclical_weight_of_a_period_that_is_no_whole_number() -> None:
    # P = 10 / 4 = 2.5: step 4 is 1.5 into its cycle, past the rise; step 3 is 0.5 in, 0.5 / 1.25 of the way up.
    weights = [float(cost(schedule("cyclical", steps=10), kl(), step=step)[1]["kl_weight"]) for step in (3, 4, 5)]
    assert weights == pytest.approx([0.4, 1.0, 0.0])


@pytest.mark.parametrize(
    ("ramp", "quarter", "half"),
    [("sigmoid", 1 / (1 + math.exp(3.0)), 0.5), ("cosine", 0.5 - math.sqrt(0.5) / 2, 0.5)],
)
def test_the_other_ramps_of_a_cycle(ramp: str, quarter: float, half: float) -> None:
    """80 steps, 4 cycles, R = 1/2, up to 0.4: a rise of 10 steps, so a quarter of it is at step 5 of 20 in two cycles' time."""
    part = schedule("cyclical", steps=160, end=0.4, ramp=ramp)  # periods of 40, rising over 20
    weights = [float(cost(part, kl(), step=step)[1]["kl_weight"]) / 0.4 for step in (5, 10, 20, 39, 45, 160)]
    assert weights == pytest.approx([quarter, half, 1.0, 1.0, quarter, 1.0])


@pytest.mark.parametrize(("step", "weight"), [(0, 0.2 / (1 + math.exp(5.0))), (50, 0.1), (60, 0.2 / (1 + math.exp(-1.0)))])
def test_sigmoid_annealing_is_a_logistic_curve(step: int, weight: float) -> None:
    penalty, logs = cost(schedule("sigmoid", midpoint=50, rate=0.1, end=0.2), kl(), step=step)
    assert float(logs["kl_weight"]) == pytest.approx(weight)
    assert float(penalty) == pytest.approx(weight * 4.75 * BIT / 6)


def test_sigmoid_annealing_does_not_overflow() -> None:
    part = schedule("sigmoid", midpoint=1e6, rate=1.0)
    assert float(cost(part, kl(), step=0)[1]["kl_weight"]) == 0.0
    assert float(cost(part, kl(), step=2_000_000)[1]["kl_weight"]) == 1.0


# One cycle of 80 steps: 40 at zero, 20 rising, 20 held. Above lambda = 0.4 bits per dimension lie 1, 2, 0.5, 0.5 and 0.5 bits.
@pytest.mark.parametrize(("step", "weight"), [(0, 0.0), (39, 0.0), (40, 0.0), (45, 0.5), (60, 2.0), (79, 2.0), (80, 2.0)])
def test_optimus_is_zero_then_rises_then_is_held(step: int, weight: float) -> None:
    penalty, logs = cost(schedule("optimus", steps=80, end=2.0, bits=0.4), kl(), step=step)
    assert float(logs["kl_weight"]) == pytest.approx(weight)
    assert float(penalty) == pytest.approx(weight * 4.5 * BIT / 6)


def test_optimus_in_several_cycles() -> None:
    part = schedule("optimus", steps=80, cycles=4, zero=0.2, rising=0.4)  # periods of 20: 4 at zero, 8 rising
    weights = [float(cost(part, kl(), step=step)[1]["kl_weight"]) for step in (3, 8, 12, 19, 20, 28)]
    assert weights == pytest.approx([0.0, 0.5, 1.0, 1.0, 0.0, 0.5])


def test_the_threshold_of_optimus_is_per_dimension() -> None:
    nats = kl().requires_grad_()
    cost(schedule("optimus", steps=1, bits=0.4), nats, step=1)[0].backward()
    above = torch.tensor([[[1, 0], [0, 0], [1, 1]], [[1, 1], [0, 0], [0, 0]]], dtype=torch.float64)
    torch.testing.assert_close(nats.grad, above / 6)


# Distances from a capacity of half a bit, by level: |1 - 1/2| + ... as for free bits, and the deficits on top.
#   dimension  1/2 1/2 1/2 1/4 3/2 0 and 0 0 1/2 1/2 = 4.25      site  1/2 1/4 2 and 1/2 1/2 = 3.75      row, batch  2.25
@pytest.mark.parametrize(("level", "bits"), [("dimension", 4.25), ("site", 3.75), ("sequence", 2.25), ("batch", 2.25)])
def test_capacity_is_a_distance_at_its_level(level: str, bits: float) -> None:
    penalty, logs = cost(schedule("capacity", bits=1.0, steps=10, gamma=3.0, level=level), kl(), step=5)
    assert float(logs["capacity_nats"]) == pytest.approx(0.5 * BIT)
    assert float(penalty) == pytest.approx(3.0 * bits * BIT / 6)


@pytest.mark.parametrize(("step", "bits"), [(0, 0.0), (1, 0.4), (10, 4.0), (11, 4.0)])
def test_capacity_rises_with_the_step_and_stays(step: int, bits: float) -> None:
    _, logs = cost(schedule("capacity", bits=4.0, steps=10), kl(), step=step)
    assert float(logs["capacity_nats"]) == pytest.approx(bits * BIT)


def test_capacity_pushes_up_what_is_below_and_down_what_is_above() -> None:
    nats = kl().requires_grad_()
    cost(schedule("capacity", bits=0.5, steps=1, gamma=2.0, level="site"), nats, step=1)[0].backward()
    signs = torch.tensor([[1.0, -1.0, 1.0], [1.0, -1.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(nats.grad, (signs * 2.0 / 6)[..., None].expand_as(nats))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"name": "free_bits", "bit": 1.0}, 'Did you mean "bits"'),
        ({"name": "cyclical", "cycle": 3}, 'Did you mean "cycles"'),
        ({"name": "free_bit"}, 'Did you mean "free_bits"'),
        ({"name": "free_bits", "level": "token"}, "dimension"),
        ({"name": "cyclical", "ratio": 0.0}, "ratio"),
        ({"name": "cyclical", "ramp": "line"}, "linear"),
        ({"name": "free_bits", "form": "max"}, "maximum"),
        ({"name": "optimus", "zero": 0.8, "rising": 0.3}, "shares of one cycle"),
        ({"name": "control_vae", "smallest": 2.0}, "above largest"),
        ({"name": "geco", "smoothing": 1.0}, "smoothing"),
        ({"name": "minimum_desired_rate", "bit": 1.0}, 'Did you mean "bits"'),
    ],
)
def test_unknown_settings_are_refused_with_the_nearest(spec: dict[str, object], words: str) -> None:
    config = small_config("free").model_copy(update={"kl_schedule": PartSpec.model_validate(spec)})
    with pytest.raises(UserError, match=words):
        complete(config)


def test_a_model_takes_the_schedule_that_its_configuration_names() -> None:
    spec = PartSpec.model_validate({"name": "free_bits", "bits": 2.0, "level": "sequence"})
    model = build(small_config("free").model_copy(update={"kl_schedule": spec}), device="meta")
    assert model.kl_schedule is not None
    assert (model.kl_schedule.config.bits, model.kl_schedule.config.level) == (2.0, "sequence")
