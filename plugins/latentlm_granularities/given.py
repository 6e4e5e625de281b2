"""Ids that were given rather than filled in: those of another tokenizer would be other text, and no number would show it.

They come from a recipe that a run wrote, taken up again with another tokenizer, or from a user's hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from latentlm.errors import UserError
from latentlm.tokenizer import Tokenizer


def check_given(
    granularity: str,
    field: str,
    ids: Sequence[int],
    pieces: Sequence[bytes],
    tokenizer: Tokenizer,
    *,
    fits: Callable[[bytes], bool] | None = None,
    what: str = "",
) -> None:
    """Raise UserError for an id that the tokenizer has not, or, with `fits`, whose text in `pieces` (V of them) does not fit;
    `what` says in which way."""
    for token in ids:
        if token >= len(pieces):
            problem = f'is beyond the {len(pieces)} symbols of the tokenizer "{tokenizer.name}"'
        elif fits is not None and not fits(pieces[token]):
            text = pieces[token].decode("utf-8", errors="replace")
            problem = f'is {text!r} in the tokenizer "{tokenizer.name}", which {what}'
        else:
            continue
        raise UserError(
            f'granularity "{granularity}": token {token} of `{field}` {problem}. These ids are another tokenizer\'s: leave '
            f"`{field}` out, and a run fills it in."
        )
