"""Graphs of a decoder's step (torch.compile), and their calls, which can be made again without a look at what has changed.

    step = compiled(function, decoder, temperatures)      # function(words, decoder, ...)
    with noted() as calls:
        logits = step(decoder, ...)                       # torch looks whether it has the graph, and makes it where it has not
    again = repeated(calls, logits)                       # the same graph on the same memory, whatever lies there by now
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import FunctionType
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from latentlm.composed.decoder import ComposedDecoder
from latentlm.config.checking import real

Words: TypeAlias = tuple[tuple[str, str], ...]
"""Of each latent a temperature, as text: a number would be one of the graph's inputs as soon as there is a second."""
BACKEND = "inductor"
MOST = 16
"""Graphs of a decoder."""
_numbers = itertools.count()
_graphs: WeakKeyDictionary[ComposedDecoder, dict[Words, Callable[..., Tensor]]] = WeakKeyDictionary()


class Call(NamedTuple):
    """Of a graph: what ran, with what, and what came of it."""

    run: Callable[..., Sequence[Any]]
    inputs: tuple[Any, ...]
    outputs: Sequence[Any]


_calls: ContextVar[list[Call] | None] = ContextVar("calls", default=None)


def compiled(
    function: Callable[..., Tensor], decoder: ComposedDecoder, temperatures: Mapping[str, float]
) -> Callable[..., Tensor]:
    """The function at these temperatures of a decoder's priors, whose words are its first argument. Each has one of its own, by
    another name: torch makes so many graphs of one function, and then no more, and takes sizes that differ between two of one
    name for sizes that change. Raises UserError for temperatures that are none."""
    words = tuple((name, repr(real("prior_temperature", value, above=0))) for name, value in temperatures.items())
    known = _graphs.setdefault(decoder, {})
    if words not in known:
        if len(known) == MOST:
            known.pop(next(iter(known)))  # the oldest: a sweep of temperatures makes one after another
        code = function.__code__.replace(co_name=f"step_{next(_numbers)}")
        own = FunctionType(code, function.__globals__)
        known[words] = torch.compile(own, fullgraph=True, backend=_noting)
    return functools.partial(known[words], words)


def _noting(graph: torch.fx.GraphModule, examples: list[Tensor]) -> Callable[..., Sequence[Any]]:
    """The backend of torch.compile, whose graphs note their calls."""
    run: Callable[..., Sequence[Any]] = torch._dynamo.lookup_backend(BACKEND)(graph, examples)

    def noting(*inputs: Any) -> Sequence[Any]:
        outputs = run(*inputs)
        if (calls := _calls.get()) is not None:
            calls.append(Call(run, inputs, outputs))
        return outputs

    return noting


@contextmanager
def noted() -> Iterator[list[Call]]:
    """The calls of graphs in the block."""
    calls: list[Call] = []
    before = _calls.set(calls)
    try:
        yield calls
    finally:
        _calls.reset(before)


def repeated(calls: Sequence[Call], result: Tensor) -> Callable[[], Tensor] | None:
    """What makes the only call again, of which one output is the result: the new result. None where there is no such call."""
    places = [place for call in calls for place, output in enumerate(call.outputs) if output is result]
    if len(calls) != 1 or len(places) != 1:
        return None
    [(run, inputs, _)], [place] = calls, places

    def again() -> Tensor:
        output: Tensor = run(*inputs)[place]
        return output

    return again
