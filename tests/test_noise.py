"""Keyed noise: site by site equals all sites at once, whatever the row's offset."""

from __future__ import annotations

import pytest
import torch

from latentlm.interface import Noise, philox
from latentlm.interface import noise as noise_module


@pytest.mark.parametrize(("offsets", "events"), [([0, 0], 4), ([-20, 7], 5)])
def test_sites_drawn_one_by_one_equal_those_drawn_at_once(offsets: list[int], events: int) -> None:
    noise = Noise.keyed(3, ["a", ("b", 1)]).at(offsets)
    one_by_one = [noise.at(torch.tensor([site, site])).uniform(1, events) for site in range(40)]
    assert torch.equal(torch.cat(one_by_one, dim=1), noise.uniform(40, events))


def test_rows_of_one_key_are_aligned_by_their_offsets() -> None:
    drawn = Noise.keyed(0, ["shared", "shared"]).at([-5, -9]).uniform(20, 3)
    assert torch.equal(drawn[0, 5:16], drawn[1, 9:])
    assert not torch.equal(drawn[0], drawn[1])


def test_numbers_lie_strictly_between_zero_and_one_and_rows_differ() -> None:
    drawn = Noise.keyed(0, range(4)).uniform(500, 8)
    assert 0 < float(drawn.min()) < 1e-3
    assert 1 - 1e-3 < float(drawn.max()) < 1
    assert len(set(drawn[:, 0, 0].tolist())) == 4


def test_equal_rows_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, int]] = []
    draw = noise_module._uniform
    monkeypatch.setattr(noise_module, "_uniform", lambda *of: made.append(of[:2]) or draw(*of))  # type: ignore[func-returns-value]
    noise = Noise.keyed(0, ["a", "b", "a", "a"]).at([0, 0, 0, 1])
    drawn = noise.uniform(5, 3)
    assert len(made) == 3
    assert torch.equal(drawn[0], drawn[2])
    assert torch.equal(drawn[0, 1:], drawn[3, :-1])


_WITH_A_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
OFFSETS = [([0, 3], 16), ([-20, 7], 5), ([2**62, -(2**70)], 4), ([2**64 - 5, -1], 4), ([2**256 - 2, 2**192 - 3], 1)]


@pytest.fixture
def made_there(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The CPU as a device that makes numbers of its own; of each time, how many counter values."""
    made: list[int] = []

    def draw(keys: torch.Tensor, counters: torch.Tensor, count: int) -> torch.Tensor:
        made.append(count)
        return philox.draw(keys, counters, count)

    monkeypatch.setattr(noise_module, "_MAKES_ITS_OWN", {"cpu"})
    monkeypatch.setattr(philox, "_fastest", lambda device: draw)
    return made


@pytest.mark.parametrize(("offsets", "events"), OFFSETS)
def test_what_a_device_makes_is_numpys_to_the_bit(
    offsets: list[int], events: int, made_there: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = Noise.keyed(3, ["a", ("b", 1)]).at(offsets)
    there = noise.uniform(30, events, device="cpu")
    assert made_there == [30 * -(-events // 4)]
    monkeypatch.undo()
    assert torch.equal(there, noise.uniform(30, events))


def test_a_site_that_is_drawn_alone_and_none_at_all_are_not_worth_a_kernel(made_there: list[int]) -> None:
    assert Noise.keyed(0, ["a"]).uniform(1, 3).shape == (1, 1, 3)
    assert Noise.keyed(0, []).uniform(5, 3).shape == (0, 5, 3)
    assert Noise.keyed(0, ["a"]).uniform(5, 0).shape == (1, 5, 0)
    assert not made_there


def test_a_seed_may_be_any_whole_number() -> None:
    seeds = [0, 2**63, 2**64 - 1, -(2**70)]
    assert len({float(Noise.keyed(seed, ["a"]).uniform(1, 1)) for seed in seeds}) == len(seeds)


def test_where_nothing_can_be_compiled_the_numbers_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*given: object, **options: object) -> object:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", lambda function, **options: none)
    philox._fastest.cache_clear()
    noise = Noise.keyed(0, ["a", "b"])
    there = philox.uniform(noise.keys, noise.offsets, 7, 5, device=torch.device("cpu"))
    philox._fastest.cache_clear()
    assert torch.equal(there, noise.uniform(7, 5))


@pytest.mark.conformance
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, _WITH_A_GPU])])
def test_compiled_it_makes_the_same(device: str) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    philox._fastest.cache_clear()
    for (offsets, events), rows in zip(OFFSETS, (2, 4, 8, 2, 16), strict=True):
        noise = Noise.keyed(3, range(rows)).at(offsets * (rows // 2))
        there = philox.uniform(noise.keys, noise.offsets, 3 * rows, events, device=torch.device(device))
        assert there.device.type == device
        assert torch.equal(there.cpu(), noise.uniform(3 * rows, events))
        with torch.inference_mode():
            assert not philox.uniform(noise.keys, noise.offsets, 5, events, device=torch.device(device)).is_inference()
    assert philox._fastest(torch.device(device)) is not philox.draw
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1, "one graph for all sizes"
