"""Latents as things to keep: edit them, save them, read them back.

    latent = model.encode("def add(a, b):")            # (1, S, E)
    latent = edited(latent, sites=3, events=0, value=1.0)
    save_latents("add.safetensors", [latent])
    model.generate(["def "], max_tokens=32, latents=load_latents("add.safetensors"))

A file holds one float32 tensor (S, E) for each row of each latent, named latent.NAME.00000000 onwards, and the granularities of
the model that they belong to. (Format 1, still read: the rows of the only latent, latent.00000000 onwards.)

Legend: R rows, S sites, E event dimensions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from latentlm.config import checking
from latentlm.config.checking import several, shown, whole
from latentlm.config.reading import json_data, no_file
from latentlm.config.writing import check_replaceable, write_atomically
from latentlm.errors import UserError, path_of, short, unknown_name
from latentlm.interface import Latent, Latents

if TYPE_CHECKING:
    from latentlm.interface import LatentDecoder

_FORMAT, _FORMAT_1 = "latentlm.latents.2", "latentlm.latents.1"
_PREFIX = "latent."
_MOST_CODE_BITS = 62  # codes are signed 64-bit numbers


def rows_of(latents: Latent | Latents | Sequence[Latent]) -> list[Tensor]:
    """Every row of one latent (R, S, E) or of several, each (S, E)."""
    parts = [latents] if isinstance(latents, Latent | Latents) else several("latents", latents, of="latents")
    for part in parts:
        if value_of(part).dim() != 3:
            raise UserError(f"A latent has shape (rows, sites, events), not {tuple(part.value.shape)}.")
    return [row for part in parts for row in part.value.unbind(0)]


def value_of(latent: Any) -> Tensor:
    """(R, S, E). Raises UserError for what is no latent."""
    value = latent.value if isinstance(latent, Latent | Latents) else None
    if not isinstance(value, Tensor):
        raise UserError(f"a `Latent` is needed, as `encode` gives it, not {shown(latent if value is None else value)}.")
    return value


def same_names(rows: Sequence[Latents]) -> list[str]:
    """The names that all rows have. Raises UserError where one lacks a latent of another: rows could not be told apart."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    for name in names:
        if any(name not in row for row in rows):
            raise UserError(f"Some of the given latents have no {name}: give it in all of them, or in none.")
    return names


def edited(
    latent: Latent | Latents, *, value: float | Tensor, sites: int | slice = slice(None), events: int | slice = slice(None)
) -> Latent:
    """A copy with `value` (a number, or a tensor that broadcasts) at the given sites and events of every row."""
    new = value_of(latent).clone()
    for what, chosen in (("sites", sites), ("events", events)):
        if isinstance(chosen, bool):  # to torch a mask, of everything or nothing
            raise UserError(f"{what} must be a number or a slice, not {shown(chosen)}.")
    try:
        new[:, sites, events] = value
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        where = f"Sites {shown(sites)}, events {shown(events)}"
        raise UserError(f"{where} do not fit a latent of shape {tuple(new.shape)}: {error}") from None
    return Latent(new)


def joined(*latents: Latent | Latents) -> Latent:
    """Latents (R, S_i, E) one after another along the sites: (R, sum S_i, E)."""
    if len({(value_of(part).shape[0], part.value.shape[2]) for part in latents}) != 1:
        shapes = ", ".join(str(tuple(part.value.shape)) for part in latents) or "none"
        raise UserError(f"Latents can be joined along the sites only, but their shapes are {shapes}.")
    return Latent(torch.cat([part.value for part in latents], dim=1))


def cut(latent: Latent | Latents, start: int, stop: int | None = None) -> Latent:
    """Sites start .. stop - 1 (to the end where stop is None)."""
    start, stop = whole("start", start, least=None), None if stop is None else whole("stop", stop, least=None)
    return Latent(value_of(latent)[:, start:stop].clone())


