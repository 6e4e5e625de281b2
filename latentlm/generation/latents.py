"""Latents as things to keep: edit them, save them, read them back.

    latent = model.encode("def add(a, b):")            # (1, S, E)
    latent = edited(latent, sites=3, events=0, value=1.0)
    save_latents("add.safetensors", [latent])
    model.generate(["def "], max_tokens=32, latents=load_latents("add.safetensors"))

A file holds one float32 tensor (S, E) per latent, named latent.00000000 onwards, and the granularity of the model that they
belong to.

Legend: R rows, S sites, E event dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from latentlm.errors import UserError
from latentlm.interface import Latent

if TYPE_CHECKING:
    from latentlm.interface import LatentDecoder

_FORMAT = "latentlm.latents.1"
_MOST_CODE_BITS = 62  # codes are signed 64-bit numbers


def rows_of(latents: Latent | Sequence[Latent]) -> list[Tensor]:
    """Every row of one latent (R, S, E) or of several, each (S, E)."""
    parts = [latents] if isinstance(latents, Latent) else list(latents)
    for part in parts:
        if part.value.dim() != 3:
            raise UserError(f"A latent has shape (rows, sites, events), not {tuple(part.value.shape)}.")
    return [row for part in parts for row in part.value.unbind(0)]


def edited(
    latent: Latent, *, value: float | Tensor, sites: int | slice = slice(None), events: int | slice = slice(None)
) -> Latent:
    """A copy with `value` (a number, or a tensor that broadcasts) at the given sites and events of every row."""
    new = latent.value.clone()
    try:
        new[:, sites, events] = value
    except (IndexError, RuntimeError) as error:
        raise UserError(f"Sites {sites}, events {events} do not fit a latent of shape {tuple(new.shape)}: {error}") from None
    return Latent(new)


def joined(*latents: Latent) -> Latent:
    """Latents (R, S_i, E) one after another along the sites: (R, sum S_i, E)."""
    if len({(part.value.shape[0], part.value.shape[2]) for part in latents}) != 1:
        shapes = ", ".join(str(tuple(part.value.shape)) for part in latents)
        raise UserError(f"Latents can be joined along the sites only, but their shapes are {shapes}.")
    return Latent(torch.cat([part.value for part in latents], dim=1))


def cut(latent: Latent, start: int, stop: int | None = None) -> Latent:
    """Sites start .. stop - 1 (to the end where stop is None)."""
    return Latent(latent.value[:, start:stop].clone())


def codes(latent: Latent) -> Tensor:
    """The code of each site of bit latents, sum over h of 2^h bit_h: (R, S) long."""
    value = latent.value
    if value.shape[-1] > _MOST_CODE_BITS or not bool(((value == 0) | (value == 1)).all()):
        raise UserError(f"Only latents of at most {_MOST_CODE_BITS} bits (values 0 and 1) have codes.")
    return (value.long() << torch.arange(value.shape[-1], device=value.device)).sum(-1)


def from_codes(numbers: Tensor, *, event_dims: int) -> Latent:
    """Bit latents (R, S, E) from codes (R, S)."""
    if event_dims > _MOST_CODE_BITS or bool(((numbers < 0) | (numbers >= 2**event_dims)).any()):
        raise UserError(f"Codes of {event_dims} bits run from 0 to {2**event_dims - 1} (at most {_MOST_CODE_BITS} bits).")
    return Latent((numbers[..., None] >> torch.arange(event_dims, device=numbers.device) & 1).float())


def save_latents(path: str | Path, latents: Latent | Sequence[Latent], *, model: LatentDecoder | None = None) -> None:
    """Write latents to a safetensors file; rows may differ in length. With `model`, its granularity is written beside them."""
    rows = rows_of(latents)
    if not rows:
        raise UserError("There are no latents to save.")
    tensors = {f"latent.{row:08d}": value.detach().float().cpu().contiguous() for row, value in enumerate(rows)}
    metadata = {"format": _FORMAT}
    if model is not None:
        metadata["granularity"] = model.granularity
    try:
        save_file(tensors, str(path), metadata=metadata)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"The latents could not be written to {path}: {error}. Choose a folder that can be written to."
        ) from None


def load_latents(path: str | Path, *, model: LatentDecoder | None = None) -> list[Latent]:
    """Read latents, each (1, S, E), in the order in which they were saved. With `model`, refuse those of another granularity
    or number of event dimensions."""
    if not Path(path).is_file():
        raise UserError(f"{path} does not exist.")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            latents = [Latent(file.get_tensor(name)[None]) for name in sorted(file.keys()) if name.startswith("latent.")]
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is not readable as safetensors: {error}") from None
    if metadata.get("format") != _FORMAT or not latents:
        raise UserError(f"{path} holds no latents; such files are written by save_latents or `generate --save-latents`.")
    granularity = metadata.get("granularity")
    if model is not None and granularity not in (None, model.granularity):
        raise UserError(
            f'The latents of {path} are "{granularity}" latents, but those of this model are "{model.granularity}".'
        )
    if model is not None:
        check_events(latents, model)
    return latents


def check_events(latents: Latent | Sequence[Latent], model: LatentDecoder) -> None:
    """Refuse latents that do not belong to the model. Raises UserError."""
    if not model.has_latents:
        raise UserError("This model has no latents, so none can be given to it.")
    for row in rows_of(latents):
        if row.shape[-1] != model.event_dims:
            raise UserError(f"The given latents have {row.shape[-1]} events per site, but the model's have {model.event_dims}.")
