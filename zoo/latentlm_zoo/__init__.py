"""The shelf: model cards, recipes and small trained weights. Itself a plugin.

    cards/NAME.yaml                architectures
    cards/NAME/card.yaml           trained models, their weights beside the card (`latentlm zoo add RUN --to cards --replace`)
    recipes/NAME.yaml              what `latentlm train NAME` reads
"""

from __future__ import annotations

from pathlib import Path

from latentlm.plugins import hookimpl

latentlm_contract = 2


@hookimpl
def latentlm_cards() -> list[Path]:
    """The cards of this shelf."""
    folder = Path(__file__).parent / "cards"
    return sorted([*folder.glob("*.yaml"), *folder.glob("[!.]*/card.yaml")])
