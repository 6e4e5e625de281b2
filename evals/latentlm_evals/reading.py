"""How lm-eval's prompts become tokens (latentlm/tokenizer/prompts.py), by whose rule.

    reader = reader_of(model.tokenizer, folder, elsewhere=True)
    pair = reader.pair("The capital of France is", " Paris")

The first token is what training fed before a text. A card was trained on documents that begin with end-of-text. A folder from
elsewhere is read by its own tokenizer, as transformers and lm-eval's `hf` read it: BOS where its rule adds one, else nothing.
`add_bos_token` overrides both. A prompt that begins with that token already, as a chat template may, gets no second one.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from latentlm.config import read_json
from latentlm.errors import UserError, short
from latentlm.likelihood import fit_to_context
from latentlm.tokenizer import PromptReader, Tokenizer, as_bytes, tokens_before
from latentlm_evals.generation_settings import GenerationSettings
from latentlm_evals.options import count, flag

CONFIG, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"


TokenRequest = tuple[tuple[str, str], list[int], list[int]]
"""(context and continuation as text, context tokens, continuation tokens)."""


@dataclass(frozen=True)
class Reader(PromptReader):
    """Reads prompts. Made by `reader_of`."""

    name: str
    templates: Any = field(default=None, repr=False)
    """The tokenizer as transformers has it, which knows chat templates; None where the folder has none."""

    def facts(self) -> dict[str, Any]:
        """What the answers depend on."""
        return {"first_token": self.leading[0] if self.leading else None, "prefix_token": self.prefix}

    def digest(self) -> str:
        """Tells apart readers of one name: how a text that exercises it is read, and the chat template."""
        probe = "".join(map(chr, range(32, 127))) + " the quick brown fox\n\tdef __init__(self): return 0.25\n\u00e9\u4e2d"
        said = [self.encode(probe), self.prefix, getattr(self.templates, "chat_template", None)]
        return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()


def reader_of(
    tokenizer: Tokenizer,
    folder: Path | None,
    *,
    elsewhere: bool,
    add_bos_token: bool | None = None,
    prefix_token_id: int | None = None,
) -> Reader:
    """The reader of a model's prompts. `folder`: where its tokenizer.json lies, None where there is none; `elsewhere`: it is
    a folder of transformers, not of a card. Raises UserError for a folder that transformers cannot read, and for arguments that
    are none."""
    flag("add_bos_token", add_bos_token)
    prefix = None if prefix_token_id is None else count("prefix_token_id", prefix_token_id, least=0)
    if prefix is not None and prefix >= tokenizer.vocabulary:
        raise UserError(f"prefix_token_id={prefix} is no token of this model's: they go from 0 to {tokenizer.vocabulary - 1}.")
    if elsewhere and folder is not None:
        return _of_transformers(tokenizer, folder, add_bos_token, prefix)
    return Reader(
        name=tokenizer.name,
        plain=tokenizer.encode_prompt,
        leading=[] if add_bos_token is False else [tokenizer.first],
        prefix=tokenizer.first if prefix is None else prefix,
        templates=_templates(folder),
    )


def _of_transformers(tokenizer: Tokenizer, folder: Path, add_bos_token: bool | None, prefix: int | None) -> Reader:
    """By the tokenizer that lm-eval's `hf` would load, and its rule."""
    from transformers import AutoTokenizer

    if "AutoTokenizer" in _said(folder).get("auto_map", {}):
        raise UserError(
            f"the tokenizer in {folder} is code of its own (auto_map in {CONFIG}), and code of a folder is never run: give "
            "tokenizer=PATH of a tokenizer.json that does without."
        )
    ruled = {} if add_bos_token is None else {"add_bos_token": add_bos_token}
    theirs = _loaded(AutoTokenizer, folder, **ruled)

    def plain(text: str) -> list[int]:
        return list(theirs.encode(as_bytes(text).decode("utf-8", errors="replace"), add_special_tokens=False))

    rule = [] if add_bos_token is False else tokens_before(theirs.encode("a"), plain("a"))
    if prefix is None:
        prefix = tokenizer.end_of_text if theirs.eos_token_id is None else theirs.eos_token_id
        prefix = prefix if theirs.bos_token_id is None else theirs.bos_token_id
    return Reader(name=tokenizer.name, plain=plain, leading=rule, prefix=prefix, templates=theirs)


