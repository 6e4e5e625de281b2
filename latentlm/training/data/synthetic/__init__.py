"""Texts whose density is known: made from a seed, scored exactly, with a closed form of their entropy.

    source = synthetic.source("letter")         # or "coin,length=64,flip=0.1"
    texts = source.texts(1000, seed=0)          # bytes, independent draws
    source.nats(texts)                          # -log p of each, float64
    source.entropy                              # nats a text

A recipe trains on one by `data.path: synthetic:letter`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from latentlm.errors import UserError, unknown_name
from latentlm.training.data.synthetic.coin import Coin
from latentlm.training.data.synthetic.letter import Letter
from latentlm.training.data.synthetic.plans import Automaton, Plan, Product, Subset, Sums
from latentlm.training.data.synthetic.reviews import Reviews
from latentlm.training.data.synthetic.source import Decided, Source

__all__ = [
    "Automaton", "Coin", "Decided", "Letter", "Plan", "Product", "Reviews", "Source", "Subset", "Sums", "source",
]  # fmt: skip

SOURCES: dict[str, type[Source]] = {
    "letter": Letter, "coin": Coin, "sums": Sums, "product": Product, "automaton": Automaton, "subset": Subset,
    "reviews": Reviews,
}  # fmt: skip
PREFIX = "synthetic:"
"""What a data path begins with that names a source."""


def source(spec: str) -> Source:
    """A source by name, with settings behind commas. Raises UserError with the nearest name for one that is unknown."""
    name, *settings = spec.split(",")
    if name not in SOURCES:
        raise unknown_name("synthetic source", name, SOURCES)
    cls = SOURCES[name]
    fields: dict[str, Any] = {field.name: field for field in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else {}
    given: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or key not in fields:
            raise unknown_name(f"setting of synthetic:{name}", key, fields, remedy="Settings are key=value, behind commas.")
        if key in given:
            raise UserError(f"synthetic:{name}: {key} is there twice. Give it once.")
        kind = type(fields[key].default)
        try:
            given[key] = kind(text)
        except ValueError:
            raise UserError(f"synthetic:{name}: {key}={text} is no {'whole ' if kind is int else ''}number.") from None
    return cls(**given)
