"""A generation in progress: what ComposedDecoder keeps between tokens.

Legend: B rows, S sites, E event dimensions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from latentlm.backbone import KVCache
from latentlm.interface import Met, State


@dataclass(frozen=True)
class Kept:
    """Of one latent."""

    current: Tensor
    """(B, E): the value of each row's newest site."""
    store: Tensor
    """(B, S', E), S' >= S: the memory behind `Met.value`, with room for the sites to come."""
    prior_state: Any
    recent: Tensor
    """(B, lookback) long: the last tokens, where the granularity looks at them."""


@dataclass(frozen=True)
class ComposedState(State):
    """A generation in progress and its caches."""

    cache: KVCache
    kept: Mapping[str, Kept] = field(default_factory=dict)

    def select(self, rows: Tensor, *, cache: KVCache | None = None) -> ComposedState:
        """The given rows, in that order, as a generation of their own; `cache`: where theirs are already."""

        def pick(tensor: Any) -> Any:
            return tensor.index_select(0, rows) if isinstance(tensor, Tensor) else tensor

        kept = {
            name: Kept(pick(own.current), pick(own.store), tree_map(pick, own.prior_state), pick(own.recent))
            for name, own in self.kept.items()
        }
        return ComposedState(
            logits=pick(self.logits),
            lengths=pick(self.lengths),
            met={
                name: Met(kept[name].store[:, : met.value.shape[1]], pick(met.counts)) for name, met in self.met.items()
            },
            cache=self.cache.select(rows) if cache is None else cache,
            kept=kept,
        )


def stored(
    store: Tensor, value: Tensor, counts: Tensor, *, level: int | None, full: bool = False
) -> tuple[Tensor, Tensor]:
    """Write `value` (B, E) at each row's newest site (counts - 1). Returns the latents of the sites met, and their memory,
    which doubles when it is full. It is shared with the state before, which is used up. `level`: the count of every row, where
    it is known without a look. `full`: the memory has room for all to come, and all of it is returned."""
    needed = store.shape[1] if full else int(counts.max()) if level is None else level
    if needed > store.shape[1]:
        store = F.pad(store, (0, 0, 0, max(needed, 2 * store.shape[1]) - store.shape[1]))
    if level is None:
        newest = (counts - 1)[:, None, None].expand(-1, 1, value.shape[-1])
        store.scatter_(1, newest, value[:, None].to(store))
    else:
        store[:, level - 1] = value
    return store[:, :needed], store
