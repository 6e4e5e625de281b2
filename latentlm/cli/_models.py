"""Loading for the commands that read or write text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from latentlm.errors import UserError

if TYPE_CHECKING:
    from latentlm.interface import LatentDecoder


def load_reader(name: str, *, device: str | None) -> LatentDecoder:
    """`zoo.load`. Raises UserError, before gigabytes are loaded, for a model of the zoo whose card names no tokenizer."""
    from latentlm import zoo
    from latentlm.zoo import shelves

    if any(entry.card.tokenizer is None for entry in shelves.entries().get(name, [])):
        raise UserError(
            f'"{name}" has no tokenizer, so it reads no text: give a model that has one, or a copy of its card that names one '
            "(tokenizer: tokenizer.json, a file beside the card)."
        )
    return zoo.load(name, device=device)
