"""Sets of token ids: how a granularity's settings hold them, and how it asks which tokens of a batch are in one.

    class Config(Strict):
        ends: TokenIds = ()          # a list of ids, or the packed string that a recipe or card holds

    TokenSet(config.ends).contains(tokens)  # (B, T) bool

A set may be half of a large vocabulary (every token that begins with a space). Up to 256 ids are written as a list; more as one
string, a bit per id, compressed: 61,000 ids of a vocabulary of 128,000 are 22 kB in a card instead of 400.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Iterable
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import AfterValidator, BeforeValidator, PlainSerializer
from torch import Tensor

_PACKED = "packed:"
_LISTED = 256  # ids that are still readable as a list
_LARGEST = 2**24  # bits that a packed string may unfold to: far above any vocabulary, small enough for a hostile card


def pack_ids(ids: Iterable[int]) -> list[int] | str:
    """Ids as settings hold them: sorted, each once, a list where they are few and a string where they are many."""
    kept = sorted(set(ids))
    if len(kept) <= _LISTED:
        return kept
    bits = np.zeros(kept[-1] + 1, dtype=bool)
    bits[kept] = True
    return _PACKED + base64.b64encode(zlib.compress(np.packbits(bits).tobytes(), 9)).decode("ascii")


def _unpack(value: Any) -> Any:
    """The ids of a packed string; anything else is left for pydantic to judge. Raises ValueError on a damaged string."""
    if not isinstance(value, str):
        return value
    if not value.startswith(_PACKED):
        raise ValueError(f'token ids are a list, or a string that a run wrote ("{_PACKED}..."); found "{value[:20]}".')
    inflate = zlib.decompressobj()
    try:
        data = inflate.decompress(base64.b64decode(value.removeprefix(_PACKED), validate=True), _LARGEST // 8)
    except (binascii.Error, zlib.error):
        data = b""
    if not (data and inflate.eof):  # not at its end: cut short, or larger than any vocabulary
        raise ValueError("the packed token ids are damaged; leave them out, and a new run fills them in.")
    return np.flatnonzero(np.unpackbits(np.frombuffer(data, dtype=np.uint8))).tolist()


def _in_order(ids: tuple[int, ...]) -> tuple[int, ...]:
    """Sorted, each once, none negative."""
    kept = tuple(sorted(set(ids)))
    if kept and kept[0] < 0:
        raise ValueError(f"a token id is 0 or more; found {kept[0]}.")
    return kept


TokenIds = Annotated[
    tuple[int, ...],
    BeforeValidator(_unpack),
    AfterValidator(_in_order),
    PlainSerializer(pack_ids, return_type=list[int] | str),
]
"""The type of a setting that holds token ids: sorted, each once; read from a list or packed string, written by `pack_ids`."""


class TokenSet:
    """Which tokens are in a set of ids: one look-up a token, however many ids there are.

    The table is made at the first use on a device, never before: a decoder is put together on the meta device, where a table
    would be empty for good.
    """

    def __init__(self, ids: Iterable[int]) -> None:
        self.ids = tuple(sorted(set(ids)))
        self._tables: dict[torch.device, Tensor] = {}

    def contains(self, tokens: Tensor) -> Tensor:
        """Bool, shaped like tokens (any shape, long)."""
        if not self.ids:
            return torch.zeros_like(tokens, dtype=torch.bool)
        table = self._tables.get(tokens.device)
        if table is None:
            table = self._tables[tokens.device] = self._table(tokens.device)
        return table[tokens.clamp(max=len(table) - 1)]

    def _table(self, device: torch.device) -> Tensor:
        """(largest id + 2,) bool; the last entry is false and stands for every larger id."""
        table = torch.zeros(self.ids[-1] + 2, dtype=torch.bool, device="cpu")
        table[torch.tensor(self.ids, device="cpu")] = True
        return table.to(device)
