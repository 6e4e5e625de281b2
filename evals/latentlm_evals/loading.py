"""The model to evaluate: loaded, refused where its numbers would mean nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from latentlm import zoo
from latentlm.config import Card
from latentlm.errors import UserError, typed_path
from latentlm.interface import LatentDecoder
from latentlm.tokenizer import FILE, check_vocabulary, load_tokenizer
from latentlm.zoo.loading import is_llama
from latentlm.zoo.shelves import find
from latentlm_evals.options import flag


def load_model(
    model: str | LatentDecoder,
    *,
    device: str | None = None,
    dtype: str | None = None,
    tokenizer: str | None = None,
    allow_random: bool = False,
    advise: bool = True,
) -> LatentDecoder:
    """A decoder with a tokenizer, in evaluation mode. `model` is a name of the zoo, a run folder, or a decoder made in Python
    (then `device` and `dtype` are its own).

    Raises UserError, before anything is loaded, for random weights unless `allow_random`, and for a card without a tokenizer
    unless `tokenizer` is given: "bytes", or the path of a tokenizer.json or of its folder. Then for weights that are no
    numbers. `advise`: whether the messages name these two, which a caller may not have."""
    flag("allow_random", allow_random)
    if isinstance(model, LatentDecoder):
        name = model.card.name if model.card else "the model"
        _refuse_random(model.card, allow_random, advise)
        _refuse_wordless(name, bool(tokenizer or model.tokenizer), advise)
        loaded = model
    else:
        name = model
        if not is_llama(model):
            card = find(model).card
            name = card.name
            _refuse_random(card, allow_random, advise)
            _refuse_wordless(name, bool(tokenizer or card.tokenizer), advise)
        loaded = zoo.load(model, device=device, dtype=None if dtype == "auto" else dtype)
    if tokenizer is not None:
        loaded.tokenizer = load_tokenizer(_file_of(tokenizer))
    _refuse_wordless(name, bool(loaded.tokenizer), advise)
    assert loaded.tokenizer is not None
    if loaded.tokenizer.vocabulary > loaded.config.backbone.vocabulary:  # fewer is fine: vocabularies are padded for speed
        check_vocabulary(loaded.tokenizer, loaded.config.backbone.vocabulary, source=name)
    _refuse_broken(name, loaded)
    return loaded.eval()


def tokenizer_folder(model: str | LatentDecoder, tokenizer: str | None) -> tuple[Path | None, bool]:
    """Where the tokenizer.json of a model lies, None where there is none, and whether it is a folder of transformers rather
    than a card's; both for what `load_model` takes."""
    elsewhere = isinstance(model, str) and is_llama(model)
    if tokenizer is not None:
        file = Path(_file_of(tokenizer)).expanduser()
        return (file.parent if file.is_file() else None), elsewhere
    if isinstance(model, LatentDecoder):
        return None, False
    if elsewhere:
        return typed_path(model), True
    entry = find(model)
    return (entry.folder if entry.card.tokenizer not in (None, "bytes") else None), False


def _file_of(tokenizer: str) -> str:
    """The tokenizer.json of a folder, as lm-eval's `hf` takes its tokenizer; anything else as it is."""
    return str(Path(tokenizer) / FILE) if (Path(tokenizer).expanduser() / FILE).is_file() else tokenizer


def _refuse_broken(name: str, model: LatentDecoder) -> None:
    """Raise UserError where a weight is not a finite number: every score would be NaN, or silently wrong."""
    for part, tensor in _numbers(model):
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{name} has weights that are not finite ({part}): it is broken. Train it anew, or load it again.")


def _numbers(model: LatentDecoder) -> Iterator[tuple[str, Tensor]]:
    """What `state_dict` holds, which would spread weights anew that are whole while several processes evaluate (FSDP)."""
    yield from model.named_parameters()
    for prefix, module in model.named_modules():
        passing = module._non_persistent_buffers_set
        yield from ((name, kept) for name, kept in module.named_buffers(prefix, recurse=False)
                    if name.rpartition(".")[-1] not in passing)  # fmt: skip


def _refuse_random(card: Card | None, allow_random: bool, advise: bool) -> None:
    """Raise UserError for an `architecture` card, whose weights are random."""
    if card is not None and card.status == "architecture" and not allow_random:
        remedy = "Name a trained model: `latentlm zoo list` shows which are."
        if advise:
            remedy = "Evaluate a trained model, or say allow_random=true (--allow-random) to measure random ones all the same."
        raise UserError(
            f'"{card.name}" is an architecture without trained weights: its scores would be those of random weights. {remedy}'
        )


def _refuse_wordless(name: str, has_tokenizer: bool, advise: bool) -> None:
    """Raise UserError for a model that can read no text."""
    if not has_tokenizer:
        remedy = "give one with tokenizer=PATH of a tokenizer.json, or tokenizer=bytes."
        raise UserError(f"{name} has no tokenizer: {remedy if advise else 'name a model that has one.'}")