def codes(latent: Latent | Latents) -> Tensor:
    """The code of each site of bit latents, sum over h of 2^h bit_h: (R, S) long."""
    value = value_of(latent)
    if value.shape[-1] > _MOST_CODE_BITS or not bool(((value == 0) | (value == 1)).all()):
        raise UserError(f"Only latents of at most {_MOST_CODE_BITS} bits (values 0 and 1) have codes.")
    return (value.long() << torch.arange(value.shape[-1], device=value.device)).sum(-1)


def from_codes(numbers: Tensor, *, event_dims: int) -> Latent:
    """Bit latents (R, S, E) from codes (R, S)."""
    if not isinstance(numbers, Tensor) or numbers.is_floating_point() or numbers.is_complex():
        raise UserError(f"Codes are given as a tensor of whole numbers, not as {shown(numbers)}.")
    event_dims = whole("event_dims", event_dims, least=1, most=_MOST_CODE_BITS)
    if bool(((numbers < 0) | (numbers >= 2**event_dims)).any()):
        raise UserError(f"Codes of {event_dims} bits run from 0 to {2**event_dims - 1}.")
    return Latent((numbers[..., None] >> torch.arange(event_dims, device=numbers.device) & 1).float())


def save_latents(
    path: str | Path, latents: Latent | Latents | Sequence[Latent] | Sequence[Latents], *, model: LatentDecoder | None = None
) -> None:
    """Write latents to a safetensors file; rows may differ in length. With `model`, granularities are written beside them."""
    path = path_of(path)
    if model is not None:
        checking.model(model)
    tensors, metadata = {}, {"format": _FORMAT}
    for name, rows in _by_name(latents).items():
        prefix = _PREFIX if name is None else f"{_PREFIX}{name}."
        for number, value in enumerate(rows):
            tensors[f"{prefix}{number:08d}"] = value.detach().float().cpu().contiguous().clone()  # rows may share memory
    if not tensors:
        raise UserError("There are no latents to save.")
    if model is not None:
        scales = {name: latent.granularity_text for name, latent in model.latents.items()}
        metadata["granularity"] = json.dumps(scales)
        metadata["names"] = json.dumps(list(scales))
    check_latents_path(path)
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def check_latents_path(path: str | Path) -> None:
    """Raise UserError unless latents can be written there: anew, or in the place of others."""
    folder = path_of(path).parent
    if not folder.is_dir():  # one that is misspelt is not made
        raise UserError(f"The latents could not be written to {path}: no folder {folder}. Choose a folder that is there.")
    check_replaceable(Path(path), are_latents, kind="a file of latents")


