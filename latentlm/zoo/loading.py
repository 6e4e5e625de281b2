"""The model zoo: load, list and describe models by name or path.

    from latentlm import zoo
    model = zoo.load("free-tiny")                  # a card of an installed plugin, of LATENTLM_ZOO_PATH, or of your own shelf
    model = zoo.load("runs/mine")                  # a run folder: what you trained loads the same way
    zoo.list("free-*"), zoo.describe("free-8b")    # counted on the meta device, in a second

Loading checks weights and memory first, then allocates once and fills in place. Hashes are verified; safetensors only. A card
without weights (status "architecture") loads freshly initialised and says so; random weights never pass for trained ones.
"""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from latentlm.composed import build, complete
from latentlm.config import Card, WeightsSpec, memory, read_json
from latentlm.config.checking import shown, whole
from latentlm.config.tensor_files import TensorFile, held
from latentlm.config.tensor_parts import TensorParts
from latentlm.errors import CheckpointError, UserError, typed_path, unknown_name
from latentlm.interface import LatentDecoder
from latentlm.plugins.provenance import explained
from latentlm.tokenizer import Tokenizer, check_vocabulary, load_tokenizer
from latentlm.zoo import weights as _weights
from latentlm.zoo.accounting import cost, cost_of, count, overhead
from latentlm.zoo.description import Description
from latentlm.zoo.drawing import draw
from latentlm.zoo.shelves import CardWarning, Entry, entries, find, is_name, only

Weights = Literal["auto", "required"] | str | Path | None
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


class RandomWeightsWarning(UserWarning):
    """A model was loaded with fresh random weights."""


class UnverifiedWarning(UserWarning):
    """A model was loaded from a folder that records no hashes."""


class UnfinishedWarning(UserWarning):
    """A model was loaded from a run that goes on."""


# ---------------------------------------------------------------------------------------------------------- loading


def load(
    name_or_path: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    weights: Weights = "auto",
    seed: int = 0,
) -> LatentDecoder:
    """Load a model, in evaluation mode, with `.card` and `.tokenizer` set.

    name_or_path   a card's name, a run folder, a card file, or a folder with a Hugging Face Llama
    device         None: the CPU
    dtype          None: the card's
    weights        "auto": the card's, fresh ones with a warning where it has none; "required": the card's or an error;
                   None: fresh ones; a path: that safetensors file, with the card's configuration
    seed           of fresh weights

    `model.card` describes the weights that were loaded: its status is "architecture" where they are fresh. Raises UserError:
    unknown name, missing or damaged weights, too little memory, a tokenizer that does not fit.
    """
    if not isinstance(name_or_path, str | Path):
        raise UserError(f"A model is given by a name or a path, not {shown(name_or_path)}.")
    if not (weights is None or isinstance(weights, str | Path)):
        raise UserError(f'weights must be "auto", "required", None or a path, not {shown(weights)}.')
    seed = whole("seed", seed, least=None)
    target, path = _device(device), typed_path(name_or_path)
    if is_llama(name_or_path):
        return _llama(path, target, dtype, weights)
    with ExitStack() as open_files:
        entry, card, file = _found(name_or_path, weights, open_files)
        return _loaded(entry, card, file, target=target, dtype=dtype, weights=weights, seed=seed)


def _found(
    name_or_path: str | Path, weights: Weights, open_files: ExitStack
) -> tuple[Entry, Card, TensorFile | TensorParts | None]:
    """A card, that of the file to load, and this file, open and verified (None: fresh weights). A run that goes on may delete
    its newest checkpoint, when there is a newer one, before it was opened: then that is taken."""
    entry = find(name_or_path)
    while True:
        try:
            return entry, *_weights_for(entry, weights, open_files)
        except CheckpointError:
            before, entry = entry, find(name_or_path)
            if entry.checkpoint == before.checkpoint:
                raise


def _loaded(
    entry: Entry,
    card: Card,
    file: TensorFile | TensorParts | None,
    *,
    target: torch.device,
    dtype: torch.dtype | str | None,
    weights: Weights,
    seed: int,
) -> LatentDecoder:
    """The model of a card with the weights of an open file; None: fresh ones."""
    wanted, names = _dtype(card.dtype if dtype is None else dtype), card.plugins or None
    with explained(_plugins_then(entry), what=f"{entry.folder} was trained"):
        skeleton = build(card.model, device="meta", plugin_names=names)
        if file is not None:
            _weights.check(skeleton, file)
    tokenizer = _tokenizer(entry)
    memory.check(count(skeleton) * wanted.itemsize, target, what=f'"{card.name}" in {str(wanted).removeprefix("torch.")}')
    fresh = file is None or _has_unsaved(skeleton)
    model = build(card.model, device=target, dtype=wanted, seed=seed, init=fresh, plugin_names=names)
    if file is not None:
        _weights.load_into(model, file)
    elif weights is not None:
        warnings.warn(
            f'"{card.name}" is an architecture without trained weights: it was loaded with random ones (seed {seed}).',
            RandomWeightsWarning,
            stacklevel=2,
        )
    if entry.checkpoint is not None:
        step, of = (card.training.get(key) for key in ("steps", "of_steps"))
        said = f"{entry.folder} is not finished: this is its model after step {step} of {of}."
        warnings.warn(said, UnfinishedWarning, stacklevel=2)
    model.card, model.tokenizer = card, tokenizer
    return model.eval()


def _plugins_then(entry: Entry) -> dict[str, Any]:
    """What a run folder's manifest says of its plugins; nothing elsewhere, or where it cannot be read."""
    try:
        whole = read_json(entry.folder / "manifest.json")
    except UserError:
        return {}
    said = whole.get("plugins") if isinstance(whole, dict) else None
    return said if isinstance(said, dict) and all(isinstance(each, dict) for each in said.values()) else {}


