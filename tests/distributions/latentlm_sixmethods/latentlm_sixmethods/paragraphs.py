"""A granularity of one's own: a latent for each paragraph, and a decoder that has one by default.

A paragraph begins where the second of two line breaks is consumed, so that its latent acts on its first letter; the breaks may
be two tokens ("\\n", "\\n"), lie in one ("\\n\\n"), or end one and begin the next (".\\n", "\\n  ").

    granularity   paragraph        decoder   paragraphs: a vector per paragraph, added to the residual stream

Legend: B rows, T tokens.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from latentlm.composed import ComposedDecoder
from latentlm.config import PartSpec, Strict
from latentlm.interface import Granularity, TokenIds, TokenSet, from_previous, pack_ids
from latentlm.plugins import hookimpl
from latentlm.tokenizer import Tokenizer

latentlm_contract = 2


class ParagraphConfig(Strict):
    """Ids of tokens by the breaks in their text; a run fills them in."""

    both: TokenIds = ()
    opens: TokenIds = ()
    closes: TokenIds = ()


class Paragraph(Granularity):
    """A site at every token that completes two line breaks in a row, and at position 0."""

    Config = ParagraphConfig
    lookback = 1

    def __init__(self, config: ParagraphConfig) -> None:
        super().__init__(config)
        self._both, self._opens, self._closes = (TokenSet(ids) for ids in (config.both, config.opens, config.closes))

    def begins(self, tokens: Tensor, positions: Tensor, documents: Tensor) -> Tensor:
        """(B, T) bool."""
        closed = from_previous(self._closes.contains(tokens), positions, documents)
        return self._both.contains(tokens) | (closed & self._opens.contains(tokens)) | (positions == 0)

    @classmethod
    def fill(cls, settings: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
        """All three sets, unless they are given."""
        pieces = list(enumerate(tokenizer.pieces()))
        found = {
            "both": pack_ids(i for i, text in pieces if b"\n\n" in text),
            "opens": pack_ids(i for i, text in pieces if text.startswith(b"\n")),
            "closes": pack_ids(i for i, text in pieces if text.endswith(b"\n")),
        }
        return {**found, **settings}


class Paragraphs(ComposedDecoder):
    """One vector of 8 numbers for each paragraph."""

    defaults: ClassVar[dict[str, PartSpec]] = {
        "encoder": PartSpec(name="site_normal"),
        "prior": PartSpec(name="standard_normal"),
        "injection": PartSpec(name="site_vector"),
        "kl_schedule": PartSpec(name="constant"),
    }
    default_event_dims = 8
    default_granularity = "paragraph"


@hookimpl
def latentlm_parts() -> dict[str, dict[str, type]]:
    """The parts of this plugin."""
    return {"granularity": {"paragraph": Paragraph}, "decoder": {"paragraphs": Paragraphs}}
