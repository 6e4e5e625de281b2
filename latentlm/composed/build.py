"""From a configuration to a decoder: find the parts by name, check their settings, build, initialise.

    model = build(ModelConfig(decoder="free", event_dims=8))

A model can be built on the meta device (no memory, for counting) and filled in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from latentlm import plugins
from latentlm.composed.completing import changed, complete, granularity_of, settings_of
from latentlm.composed.declared import blamed
from latentlm.composed.decoder import ComposedDecoder
from latentlm.composed.sockets import Filled
from latentlm.config import SOCKETS, LatentConfig, ModelConfig
from latentlm.errors import UserError
from latentlm.interface import LatentDecoder, LatentShape, Shape


def build(
    config: ModelConfig,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    seed: int = 0,
    init: bool = True,
    plugin_names: list[str] | None = None,
) -> LatentDecoder:
    """Build a decoder from its configuration.

    With `init`, every parameter is set from `seed`; without, memory is allocated and left for weights to be loaded into.
    Raises UserError for unknown parts or settings, and for parts that do not fit together.
    """
    config = complete(config, plugin_names=plugin_names)
    decoder_class = plugins.get("decoder", config.decoder_name, plugins=plugin_names)
    with torch.device("meta"), _addressable():
        model = _assemble(decoder_class, config, plugin_names)
        model = model if dtype is None else model.to(dtype)
    if torch.device(device).type == "meta":
        return model
    _allocate(model, device)
    if init:
        model.init_weights(torch.Generator(device=device).manual_seed(seed))
    return model


def _allocate(model: nn.Module, device: torch.device | str) -> None:
    """Give a model without memory some. A tensor of several modules stays one, of which `to_empty` would make many."""
    owners: dict[Tensor, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        own = (module.named_parameters, module.named_buffers)
        for name, tensor in (pair for each in own for pair in each(recurse=False, remove_duplicate=False)):
            owners.setdefault(tensor, []).append((module, name))
    model.to_empty(device=device)
    for (first, name), *others in owners.values():
        for module, other in others:
            setattr(module, other, getattr(first, name))


@contextmanager
def _addressable() -> Iterator[None]:
    """What torch says of a tensor that no memory could hold, as a UserError."""
    try:
        yield
    except (RuntimeError, OverflowError, TypeError) as error:
        if not any(sign in str(error) for sign in ("overflow", "too large", "Overflow", "Storage size", "out of range")):
            raise
        said = f"the model has a tensor of more numbers than can be addressed ({error})"
        raise UserError(f"{said}. Choose smaller sizes.") from None


def _assemble(decoder_class: type[LatentDecoder], config: ModelConfig, plugin_names: list[str] | None) -> LatentDecoder:
    """Instantiate the decoder with its parts. A decoder that is not composed takes the configuration alone."""
    if not issubclass(decoder_class, ComposedDecoder):
        return decoder_class(config)  # type: ignore[call-arg]
    shapes: dict[str, LatentShape] = {}
    latents: list[Filled] = []
    for name, latent in config.by_latent.items():
        _check_sockets(latent, "event_dims" if not config.latents else f"{name}.dims")
        filled = _fill(name, latent, config, shapes, plugin_names)
        shapes[name] = filled.shape
        latents.append(filled)
    if not latents and config.kl_schedule is not None:
        raise UserError("An encoder or a KL schedule needs latents: give the model a prior and an injection.")
    return decoder_class(config, latents)


def _check_sockets(latent: LatentConfig, dims: str) -> None:
    """A latent has a prior and an injection. `dims`: the key that its size has."""
    if (latent.prior is None) != (latent.injection is None):
        raise UserError("A latent decoder needs both a prior and an injection; a plain decoder has neither.")
    if latent.prior is None and (latent.encoder is not None or latent.kl_schedule is not None):
        raise UserError("An encoder or a KL schedule needs latents: give the model a prior and an injection.")
    if latent.prior is not None and latent.dims == 0:
        raise UserError(f"A model with latents needs {dims} >= 1 (bits or dimensions per site).")


def _fill(
    name: str, latent: LatentConfig, config: ModelConfig, shapes: dict[str, LatentShape], plugin_names: list[str] | None
) -> Filled:
    """The parts of one latent; `shapes` are those of the latents before it."""
    whose = f"{name}." if config.latents else ""
    scale, granularity = granularity_of(latent.granularity, plugin_names, whose)
    parts: dict[str, Any] = dict.fromkeys(SOCKETS)
    for socket in SOCKETS:
        spec = getattr(latent, socket)
        if spec is None:
            continue
        part = plugins.get(socket, spec.name, plugins=plugin_names)
        settings = settings_of(socket, spec, plugin_names, whose=whose)
        above = {other: shapes[other] for other in spec.above}
        told = Shape(config.backbone, LatentShape(name, latent.dims, scale, granularity.length, above))
        arguments = (settings,) if socket == "kl_schedule" else (settings, told)
        with blamed(f'{whose}{socket} "{spec.name}"', changed(settings)):
            parts[socket] = part(*arguments)
    shape = LatentShape(name, latent.dims, scale, granularity.length)
    return Filled(config=latent, shape=shape, granularity=granularity, whose=whose, **parts)
