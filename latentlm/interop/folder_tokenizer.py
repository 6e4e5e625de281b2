"""The tokenizer of a folder of transformers, as transformers reads it.

    tokenizer = folder_tokenizer(folder)

Most tokenizer.json files mean what they say. Where tokenizer_config.json names a class with rules of its own (LlamaTokenizer of
the SentencePiece folders), transformers puts its normaliser and its way to cut words in the place of the file's; everybody's
prompts are read so, and so are ours.
"""

from __future__ import annotations

from pathlib import Path

from latentlm.config import read_json
from latentlm.errors import UserError
from latentlm.tokenizer import FILE, LibraryTokenizer, Tokenizer, load_tokenizer
from latentlm.tokenizer.library import COMPANION
from latentlm.tokenizer.loading import read_tokenizer

_AS_WRITTEN = (None, "PreTrainedTokenizerFast", "TokenizersBackend")
"""Classes without rules of their own."""


def folder_tokenizer(folder: Path) -> Tokenizer:
    """The folder has a tokenizer.json. Raises UserError for one that cannot be read."""
    tokenizer = _of_class(folder) if _has_class(folder) else load_tokenizer(FILE, folder=folder)
    if isinstance(tokenizer, LibraryTokenizer):
        tokenizer.begin_as(folder)
    return tokenizer


def _has_class(folder: Path) -> bool:
    """Whether transformers reads it by a class with rules of its own; code of the folder is never run."""
    said = read_json(folder / COMPANION) if (folder / COMPANION).is_file() else {}
    return isinstance(said, dict) and said.get("tokenizer_class") not in _AS_WRITTEN and "auto_map" not in said


def _of_class(folder: Path) -> Tokenizer:
    from transformers import AutoTokenizer  # slow to import, and needed by few folders

    try:
        theirs = AutoTokenizer.from_pretrained(folder).backend_tokenizer.to_str()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the folder is somebody else's: anything may come, and no Exception where Rust panics
        raise UserError(f"transformers cannot read the tokenizer in {folder}: {error}") from None
    return read_tokenizer(folder / FILE, text=theirs)
