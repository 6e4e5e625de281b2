"""The linear recurrence over sites: what it computes, and how memories begin."""

from __future__ import annotations

import torch

from latentlm.composed.recurrence import scan, spread_memories


def test_the_scan_is_the_recurrence() -> None:
    generator = torch.Generator().manual_seed(0)
    keep, add = torch.rand(3, 13, 5, generator=generator), torch.randn(3, 13, 5, generator=generator)
    keep[1, 6] = 0.0  # a document begins
    memory, expected = torch.zeros(3, 5), []
    for site in range(13):
        memory = keep[:, site] * memory + add[:, site]
        expected.append(memory)
    torch.testing.assert_close(scan(keep, add), torch.stack(expected, dim=1))
    assert torch.equal(scan(keep, add)[1, 6], add[1, 6])


def test_memories_are_spread_from_one_site_to_the_longest() -> None:
    bias = torch.empty(9)
    spread_memories(bias, longest=100.0)
    lengths = 1.0 / (1.0 - bias.sigmoid()) - 1.0
    torch.testing.assert_close(lengths[[0, 4, 8]], torch.tensor([1.0, 10.0, 100.0]), rtol=1e-3, atol=1e-3)
