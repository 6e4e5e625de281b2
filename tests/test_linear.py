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

ROWS, INPUTS, OUTPUTS = (4, 128), 64, 65  # just above SMALLEST
pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")


@pytest.fixture(autouse=True)
def one_dnn(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor on which it is faster."""
    monkeypatch.setattr(products, "ONE_DNN", True)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Shapes of the weights of the products that were asked of oneDNN on the way forward."""
    seen: list[torch.Size] = []
    whole = products._large_and_plain

    def watched(x: Tensor, weight: Tensor) -> bool:
        taken = whole(x, weight)
        if taken:
            seen.append(weight.shape)
        return taken

    monkeypatch.setattr(products, "_large_and_plain", watched)
    return seen


def matrices(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*ROWS, INPUTS, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(OUTPUTS, INPUTS, generator=generator).to(dtype).requires_grad_()
    return x, weight


def test_value_gradient_and_second_gradient_are_those_of_pytorch(calls: list[torch.Size]) -> None:
    x, weight = matrices()
    found = []
    for product in (linear, F.linear):
        y = product(x, weight)
        first = torch.autograd.grad(y.square().sum(), [x, weight], create_graph=True)
        second = torch.autograd.grad(sum(each.square().sum() for each in first), [x, weight])
        found.append([y, *first, *second])
    assert len(calls) > 3  # forward, and back
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6 * float(theirs.detach().abs().max()))


def test_a_gradient_without_strides_is_taken() -> None:
    x, weight = matrices()
    ours, theirs = (torch.autograd.grad(product(x, weight).sum(), [x, weight]) for product in (linear, F.linear))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-4)


def test_only_the_wanted_gradient_is_computed(calls: list[torch.Size]) -> None:
    x, weight = matrices()
    torch.autograd.grad(linear(x.detach(), weight).sum(), weight)
    assert len(calls) == 2


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.conformance)])
def test_compiled_it_is_the_same_product_in_one_graph(backend: str) -> None:
    x, weight = matrices()
    compiled = torch.compile(linear, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(x, weight), linear(x, weight), rtol=0, atol=0)
    ours, theirs = (torch.autograd.grad(product(x, weight).sum(), [x, weight]) for product in (compiled, linear))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-4)


def test_small_half_cast_and_meta_products_are_left_to_pytorch(calls: list[torch.Size]) -> None:
    x, weight = matrices()
    with torch.no_grad():
        linear(x[:1], weight)
        linear(*matrices(torch.float64))
        linear(*matrices(torch.bfloat16))
        linear(x.to("meta"), weight.to("meta"))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert linear(x, weight).dtype == torch.bfloat16
    assert not calls


def test_a_layer_is_pytorchs_but_for_its_product(calls: list[torch.Size]) -> None:
    layer = Linear(INPUTS, OUTPUTS, bias=False)
    assert isinstance(layer, nn.Linear)
    assert list(layer.state_dict()) == ["weight"]
    x, _ = matrices()
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight), rtol=1e-5, atol=1e-5)
    assert calls == [layer.weight.shape]
    biased = Linear(INPUTS, OUTPUTS)
    assert torch.equal(biased(x), F.linear(x, biased.weight, biased.bias))


def test_operations_are_counted() -> None:
    x, weight = matrices()
    with FlopCounterMode(display=False) as counter:
        linear(x, weight).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 4 * 128 * INPUTS * OUTPUTS


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
