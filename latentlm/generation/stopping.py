"""Where a generated text ends: stop strings, found across token boundaries, in the bytes that tokens add to a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from latentlm.config.checking import several, shown
from latentlm.errors import UserError
from latentlm.tokenizer import as_bytes

if TYPE_CHECKING:
    from latentlm.tokenizer import Tokenizer


class StopStrings:
    """Looks for the first of several strings in a growing text. Raises UserError for empty ones, or without a tokenizer."""

    def __init__(self, stop: str | Sequence[str], tokenizer: Tokenizer | None) -> None:
        texts = [stop] if isinstance(stop, str) else several("stop", stop, of="texts")
        if odd := [text for text in texts if not isinstance(text, str)]:
            raise UserError(f"a stop string is a text, not {shown(odd[0])}.")
        self.goals = [as_bytes(text) for text in texts]
        if not all(self.goals):
            raise UserError("A stop string must not be empty; leave it out to go on until max_tokens or end-of-text.")
        if self.goals and tokenizer is None:
            raise UserError("Stop strings need a tokenizer, and this model has none: set model.tokenizer.")
        self.tokenizer = tokenizer
        self.longest = max(map(len, self.goals), default=0)

    def found(self, prompt: Sequence[int], tokens: Sequence[int]) -> bool:
        """Whether the text that the tokens add behind the prompt holds a stop string, given that it did not before the last
        token."""
        if not self.goals:
            return False
        assert self.tokenizer is not None
        # All but end-of-text have a byte or more, so the tail that can complete a string is short. Cut off, it may differ from
        # the same place in the whole text, hence the second look.
        shown = [token for token in tokens if token != self.tokenizer.end_of_text]
        tail = self.tokenizer.decode_after([*prompt[-1:], *shown[: -self.longest]][-1:], shown[-self.longest :])
        return any(goal in tail for goal in self.goals) and self.place(self.tokenizer.decode_after(prompt, tokens)) is not None

    def place(self, text: bytes) -> int | None:
        """Where the first stop string begins, None where there is none."""
        places = [place for goal in self.goals if (place := text.find(goal)) >= 0]
        return min(places, default=None)
