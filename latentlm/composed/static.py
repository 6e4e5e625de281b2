"""A step of generation as one compiled graph, over memory that stays where it is.

    steps = Static(decoder, state, capacity=160)         # from a state that `prefill` made
    state = steps.step(tokens, noise=noise, prior_temperature=temperatures)

Keys and values have their room from the start, and a mask hides the columns that are not there yet, so that no shape changes
from token to token: blocks, head, and every latent's draw, row and norm are one graph (torch.compile). The random numbers come
from outside, for they are keyed: the first step is rehearsed, to see which ones it asks for.

Legend: B rows, C columns, M prefix slots, Hkv key/value heads, dh head width, E event dimensions, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from latentlm.backbone import KVCache, Rotation
from latentlm.composed.decoder import ComposedDecoder
from latentlm.composed.decoding import step
from latentlm.composed.state import ComposedState, Kept
from latentlm.errors import UserError
from latentlm.interface import PADDING, Cross, Met, Noise, Prefix, State

_ROUND = 16
"""A step looks at as many columns as there are, up to the next multiple of this: to look at columns that hold nothing takes
time too."""


class Draw(NamedTuple):
    """Uniform numbers that a step asks for."""

    latent: str
    sites: int
    events: int


class Carried(NamedTuple):
    """What goes from step to step, in place. By latent where it is a mapping."""

    lengths: Tensor
    documents: Tensor
    """(B, C) long, -1 in columns that hold nothing."""
    keys: list[Tensor]
    """(B, Hkv, M + C, dh) of each block."""
    values: list[Tensor]
    other: dict[str, Tensor]
    """What else the decoder keeps of its rows."""
    current: dict[str, Tensor]
    stores: dict[str, Tensor]
    counts: dict[str, Tensor]
    prior_states: dict[str, Any]
    recent: dict[str, Tensor]
    prefixes: dict[int, dict[tuple[str, int], Prefix]]
    """Of the blocks, made with the prompt; so are the memory slots. They stay."""
    crosses: dict[int, dict[tuple[str, int], Cross]]

    def until(self, columns: int) -> Carried:
        """The same memory, of which so many columns are seen: one graph serves for any number of them."""
        hidden = self.documents.shape[1] - columns
        keys, values = ([_begun(each, 2, each.shape[2] - hidden) for each in held] for held in (self.keys, self.values))
        return self._replace(documents=_begun(self.documents, 1, columns), keys=keys, values=values)


class Static:
    """Rows under way. Raises UserError for decoders that one graph cannot serve."""

    def __init__(self, decoder: ComposedDecoder, state: ComposedState, *, capacity: int) -> None:
        cache = state.cache
        if any(prefix.since is not None for held in cache.prefixes.values() for prefix in held.values()):
            raise UserError("Prefixes that grow with the text, which this decoder has, are not compiled: leave compile out.")
        room = -(-max(capacity, cache.length + 1) // _ROUND) * _ROUND
        assert cache.documents is not None, "there is a prompt"
        keys, values = cache.columns()
        self._decoder, self._column = decoder, cache.length
        self._carried = Carried(
            lengths=state.lengths.clone(),
            documents=F.pad(cache.documents, (0, room - cache.length), value=PADDING),
            keys=[F.pad(each, (0, 0, 0, room - cache.length)) for each in keys],
            values=[F.pad(each, (0, 0, 0, room - cache.length)) for each in values],
            other={name: tensor.clone() for name, tensor in cache.kept.items()},
            current={name: kept.current.clone() for name, kept in state.kept.items()},
            stores={name: F.pad(met.value, (0, 0, 0, room - met.value.shape[1])) for name, met in state.met.items()},
            counts={name: met.counts.clone() for name, met in state.met.items()},
            prior_states={name: tree_map(_cloned, kept.prior_state) for name, kept in state.kept.items()},
            recent={name: kept.recent.clone() for name, kept in state.kept.items()},
            prefixes=cache.prefixes,
            crosses=cache.crosses,
        )
        self._draws: list[Draw] | None = None
        self._seen: Carried | None = None

    def step(self, tokens: Tensor, *, noise: Mapping[str, Noise], prior_temperature: Mapping[str, float]) -> State:
        """Feed tokens (B,), one per row, with latents from the prior. What it returns holds until the next step."""
        if self._seen is None or self._column == self._seen.documents.shape[1]:
            self._seen = self._carried.until(self._column + _ROUND - self._column % _ROUND)
        here = {name: own.at(self._carried.counts[name]) for name, own in noise.items()}
        column, temperatures = torch.full((), self._column, device=tokens.device), dict(prior_temperature)
        if self._draws is None:
            self._draws = []
            listening: dict[str, Noise] = {name: _Listening(own, name, self._draws) for name, own in here.items()}
            _step(self._decoder, tree_map(_cloned, self._seen), tokens, column, listening, temperatures)
        drawn: dict[str, list[Tensor]] = {name: [] for name in here}
        for draw in self._draws:
            drawn[draw.latent].append(here[draw.latent].uniform(draw.sites, draw.events, device=tokens.device))
        logits = _compiled()(self._decoder, self._seen, tokens, column, drawn, temperatures)
        self._column += 1
        met = {name: Met(store, self._carried.counts[name]) for name, store in self._carried.stores.items()}
        return State(logits, self._carried.lengths, met)


def _begun(tensor: Tensor, dim: int, count: int) -> Tensor:
    """The beginning of a tensor, along a dimension whose length graphs leave open."""
    view = tensor.narrow(dim, 0, count)
    torch._dynamo.maybe_mark_dynamic(view, dim)
    return view


def _cloned(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    """Torch keeps a graph for each decoder and shape. Whether a Linear layer is still one is not asked at every token: that
    would take a twentieth of a small model's step."""
    skipped = torch.compiler.skip_guard_on_inbuilt_nn_modules_unsafe
    return torch.compile(_ready_step, options={"guard_filter_fn": skipped})