def _templates(folder: Path | None) -> Any:
    """The tokenizer of a card's folder as transformers has it, None unless there is a chat template beside it."""
    if folder is None or not (folder / "tokenizer.json").is_file() or not _has_template(folder):
        return None
    from transformers import PreTrainedTokenizerFast

    return _loaded(PreTrainedTokenizerFast, folder)


def _loaded(kind: Any, folder: Path, **ruled: bool) -> Any:
    """A tokenizer as a class of transformers reads it. Raises UserError."""
    try:
        return kind.from_pretrained(folder, **ruled)
    except Exception as error:  # files of another form make it raise whatever its code runs into
        said = short(str(error) or type(error).__name__)
        raise UserError(f"transformers cannot read the tokenizer in {folder}: {said}") from None


def _has_template(folder: Path) -> bool:
    return (folder / TEMPLATE).is_file() or bool(_said(folder).get("chat_template"))


def _said(folder: Path) -> dict[str, Any]:
    """What the file beside a tokenizer.json says of it; nothing where there is none."""
    if not (folder / CONFIG).exists():
        return {}
    said = read_json(folder / CONFIG)
    if not isinstance(said, dict):
        raise UserError(f"{folder / CONFIG} should hold a mapping, not {type(said).__name__}.")
    return said


def fitted(request: TokenRequest, limit: int) -> tuple[list[int], list[int]]:
    """Context and continuation, cut from the left to `limit` inputs. Raises UserError that names them by their text."""
    (context, continuation), given, continued = request
    where = f'the continuation "{_short(continuation)}" of the context "{_short(context, end=True)}"'
    if not continued:
        raise UserError(f"{where} has no tokens: there is nothing to score. Mend the task.")
    if len(continued) > limit:
        raise UserError(
            f"{where} has {len(continued)} tokens, and the model sees {limit} at a time. Score such texts in windows, with a "
            "task of loglikelihood_rolling."
        )
    return fit_to_context(given, continued, limit)


def cut_and_joined(reader: Reader, request: Instance, limit: int) -> tuple[bool, bool]:
    """What is done to a request, whoever answers it: is its context cut to `limit` inputs, does a token span the join?"""
    if request.request_type == "generate_until":
        room = limit - GenerationSettings.of(request.args[1], limit).max_tokens
        return len(reader.prompt(str(request.args[0]))) > room, False
    if request.request_type != "loglikelihood":
        return False, False  # whole texts have windows
    pair = reader.pair(str(request.args[0]), str(request.args[1]))
    return len(pair.given) + len(pair.continued) > limit + 1, pair.joined


def _short(text: str, *, end: bool = False, longest: int = 60) -> str:
    """A text on one line, its beginning or end where it is long."""
    cut = text if len(text) <= longest else f"...{text[-longest:]}" if end else f"{text[:longest]}..."
    return repr(cut)[1:-1]


def begun(text: list[int], prefix: int) -> list[int]:
    """A whole text after the prefix token, which it may bring itself."""
    return text if text[:1] == [prefix] else [prefix, *text]


def overlapping_windows(text: list[int], limit: int) -> list[tuple[list[int], list[int]]]:
    """(context, targets) of each window of a text after its first token, as lm-eval cuts it to `limit` inputs: targets are
    disjoint and cover it, and the last window has as much context as fits."""
    return [make_disjoint_window(window) for window in get_rolling_token_windows(text[1:], text[0], limit, context_len=1)]
