"""The GPU benchmark's own pieces on a CPU: the numbers are right whatever the card says of their speed."""

from __future__ import annotations

import importlib
import importlib.util
import json

import pytest
import torch

from benchmarks.gpu_kernels import __main__ as gpu
from benchmarks.gpu_kernels import attention, events, head, mapper
from benchmarks.gpu_kernels.events import Bench
from benchmarks.timing import Row, call
from latentlm_free import mapper as binary

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "loss",
    [lambda *x: head.chunked(*x, size=5, one=head.full), lambda *x: head.AtOnce.apply(*x, 5, head.slope_of_logits)],
    ids=["recomputed", "at once"],
)
def test_chunks_of_the_head_give_the_whole_loss_and_gradients(loss: head.Loss) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(12, 8).requires_grad_(), torch.randn(20, 8).requires_grad_()
    targets = torch.randint(20, (12,))
    whole, parts = head.full(hidden, weight, targets), loss(hidden, weight, targets)
    torch.testing.assert_close(parts, whole)
    expected, found = (torch.autograd.grad(3 * value, (hidden, weight)) for value in (whole, parts))
    torch.testing.assert_close(found, expected)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_fused_kernel_gives_dense_autograds_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # before triton is imported: in a process of its own
    errors = call("benchmarks.mapper_triton")
    assert {*errors} == {"float16", "float32"}
    assert max(errors.values()) < 1e-5


def test_a_fast_but_wrong_gradient_is_an_error_not_a_time() -> None:
    torch.manual_seed(0)
    case = mapper.Case(Bench("mapper", CPU, quick=True), tokens=64, bits=8, width=16, sizes=(64, 64))
    right = case.row("right", lambda: case.chunks(binary._exact(False, 64), case.g, case.table), "float32")
    wrong = case.row("wrong", lambda: torch.zeros(64, 8), "float32")
    assert "milliseconds" in right
    assert wrong["error"] == "ValueError: wrong: the relative error is 1.0e+00"


def test_documents_are_runs_that_begin_at_zero() -> None:
    documents = attention.random_documents(3, 400, mean=20)
    assert documents[:, 0].tolist() == [0, 0, 0]
    assert {*documents.diff(dim=1).unique().tolist()} == {0, 1}
    assert 10 < documents[:, -1].float().mean() < 40


@pytest.mark.parametrize("part", gpu.PARTS)
def test_each_part_runs_small_on_a_cpu(part: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(Bench, "compiled", lambda self, function: function)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # neither triton nor xformers has a CPU side
    importlib.import_module(f"benchmarks.gpu_kernels.{part}").run(Bench(part, CPU, quick=True))
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    failed = {row["contender"] for row in rows if "error" in row}
    assert failed == {"attention": {"varlen_attn", "FlexAttention"}, "mapper": {"fused"}}.get(part, set())
    assert all(row.get("equal", True) for row in rows)
    assert max((row.get("error_gradient", 0.0) for row in rows), default=0.0) < 2e-2


def test_a_contender_that_fails_leaves_a_row_that_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> Row:
        raise RuntimeError("no memory\nand a long story")

    row = Bench("s", CPU).row("c", "n", fails, unit="bf16")
    assert row == {"suite": "s", "case": "c", "contender": "n", "unit": "bf16", "error": "RuntimeError: no memory"}
    assert json.loads(capsys.readouterr().out) == row


def test_a_number_that_is_none_is_infinitely_far() -> None:
    assert events.relative(torch.tensor([float("nan")]), torch.ones(1)) == float("inf")


def test_of_variants_the_table_shows_the_fastest_that_worked() -> None:
    def row(name: str, **facts: object) -> Row:
        return {"suite": "s", "case": "c", "contender": name, **facts}

    rows = [row("v1", variant="v", error="e"), row("v2", variant="v", milliseconds=2.0, unit="bf16", teraflop=0.5)]
    rows += [row("v3", variant="v", milliseconds=3.0), row("product, bf16", milliseconds=1.0, teraflops=500.0)]
    lines = gpu.lines(rows)
    assert [line.split()[0] for line in lines] == ["contender", "s:", "v2", "product,"]
    assert lines[2].split() == ["v2", "2.000", "250", "50%"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "no CUDA device: run this on a machine with an NVIDIA GPU" in capsys.readouterr().err.splitlines()[-1]
