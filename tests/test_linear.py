"""Linear layers by oneDNN: the numbers of PyTorch's own, forward and back, compiled and not; and where it is not asked.

Run: ``pytest tests/test_linear.py``
"""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from latentlm.backbone import linear as products
from latentlm.backbone.linear import Linear, linear

INPUTS, OUTPUTS = 64, 65
pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")


@pytest.fixture(autouse=True)
def one_dnn(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor on which it is faster."""
    monkeypatch.setattr(products, "ONE_DNN", True)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """Rows, inputs and outputs of the products that oneDNN has made."""
    seen: list[tuple[int, int, int]] = []
    product = products._one_dnn

    def watched(x: Tensor, weight: Tensor) -> Tensor:
        seen.append((*x.shape, len(weight)))
        return product(x, weight)

    monkeypatch.setattr(products, "_one_dnn", watched)
    return seen


def matrices(*rows: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*(rows or (4, 128)), INPUTS, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(OUTPUTS, INPUTS, generator=generator).to(dtype).requires_grad_()
    return x, weight


def near(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-6 * float(theirs.detach().abs().max()))


@pytest.mark.parametrize("rows", [512, 513, 1024, 1300, 1999])
def test_value_gradient_and_second_gradient_are_those_of_pytorch(rows: int, asked: list[tuple[int, int, int]]) -> None:
    x, weight = matrices(rows)
    found = []
    for product in (linear, F.linear):
        y = product(x, weight)
        first = torch.autograd.grad(y.square().sum(), [x, weight], create_graph=True)
        second = torch.autograd.grad(sum(each.square().sum() for each in first), [x, weight])
        found.append([y, *first, *second])
    assert len(asked) >= 5
    for ours, theirs in zip(*found, strict=True):
        near(ours, theirs)


def test_onednn_meets_few_numbers_of_rows(asked: list[tuple[int, int, int]]) -> None:
    """For each it keeps memory of the result's size."""
    x, weight = matrices(2100)
    for rows in range(505, 2100, 7):
        torch.autograd.grad(linear(x[:rows], weight).sum(), [x, weight])
    assert {rows for rows, _, outputs in asked if outputs != INPUTS} <= {16, 32, 64, 128, 256, 512, 1024, 2048}
    assert {inputs for _, inputs, outputs in asked if outputs == INPUTS} <= {OUTPUTS, 256, 512, 1024, 2048}


@pytest.mark.parametrize("layout", ["transposed", "overlapping", "one row, many times", "every second column"])
def test_other_layouts_are_taken(layout: str) -> None:
    x, weight = matrices(600)
    x = {
        "transposed": torch.randn(INPUTS, 600).t(),
        "overlapping": torch.randn(600 + INPUTS - 1).unfold(0, INPUTS, 1),
        "one row, many times": torch.randn(1, INPUTS).expand(600, -1),
        "every second column": torch.randn(600, 2 * INPUTS)[:, ::2],
    }[layout]
    ours, theirs = (torch.autograd.grad(product(x, weight).sum(), weight)[0] for product in (linear, F.linear))
    near(ours, theirs)
    near(linear(x, weight), F.linear(x, weight))


def test_only_the_wanted_gradient_is_computed(asked: list[tuple[int, int, int]]) -> None:
    x, weight = matrices(512)
    torch.autograd.grad(linear(x.detach(), weight).sum(), weight)
    torch.autograd.grad(linear(x, weight.detach()).sum(), x)
    rows = (512, INPUTS, OUTPUTS)
    assert asked == [rows, (OUTPUTS, 512, INPUTS), rows, (512, OUTPUTS, INPUTS)]


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.conformance)])
def test_compiled_it_is_the_same_product_in_one_graph(backend: str) -> None:
    compiled = torch.compile(linear, backend=backend, fullgraph=True, dynamic=True)
    torch._dynamo.utils.counters.clear()
    made = []
    for rows in (512, 700, 30, 40):
        x, weight = matrices(rows)
        torch.testing.assert_close(compiled(x, weight), linear(x, weight), rtol=1e-6, atol=1e-5)
        ours, theirs = (torch.autograd.grad(product(x, weight).sum(), [x, weight]) for product in (compiled, linear))
        for mine, other in zip(ours, theirs, strict=True):
            near(mine, other)
        made.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert made == [1, 1, 2, 2]  # one for large products, one for small ones


class Odd(Tensor):
    """A class of its own."""


def test_small_half_cast_odd_and_meta_products_are_left_to_pytorch(asked: list[tuple[int, int, int]]) -> None:
    x, weight = matrices()
    with torch.no_grad():
        linear(x[:1], weight)
        linear(*matrices(dtype=torch.float64))
        linear(*matrices(dtype=torch.bfloat16))
        linear(x.to("meta"), weight.to("meta"))
        linear(x.as_subclass(Odd), weight)
        linear(x, weight.as_subclass(Odd))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert linear(x, weight).dtype == torch.bfloat16
        assert linear(x, weight[0]).shape == (4, 128)  # as PyTorch has it
    for wrong in (weight[None], weight[:, 1:]):
        with pytest.raises(RuntimeError, match=r"dimensions|shapes"):
            linear(x, wrong)
    assert not asked


def test_functional_transforms_and_forward_mode_are_pytorchs(asked: list[tuple[int, int, int]]) -> None:
    x, weight = (each.detach() for each in matrices())
    along = torch.ones_like(x)
    for product in (linear, F.linear):
        _, slope = torch.func.jvp(lambda a, product=product: product(a, weight), (x,), (along,))
        near(slope, along @ weight.t())
        near(torch.func.grad(lambda w, product=product: product(x, w).sum())(weight), x.sum((0, 1)).expand_as(weight))
    with torch.autograd.forward_ad.dual_level():
        dual = linear(torch.autograd.forward_ad.make_dual(x, along), weight)
        near(torch.autograd.forward_ad.unpack_dual(dual).tangent, along @ weight.t())
    assert not asked


def test_a_layer_is_pytorchs_but_for_its_product(asked: list[tuple[int, int, int]]) -> None:
    layer = Linear(INPUTS, OUTPUTS, bias=False)
    assert isinstance(layer, nn.Linear)
    assert list(layer.state_dict()) == ["weight"]
    x, _ = matrices()
    near(layer(x), F.linear(x, layer.weight))
    assert asked == [(512, INPUTS, OUTPUTS)]
    biased = Linear(INPUTS, OUTPUTS)
    assert torch.equal(biased(x), F.linear(x, biased.weight, biased.bias))


def test_operations_are_counted() -> None:
    x, weight = matrices()
    with FlopCounterMode(display=False) as counter:
        linear(x, weight).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 512 * INPUTS * OUTPUTS


@pytest.mark.parametrize(
    ("vendor", "capability", "expected"),
    [("AuthenticAMD", "AVX512", True), ("AuthenticAMD", "AVX2", False), ("GenuineIntel", "AVX512", False)],
)
def test_it_is_taken_where_it_is_faster(
    vendor: str, capability: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_vendor", lambda: vendor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert products._one_dnn_is_faster() == expected
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not products._one_dnn_is_faster()


def test_the_maker_of_the_processor_is_read_or_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda self: False)
    monkeypatch.setattr(platform, "processor", lambda: "AMD64 Family 25 Model 97, AuthenticAMD")
    assert "AuthenticAMD" in products._vendor()
