"""The zoo: cards of models, found on shelves, described without memory, loaded with care.

    from latentlm import zoo
    zoo.load("free-tiny"), zoo.list("free-*"), zoo.describe("free-8b")
"""

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentlm.zoo.description import Description
    from latentlm.zoo.loading import RandomWeightsWarning, describe, list, load
    from latentlm.zoo.shelves import find

_HOMES = {
    "description": ("Description",),
    "loading": ("RandomWeightsWarning", "describe", "list", "load"),
    "shelves": ("find",),
}

__all__ = ["Description", "RandomWeightsWarning", "describe", "find", "list", "load"]


def __getattr__(name: str) -> Any:
    """A public name, from the module that it lives in: looking at a shelf needs no torch."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> Iterable[str]:
    """The public names, imported or not, and the modules that are."""
    return sorted({*globals(), *__all__})