def are_latents(path: Path) -> bool:
    """Whether a file holds latents, as `save_latents` writes them."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return (file.metadata() or {}).get("format") in (_FORMAT, _FORMAT_1)
    except (OSError, SafetensorError):
        return False


def _by_name(latents: Latent | Latents | Sequence[Latent] | Sequence[Latents]) -> dict[str | None, list[Tensor]]:
    """Every row of each latent, (S, E); None is the name of latents that have none."""
    alone = isinstance(latents, Latent | Latents)
    parts: list[Any] = [latents] if alone else [*several("latents", latents, of="latents")]  # type: ignore[list-item]
    same_names([part for part in parts if isinstance(part, Latents)])
    found: dict[str | None, list[Tensor]] = {}
    for part in parts:
        named: dict[str | None, Latent] = {}
        if isinstance(part, Latents):
            named.update(part)
        else:
            named[None] = part
        for name, latent in named.items():
            found.setdefault(name, []).extend(rows_of(latent))
    return found


def load_latents(path: str | Path, *, model: LatentDecoder | None = None) -> list[Latents]:
    """Read latents, each (1, S, E), in the order in which they were saved: by name, those without one as "z". With `model`,
    refuse those of another granularity or number of event dimensions, and those of latents that it has not; a file without
    names is one of its only latent."""
    if model is not None:
        checking.model(model)
    if not path_of(path).is_file():
        raise UserError(no_file(path_of(path)))
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys()) if name.startswith(_PREFIX)}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is not readable as safetensors: {error}") from None
    if metadata.get("format") not in (_FORMAT, _FORMAT_1) or not tensors:
        raise UserError(f"{path} holds no latents; such files are written by save_latents or `generate --save-latents`.")
    unnamed = "z" if model is None or len(model.latents) != 1 else next(iter(model.latents))
    rows: dict[str, list[Latent]] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(_PREFIX).rpartition(".")[0] or unnamed
        rows.setdefault(name, []).append(Latent(tensor[None]))
    if model is not None:
        _check_file(path, rows, _granularities(path, metadata, unnamed), model)
    order = [name for name in _names(path, metadata, rows) if name in rows]
    count = max(len(values) for values in rows.values())
    return [Latents({name: rows[name][number] for name in order if number < len(rows[name])}) for number in range(count)]


def _names(path: str | Path, metadata: dict[str, str], rows: Mapping[str, object]) -> list[str]:
    """The latents of a file in the order of their decoder, where the file says it. Raises UserError."""
    said = _said(path, metadata["names"], list) if "names" in metadata else []
    return [*said, *(name for name in rows if name not in said)]


def _granularities(path: str | Path, metadata: dict[str, str], unnamed: str) -> dict[str, str]:
    """What a file says of the granularity of each latent; format 1 has a word for the only one. Raises UserError."""
    said = metadata.get("granularity")
    if said is None:
        return {}
    return _said(path, said, dict) if metadata.get("format") == _FORMAT else {unnamed: said}


def _said(path: str | Path, text: str, kind: type[list[str]] | type[dict[str, str]]) -> Any:
    """A list of texts, or a mapping of texts to texts, in a file's header. Raises UserError."""
    said = json_data(text, source=f"the header of {path}")
    texts = said.values() if isinstance(said, dict) else said
    if not isinstance(said, kind) or not all(isinstance(one, str) for one in texts):
        raise UserError(f"{path} is damaged: its header says {short(text)} of its latents. Save them again.")
    return said


def _check_file(
    path: str | Path, rows: Mapping[str, Sequence[Latent]], granularities: Mapping[str, str], model: LatentDecoder
) -> None:
    """Refuse a file whose latents are not the model's. Raises UserError."""
    if not model.latents:
        check_events([], model)
    for name in rows:
        if name not in model.latents:
            unnamed = " (a file without names holds the only latent of its model)" if name == "z" else ""
            raise unknown_name("latent", name, model.latents, remedy=f"{path} holds it{unnamed}.")
    for name, values in rows.items():
        check_events(values, model, name)
        said, own = granularities.get(name), model.latents[name].granularity_text
        if said not in (None, own):
            raise UserError(f'The latents of {path} are "{said}" latents, but those of this model are "{own}".')


def check_events(latents: Latent | Latents | Sequence[Latent], model: LatentDecoder, name: str | None = None) -> None:
    """Refuse values that do not belong to a latent of the model (its only one where none is named). Raises UserError."""
    if not model.has_latents:
        raise UserError("This model has no latents, so none can be given to it.")
    name = model.name_of(name)
    if name not in model.latents:
        raise unknown_name("latent", name, model.latents)
    dims, whose = model.latents[name].dims, "the model's" if len(model.latents) == 1 else f"{name}'s"
    parts: Any = getattr(model.latents[name], "named_parts", tuple)()
    are_bits = any(part.family == "bits" for _, part in parts)
    for row in rows_of(latents):
        if row.shape[-1] != dims:
            raise UserError(f"The given latents have {row.shape[-1]} events per site, but {whose} have {dims}.")
        if row.is_complex() or not bool(torch.isfinite(row).all()):
            raise UserError("The given latents hold values that are no finite numbers.")
        if are_bits and not bool(((row == 0) | (row == 1)).all()):
            odd = row[(row != 0) & (row != 1)][0].item()
            raise UserError(f"The given latents hold {odd:g}, but {whose} are bits, each 0 or 1.")
