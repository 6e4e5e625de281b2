"""Texts whose density is known: made from a seed, scored exactly, with a closed form of their entropy.

    source = synthetic.source("letter")
    texts = source.texts(1000, seed=0)          # bytes, independent draws
    source.nats(texts)                          # -log p of each, float64
    source.entropy                              # nats a text

A recipe trains on one by `data.path: synthetic:letter`.
"""

from __future__ import annotations

from latentlm.errors import unknown_name
from latentlm.training.data.synthetic.letter import Letter
from latentlm.training.data.synthetic.source import Source

__all__ = ["Letter", "Source", "source"]

SOURCES: dict[str, type[Source]] = {"letter": Letter}
PREFIX = "synthetic:"
"""What a data path begins with that names a source."""


def source(name: str) -> Source:
    """A source by name. Raises UserError with the nearest one for a name that is unknown."""
    if name not in SOURCES:
        raise unknown_name("synthetic source", name, SOURCES)
    return SOURCES[name]()
