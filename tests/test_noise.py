"""Keyed noise: site by site equals all sites at once, whatever the row's offset."""

from __future__ import annotations

import pytest
import torch

from latentlm.interface import Noise
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
