"""How prompts become tokens: what is fed first, what special tokens are, where a context ends and its continuation begins.

    reader = PromptReader.of(model.tokenizer)
    given, continued, joined = astuple(reader.pair("The capital of France is", " Paris"))

`generate`, `latentlm score --given` and lm-eval's adapter all read prompts so. Special tokens that a prompt spells are these
tokens, which they never are in a document.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from latentlm.tokenizer.base import Tokenizer


@dataclass(frozen=True)
class Pair:
    """A context and its continuation in tokens."""

    given: list[int]
    """Never empty."""
    continued: list[int]
    """Empty where the continuation has no token of its own."""
    joined: bool
    """A token of the whole text spans the two parts: what is scored is not the whole text's own tokens."""


@dataclass(frozen=True)
class PromptReader:
    """Reads prompts."""

    plain: Callable[[str], list[int]]
    """Text -> tokens, nothing put before or behind."""
    leading: list[int]
    """Fed before every text."""
    prefix: int
    """Stands for an empty context, and before a whole text."""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> PromptReader:
        """As the model was trained that the tokenizer belongs to."""
        return cls(tokenizer.encode_prompt, list(tokenizer.leading), tokenizer.first)

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, what is fed first among them, once."""
        tokens = self.plain(text)
        return tokens if tokens[:1] in ([self.prefix], self.leading[:1]) else self.leading + tokens

    def prompt(self, text: str) -> list[int]:
        """Tokens of what a model is to continue; never none."""
        return self.encode(text) or [self.prefix]

    def pair(self, context: str, continuation: str) -> Pair:
        """Cut the whole text's tokens where the context's end, blanks at its end being the continuation's, as lm-eval does.

        A context of nothing but blanks is an empty one, and so is one without tokens: the prefix token stands for it. Where
        the cut would leave nothing, the two are encoded alone."""
        words = context.rstrip()
        continuation = context[len(words) :] + continuation
        given = self.encode(words) if words else []
        if not given:
            whole = self.plain(continuation)
            # A continuation that begins with the prefix token brings its own.
            given, continued = (whole[:1], whole[1:]) if whole[:1] == [self.prefix] else ([self.prefix], whole)
            return Pair(given, continued, joined=False)
        whole = self.encode(words + continuation)
        continued = whole[len(given) :] or self.plain(continuation)
        return Pair(given, continued, joined=given + continued != whole)
