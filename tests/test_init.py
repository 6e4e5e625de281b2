"""Normal initialisation in chunks: the same numbers whatever the threads, in any type, and nobody else's random state."""

from __future__ import annotations

import os

import pytest
import torch

from latentlm.backbone import init

LARGE = 3 * init._CHUNK + 17


def filled(dtype: torch.dtype = torch.float32, *, seed: int = 0, numel: int = LARGE, std: float = 0.5) -> torch.Tensor:
    tensor = torch.full((numel,), float("nan"), dtype=dtype)
    init.normal_(tensor, std=std, generator=torch.Generator().manual_seed(seed))
    return tensor


@pytest.mark.parametrize("numel", [1000, LARGE])
def test_a_seed_gives_the_same_numbers(numel: int) -> None:
    assert torch.equal(filled(numel=numel), filled(numel=numel))
    assert not torch.equal(filled(numel=numel), filled(numel=numel, seed=1))


def test_the_number_of_threads_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    several = filled()
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert torch.equal(filled(), several)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_numbers_are_normal_in_every_type(dtype: torch.dtype) -> None:
    drawn = filled(dtype).double()
    assert abs(float(drawn.mean())) < 4 * 0.5 / LARGE**0.5
    assert abs(float(drawn.std()) / 0.5 - 1) < 0.005
    assert abs(float((drawn.abs() < 0.5).double().mean()) - 0.6827) < 0.003


def test_chunks_are_not_copies_of_each_other() -> None:
    first, second, third, _ = filled().split(init._CHUNK)
    assert len({float(first[0]), float(second[0]), float(third[0])}) == 3


def test_a_large_parameter_is_filled_in_place() -> None:
    parameter = torch.nn.Parameter(torch.full((2, LARGE), float("nan")))
    init.normal_(parameter, std=1.0, generator=torch.Generator().manual_seed(0))
    assert bool(parameter.isfinite().all())
    assert parameter.requires_grad


def test_a_transposed_tensor_is_filled_too() -> None:
    tensor = torch.full((LARGE, 2), float("nan")).t()
    init.normal_(tensor, std=1.0, generator=torch.Generator().manual_seed(0))
    assert bool(tensor.isfinite().all())


def test_nothing_happens_on_the_meta_device() -> None:
    init.normal_(torch.empty(LARGE, device="meta"), std=1.0, generator=None)


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    filled()
    assert torch.equal(torch.get_rng_state(), before)
