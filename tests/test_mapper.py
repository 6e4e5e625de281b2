"""The Binary Mapper against a plainly written dense one: `Y + (G - stopgrad(G))` times the table, by autograd, in float64.

Run: ``pytest tests/test_mapper.py``
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from latentlm_free import mapper
from latentlm_free.mapper import bits_of, codes, lookup

METHODS = ("dense", "blocks")


def dense_reference(logits: Tensor, bits: Tensor, table: Tensor) -> Tensor:
    """The definition, letter by letter: (..., H), (..., H), (2^H, D) -> (..., D), through a matrix of all codes."""
    count = logits.shape[-1]
    probability = torch.ones_like(logits[..., :1])
    one_hot = torch.ones_like(probability)
    for h in range(count):
        p, b = torch.sigmoid(logits[..., h : h + 1]), bits[..., h : h + 1].to(logits.dtype)
        probability = torch.cat([probability * (1 - p), probability * p], dim=-1)
        one_hot = torch.cat([one_hot * (1 - b), one_hot * b], dim=-1)
    return (one_hot + (probability - probability.detach())) @ table


def make_case(
    bits: int, width: int = 7, shape: tuple[int, ...] = (3, 5), dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits of scale 2, their sampled bits, a table and an upstream gradient."""
    generator = torch.Generator().manual_seed(bits)
    logits = 2 * torch.randn(*shape, bits, generator=generator, dtype=torch.float64)
    sampled = (torch.rand(*shape, bits, generator=generator) < logits.sigmoid()).long()
    table = torch.randn(2**bits, width, generator=generator, dtype=torch.float64)
    upstream = torch.randn(*shape, width, generator=generator, dtype=torch.float64)
    return logits.to(dtype).requires_grad_(), sampled, table.to(dtype).requires_grad_(), upstream.to(dtype)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bits", [1, 2, 5, 8, 11])
