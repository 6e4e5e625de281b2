"""The tokenizer of a recipe."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from latentlm.errors import UserError, did_you_mean
from latentlm.tokenizer import FILE, BPETokenizer, Tokenizer, load_tokenizer


def make_tokenizer(spec: str, texts: Iterable[bytes]) -> Tokenizer:
    """The tokenizer of `data.tokenizer`: "bytes", "bpe:N" trained on the texts, or a file. Raises UserError."""
    given = given_tokenizer(spec)
    return BPETokenizer.train(texts, vocabulary=_symbols(spec)) if given is None else given


def given_tokenizer(spec: str) -> Tokenizer | None:
    """The tokenizer of `data.tokenizer`; None where it is to be trained. Raises UserError."""
    if spec == "bytes" or spec.endswith(".json"):
        return load_tokenizer(spec)
    if not re.fullmatch(r"bpe:[1-9]\d{0,8}", spec):
        hint = did_you_mean(spec, ["bytes", "bpe:4096"])
        raise UserError(f'data.tokenizer "{spec}" is none of "bytes", "bpe:N" (N symbols to learn), a tokenizer.json.{hint}')
    BPETokenizer.check_vocabulary(_symbols(spec))
    return None


def _symbols(spec: str) -> int:
    """N of "bpe:N"."""
    return int(spec.removeprefix("bpe:"))


def kept_tokenizer(spec: str, folder: Path | None) -> Tokenizer | None:
    """The tokenizer that a run keeps in its folder; None where it keeps none. Raises UserError."""
    if folder is None or spec == "bytes" or not (folder / FILE).is_file():
        return None
    return load_tokenizer(FILE, folder=folder)
