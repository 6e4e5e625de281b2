"""latentlm: latent-conditioned decoders, language models p(text | z) with a latent z learned without supervision.

    import latentlm
    model = latentlm.zoo.load("free-tiny")
    model.generate(["def "], max_tokens=40)

Start reading at `latentlm.interface` (the contracts), then `latentlm.composed` (a backbone with four sockets); docs/tour.md
leads through the rest. Importing this package imports no plugin and nothing heavy: a room is imported when it is asked for.
"""

from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"

__all__ = [
    "backbone", "cli", "composed", "config", "errors", "generation", "interface", "interop", "likelihood", "plugins", "testing",
    "tokenizer", "training", "zoo",
]  # fmt: skip


def __getattr__(name: str) -> ModuleType:
    """A room of the house."""
    if name in __all__:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The rooms, imported or not."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
