"""A step of generation as one compiled graph, over memory that stays where it is.

    steps = Static(decoder, state, capacity=160)         # from a state that `prefill` made
    state = steps.step(tokens, noise=noise, prior_temperature=temperatures)

Keys and values have their room from the start, and a mask hides the columns that are not there yet, so that no shape changes
from token to token: blocks, head, and every latent's draw, row and norm are one graph (torch.compile). The random numbers come
from outside, for they are keyed: the first token is fed as ever, to see which ones it asks for.

Torch looks before each call whether its graph still fits, which a small model's step feels. What the graph is called with stays
where it is, so it is called again with that, until more columns are seen: then torch looks again (graphs.py).

Legend: B rows, C columns, M prefix slots, Hkv key/value heads, dh head width, E event dimensions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from latentlm.backbone import KVCache, Rotation
from latentlm.composed.decoder import ComposedDecoder
from latentlm.composed.decoding import step
from latentlm.composed.graphs import Words, compiled, noted, repeated
from latentlm.composed.state import ComposedState, Kept
from latentlm.errors import UserError
from latentlm.interface import PADDING, Cross, Met, Noise, Prefix, State
from latentlm.interface.granularity import Token

_ROUND = 16
"""A step looks at as many columns as there are, up to the next multiple of this: to look at columns that hold nothing takes
time too."""
_AHEAD = 64
"""Sites whose random numbers are made together."""


class Draw(NamedTuple):
    """Uniform numbers that a step asks for."""

    latent: str
    sites: int
    events: int


class Inputs(NamedTuple):
    """What is new in each step, in memory that stays."""

    tokens: Tensor
    column: Tensor
    drawn: list[Tensor]
    """Of each draw, (B, sites, E)."""


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
        stores = {name: _begun(store, 1, store.shape[1]) for name, store in self.stores.items()}
        return self._replace(documents=_begun(self.documents, 1, columns), keys=keys, values=values, stores=stores)


class Static:
    """Rows under way. The first step is not compiled: it shows what a step asks for, and what it leaves. Nobody may change the
    decoder between two steps."""

    def __init__(self, decoder: ComposedDecoder, state: ComposedState, *, capacity: int) -> None:
        decoder.check_compiled()
        self._decoder, self._capacity = decoder, capacity
        self._begun: ComposedState | None = state
        self._draws: list[Draw] = []
        self._carried: Carried | None = None
        self._seen: Carried | None = None
        self._column = self._fed = 0
        self._places: dict[str, list[int]] = {}
        """Of each latent, the site of each row's first compiled token, where each token is a site."""
        self._ahead: dict[int, tuple[Noise, list[Tensor]]] = {}
        """Of each draw, numbers that were made, those of the next token last, and of what noise."""
        self._graph: tuple[dict[str, float], Callable[..., Tensor]] | None = None
        """That of the last step, and its temperatures."""
        self._inputs: Inputs | None = None
        self._again: Callable[[], Tensor] | None = None
        """The last step's graph, on what lies in its inputs now: the logits."""

    def step(self, tokens: Tensor, *, noise: Mapping[str, Noise], prior_temperature: Mapping[str, float]) -> State:
        """Feed tokens (B,), one per row, with latents from the prior. What it returns holds until the next step. Raises
        UserError for parts that one graph cannot serve."""
        if self._carried is None:
            return self._first(tokens, noise, prior_temperature)
        if self._seen is None or self._column == self._seen.documents.shape[1]:
            self._seen = self._carried.until(self._column + _ROUND - self._column % _ROUND)
            self._again = None
        if self._graph is None or self._graph[0] != prior_temperature:
            self._graph = dict(prior_temperature), compiled(_ready_step, self._decoder, prior_temperature)
            self._again = None
        inputs = self._filled(tokens, noise)
        logits = self._looked(inputs, noise) if self._again is None else self._again()
        self._column += 1
        self._fed += 1
        met = {name: Met(store, self._carried.counts[name]) for name, store in self._carried.stores.items()}
        return State(logits, self._carried.lengths, met)

    def _filled(self, tokens: Tensor, noise: Mapping[str, Noise]) -> Inputs:
        """The step's own inputs."""
        drawn = [self._uniform(number, draw, noise[draw.latent], tokens.device) for number, draw in enumerate(self._draws)]
        if self._inputs is None:
            column = torch.full((), self._column, device=tokens.device)
            self._inputs = Inputs(tokens.clone(), column, [numbers.clone() for numbers in drawn])
        else:
            held = self._inputs.tokens
            if tokens.shape != held.shape or tokens.dtype != held.dtype:
                given, before = (f"{tuple(each.shape)}, {each.dtype}" for each in (tokens, held))
                raise ValueError(f"tokens {given}: it was {before} before.")
            held.copy_(tokens)
            self._inputs.column.fill_(self._column)
            for old, new in zip(self._inputs.drawn, drawn, strict=True):
                old.copy_(new)
        return self._inputs

    def _looked(self, inputs: Inputs, noise: Mapping[str, Noise]) -> Tensor:
        """The logits of a step for which torch looks whether it has the graph, and makes it where it has not."""
        assert self._graph is not None
        drawn: dict[str, list[Tensor]] = {name: [] for name in noise}
        for draw, numbers in zip(self._draws, inputs.drawn, strict=True):
            drawn[draw.latent].append(numbers)
        with noted() as calls:
            logits = self._graph[1](self._decoder, self._seen, inputs.tokens, inputs.column, drawn)
        self._again = repeated(calls, logits)
        return logits

    def _uniform(self, number: int, draw: Draw, noise: Noise, device: torch.device) -> Tensor:
        """The numbers (B, sites, E) of the next token for one of the draws."""
        assert self._carried is not None, "the first step has shown what is drawn"
        if draw.latent not in self._places or draw.sites != 1:
            return noise.at(self._carried.counts[draw.latent]).uniform(draw.sites, draw.events, device=device)
        of, made = self._ahead.get(number, (noise, []))
        if of is not noise or not made:
            here = noise.at([place + self._fed for place in self._places[draw.latent]])
            made = list(reversed(here.uniform(_AHEAD, draw.events, device=device).split(1, dim=1)))
            self._ahead[number] = noise, made
        return made.pop()

    def _first(self, tokens: Tensor, noise: Mapping[str, Noise], prior_temperature: Mapping[str, float]) -> State:
        assert self._begun is not None, "there is a state before the first step"
        state, self._begun = self._begun, None
        before = {name: kept.prior_state for name, kept in state.kept.items()}
        listening: dict[str, Noise] = {name: _Listening(own, name, self._draws) for name, own in noise.items()}
        state = step(self._decoder, state, tokens, latents={}, noise=listening, prior_temperature=prior_temperature)
        for name, kept in state.kept.items():
            if not _alike(before[name], kept.prior_state):
                prior = self._decoder.latents[name].called("prior")
                raise UserError(f"{prior} has a state whose form changes, which is not compiled: leave compile out.")
        self._column = state.cache.length
        # One round more than is ever seen: all of the memory, seen at once, would lie otherwise, which is another graph.
        self._carried = _carried(state, room=(max(self._capacity, self._column + 1) // _ROUND + 2) * _ROUND)
        by_token = [name for name, latent in self._decoder.latents.items() if isinstance(latent.granularity, Token)]
        self._places = {name: self._carried.counts[name].tolist() for name in by_token}
        return state


def _carried(state: ComposedState, *, room: int) -> Carried:
    """A state's memory, with room for so many columns."""
    cache = state.cache
    assert cache.documents is not None, "there is a prompt"
    keys, values = cache.columns()
    return Carried(
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


def _begun(tensor: Tensor, dim: int, count: int) -> Tensor:
    """The beginning of a tensor, along a dimension whose length graphs leave open."""
    view = tensor.narrow(dim, 0, count)
    torch._dynamo.maybe_mark_dynamic(view, dim)
    return view


def _cloned(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _alike(before: object, after: object) -> bool:
    """Whether two states have one form: a tree of tensors of the same shapes, and equal in what is no tensor."""
    old, new = tree_flatten(before), tree_flatten(after)
    return old[1] == new[1] and all(
        one.shape == other.shape and one.dtype == other.dtype
        if isinstance(one, Tensor) and isinstance(other, Tensor)
        else one is other or (type(one) is type(other) and not isinstance(one, Tensor) and one == other)
        for one, other in zip(old[0], new[0], strict=True)
    )


def _ready_step(
    words: Words,
    decoder: ComposedDecoder,
    carried: Carried,
    tokens: Tensor,
    column: Tensor,
    drawn: dict[str, list[Tensor]],
) -> Tensor:
    """The decoder's own step, (B, V), on what is carried, which it leaves as the next one finds it. The random numbers of each
    latent come in the order in which they are asked for."""
    ready = {name: _Ready(numbers, len(tokens)) for name, numbers in drawn.items()}
    noise: dict[str, Noise] = {**ready}
    cache = StaticCache(carried, column)
    kept = {
        name: Kept(carried.current[name], carried.stores[name], carried.prior_states[name], carried.recent[name])
        for name in carried.current
    }
    met = {name: Met(carried.stores[name], carried.counts[name]) for name in carried.current}
    before = ComposedState(tokens, carried.lengths, met, cache, kept)  # its logits are not looked at
    temperatures = {name: float(word) for name, word in words}
    after = step(decoder, before, tokens, latents={}, noise=noise, prior_temperature=temperatures)
    if any(own.left for own in ready.values()) or cache.kept.keys() != carried.other.keys():
        raise UserError("This step does not do what the first one did, which is not compiled: leave compile out.")
    pairs = [(carried.lengths, after.lengths), *((old, cache.kept[name]) for name, old in carried.other.items())]
    for name, own in after.kept.items():
        pairs += [
            (carried.current[name], own.current),
            (carried.recent[name], own.recent),
            (carried.counts[name], after.met[name].counts),
            *zip(tree_leaves(carried.prior_states[name]), tree_leaves(own.prior_state), strict=True),
        ]
    tensors = [(old, new) for old, new in pairs if isinstance(old, Tensor)]
    # What is new may be what was: a prior may keep its last value, which is written over here.
    for (old, _), new in zip(tensors, [new.clone() for _, new in tensors], strict=True):
        assert old.shape == new.shape, "a state has one form"
        old.copy_(new)
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
        written = _Written(documents, seen, _bias(allowed)[:, None], self._column)
        self.mask, self.rotation = written, rotation  # type: ignore[assignment]

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
    start = 1  # it goes on from a cache
    prefix_documents = None

    def __init__(self, query_documents: Tensor, key_documents: Tensor, bias: Tensor, column: Tensor) -> None:
        self.query_documents, self.key_documents, self.bias, self.column = query_documents, key_documents, bias, column

    def with_prefixes(self, prefixes: Sequence[Prefix]) -> _Written:
        """The same with the slots of these in front."""
        if not prefixes:
            return self
        seen = [self._sees(prefix)[:, None] for prefix in prefixes]
        bias = torch.cat([*(_bias(each) for each in seen), self.bias], dim=-1)
        return _Written(self.query_documents, self.key_documents, bias, self.column)

    def _sees(self, prefix: Prefix) -> Tensor:
        """(B, 1, M) bool."""
        own = (self.query_documents[:, :, None] == prefix.documents[:, None, :]) & (prefix.documents >= 0)[:, None, :]
        return own if prefix.since is None else own & (prefix.since <= self.column)[:, None, :]


def _bias(allowed: Tensor) -> Tensor:
    """0 where allowed, -inf elsewhere, float32."""
    return torch.zeros(allowed.shape, device=allowed.device).masked_fill(~allowed, float("-inf"))


class _Listening(Noise):
    """Notes what a step asks of it: uniform numbers at the row's place, and nothing else."""

    def __init__(self, noise: Noise, latent: str, asked: list[Draw], *, placed: bool = False) -> None:
        super().__init__(noise.keys, offsets=noise.offsets)
        self._latent, self._asked, self._placed = latent, asked, placed

    def at(self, offsets: Sequence[int] | Tensor) -> Noise:
        """At the place that the decoder says."""
        if self._placed:
            raise _odd_noise()
        return _Listening(super().at(offsets), self._latent, self._asked, placed=True)

    def uniform(self, sites: int, events: int, *, device: torch.device | str | None = None) -> Tensor:
        """As it is."""
        self._asked.append(Draw(self._latent, sites, events))
        return super().uniform(sites, events, device=device)

    def stream(self, name: str) -> Noise:
        """Raises UserError: what is drawn from it would not be noted."""
        raise _odd_noise()

    select = samples = latent = stream  # type: ignore[assignment]


class _Ready(Noise):
    """Numbers that were made before."""

    def __init__(self, numbers: list[Tensor], rows: int) -> None:
        self.left, self._rows, self._placed = list(numbers), rows, False

    def __len__(self) -> int:
        return self._rows

    def at(self, offsets: Sequence[int] | Tensor) -> Noise:
        """They are those of the place."""
        if self._placed:
            raise _odd_noise()
        self._placed = True
        return self

    def uniform(self, sites: int, events: int, *, device: torch.device | str | None = None) -> Tensor:
        """The next."""
        if not self.left or self.left[0].shape[1:] != (sites, events):
            raise _odd_noise()
        return self.left.pop(0)

    def stream(self, name: str) -> Noise:
        """Raises UserError."""
        raise _odd_noise()

    select = samples = latent = stream  # type: ignore[assignment]


def _odd_noise() -> UserError:
    return UserError("A prior that draws more than uniform numbers of its place is not compiled: leave compile out.")
