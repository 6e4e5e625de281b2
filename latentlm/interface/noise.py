"""Keyed random numbers: what a row draws depends on its key alone.

A uniform number is a function of (seed, request, sample, stream, site, event), made by the counter-based generator Philox
(Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011; numpy.random.Philox, and philox.py for GPUs). Batch size,
order, padding, device and number of processes do not change it, and any site's numbers can be drawn without those before it.
Gaussians come from the inverse CDF of the same uniforms, on the CPU: another device would round it otherwise. Nothing here
touches a global random state.

Legend: B rows, S sites, E event dimensions, K samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentlm.config import memory
from latentlm.config.checking import several, whole
from latentlm.interface import philox
from latentlm.interface.moving import moved

_WORDS_PER_COUNT = 4  # Philox-4x64 makes four 64-bit words per counter value
_RESOLUTION = 2.0**-23  # (k + 1/2) * 2^-23 is exact in float32 and lies strictly inside (0, 1)
_LATENT = "latent/"  # begins the names of the streams of latents, and of no others
_ROW = 2**6  # bytes of a key and an offset, at least
_MAKES_ITS_OWN = {"cuda"}  # kinds of devices that make the numbers of many sites faster than they are copied there
_AHEAD = 16  # sites drawn at a time where they are asked for one by one: making a generator costs more than its numbers


def _key(parts: Sequence[Hashable]) -> int:
    """128-bit key of a tuple of plain values; equal tuples give equal keys in every process."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest(), "little")


def _plain(part: Any) -> Any:
    """A number or text of numpy as Python's own, in tuples too."""
    if type(part) is tuple:
        return tuple(map(_plain, part))
    return part.item() if isinstance(part, np.generic) else part


class Noise:
    """Uniform numbers for B rows, each row with a key of its own.

    `offsets` shifts a row's site index: row b's site s draws the numbers of site s + offsets[b]. Rows that share a key and
    are aligned by their offsets draw equal numbers, which is how a batch shares its latents.

    Example::

        noise = Noise.keyed(0, ["first text", "second text"])
        uniform = noise.uniform(5, 8)  # (2, 5, 8): 5 sites of 8 events
        assert torch.equal(noise.at([2]).uniform(3, 8), uniform[:, 2:])  # a site's numbers do not depend on those before it
    """

    def __init__(self, keys: Sequence[int], *, offsets: Sequence[int] | None = None) -> None:
        self.keys = [int(key) for key in keys]
        self.offsets = [0] * len(self.keys) if offsets is None else [int(offset) for offset in offsets]
        if len(self.offsets) != len(self.keys):
            raise ValueError(f"{len(self.keys)} keys but {len(self.offsets)} offsets; give one offset per row.")

    @classmethod
    def keyed(cls, seed: int, requests: Sequence[Hashable], *, samples: int = 1, first: int = 0) -> Noise:
        """Noise for `samples` rows per request, request-major: row b*K + k is sample first + k of request b.

        Requests are plain values (integers, strings, tuples of them); equal requests draw equal numbers.
        """
        requests = [_plain(request) for request in several("requests", requests, of="keys, one per row")]
        samples, seed = whole("samples", samples, least=1), whole("seed", seed, least=None, most=None)
        memory.check_count("samples", samples, each=_ROW * len(requests))
        return cls([_key((seed, request, first + k)) for request in requests for k in range(samples)])

    def __len__(self) -> int:
        return len(self.keys)

    def stream(self, name: str) -> Noise:
        """An independent stream of the same rows ("tokens", "prior", ...)."""
        if name.startswith(_LATENT):
            raise ValueError(f'streams whose names begin with "{_LATENT}" are those of latents: choose another name.')
        return Noise([_key((key, name)) for key in self.keys], offsets=self.offsets)

    def latent(self, name: str) -> Noise:
        """The stream of one latent in a decoder of several."""
        return Noise([_key((key, f"{_LATENT}{name}")) for key in self.keys], offsets=self.offsets)

    def at(self, offsets: Sequence[int] | Tensor) -> Noise:
        """The same rows with their first site moved by `offsets` (one per row, or one number for all)."""
        moved = offsets.tolist() if isinstance(offsets, Tensor) else [int(offset) for offset in offsets]
        moved = moved * len(self) if len(moved) == 1 else moved
        return Noise(self.keys, offsets=[old + new for old, new in zip(self.offsets, moved, strict=True)])

    def select(self, rows: Sequence[int] | Tensor) -> Noise:
        """The noise of the given rows, in that order (rows may repeat)."""
        picked = [int(row) for row in rows]
        return Noise([self.keys[row] for row in picked], offsets=[self.offsets[row] for row in picked])

    def samples(self, count: int) -> Noise:
        """`count` independent rows for each row, row-major (b*K + k)."""
        count = whole("samples", count, least=1)
        memory.check_count("samples", count, each=_ROW * len(self))
        return Noise(
            [_key((key, k)) for key in self.keys for k in range(count)],
            offsets=[offset for offset in self.offsets for _ in range(count)],
        )

    def uniform(self, sites: int, events: int, *, device: torch.device | str | None = None) -> Tensor:
        """Uniform numbers strictly between 0 and 1, float32 (B, S, E)."""
        memory.check_count("sites", sites, each=4 * len(self) * events)
        device = torch.device(device or "cpu")
        if device.type in _MAKES_ITS_OWN and sites > 1 and events > 0 and self.keys:
            return philox.uniform(self.keys, self.offsets, sites, events, device=device)
        out = np.empty((len(self), sites, events), dtype=np.float32)
        made: dict[tuple[int, int], int] = {}  # options of one question have equal rows
        for row, (key, offset) in enumerate(zip(self.keys, self.offsets, strict=True)):
            same = made.setdefault((key, offset), row)
            if same != row:
                out[row] = out[same]
            elif sites == 1:  # generation, token by token
                run, place = divmod(offset, _AHEAD)
                out[row] = _run(key, run, events)[place]
            else:
                out[row] = _uniform(key, offset, sites, events)
        return moved(torch.from_numpy(out), device)

    def normal(self, sites: int, events: int, *, device: torch.device | str | None = None) -> Tensor:
        """Standard normal numbers by the inverse CDF of `uniform`, float32 (B, S, E)."""
        return moved(torch.special.ndtri(self.uniform(sites, events).double()).float(), device)


def _uniform(key: int, first: int, sites: int, events: int) -> np.ndarray:
    """The numbers of the sites first .. first + sites - 1, float32 (S, E)."""
    counts = -(-events // _WORDS_PER_COUNT)
    # A negative first site wraps around 2^256, which is as good a counter as any other.
    generator = np.random.Philox(key=key, counter=(first * counts) % 2**256)
    words = generator.random_raw(sites * counts * _WORDS_PER_COUNT).reshape(sites, -1)[:, :events]
    uniform: np.ndarray = (((words >> np.uint64(41)).astype(np.float64) + 0.5) * _RESOLUTION).astype(np.float32)
    return uniform


@lru_cache(maxsize=2**14)  # more rows than a pass of a narrow model has: a row that fell out is made anew at every site
def _run(key: int, run: int, events: int) -> np.ndarray:
    """The numbers of the `_AHEAD` sites from run * _AHEAD on, float32 (_AHEAD, E). Not to be written to."""
    return _uniform(key, run * _AHEAD, _AHEAD, events)
