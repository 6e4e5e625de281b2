r"""`sentence`: a latent for every sentence, as far as punctuation tells.

A sentence ends with one of . ! ?, then any closing quotes and brackets, then white space:

    [.!?] ( " ' ) ] } or a closing curly quote or guillemet )* white space

so that "3.14" and "a.b" end none, and "Mr. Smith" and "e.g. this" do: a latent more, not an error. A headline without a full
stop goes on into the text below. Languages that put no space after a full stop have no sentences here.

The site begins at the position that consumes the (first) white space, the first at which the end is certain. In byte tokens
that is before the sentence's first letter. In a BPE whose words carry their space (" The") it is the first word itself, which
the site before has predicted: the new site conditions the sentence from its second token on.

In tokens, with each id in one of four sets by its text:

    closes(t) = closers(t) or (marks(t) and closes(t-1))          the text up to t ends a sentence, if white space follows
    begins(t) = inside(t) or (spaces(t) and closes(t-1)) or position 0

Closing quotes and brackets that are tokens of their own are followed over two tokens, hence the lookback of three; without
`marks` it is one.

Legend: B rows, T tokens.
"""

from __future__ import annotations

import re
from typing import Any, Self

from pydantic import Field, model_validator
from torch import Tensor

from latentlm.config import Strict, parse
from latentlm.errors import UserError
from latentlm.interface import Granularity, TokenIds, TokenSet, from_previous, pack_ids
from latentlm.tokenizer import Tokenizer
from latentlm_granularities.given import check_given

MARK_TOKENS = 2
"""Tokens of closing quotes and brackets between the full stop and the white space."""

# In bytes, since a token may hold half a letter. The last four: right double and single curly quotes, and both guillemets.
_MARK = rb"(?:[\"')\]}]|\xe2\x80\x9d|\xe2\x80\x99|\xc2\xbb|\xe2\x80\xba)"
_RULES = {
    "closers": re.compile(rb"[.!?]" + _MARK + rb"*\Z"),
    "marks": re.compile(rb"\A" + _MARK + rb"+\Z"),
    "spaces": re.compile(rb"\A" + _MARK + rb"*\s"),
    "inside": re.compile(rb"[.!?]" + _MARK + rb"*\s"),
}


class SentenceConfig(Strict):
    """The tokens that end a sentence, alone or two together."""

    closers: TokenIds = Field((), description="ids whose text ends with . ! or ? and closing quotes; a run fills them in")
    marks: TokenIds = Field((), description="ids that are closing quotes and brackets only; a run fills them in")
    spaces: TokenIds = Field((), description="ids whose text begins with white space, or marks and it; a run fills them in")
    inside: TokenIds = Field((), description="ids with a sentence's end and white space inside; a run fills them in")

    @model_validator(mode="after")
    def _can_begin(self) -> Self:
        if not (self.inside or (self.closers and self.spaces)):
            raise ValueError(
                "no token ends a sentence yet. `latentlm train` fills the ids in from the tokenizer, Sentence.fill({}, "
                "tokenizer) does the same; by hand, list the tokens that end with punctuation and those that begin with white "
                "space: granularity: {name: sentence, closers: [33, 46, 63], spaces: [9, 10, 13, 32]} for bytes."
            )
        return self


class Sentence(Granularity):
    """A site at the white space after a sentence, and at position 0."""

    Config = SentenceConfig

    def __init__(self, config: SentenceConfig) -> None:
        super().__init__(config)
        self._mark_tokens = MARK_TOKENS if config.marks else 0
        self.lookback = 1 + self._mark_tokens
        self._closers = TokenSet(config.closers)
        self._marks = TokenSet(config.marks)
        self._spaces = TokenSet(config.spaces)
        self._inside = TokenSet(config.inside)

    def begins(self, tokens: Tensor, positions: Tensor, documents: Tensor) -> Tensor:
        """(B, T) bool."""
        closers, marks = self._closers.contains(tokens), self._marks.contains(tokens)
        closes = closers
        for _ in range(self._mark_tokens):
            closes = closers | (marks & from_previous(closes, positions, documents))
        ended = self._spaces.contains(tokens) & from_previous(closes, positions, documents)
        return self._inside.contains(tokens) | ended | (positions == 0)

    @classmethod
    def fill(cls, settings: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
        """The four sets of ids, from every token's bytes. Those given by hand stay, if they are of this tokenizer."""
        pieces = tokenizer.pieces()
        sets = {name: [t for t, text in enumerate(pieces) if rule.search(text)] for name, rule in _RULES.items()}
        filled = {name: pack_ids(ids) for name, ids in sets.items()} | settings
        if not (sets["inside"] or (sets["closers"] and sets["spaces"])):
            raise UserError(
                f'granularity "sentence": the tokenizer "{tokenizer.name}" has no tokens that end with . ! or ? and are '
                'followed by white space. Take granularity "line" or "chunk:n", or another tokenizer.'
            )
        given = parse(SentenceConfig, filled, source='settings of granularity "sentence"')
        for name in _RULES:
            check_given("sentence", name, getattr(given, name), pieces, tokenizer)
        # What ends a sentence may be anybody's choice; white space is what it is, so it tells the ids of another tokenizer.
        fits, what = _RULES["spaces"].search, "does not begin with white space"
        check_given("sentence", "spaces", given.spaces, pieces, tokenizer, fits=lambda text: bool(fits(text)), what=what)
        return filled
