"""Sums over the processes that share a batch: a part or a schedule that looks at the whole batch asks here.

    above = summed(kl.sum()) > summed(budget.sum())       # whether the batch, wherever its rows lie, is above its budget

In a run of one process, and outside of a training step, these give back what they are given.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

from latentlm.errors import UserError, short

T = TypeVar("T")

_groups: list[dist.ProcessGroup | None] = []
"""The processes that share the batch at hand; none but this one where it is empty, or ends in None."""


def place() -> tuple[int, int, int]:
    """Rank, number of processes and rank on this machine, as torchrun or another launcher says in the environment; alone where
    none does, and within `alone`. Raises UserError for what are no such numbers."""
    if _groups and _groups[-1] is None:
        return 0, 1, 0
    found = []
    for name, alone in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)):
        text = os.environ.get(name, str(alone))
        if not re.fullmatch("[0-9]{1,9}", text):
            raise UserError(f"{name}={short(text)} in the environment is no number: start with torchrun, or unset it.")
        found.append(int(text))
    rank, size, local = found
    if "RANK" not in os.environ or size == 1:
        return 0, 1, 0
    if rank >= size:
        raise UserError(f"RANK={rank} in the environment is none of WORLD_SIZE={size}: start with torchrun, or unset them.")
    return rank, size, local


@contextmanager
def shared_by(group: dist.ProcessGroup | None) -> Iterator[None]:
    """Within the block, batches are shared by these processes."""
    if group is None:
        yield
        return
    _groups.append(group)
    try:
        yield
    finally:
        _groups.pop()


@contextmanager
def alone() -> Iterator[None]:
    """Within the block, each process does all of the work at hand, as the only one."""
    _groups.append(None)
    try:
        yield
    finally:
        _groups.pop()


def summed(values: Tensor) -> Tensor:
    """The sum over all processes that share the batch, of any shape; no gradient passes. Every one of them must ask."""
    total = values.detach()
    if (group := _sharing()) is not None:
        total = total.clone()
        dist.all_reduce(total, group=group)
    return total


def gathered(value: T) -> list[T]:
    """What each of these processes has, in the order of their ranks: plain Python values. Every one of them must ask."""
    group = _sharing()
    if group is None:
        return [value]
    found: list[T | None] = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, value, group=group)
    return found  # type: ignore[return-value]


def _sharing() -> dist.ProcessGroup | None:
    return _groups[-1] if _groups else None
