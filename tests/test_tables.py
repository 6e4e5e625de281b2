"""The post-sampler tables: each kind against the explicit table of all 2^H rows that it stands for.

Run: ``pytest tests/test_tables.py``
"""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from latentlm_free.mapper import bits_of, codes, lookup
from latentlm_free.table import AdditiveTable, FullTable, GroupedTable, Kind, Table, make_table

KINDS = get_args(Kind)
BITS, WIDTH = 7, 6  # groups of 3: the last one has a single bit


def built(kind: Kind, bits: int = BITS, width: int = WIDTH, *, std: float = 1.0, seed: int = 0) -> Table:
    """A table in float64 with its weights set."""
    table = make_table(kind, bits, width, group=3).double()
    table.init_weights(std=std, generator=torch.Generator().manual_seed(seed))
    return table


def explicit_rows(table: Table) -> Tensor:
    """The (2^H, D) table that `table` stands for, written out row by row from its parameters."""
    rows = []
    for code in range(2**table.bits):
        bit = [code >> h & 1 for h in range(table.bits)]
        if isinstance(table, FullTable):
            rows.append(table.weight[code])
        elif isinstance(table, AdditiveTable):
            rows.append(sum(((2 * b - 1) * v for b, v in zip(bit, table.weight, strict=True)), torch.zeros(())))
        else:
            assert isinstance(table, GroupedTable)
            groups = [bit[start : start + 3] for start in range(0, table.bits, 3)]
            numbers = [sum(b << h for h, b in enumerate(group)) for group in groups]
            rows.append(torch.stack([w[n] for w, n in zip(table.weights, numbers, strict=True)]).sum(0))
    return torch.stack(rows)


def latents(bits: int = BITS, rows: int = 2, sites: int = 5) -> tuple[Tensor, Tensor]:
    """Bits (R, S, H) and the logits that they were drawn from, in float64."""
    generator = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(rows, sites, bits, generator=generator, dtype=torch.float64)
    sampled = (torch.rand(rows, sites, bits, generator=generator) < logits.sigmoid()).double()
    return sampled, logits.requires_grad_()


@pytest.mark.parametrize("kind", KINDS)
def test_value_is_the_row_of_the_explicit_table(kind: Kind) -> None:
    table = built(kind)
    sampled, logits = latents()
    expected = explicit_rows(table)[codes(sampled)]
    torch.testing.assert_close(table(sampled, logits), expected, rtol=0, atol=1e-12)
    assert torch.equal(table(sampled, None), table(sampled, logits))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_explicit_table(kind: Kind) -> None:
    """Of the logits and of every parameter, through the mapper on the explicit table of all rows."""
    table = built(kind)
    sampled, logits = latents()
    inputs = [logits, *table.parameters()]
    upstream = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    grads = torch.autograd.grad(table(sampled, logits), inputs, upstream)
    expected = torch.autograd.grad(lookup(logits, sampled, explicit_rows(table)), inputs, upstream)
    for grad, exact in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_initialisation_after_a_meta_build_sets_everything(kind: Kind) -> None:
    with torch.device("meta"):
        table = make_table(kind, BITS, WIDTH, group=3)
    assert all(p.is_meta for p in table.parameters())
    assert not list(table.buffers())
    table.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in table.parameters():
            parameter.fill_(torch.nan)
    table.init_weights(std=0.02, generator=torch.Generator().manual_seed(0))
    assert all(torch.isfinite(p).all() for p in table.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_initialisation_is_the_generators_alone(kind: Kind) -> None:
    state = torch.get_rng_state()
    first, again, other = built(kind), built(kind), built(kind, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_starts_with_the_asked_standard_deviation(kind: Kind) -> None:
    every_code = bits_of(torch.arange(2**BITS), BITS)
    rows = built(kind, width=2048, std=0.02)(every_code, None)  # (128, 2048)
    assert rows.std().item() == pytest.approx(0.02, rel=0.05)
    assert rows.mean().item() == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("bits", [8, 10])
def test_additive_initialisation_gives_the_encoder_its_gradient(bits: int) -> None:
    """sqrt(2^H / H) times that of independent rows: 5.7 at 8 bits, 10.1 at 10; within a quarter, near p = 1/2."""
    generator = torch.Generator().manual_seed(3)
    logits = (0.1 * torch.randn(1, 64, bits, generator=generator)).double().requires_grad_()
    sampled = torch.randint(2, (1, 64, bits), generator=generator)
    upstream = torch.randn(1, 64, 512, generator=generator).double()

    def strength(kind: Kind) -> float:
        rows = built(kind, bits, 512, std=0.02)(sampled, logits)
        return torch.autograd.grad(rows, logits, upstream)[0].norm().item()

    ratio = strength("full-additive") / strength("full")
    assert ratio == pytest.approx(math.sqrt(2**bits / bits), rel=0.25)


def test_additive_rows_start_alike_in_both_kinds() -> None:
    free, tied = built("full-additive"), built("additive")
    assert isinstance(free, FullTable)
    torch.testing.assert_close(free.weight, explicit_rows(tied), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_table_keeps_its_dtype_and_value(kind: Kind) -> None:
    table = built(kind).bfloat16()
    sampled, logits = latents()
    rows = table(sampled, logits.float())
    assert rows.dtype == torch.bfloat16
    assert torch.equal(rows, table(sampled, None))
    torch.testing.assert_close(rows.double(), explicit_rows(table.double())[codes(sampled)], rtol=0.01, atol=0.01)
    rows.sum().backward()
    assert logits.grad is not None
    assert logits.grad.count_nonzero() == logits.numel()


@pytest.mark.parametrize("kind", KINDS)
def test_the_default_gradient_is_the_mappers_bit_for_bit(kind: Kind) -> None:
    """As computed before there were other estimators: lookup by groups, tanh for the additive table."""
    table = built(kind).float()
    sampled, logits = latents()
    upstream = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(2))
    narrow = logits.detach().float().requires_grad_()
    if isinstance(table, AdditiveTable):
        mean = torch.tanh(narrow / 2)
        rows = ((2 * sampled.float() - 1) + (mean - mean.detach())) @ table.weight
    elif isinstance(table, GroupedTable):
        groups = zip(narrow.split(table.sizes, -1), sampled.split(table.sizes, -1), table.weights, strict=True)
        parts = [lookup(*group) for group in groups]
        rows = sum(parts[1:], start=parts[0])
    else:
        assert isinstance(table, FullTable)
        rows = lookup(narrow, sampled, table.weight)
    assert torch.equal(table(sampled, narrow), rows)
    inputs = [narrow, *table.parameters()]
    expected = torch.autograd.grad(rows, inputs, upstream)
    found = torch.autograd.grad(table(sampled, narrow), inputs, upstream)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_parameters_are_as_many_as_the_table_says() -> None:
    with torch.device("meta"):
        counts = {kind: sum(p.numel() for p in make_table(kind, 16, 1536, group=6).parameters()) for kind in KINDS}
    grouped = (64 + 64 + 16) * 1536
    assert counts == {"full": 100_663_296, "full-additive": 100_663_296, "grouped": grouped, "additive": 16 * 1536}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sparse", 4), "choose one of full, full-additive, grouped, additive"),
        (("full", 0), "at least one bit"),
        (("full", 25), "limit is 2\\^24"),
    ],
)
def test_misuse_is_refused_with_the_remedy(arguments: tuple[Kind, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_table(*arguments, 8)


def test_a_latent_of_another_width_is_refused() -> None:
    for kind in KINDS:
        with pytest.raises(ValueError, match="bits"):
            built(kind)(torch.zeros(1, 2, BITS + 1), None)
