"""From what a recipe, a card or a folder says to a tokenizer, checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from latentlm.config.checking import shown
from latentlm.config.reading import json_data, no_file, read_text
from latentlm.errors import UserError, did_you_mean, resolved, short, typed_path
from latentlm.tokenizer.base import END_OF_TEXT, ByteTokenizer, Tokenizer
from latentlm.tokenizer.library import (
    COMPANION,
    FILE,
    BPETokenizer,
    LibraryTokenizer,
    added_tokens,
    byte_letters,
    end_of_text_name,
)  # fmt: skip


def load_tokenizer(spec: str, *, folder: Path | None = None) -> Tokenizer:
    """The tokenizer of a spec: "bytes", or a path to a tokenizer.json.

    With `folder` (where a card lies) the path is relative to it and may not lead out of it. Raises UserError.
    """
    if not isinstance(spec, str):
        raise UserError(f"a tokenizer is given as a text, not as {shown(spec)}.")
    if spec == "bytes":
        return ByteTokenizer()
    if not spec.endswith(".json"):
        hint = did_you_mean(spec, ["bytes", FILE])
        raise UserError(f'unknown tokenizer "{spec}".{hint} Give "bytes" or the path of a tokenizer.json.')
    path = typed_path(spec) if folder is None else _inside(folder, spec)
    if not path.is_file():
        raise UserError(f"the tokenizer {no_file(path)} Give the path of a tokenizer.json.")
    return read_tokenizer(path)


def check_vocabulary(tokenizer: Tokenizer, vocabulary: int, *, source: str) -> None:
    """Raise UserError unless the model's vocabulary (its embedding rows) is the tokenizer's. `source` names the model."""
    if tokenizer.vocabulary != vocabulary:
        raise UserError(
            f'{source}: the model has a vocabulary of {vocabulary}, the tokenizer "{tokenizer.name}" has '
            f"{tokenizer.vocabulary} symbols. Use the tokenizer that the model was trained with, or, for a new model, set "
            f"model.backbone.vocabulary={tokenizer.vocabulary}."
        )


def _inside(folder: Path, spec: str) -> Path:
    """`folder / spec`, refused where it leads out of the folder (also through a link)."""
    root = resolved(folder)
    path = resolved(root / spec)
    if Path(spec).is_absolute() or not path.is_relative_to(root):
        raise UserError(f'the tokenizer "{spec}" lies outside {folder}; a card may only name a file in its own folder.')
    return path


def read_tokenizer(path: Path, *, text: str | None = None) -> LibraryTokenizer:
    """A tokenizer.json, byte-level or other; `text` is what stands in it, where that is another's reading. Raises UserError."""
    from tokenizers import Tokenizer as Backend

    text = read_text(path) if text is None else text
    layout = json_data(text, source=str(path))
    try:
        backend = Backend.from_str(text)
    except BaseException as error:  # the library raises bare Exception on a bad file, and no Exception where it panics
        if isinstance(error, KeyboardInterrupt):
            raise
        _unreadable(path, error)
    name = end_of_text_name(backend, path.with_name(COMPANION))
    if name is None:
        listed = ", ".join(sorted(str(token) for token in added_tokens(backend).values())[:12]) or "none"
        raise UserError(
            f"{path} has no end-of-text token (special tokens: {listed}); latentlm begins and ends every document with one. "
            f'Add a special token such as "{END_OF_TEXT}", or name one as "eos_token" in a {COMPANION} beside it.'
        )
    if not _is_byte_level(layout):
        return LibraryTokenizer(backend, name=path.name, end_of_text=name)
    tokenizer = BPETokenizer(backend, name="", end_of_text=name)
    tokenizer.name = f"bpe:{tokenizer.vocabulary}"
    return tokenizer


def _unreadable(path: Path, error: BaseException) -> NoReturn:
    raise UserError(f"{path} is not a tokenizer.json of the tokenizers library: {short(str(error))}") from None


def _is_byte_level(layout: dict[str, Any]) -> bool:
    """A BPE over all 256 bytes that changes nothing in the text (no normaliser, no space put in front)."""
    model, step = layout.get("model") or {}, layout.get("pre_tokenizer") or {}
    steps = step.get("pretokenizers", [step])
    byte_level = [part for part in steps if part.get("type") == "ByteLevel"]
    return (
        model.get("type") == "BPE"
        and layout.get("normalizer") is None
        and bool(byte_level)
        and not any(part.get("add_prefix_space", True) for part in byte_level)
        and all(letter in model["vocab"] for letter in byte_letters())
    )
