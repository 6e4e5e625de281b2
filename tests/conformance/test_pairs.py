"""Every compatible pair of registered parts passes the quick checks in one decoder.

Compatible is what the parts declare: the same kind of latents and a common granularity. The third socket takes a part that
fits both, the first of the same plugin where there is one; taps and injected blocks that do not fit are seen from the built
parts' own attributes.
"""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import Any

import pytest
import torch

from latentlm import plugins
from latentlm.composed.completing import granularity_of
from latentlm.config import BackboneConfig, parse
from latentlm.interface import LatentShape, Part, Shape
from latentlm.testing import Case, cases
from latentlm.testing.subject import STRUCTURAL

SOCKETS = ("encoder", "prior", "injection")
GRANULARITIES = {"token": "token", "chunk": "chunk:3", "document": "document"}
QUICK = [
    "shapes_and_dtypes", "causal_given_z", "latent_conditions_own_positions", "prior_causal", "packed_equals_separate",
    "kl_equals_monte_carlo", "kl_zero_at_prior", "gradients_reach_parts", "encoder_hears_reconstruction",
    "cached_equals_uncached", "step_equals_forward",
]  # fmt: skip
EVENTS = 4
SETTINGS: dict[tuple[str, str], dict[str, Any]] = {
    ("injection", "thoughts"): {"slots": 1},  # times 4 blocks: vectors of width 1
    ("encoder", "fitted_thoughts"): {"steps": 4},
    ("prior", "vamp"): {"components": 3, "length": 4},
    ("prior", "mog"): {"components": 3},
    ("encoder", "fsq"): {"levels": [3, 3, 2, 2]},
    ("prior", "causal_levels"): {"levels": [3, 3, 2, 2]},
    ("prior", "uniform_levels"): {"levels": [3, 3, 2, 2]},
}
"""What parts need at 4 event dimensions, or to be small."""

PARTNERS: dict[tuple[str, str], tuple[str, str]] = {
    ("prior", "vamp"): ("encoder", "gaussian_tower"),  # the only encoder that reads pseudo-inputs
}
"""Parts that go with one other part alone, as their documentation says."""


@cache
def part(socket: str, name: str, granularity: str) -> Part:
    """The part as a decoder of the kit's structural size would have it, without memory."""
    found: type[Part] = plugins.get(socket, name)
    _, made = granularity_of(GRANULARITIES[granularity], None)
    shape = Shape(BackboneConfig.model_validate(STRUCTURAL), LatentShape("z", EVENTS, granularity, made.length))
    with torch.device("meta"):
        return found(parse(found.Config, SETTINGS.get((socket, name), {}), source=name), shape)


def kind(socket: str, name: str) -> str:
    """The family that a part declares; every registered part declares one."""
    declared = plugins.get(socket, name).family
    assert declared is not None, f'{socket} "{name}" does not declare its family'
    return str(declared)


def serves(socket: str, name: str, scale: str) -> bool:
    served = plugins.get(socket, name).granularities
    return served is None or scale in served


def fits(encoder: str, prior: str, injection: str, scale: str) -> bool:
    """The three declare the same family, serve the granularity, and read taps that are free of z."""
    chosen = dict(zip(SOCKETS, (encoder, prior, injection), strict=True))
    if len({kind(socket, name) for socket, name in chosen.items()}) > 1:
        return False
    if any(chosen[socket] == name and chosen[other] != partner for (socket, name), (other, partner) in PARTNERS.items()):
        return False
    if not all(serves(socket, name, scale) for socket, name in chosen.items()):
        return False
    made = {socket: part(socket, name, scale) for socket, name in chosen.items()}
    injected: Any = made["injection"]
    readers: list[Any] = [made["encoder"], made["prior"]]
    once = {"prefix", "cross"} & set(injected.slots)  # made once for a document
    return all(tap <= min(injected.blocks) for reader in readers for tap in reader.taps) and not (once and scale != "document")


def triples() -> list[tuple[str, str, str, str]]:
    """(granularity, encoder, prior, injection): a smallest set in which every compatible pair occurs, found greedily."""
    names = {socket: plugins.names(socket) for socket in SOCKETS}
    every = product(GRANULARITIES, *(names[socket] for socket in SOCKETS))
    possible = [(scale, *chosen) for scale, *chosen in every if fits(*chosen, scale)]
    missing = {pair for triple in possible for pair in pairs(triple)}
    taken = []
    while missing:
        best = max(possible, key=lambda triple: len(missing & pairs(triple)))
        missing -= pairs(best)
        taken.append(best)
    return taken


def pairs(triple: tuple[str, str, str, str]) -> set[tuple[str, str, str]]:
    """The three pairs of parts in it."""
    _, encoder, prior, injection = triple
    return {("encoder-prior", encoder, prior), ("encoder-injection", encoder, injection), ("prior-injection", prior, injection)}


def params() -> list[Any]:
    found = []
    for scale, encoder, prior, injection in triples():
        chosen = dict(zip(SOCKETS, (encoder, prior, injection), strict=True))
        specs = {socket: {"name": name, **SETTINGS.get((socket, name), {})} for socket, name in chosen.items()}
        model = {"granularity": GRANULARITIES[scale], "event_dims": EVENTS, **specs}
        found += cases("composed", model=model, checks=QUICK, label=f"{encoder}-{prior}-{injection}")
    return found


@pytest.mark.parametrize("case", params())
def test_pairs(case: Case) -> None:
    case()


def test_every_part_is_in_a_pair() -> None:
    met = {(socket, name) for triple in triples() for socket, name in zip(SOCKETS, triple[1:], strict=True)}
    known = {(socket, name) for socket in SOCKETS for name in plugins.names(socket)}
    assert known - met == set()
