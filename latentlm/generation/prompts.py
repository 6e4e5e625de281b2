"""From prompts to the tokens that are fed: what training fed first, nothing longer than the context, a key for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Literal

from latentlm.config.checking import several, whole
from latentlm.errors import UserError
from latentlm.tokenizer import PromptReader

if TYPE_CHECKING:
    from latentlm.interface import LatentDecoder


def end_of_text(model: LatentDecoder) -> int | None:
    """The token that begins and ends documents; None without a tokenizer."""
    return None if model.tokenizer is None else model.tokenizer.end_of_text


def end_tokens(model: LatentDecoder) -> frozenset[int]:
    """The tokens that end a generated text: those that the model names, else the tokenizer's end-of-text."""
    if model.end_tokens is not None:
        return model.end_tokens
    return frozenset() if model.tokenizer is None else frozenset([model.tokenizer.end_of_text])


def fed_tokens(model: LatentDecoder, prompt: str | Sequence[int], number: int) -> list[int]:
    """Tokens of a prompt: what training fed first, then the text, in which special tokens may be spelt (`PromptReader`); or the
    given list, the first token where it is empty.

    `number` is its place, for messages. Raises UserError without a tokenizer, and for tokens outside the vocabulary."""
    start = None if model.tokenizer is None else model.tokenizer.first
    if isinstance(prompt, str):
        if model.tokenizer is None:
            raise UserError("Text needs a tokenizer, and this model has none: give lists of tokens, or set model.tokenizer.")
        tokens = PromptReader.of(model.tokenizer).prompt(prompt)
    else:
        said = several(f"prompt {number}", prompt, of="tokens, or a text")
        tokens = [whole(f"a token of prompt {number}", token, least=None) for token in said]
        if not tokens and start is None:
            raise UserError(f"Prompt {number} is empty, and without a tokenizer there is no end-of-text to start from.")
        tokens = tokens or [start]  # type: ignore[list-item]
    vocabulary = model.config.backbone.vocabulary
    if outside := [token for token in tokens if not 0 <= token < vocabulary]:
        raise UserError(
            f"Prompt {number} has the token {outside[0]}, but the model's vocabulary has the tokens 0 to {vocabulary - 1}; "
            "its text was made by another tokenizer."
        )
    return tokens


def fitted(
    model: LatentDecoder, prompts: Sequence[list[int]], *, max_tokens: int, truncate: Literal["left"] | None
) -> list[list[int]]:
    """The prompts, if each leaves room for `max_tokens` in the context; with truncate="left", their last tokens.

    Raises UserError, naming the first prompt that is too long."""
    if truncate not in (None, "left"):
        raise UserError(f'truncate must be "left" or None, not "{truncate}".')
    context = model.config.backbone.context
    room = context - max_tokens
    if room < 1:
        raise UserError(
            f"max_tokens ({max_tokens}) leaves no room for a prompt in the model's context of {context} tokens: lower it."
        )
    if truncate == "left":
        return [prompt[-room:] for prompt in prompts]
    for number, prompt in enumerate(prompts):
        if len(prompt) > room:
            what, wanted, remedy = "The text", "", ""
            if max_tokens:
                what, wanted = f"Prompt {number}", f" and max_tokens is {max_tokens}"
                remedy = ', lower max_tokens, or drop its beginning (--truncate, in Python truncate="left")'
            raise UserError(
                f"{what} has {len(prompt)} tokens{wanted}, but the model's context is {context}. Shorten it{remedy}."
            )
    return list(prompts)


def request_keys(prompts: Sequence[list[int]]) -> list[Hashable]:
    """A key per prompt from its tokens and its number among equal prompts, so that order and neighbours do not matter."""
    seen: Counter[tuple[int, ...]] = Counter()
    keys: list[Hashable] = []
    for prompt in prompts:
        tokens = tuple(prompt)
        keys.append((tokens, seen[tokens]))
        seen[tokens] += 1
    return keys
