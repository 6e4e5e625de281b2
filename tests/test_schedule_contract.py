"""What every KL schedule owes the trainer, over all that are registered: a new one gets these tests by its name alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from latentlm import plugins
from latentlm.errors import UserError
from latentlm.interface import KLSchedule

NAMES = sorted(plugins.names("kl_schedule"))
STEPS = (0, 3, 700)
# Settings under which a schedule is affine or acts on each unit: those of the default that pool a micro-batch are changed.
SPLITTABLE = {"capacity": {"level": "site"}}


def schedule(name: str, **settings: object) -> KLSchedule:
    cls = plugins.get("kl_schedule", name)
    return cls(cls.Config(**settings))


def batch(seed: int, *, rows: int = 6, sites: int = 4, events: int = 3, tokens: int = 8) -> tuple[Tensor, ...]:
    """KL (B, S, E), reconstruction (B, T), site mask, target mask; float64, rows of different lengths."""
    draw = torch.Generator().manual_seed(seed)
    kl = torch.rand(rows, sites, events, generator=draw, dtype=torch.float64)
    lengths = torch.randint(1, tokens + 1, (rows,), generator=draw)
    targets = torch.arange(tokens) < lengths[:, None]
    real = torch.arange(sites) < (lengths[:, None] + 1) // 2
    reconstruction = torch.rand(rows, tokens, generator=draw, dtype=torch.float64) * targets
    return kl, reconstruction, real, targets


def trained(name: str, steps: int = 5, **settings: object) -> KLSchedule:
    """A schedule after some steps."""
    part = schedule(name, **settings)
    for step in range(steps):
        part.penalty(*batch(step), step=step)
        part.advance(step)
    return part


def state_after(part: KLSchedule, parts: list[tuple[Tensor, ...]], *, step: int) -> dict[str, float | int]:
    for piece in parts:
        part.penalty(*piece, step=step)
    part.advance(step)
    return part.state_dict()


def test_the_registry_has_the_published_ones() -> None:
    published = {"free_bits", "constant", "linear", "sigmoid", "cyclical", "optimus", "capacity", "minimum_desired_rate"}
    assert published | {"control_vae", "geco"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_works_with_its_defaults_and_says_what_it_is(name: str) -> None:
    part = schedule(name)
    for step in STEPS:
        penalty, logs = part.penalty(*batch(0), step=step)
        assert penalty.shape == ()
        assert penalty.isfinite()
        assert all(value.shape == () and value.isfinite() and not value.requires_grad for value in logs.values())
    text = type(part).__doc__ or ""
    assert "Formula: " in text
    assert "Source: " in text
    described = {key: field.description for key, field in type(part).Config.model_fields.items()}
    assert type(part).Config.__doc__, described


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_that_of_finite_differences(name: str, step: int) -> None:
    part = trained(name)
    kl, *others = batch(11)
    kl.requires_grad_()
    penalty, _ = part.penalty(kl, *others, step=step)
    (gradient,) = torch.autograd.grad(penalty, kl)
    draw = torch.Generator().manual_seed(0)
    direction = torch.randn(kl.shape, generator=draw, dtype=torch.float64) * others[1][..., None]
    up, down = (part.penalty(kl.detach() + sign * 1e-7 * direction, *others, step=step)[0] for sign in (1, -1))
    assert float((up - down) / 2e-7) == pytest.approx(float((gradient * direction).sum()), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("rubbish", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", NAMES)
def test_padding_counts_for_nothing(name: str, rubbish: float) -> None:
    """Neither in the penalty, nor in its gradient, nor in the state that it leads to."""
    kl, reconstruction, real, targets = batch(1)
    dirty = torch.where(real[..., None], kl, torch.tensor(rubbish, dtype=torch.float64)).requires_grad_()
    clean, same = trained(name), trained(name)
    expected, logs = clean.penalty(kl, reconstruction, real, targets, step=5)
    penalty, also = same.penalty(dirty, reconstruction, real, targets, step=5)
    assert torch.equal(penalty, expected)
    assert logs == also
    if penalty.requires_grad:
        penalty.backward()
        assert dirty.grad is not None
        assert dirty.grad.isfinite().all()
        assert not dirty.grad[~real].any()
    clean.advance(5)
    same.advance(5)
    assert clean.state_dict() == same.state_dict()


@pytest.mark.parametrize("name", NAMES)
def test_a_kl_that_does_not_factorise_is_one_dimension(name: str) -> None:
    kl, *others = batch(2)
    part = schedule(name)
    penalty, _ = part.penalty(kl.sum(-1, keepdim=True), *others, step=700)
    assert penalty.isfinite()


@pytest.mark.parametrize("cut", [1, 2, 5])
@pytest.mark.parametrize("name", NAMES)
def test_micro_batches_add_up_to_the_batch(name: str, cut: int) -> None:
    """Penalty and gradient, each micro-batch weighted by its share of the targets; the state that follows, to the last bit."""
    settings = SPLITTABLE.get(name, {})
    whole, split = trained(name, **settings), trained(name, **settings)
    kl, *others = batch(3)
    full = kl.clone().requires_grad_()
    expected, _ = whole.penalty(full, *others, step=5)
    expected.backward()
    pieces = kl.clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for rows in (slice(0, cut), slice(cut, None)):
        reconstruction, real, targets = (tensor[rows] for tensor in others)
        penalty, _ = split.penalty(pieces[rows], reconstruction, real, targets, step=5)
        total = total + penalty * targets.sum() / others[2].sum()
    total.backward()
    assert float(total.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    torch.testing.assert_close(pieces.grad, full.grad, rtol=1e-12, atol=1e-15)
    whole.advance(5)
    split.advance(5)
    assert whole.state_dict() == split.state_dict()


@pytest.mark.parametrize("name", NAMES)
def test_the_state_does_not_depend_on_the_split_or_the_order(name: str) -> None:
    """To the last bit, although floating-point sums depend on their order; ten batches, since they need not each time."""
    for seed in range(20, 30):
        pieces = batch(seed, rows=7)
        rows = [tuple(tensor[row : row + 1] for tensor in pieces) for row in range(7)]
        whole = state_after(trained(name), [pieces], step=5)
        assert state_after(trained(name), rows, step=5) == whole
        assert state_after(trained(name), rows[::-1], step=5) == whole


@pytest.mark.parametrize("name", NAMES)
def test_penalties_leave_the_step_alone(name: str) -> None:
    """The state, and what the same batch costs, are the same before and after any number of penalties."""
    part = trained(name)
    before, first = part.state_dict(), part.penalty(*batch(5), step=5)[0]
    for number in range(4):
        part.penalty(*batch(6 + number), step=5)
    assert part.state_dict() == before
    assert torch.equal(part.penalty(*batch(5), step=5)[0], first)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_that_was_given_up_leaves_no_trace(name: str) -> None:
    part, clean = trained(name), trained(name)
    part.penalty(*batch(8), step=5)
    assert state_after(part, [batch(9)], step=6) == state_after(clean, [batch(9)], step=6)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_without_penalties_moves_nothing(name: str) -> None:
    part = trained(name)
    before = part.state_dict()
    part.advance(5)
    assert part.state_dict() == before


@pytest.mark.parametrize("name", NAMES)
def test_a_state_goes_on_where_it_was(name: str) -> None:
    old = trained(name)
    new = schedule(name)
    new.penalty(*batch(12), step=0)  # what a fresh one saw is not mixed in
    new.load_state_dict(old.state_dict())
    assert all(isinstance(value, int | float) for value in old.state_dict().values())
    for step in range(5, 8):
        assert torch.equal(old.penalty(*batch(step), step=step)[0], new.penalty(*batch(step), step=step)[0])
        old.advance(step)
        new.advance(step)
        assert old.state_dict() == new.state_dict()


@pytest.mark.parametrize("name", NAMES)
def test_the_state_that_was_given_out_is_a_copy(name: str) -> None:
    part = trained(name)
    before = part.state_dict()
    kept = dict(before)
    state_after(part, [batch(9)], step=5)
    assert before == kept


@pytest.mark.parametrize("name", NAMES)
def test_a_state_of_another_schedule_is_refused(name: str) -> None:
    part = trained(name)
    own = part.state_dict()
    with pytest.raises(UserError, match=r"nothing_like_it|no state"):
        part.load_state_dict({**own, "nothing_like_it": 1.0})
    for key in own:
        with pytest.raises(UserError, match=key):
            part.load_state_dict({other: value for other, value in own.items() if other != key})
        with pytest.raises(UserError, match=key):
            part.load_state_dict({**own, key: math.nan})
    assert part.state_dict() == own, "what was refused changed nothing"