def _weights_for(entry: Entry, weights: Weights, open_files: ExitStack) -> tuple[Card, TensorFile | TensorParts | None]:
    """The file to load, open and verified (None: fresh weights), and the card that tells of it."""
    card = entry.card
    if weights is None:
        return card.model_copy(update={"status": "architecture", "weights": None, "scores": {}}), None
    if weights not in ("auto", "required"):
        path = typed_path(weights)
        _weights.check_file(path)
        file = open_files.enter_context(held(path))
        spec = WeightsSpec(uri=str(path), sha256=file.sha256(), size=file.size)
        return card.model_copy(update={"status": "trained", "weights": spec, "scores": {}}), file
    if card.weights is None:
        if weights == "required":
            raise UserError(
                f'"{card.name}" is an architecture without trained weights. Train it, or load it with weights="auto" '
                "to get fresh random ones."
            )
        return card, None
    path = _weights.inside(entry.checkpoint or entry.folder, card.weights.uri)
    found: TensorFile | TensorParts
    if card.weights.parts:
        found = open_files.enter_context(_weights.hold_parts(path, card.weights.parts))
    else:
        found = open_files.enter_context(_weights.hold(path))
    _weights.verify(found, size=card.weights.size, digest=card.weights.sha256)
    return card, found


def _has_unsaved(model: nn.Module) -> bool:
    """Whether a part keeps numbers that are not saved with the weights, which only `init_weights` can set."""
    saved = _weights.weights_of(model).keys() | {name for name, _ in model.named_parameters()}
    return any(name not in saved for name, _ in model.named_buffers())


def _tokenizer(entry: Entry) -> Tokenizer | None:
    """The card's tokenizer, of the model's vocabulary; None where the card has none."""
    if entry.card.tokenizer is None:
        return None
    tokenizer = load_tokenizer(entry.card.tokenizer, folder=entry.folder)
    check_vocabulary(tokenizer, entry.card.model.backbone.vocabulary, source=f'the card "{entry.card.name}"')
    return tokenizer


def is_llama(name_or_path: str | Path) -> bool:
    """Whether `load` takes it for a folder of transformers: a name of a card goes before a folder of that name."""
    path = typed_path(name_or_path)
    if is_name(name_or_path) or not (path / "config.json").is_file():
        return False
    from latentlm.interop import is_llama_folder

    return is_llama_folder(path)


def _llama(path: Path, device: torch.device, dtype: torch.dtype | str | None, weights: Weights) -> LatentDecoder:
    """The Llama of a folder of transformers."""
    from latentlm.interop import llama_config, load_llama

    if weights not in ("auto", "required"):
        raise UserError(f'{path} brings its own weights: leave weights at "auto", or load a card with other ones.')
    wanted = None if dtype is None else _dtype(dtype)
    size = count(build(llama_config(path), device="meta")) * (wanted or torch.bfloat16).itemsize  # at least
    memory.check(size, device, what=str(path))
    warnings.warn(f"{path} records no hashes: its weights are read as they are, unverified.", UnverifiedWarning, stacklevel=3)
    return load_llama(path, dtype=wanted, device=device).eval()


def _device(device: torch.device | str | None) -> torch.device:
    """A torch device from its name. Raises UserError where there is none."""
    if not (device is None or isinstance(device, str | torch.device)):
        raise UserError(f"A device is given by its name, not by {shown(device)}.")
    try:
        found = torch.device("cpu" if device is None else device)
    except RuntimeError:
        raise UserError(f'Unknown device "{device}". Give "cpu", "cuda" or "cuda:N".') from None
    if found.type not in ("cpu", "cuda", "mps"):
        raise UserError(f'No model computes on the device "{device}". Give "cpu", "cuda" or "cuda:N".')
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("There is no device mps here. Choose device=cpu.")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise UserError(f"There is no device {found} here ({torch.cuda.device_count()} CUDA devices). Choose device=cpu.")
    return found


def _dtype(dtype: torch.dtype | str) -> torch.dtype:
    """A torch dtype from its name. Raises UserError."""
    name = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype
    if not isinstance(name, str) or name not in _DTYPES:  # numbers of other kinds have no gradients, or no sums
        raise unknown_name("dtype", str(name), _DTYPES)
    return _DTYPES[name]


# ------------------------------------------------------------------------------------------------------- describing


def describe(name_or_path: str | Path) -> Description:
    """Parameters, operations, memory, both overheads and a drawing of the sockets, without allocating the model."""
    card = find(name_or_path).card
    names = card.plugins or None
    card = card.model_copy(update={"model": complete(card.model, plugin_names=names)})
    skeleton = build(card.model, device="meta", plugin_names=names)
    counted, drawing = cost_of(skeleton, dtype=_dtype(card.dtype)), draw(skeleton)
    if card.baseline is None:
        return Description(card, counted, None, drawing)
    base = find(card.baseline).card
    base_cost = cost(base.model, dtype=_dtype(base.dtype), plugin_names=base.plugins or None)
    return Description(card, counted, overhead(counted, base_cost, name=base.name), drawing)


def list(pattern: str = "*") -> Sequence[Card]:
    """Cards whose name matches a wildcard pattern, sorted by name. Warns of a name that two of them have, and leaves them out.

    (Last in this file: it hides the builtin.)
    """
    if not isinstance(pattern, str):
        raise UserError(f"a pattern of names is a text, not {shown(pattern)}.")
    found = []
    for name, claims in sorted(entries().items()):
        if fnmatch.fnmatchcase(name, pattern):
            try:
                found.append(only(claims).card)
            except UserError as error:
                warnings.warn(f"left out of the list: {error}", CardWarning, stacklevel=2)
    return found
