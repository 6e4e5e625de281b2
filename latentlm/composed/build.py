"""From a configuration to a decoder: find the parts by name, check their settings, build, initialise.

    model = build(ModelConfig(decoder="free", event_dims=8))

A model can be built on the meta device (no memory, for counting) and filled in place.
"""

from __future__ import annotations

from typing import Any

import torch

from latentlm import plugins
from latentlm.composed.decoder import ComposedDecoder
from latentlm.config import ModelConfig, PartSpec, parse
from latentlm.interface import LatentDecoder, Shape

_SOCKETS = ("encoder", "prior", "injection", "kl_schedule")


def complete(config: ModelConfig, *, plugin_names: list[str] | None = None) -> ModelConfig:
    """Fill the open sockets with the decoder's defaults and every part's settings with theirs."""
    decoder = plugins.get("decoder", config.decoder, plugins=plugin_names)
    filled = decoder.complete(config)
    specs = {}
    for socket in _SOCKETS:
        spec: PartSpec | None = getattr(filled, socket)
        if spec is not None:
            settings = _settings(socket, spec, plugin_names)
            specs[socket] = PartSpec(name=spec.name, **settings.model_dump(mode="json"))
    return filled.model_copy(update=specs)


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
    decoder_class = plugins.get("decoder", config.decoder, plugins=plugin_names)
    with torch.device("meta"):
        model = _assemble(decoder_class, config, plugin_names)
        model = model if dtype is None else model.to(dtype)
    if torch.device(device).type == "meta":
        return model
    model = model.to_empty(device=device)
    if init:
        generator = torch.Generator(device=device).manual_seed(seed)
        model.init_weights(generator)
    return model


def _assemble(decoder_class: type[LatentDecoder], config: ModelConfig, plugin_names: list[str] | None) -> LatentDecoder:
    """Instantiate the decoder with its parts. A decoder that is not composed takes the configuration alone."""
    if not issubclass(decoder_class, ComposedDecoder):
        return decoder_class(config)  # type: ignore[call-arg]
    shape = Shape(backbone=config.backbone, event_dims=config.event_dims, granularity=config.granularity)
    parts: dict[str, Any] = {}
    for socket in _SOCKETS:
        spec: PartSpec | None = getattr(config, socket)
        if spec is None:
            continue
        part = plugins.get(socket, spec.name, plugins=plugin_names)
        settings = _settings(socket, spec, plugin_names)
        parts[socket] = part(settings) if socket == "kl_schedule" else part(settings, shape)
    return decoder_class(config, **parts)


def _settings(socket: str, spec: PartSpec, plugin_names: list[str] | None) -> Any:
    """The part's own Config, checked."""
    part: Any = plugins.get(socket, spec.name, plugins=plugin_names)
    return parse(part.Config, spec.settings, source=f'settings of {socket} "{spec.name}"')
