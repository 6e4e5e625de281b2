r"""`line`: a latent for every line of the text.

A line ends with \n, also as the second half of \r\n. A lone \r, \v, \f, U+0085, U+2028 and U+2029 end none: in text and source
code of today they are rare and mostly not meant as line ends, and in byte tokens the last three are no single token.

The site begins at the position that consumes the token with the break, so that it conditions the line's first token. A token
with text after the break ("\n    ") counts the same, and one with several breaks begins one site. An empty line is a line.

Legend: B rows, T tokens.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator
from torch import Tensor

from latentlm.config import Strict, parse
from latentlm.errors import UserError
from latentlm.interface import Granularity, TokenIds, TokenSet, pack_ids
from latentlm.tokenizer import Tokenizer
from latentlm_granularities.given import check_given


class LineConfig(Strict):
    """The tokens that end a line."""

    breaks: TokenIds = Field((), description="ids of all tokens whose text has a line break; a run fills them in")

    @field_validator("breaks")
    @classmethod
    def _has_some(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value:
            raise ValueError(
                "no token ends a line yet. `latentlm train` fills the ids in from the tokenizer, Line.fill({}, tokenizer) does "
                "the same; by hand, list every token with a line break: granularity: {name: line, breaks: [10]} for bytes."
            )
        return value


class Line(Granularity):
    """A site at every token with a line break in it, and at position 0."""

    Config = LineConfig

    def __init__(self, config: LineConfig) -> None:
        super().__init__(config)
        self._breaks = TokenSet(config.breaks)

    def begins(self, tokens: Tensor, positions: Tensor, documents: Tensor) -> Tensor:
        """(B, T) bool."""
        return self._breaks.contains(tokens) | (positions == 0)

    @classmethod
    def fill(cls, settings: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
        """`breaks`: every token whose bytes hold a line break. Those given by hand stay, if they are of this tokenizer."""
        pieces = tokenizer.pieces()
        if settings.get("breaks"):
            given = parse(LineConfig, settings, source='settings of granularity "line"').breaks
            check_given("line", "breaks", given, pieces, tokenizer, fits=_breaks, what="has no line break")
            return settings
        found = [token for token, text in enumerate(pieces) if _breaks(text)]
        if not found:
            raise UserError(
                f'granularity "line": no token of the tokenizer "{tokenizer.name}" has a line break; it reads one as a space '
                'or not at all. Take a tokenizer that keeps line breaks, or granularity "sentence" or "chunk:n".'
            )
        return {**settings, "breaks": pack_ids(found)}


def _breaks(text: bytes) -> bool:
    return b"\n" in text
