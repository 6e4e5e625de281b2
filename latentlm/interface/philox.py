"""The numbers of `Noise.uniform` made on a device, to the bit, by integer operations of PyTorch that become one kernel.

Philox-4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) as numpy counts: the first block is that of
the counter plus one. PyTorch has no unsigned 64-bit products, so words are int64, whose sums and products keep the right 64
bits, and the high halves are put together from 32-bit halves.

Letters: B rows, S sites, E events, N counter values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from latentlm.interface.moving import compiled_all_the_same, moved

ROUNDS = 10
WORDS = 4
MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
LOW = 0xFFFFFFFF


def uniform(keys: Sequence[int], offsets: Sequence[int], sites: int, events: int, *, device: torch.device) -> Tensor:
    """Of each row, from its key, the numbers of the sites offset .. offset + sites - 1: float32 (B, S, E) on `device`."""
    counts = -(-events // WORDS)
    with torch.inference_mode(False), torch.no_grad(), compiled_all_the_same():
        split, counters = (moved(part, device) for part in words(keys, offsets, events))
        made = _fastest(device)(split, counters, sites * counts)
    return made.view(len(keys), sites, counts * WORDS)[..., :events]


@cache
def _fastest(device: torch.device) -> Callable[[Tensor, Tensor, int], Tensor]:
    """`draw`, compiled where it can be, one graph for all sizes: else some forty kernels, which take as long as the CPU and a
    copy."""
    compiled = torch.compile(draw, dynamic=True)
    split, counters = (moved(part, device) for part in words([1, 2, 3], [0, 5, 9], WORDS))
    try:
        compiled(split, counters, 7)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # no compiler is here, or none for this device
        return draw
    return compiled


def words(keys: Sequence[int], offsets: Sequence[int], events: int) -> tuple[Tensor, Tensor]:
    """Of each row the key (B, 2) and the counter of its first site (B, 4), as int64 words, the least significant first."""
    counts = -(-events // WORDS)
    split = np.array([_split(key, 2) for key in keys], dtype=np.uint64).reshape(-1, 2)
    counters = np.array([_split(offset * counts % 2**256, WORDS) for offset in offsets], dtype=np.uint64).reshape(-1, WORDS)
    return torch.from_numpy(split.view(np.int64)), torch.from_numpy(counters.view(np.int64))


def draw(keys: Tensor, counters: Tensor, count: int) -> Tensor:
    """Uniform numbers of so many counter values from (B, 2) and (B, 4) of int64 words: float32 (B, N, 4) strictly between 0 and
    1."""
    steps = torch.arange(1, count + 1, device=keys.device)  # (N,)
    counter = _advanced(counters, steps)
    key = [keys[:, 0, None], keys[:, 1, None]]
    for turn in range(ROUNDS):
        if turn:
            key = [word + _signed(weyl) for word, weyl in zip(key, WEYL, strict=True)]
        high0, low0 = _product(counter[0], MULTIPLIERS[0])
        high1, low1 = _product(counter[2], MULTIPLIERS[1])
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0]
    made = torch.stack(counter, dim=-1)  # (B, N, 4)
    # The 23 leading bits, in the middle of their interval: exact in float32.
    return (((made >> 41) & 0x7FFFFF).float() + 0.5) * 2.0**-23


def _advanced(counters: Tensor, steps: Tensor) -> list[Tensor]:
    """The four words of each row's counter plus each step: (B, 4), (N,) -> four times (B, N)."""
    low = counters[:, 0, None] + steps
    first = counters[:, 0, None]
    carry = (((first & steps) | ((first | steps) & ~low)) >> 63) & 1  # the sum went past 2^64
    result = [low]
    for word in range(1, WORDS):
        total = counters[:, word, None] + carry
        carry = carry & (total == 0)
        result.append(total)
    return result


def _product(a: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """High and low word of the unsigned 128-bit product."""
    b0, b1 = constant & LOW, constant >> 32
    a0, a1 = a & LOW, (a >> 32) & LOW
    first = a1 * b0 + _upper(a0 * b0)  # below 2^64, so no bit of it is lost
    second = a0 * b1 + (first & LOW)
    return a1 * b1 + _upper(first) + _upper(second), a * _signed(constant)


def _upper(a: Tensor) -> Tensor:
    """The upper 32 bits of a word, without its sign."""
    return (a >> 32) & LOW


def _signed(word: int) -> int:
    """The int64 with the bits of an unsigned word."""
    return word - 2**64 if word >= 2**63 else word


def _split(number: int, count: int) -> list[int]:
    return [(number >> (64 * place)) & (2**64 - 1) for place in range(count)]