@pytest.mark.parametrize("block_size", [None, 1, 24])
@pytest.mark.parametrize("token_chunk", [None, 4])
def test_gradients_equal_dense_autograd(
    method: mapper.Method, bits: int, block_size: int | None, token_chunk: int | None
) -> None:
    logits, sampled, table, upstream = make_case(bits)
    rows = lookup(logits, sampled, table, method=method, block_size=block_size, token_chunk=token_chunk)
    grad_logits, grad_table = torch.autograd.grad(rows, [logits, table], upstream)
    expected = torch.autograd.grad(dense_reference(logits, sampled, table), [logits, table], upstream)
    torch.testing.assert_close(grad_logits, expected[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(grad_table, expected[1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", [(), (1,), (2, 3, 4), (0, 5)])
@pytest.mark.parametrize("method", METHODS)
def test_any_number_of_leading_dimensions(method: mapper.Method, shape: tuple[int, ...]) -> None:
    logits, sampled, table, upstream = make_case(3, shape=shape)
    rows = lookup(logits, sampled, table, method=method, token_chunk=5)
    assert rows.shape == (*shape, 7)
    grad_logits, _ = torch.autograd.grad(rows, [logits, table], upstream)
    expected, _ = torch.autograd.grad(dense_reference(logits, sampled, table), [logits, table], upstream)
    torch.testing.assert_close(grad_logits, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_nonlinear_losses_agree_with_central_differences_of_the_expectation(method: mapper.Method) -> None:
    """The gradient is that of E_G[<g, W_d>]: checked without autograd and without the reference above."""
    logits, sampled, table, _ = make_case(4, shape=(3,))
    rows = lookup(logits, sampled, table, method=method)
    g = torch.cos(rows).detach()
    (grad,) = torch.autograd.grad(torch.sin(rows).sum(), logits)

    def expectation(moved: Tensor) -> Tensor:  # (3, 4) -> (3,)
        every = bits_of(torch.arange(16), 4)  # (16, 4)
        probability = torch.where(every.bool(), moved.sigmoid()[:, None], 1 - moved.sigmoid()[:, None]).prod(-1)
        return (probability * (g @ table.detach().T)).sum(-1)

    for h in range(4):
        step = torch.zeros(4, dtype=torch.float64)
        step[h] = 1e-5
        slope = (expectation(logits.detach() + step) - expectation(logits.detach() - step)) / 2e-5
        torch.testing.assert_close(grad[:, h], slope, rtol=0, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_value_is_the_gathered_row_in_every_bit(dtype: torch.dtype) -> None:
    logits, sampled, table, _ = make_case(8, width=64, dtype=dtype)
    rows = lookup(logits, sampled, table)
    assert rows.dtype == dtype
    assert torch.equal(rows, table[codes(sampled)])
    with torch.no_grad():
        assert torch.equal(lookup(logits, sampled, table), rows)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_nobody_drew_have_gradient_exactly_zero(method: mapper.Method, dtype: torch.dtype) -> None:
    logits, sampled, table, upstream = make_case(8, dtype=dtype)
    lookup(logits, sampled, table, method=method).backward(upstream)
    drawn = torch.zeros(256, dtype=torch.bool)
    drawn[codes(sampled).flatten()] = True
    assert table.grad is not None
    assert table.grad[~drawn].count_nonzero() == 0
    assert (table.grad[drawn] != 0).any(-1).all()


def test_float32_gradient_is_near_the_float64_one_at_sixteen_bits() -> None:
    logits, sampled, table, upstream = make_case(16, width=16, shape=(24,), dtype=torch.float32)
    (grad,) = torch.autograd.grad(lookup(logits, sampled, table), logits, upstream)
    precise = logits.double().detach().requires_grad_()
    (expected,) = torch.autograd.grad(dense_reference(precise, sampled, table.double()), precise, upstream.double())
    torch.testing.assert_close(grad.double(), expected, rtol=1e-4, atol=1e-5)


def test_half_precision_table_is_computed_in_float32() -> None:
    """As exact as the bfloat16 operands allow: equal to float32 arithmetic on the same numbers, rounded once."""
    logits, _, table, upstream = make_case(9, width=32, shape=(64,), dtype=torch.bfloat16)
    sampled = bits_of(torch.arange(64) % 3, 9)  # many tokens on each row: sums in bfloat16 would be off
    grads = torch.autograd.grad(lookup(logits, sampled, table), [logits, table], upstream)
    wide = [x.float().detach().requires_grad_() for x in (logits, table)]
    expected = torch.autograd.grad(lookup(wide[0], sampled, wide[1]), wide, upstream.float())
    for grad, exact in zip(grads, expected, strict=True):
        assert grad.dtype == torch.bfloat16
        assert torch.equal(grad, exact.bfloat16())


@pytest.mark.parametrize("method", METHODS)
def test_extreme_logits_keep_their_small_gradient(method: mapper.Method) -> None:
    """p = 1 in float32, yet 1 - p = 2e-9 is not lost; infinite logits give zero, not NaN."""
    logits = torch.tensor([[20.0, -20.0, 0.3, 20.0], [torch.inf, -torch.inf, 0.3, -40.0]], requires_grad=True)
    sampled = (logits > 0).long()
    _, _, table, upstream = make_case(4, shape=(2,), dtype=torch.float32)
    (grad,) = torch.autograd.grad(lookup(logits, sampled, table, method=method), logits, upstream)
    precise = logits.double().detach().requires_grad_()
    (expected,) = torch.autograd.grad(dense_reference(precise, sampled, table.double()), precise, upstream.double())
    torch.testing.assert_close(grad[0].double(), expected[0], rtol=1e-5, atol=1e-15)
    assert torch.isfinite(grad).all()
    assert (grad[1, :2] == 0).all()


def test_only_the_wanted_gradients_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, sampled, table, upstream = make_case(5)

    def forbidden(*_: object) -> Tensor:
        raise AssertionError("work that nobody asked for")

    with monkeypatch.context() as patch:
        patch.setattr(mapper, "_grad_logits", forbidden)
        lookup(logits.detach(), sampled, table).backward(upstream)
        lookup(None, sampled, table).backward(upstream)
    with monkeypatch.context() as patch:
        patch.setattr(mapper, "_grad_table", forbidden)
        lookup(logits, sampled, table.detach()).backward(upstream)
    assert not lookup(logits.detach(), sampled, table.detach()).requires_grad


def test_autocast_leaves_the_gradient_in_float32() -> None:
    logits, sampled, table, upstream = make_case(9, shape=(16,), dtype=torch.float32)
    expected = torch.autograd.grad(lookup(logits, sampled, table), [logits, table], upstream)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        grads = torch.autograd.grad(lookup(logits, sampled, table), [logits, table], upstream)
    assert all(torch.equal(a, b) for a, b in zip(grads, expected, strict=True))


@pytest.mark.parametrize("method", ["dense", "blocks"])
@pytest.mark.parametrize("bits", [3, 9, 11])
def test_scores_in_bfloat16_give_the_same_rows_and_nearly_the_gradient(bits: int, method: mapper.Method) -> None:
    logits, sampled, table, upstream = make_case(bits, shape=(40,), dtype=torch.float32)
    rows = {half: lookup(logits, sampled, table, method=method, block_size=64, half=half) for half in (False, True)}
    assert torch.equal(rows[True], rows[False])
    exact, near = (torch.autograd.grad(rows[half], [logits, table], upstream) for half in (False, True))
    error = (near[0] - exact[0]).norm() / exact[0].norm()
    assert 1e-5 < float(error) < 0.01  # operands have 8 bits of precision
    assert torch.equal(near[1], exact[1])


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.conformance)])
@pytest.mark.parametrize("half", [False, True])
def test_compiled_blocks_give_the_gradient(half: bool, backend: str) -> None:
    logits, sampled, table, upstream = make_case(11, shape=(40,), dtype=torch.float32)
    torch._dynamo.utils.counters.clear()
    grads = []
    for name in (None, backend):
        rows = lookup(logits, sampled, table, block_size=512, token_chunk=25, half=half, backend=name)
        grads.append(torch.autograd.grad(rows, logits, upstream)[0])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # for chunks of 25 tokens and of 15
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-5, atol=1e-5 * float(grads[0].abs().max()))


@pytest.mark.parametrize("bits", [1, 3, 9, 10, 13])
def test_moments_are_the_covariance_and_the_mean_score(bits: int) -> None:
    logits, _, table, upstream = make_case(bits, shape=(4,))
    ones = bits_of(torch.arange(2**bits), bits)
    p = logits.detach().sigmoid()
    probability = torch.where(ones.bool(), p[:, None], 1 - p[:, None]).prod(-1)  # (4, 2^H)
    scores = upstream @ table.detach().T
    covariance, mean = mapper.moments(upstream, logits.detach(), table.detach())
    torch.testing.assert_close(mean, (probability * scores).sum(1), rtol=0, atol=1e-10)
    expected = ((probability * scores)[..., None] * (ones - p[:, None])).sum(1)
    torch.testing.assert_close(covariance, expected, rtol=0, atol=1e-10)


def test_another_estimate_gets_each_chunk_with_its_codes_and_draws() -> None:
    logits, sampled, table, upstream = make_case(3)
    draws = torch.arange(30).view(3, 5, 2)
    seen: list[tuple[Tensor, Tensor]] = []

    def estimate(g: Tensor, l: Tensor, index: Tensor, rows: Tensor, drawn: Tensor | None) -> Tensor:  # noqa: E741
        assert drawn is not None
        assert len(g) == len(l) == len(index) == len(drawn) <= 4
        seen.append((index, drawn))
        return index[:, None] + l

    rows = lookup(logits, sampled, table, estimate=estimate, draws=draws, token_chunk=4)
    (grad,) = torch.autograd.grad(rows, logits, upstream)
    torch.testing.assert_close(grad, codes(sampled)[..., None] + logits.detach())
    assert torch.equal(torch.cat([drawn for _, drawn in seen]), draws.view(15, 2))
    assert torch.equal(torch.cat([index for index, _ in seen]), codes(sampled).flatten())


class _LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest result of any operation."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.numel())
        return result


@contextlib.contextmanager
def _saved_elements() -> Iterator[list[int]]:
    """Collects the sizes of the tensors that the graph keeps for backward."""
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes


@pytest.mark.parametrize("tokens", [64, 640])
def test_blocks_never_hold_tokens_times_all_codes(tokens: int) -> None:
    """At 14 bits: the largest temporary is a chunk of tokens times a block, whatever the number of tokens."""
    logits, sampled, table, upstream = make_case(14, width=1, shape=(tokens,), dtype=torch.float32)
    with _saved_elements() as saved:
        rows = lookup(logits, sampled, table, method="blocks", token_chunk=32, block_size=512)
    assert sum(saved) == tokens * 14 + tokens + table.numel()  # logits, codes, and the table itself
    with _LargestTensor() as largest:
        torch.autograd.grad(rows, [logits, table], upstream)
    assert largest.elements == 32 * 8 * 128  # here the weights (C, 1 + H/2, 2^(H/2)); the block has 32 * 512


def test_auto_is_dense_for_few_bits_and_blocks_for_many(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    dense, blocks = mapper._covariance_dense, mapper._covariance_blocks
    monkeypatch.setattr(mapper, "_covariance_dense", lambda *a, **b: (used.append("dense"), dense(*a, **b))[1])
    monkeypatch.setattr(mapper, "_covariance_blocks", lambda *a, **b: (used.append("blocks"), blocks(*a, **b))[1])
    for bits in (8, 12):
        logits, sampled, table, upstream = make_case(bits)
        lookup(logits, sampled, table).backward(upstream)
    assert used == ["dense", "blocks"]


def test_bit_zero_is_the_least_significant() -> None:
    assert codes(torch.tensor([[1, 0, 0], [0, 0, 1], [1, 1, 1]])).tolist() == [1, 4, 7]
    assert bits_of(torch.tensor(6), 4).tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("bits", [1, 5, 24])
def test_codes_and_bits_are_inverse(bits: int) -> None:
    some = torch.tensor([0, 1, 2**bits - 1])
    assert torch.equal(codes(bits_of(some, bits)), some)


def test_straight_through_bits_that_are_nearly_one_count_as_one() -> None:
    assert codes(torch.tensor([0.99999994, -1e-8, 1.0000001])) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": torch.zeros(2, 25)}, "at most 24"),
        ({"table": torch.zeros(4, 2)}, "a table of 8 rows, but it has 4"),
        ({"logits": torch.zeros(1, 3)}, "must have one shape"),
        ({"method": "sparse"}, "choose 'auto', 'dense' or 'blocks'"),
        ({"block_size": 0}, "block_size must be at least 1"),
        ({"token_chunk": -1}, "token_chunk must be at least 1"),
    ],
)
def test_misuse_is_refused_with_the_remedy(arguments: dict[str, object], message: str) -> None:
    good = {"logits": torch.zeros(2, 3), "bits": torch.zeros(2, 3), "table": torch.zeros(8, 2)}
    with pytest.raises(ValueError, match=message):
        lookup(**(good | arguments))  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("bits", [8, 16])
def test_gpu_gradient_equals_the_cpu_one(bits: int) -> None:
    logits, sampled, table, upstream = make_case(bits, width=32, shape=(100,))
    expected = torch.autograd.grad(lookup(logits, sampled, table), [logits, table], upstream)
    moved = [x.detach().cuda().requires_grad_() for x in (logits, table)]
    grads = torch.autograd.grad(lookup(moved[0], sampled.cuda(), moved[1]), moved, upstream.cuda())
    for grad, exact in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad.cpu(), exact, rtol=0, atol=1e-10)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_sums_of_a_half_precision_table_are_taken_in_float32() -> None:
    _, _, table, upstream = make_case(9, width=32, shape=(64,), dtype=torch.bfloat16)
    sampled = bits_of(torch.arange(64) % 3, 9)
    expected = torch.autograd.grad(lookup(None, sampled, table), table, upstream)[0]
    moved = table.detach().cuda().requires_grad_()
    grad = torch.autograd.grad(lookup(None, sampled.cuda(), moved), moved, upstream.cuda())[0]
    torch.testing.assert_close(grad.cpu().float(), expected.float(), rtol=2**-7, atol=1e-6)
