"""Granularities of text: where a new latent begins is read off the tokens.

    line        at every token with a line break in it
    sentence    at the white space behind a full stop, question mark or exclamation mark

Both know their tokens by id. The ids depend on the tokenizer: a run fills them in when it is set up, and its recipe and card
keep them.
"""

from __future__ import annotations

from latentlm.plugins import hookimpl
from latentlm_granularities.line import Line
from latentlm_granularities.sentence import Sentence

latentlm_contract = 2


@hookimpl
def latentlm_parts() -> dict[str, dict[str, type]]:
    """The granularities of this plugin."""
    return {"granularity": {"line": Line, "sentence": Sentence}}