def _ready_step(
    decoder: ComposedDecoder,
    carried: Carried,
    tokens: Tensor,
    column: Tensor,
    drawn: dict[str, list[Tensor]],
    temperatures: dict[str, float],
) -> Tensor:
    """As `_step`, with the random numbers of each latent in the order in which they are asked for."""
    noise: dict[str, Noise] = {name: _Ready(numbers, len(tokens)) for name, numbers in drawn.items()}
    return _step(decoder, carried, tokens, column, noise, temperatures)


def _step(
    decoder: ComposedDecoder,
    carried: Carried,
    tokens: Tensor,
    column: Tensor,
    noise: dict[str, Noise],
    temperatures: dict[str, float],
) -> Tensor:
    """The decoder's own step, (B, V), on what is carried, which it leaves as the next one finds it."""
    cache = StaticCache(carried, column)
    kept = {
        name: Kept(carried.current[name], carried.stores[name], carried.prior_states[name], carried.recent[name])
        for name in carried.current
    }
    met = {name: Met(carried.stores[name], carried.counts[name]) for name in carried.current}
    before = ComposedState(tokens, carried.lengths, met, cache, kept)  # its logits are not looked at
    after = step(decoder, before, tokens, latents={}, noise=noise, prior_temperature=temperatures)
    for name, own in after.kept.items():
        carried.current[name].copy_(own.current)
        carried.recent[name].copy_(own.recent)
        carried.counts[name].copy_(after.met[name].counts)
        for old, new in zip(tree_leaves(carried.prior_states[name]), tree_leaves(own.prior_state), strict=True):
            if isinstance(old, Tensor) and old is not new:
                old.copy_(new)
    for name, old in carried.other.items():
        old.copy_(cache.kept[name])
    carried.lengths.copy_(after.lengths)
    return after.logits


class StaticCache(KVCache):
    """Keys and values of the columns so far, with room for those to come. One pass is one token, whose column is a tensor."""

    static = True

    def __init__(self, carried: Carried, column: Tensor) -> None:
        super().__init__(len(carried.keys), capacity=carried.documents.shape[1])
        self.start = self.length = self.capacity  # behind the prompt
        self.plain = False
        self.kept = dict(carried.other)
        self.prefixes, self.crosses = carried.prefixes, carried.crosses
        self._carried, self._column = carried, column

    def extend(self, documents: Tensor, *, rotation: Rotation, plain: bool, given: Tensor | None = None) -> None:
        """Begin a pass over the next column."""
        seen = self._carried.documents
        seen.index_copy_(1, self._column[None], documents)
        allowed = documents[:, :, None] == seen[:, None, :]
        bias = torch.zeros(allowed.shape, device=allowed.device).masked_fill(~allowed, float("-inf"))[:, None]
        self.mask, self.rotation = _Written(documents, seen, bias), rotation  # type: ignore[assignment]

    def update(self, block: int, key: Tensor, value: Tensor, prefixes: tuple[Prefix, ...] = ()) -> tuple[Tensor, Tensor]:
        """Write the token's keys and values (B, Hkv, 1, dh) of a block; return those of all columns, behind its prefixes'."""
        keys, values = self._carried.keys[block], self._carried.values[block]
        here = (self._column + sum(prefix.key.shape[2] for prefix in prefixes))[None]
        keys.index_copy_(2, here, key)
        values.index_copy_(2, here, value)
        return keys, values


class _Written:
    """A mask that is written out already."""

    simple = False

    def __init__(self, query_documents: Tensor, key_documents: Tensor, bias: Tensor) -> None:
        self.query_documents, self.key_documents, self.bias = query_documents, key_documents, bias

    def with_prefixes(self, prefixes: Sequence[Prefix]) -> _Written:
        """The same with the slots of these in front."""
        if not prefixes:
            return self
        slots = torch.cat([prefix.documents for prefix in prefixes], dim=1)
        allowed = (self.query_documents[:, :, None] == slots[:, None, :]) & (slots >= 0)[:, None, :]
        front = torch.zeros(allowed.shape, device=allowed.device).masked_fill(~allowed, float("-inf"))[:, None]
        return _Written(self.query_documents, self.key_documents, torch.cat((front, self.bias), dim=-1))


class _Listening(Noise):
    """Notes what is asked of it."""

    def __init__(self, noise: Noise, latent: str, asked: list[Draw]) -> None:
        super().__init__(noise.keys, offsets=noise.offsets)
        self._latent, self._asked = latent, asked

    def at(self, offsets: Sequence[int] | Tensor) -> Noise:
        """It is there already."""
        return self

    def uniform(self, sites: int, events: int, *, device: torch.device | str | None = None) -> Tensor:
        """As it is."""
        self._asked.append(Draw(self._latent, sites, events))
        return super().uniform(sites, events, device=device)

    def stream(self, name: str) -> Noise:
        """Raises UserError: what is drawn from it would not be noted."""
        raise UserError("A prior that draws from streams of its own is not compiled: leave compile out.")

    select = samples = latent = stream  # type: ignore[assignment]


class _Ready(Noise):
    """Numbers that were made before."""

    def __init__(self, numbers: list[Tensor], rows: int) -> None:
        self._numbers, self._rows = list(numbers), rows

    def __len__(self) -> int:
        return self._rows

    def at(self, offsets: Sequence[int] | Tensor) -> Noise:
        """They are those of the place."""
        return self

    def uniform(self, sites: int, events: int, *, device: torch.device | str | None = None) -> Tensor:
        """The next."""
        return self._numbers.pop(0)
