"""What a configuration leaves open, filled: the decoder's defaults, each latent's, and every part's settings.

    flat                 `decoder.complete` fills the sockets of the one latent
    latents: {name: {like: D, ...}}
                         D's `complete` fills the sockets of that latent, as if it were the only one of a decoder D

A completed configuration completes to itself.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from torch import nn

from latentlm import plugins
from latentlm.composed.declared import blamed
from latentlm.composed.decoder import ComposedDecoder
from latentlm.config import SOCKETS, GranularitySpec, LatentConfig, ModelConfig, PartSpec, parse
from latentlm.errors import PluginError, UserError, did_you_mean, unknown_name
from latentlm.interface import Granularity, LatentDecoder, parse_granularity


def complete(config: ModelConfig, *, plugin_names: list[str] | None = None) -> ModelConfig:
    """Fill the open sockets with defaults, and every part's settings with theirs. `plugin_names` says whose part is meant where
    several plugins have one of that name. Raises UserError for unknown parts and settings, and for what does not fit."""
    decoder: type[LatentDecoder] = plugins.get("decoder", config.decoder_name, plugins=plugin_names)
    config = config.model_copy(update={"decoder": _with_own_settings(config, decoder)})
    if not config.latents:
        filled = decoder.complete(_with_scale(config, decoder))
        specs = _with_settings(filled, plugin_names, decoder=config.decoder_name)
        granularity = _granularity(filled.granularity, plugin_names) if filled.event_dims else filled.granularity
        return filled.model_copy(update={**specs, "granularity": granularity})
    if decoder is not ComposedDecoder:
        raise UserError(
            f'The decoder "{config.decoder_name}" is a method of its own; several latents are those of decoder "composed", '
            f"each of which may be `like: {config.decoder_name}`."
        )
    latents: dict[str, LatentConfig] = {}
    for name, latent in config.latents.items():
        if hasattr(nn.ModuleDict, name) or name in vars(nn.ModuleDict()):
            raise UserError(f'A latent cannot be called "{name}", a word that PyTorch has for itself: choose another name.')
        filled_latent = _like(latent, config, name, plugin_names)
        specs = _with_settings(filled_latent, plugin_names, latent=name)
        for socket, spec in specs.items():
            _check_above(name, socket, spec, list(latents), list(config.latents))
        granularity = _granularity(filled_latent.granularity, plugin_names)
        latents[name] = filled_latent.model_copy(update={**specs, "granularity": granularity})
    return config.model_copy(update={"latents": latents})


def _with_own_settings(config: ModelConfig, decoder: type[LatentDecoder]) -> str | PartSpec:
    """The decoder's name, with every setting of its own where it has any."""
    given = {} if isinstance(config.decoder, str) else config.decoder.model_dump(exclude={"name"})  # `above` too: it is none
    settings = parse(decoder.Config, given, source=f'settings of decoder "{config.decoder_name}"').model_dump(mode="json")
    return PartSpec(name=config.decoder_name, **settings) if settings else config.decoder_name


def _like(latent: LatentConfig, config: ModelConfig, name: str, plugin_names: list[str] | None) -> LatentConfig:
    """A latent with the parts of the decoder that it is like. Raises UserError where that decoder is more than its parts."""
    if latent.like is None:
        for socket in ("prior", "injection"):
            if getattr(latent, socket) is None:
                near = did_you_mean(name, [other for other in config.latents if other != name])
                raise UserError(f'The latent "{name}" has no {socket}: name one, or a decoder to take it from (`like`).{near}')
        return latent.model_copy(update={"granularity": _over(latent.granularity, "token")})
    decoder: Any = plugins.get("decoder", latent.like, plugins=plugin_names)
    more = _overridden(decoder, ComposedDecoder) if issubclass(decoder, ComposedDecoder) else ["its own forward pass"]
    if more:
        raise UserError(
            f'The latent "{name}" cannot be like "{latent.like}": that decoder is more than its parts ({", ".join(more)}).'
        )
    given = {key: getattr(latent, key) for key in ("granularity", *SOCKETS) if key in latent.model_fields_set}
    given = {key: value for key, value in given.items() if value is not None}
    flat = ModelConfig(decoder=latent.like, backbone=config.backbone, event_dims=latent.dims, **given)
    done = decoder.complete(_with_scale(flat, decoder))
    if done.prior is None or done.injection is None:
        raise UserError(f'The latent "{name}" cannot be like "{latent.like}", which has no latents.')
    filled = {socket: getattr(done, socket) for socket in SOCKETS}
    return latent.model_copy(update={**filled, "dims": done.event_dims, "granularity": done.granularity})


def _with_scale(config: ModelConfig, decoder: type[LatentDecoder]) -> ModelConfig:
    """A granularity without a name is that which the decoder takes by default, with these settings changed."""
    spec = config.granularity
    if isinstance(spec, str) or spec.name is not None:
        return config
    bare = ModelConfig(**{key: getattr(config, key) for key in config.model_fields_set - {"granularity"}})
    return config.model_copy(update={"granularity": _over(spec, decoder.complete(bare).granularity)})


def _over(spec: GranularitySpec, default: GranularitySpec) -> GranularitySpec:
    """Itself where it has a name; otherwise the default with these settings in the place of its own."""
    if isinstance(spec, str):
        return spec
    name, settings = _parsed(default)
    return spec.over(PartSpec(name=name, **settings))


def _overridden(decoder: type, base: type) -> list[str]:
    """Methods of `base` that a decoder replaces, `complete` apart."""
    between = decoder.__mro__[: decoder.__mro__.index(base)]
    own = {key for cls in between for key, value in vars(cls).items() if callable(value) or isinstance(value, property)}
    return sorted(key for key in own - {"complete"} if hasattr(base, key) and (key == "__init__" or not key.startswith("__")))


def _check_above(name: str, socket: str, spec: PartSpec | None, earlier: list[str], every: list[str]) -> None:
    """`above` names earlier latents. Raises UserError."""
    if spec is not None and spec.above and socket == "kl_schedule":
        raise UserError(f"{name}.{socket}.above: a KL schedule reads no latents; drop it.")
    if spec is not None and len(set(spec.above)) < len(spec.above):
        raise UserError(f"{name}.{socket}.above names a latent twice: {', '.join(spec.above)}.")
    for other in () if spec is None else spec.above:
        if other not in every:
            raise unknown_name(f"latent in {name}.{socket}.above", other, every)
        if other not in earlier:
            order = "itself" if other == name else "a later latent: put it before in `latents`"
            raise UserError(f'{name}.{socket}.above names "{other}", which is {order}.')


def _with_settings(
    given: ModelConfig | LatentConfig, plugin_names: list[str] | None, *, decoder: str = "", latent: str = ""
) -> dict[str, PartSpec | None]:
    """The specs of the four sockets with every setting that they leave to their part's defaults."""
    filled: dict[str, PartSpec | None] = {}
    whose = f'The latent "{latent}"' if latent else f'The decoder "{decoder}"'
    key = f"model.latents.{latent}" if latent else "model"
    for socket in SOCKETS:
        spec: PartSpec | None = getattr(given, socket)
        if spec is None:
            filled[socket] = None
            continue
        if spec.name is None:
            raise UserError(
                f"{whose} has no default {socket} whose settings could be changed: name one ({key}.{socket}.name=NAME; "
                f"`latentlm parts --socket {socket}` lists them)."
            )
        settings = settings_of(socket, spec, plugin_names, whose=f"{latent}." if latent else "")
        filled[socket] = PartSpec(name=spec.name, above=spec.above, **settings.model_dump(mode="json"))
    return filled


def settings_of(socket: str, spec: PartSpec, plugin_names: list[str] | None, *, whose: str = "") -> Any:
    """The part's own Config, checked. `whose` stands before the socket in errors: `NAME.` of a latent that has one."""
    part: Any = plugins.get(socket, str(spec.name), plugins=plugin_names)
    return parse(part.Config, spec.settings, source=f'settings of {whose}{socket} "{spec.name}"')


def changed(settings: BaseModel) -> str:
    """The settings that are not a part's defaults, in brackets, for a message about it."""
    given = ", ".join(f"{key}={value}" for key, value in settings.model_dump(exclude_defaults=True).items())
    return f" ({given})" if given else ""


def granularity_of(spec: GranularitySpec, plugin_names: list[str] | None, whose: str = "") -> tuple[str, Granularity]:
    """Name and part. Raises UserError for an unknown name or wrong settings, or for what the part has against them."""
    name, settings = _parsed(spec)
    part: type[Granularity] = plugins.get("granularity", name, plugins=plugin_names)
    called = f'{whose}granularity "{name}"'
    config: BaseModel = parse(part.Config, settings, source=f"settings of {called}")
    with blamed(called, changed(config)):
        return name, part(config)


def _parsed(spec: GranularitySpec) -> tuple[str, dict[str, Any]]:
    """Name and settings as they are written."""
    return parse_granularity(spec if isinstance(spec, str) else {"name": spec.name or "", **spec.settings})


def _granularity(spec: GranularitySpec, plugin_names: list[str] | None) -> GranularitySpec:
    """The spec, if it can be built; what only a tokenizer can fill in may still be open (see `fill_granularities`)."""
    if isinstance(spec, PartSpec) or spec.partition(":")[0] not in ("token", "chunk", "document"):
        plugins.get("granularity", _parsed(spec)[0], plugins=plugin_names)
    return spec


def fill_granularities(config: ModelConfig, tokenizer: Any, *, plugin_names: list[str] | None = None) -> ModelConfig:
    """A completed configuration whose granularities have what depends on the tokenizer: the ids that close a line, say."""

    def filled(spec: GranularitySpec, whose: str = "") -> GranularitySpec:
        name, settings = _parsed(spec)
        part: type[Granularity] = plugins.get("granularity", name, plugins=plugin_names)
        with blamed(f'{whose}granularity "{name}"'):
            more: Any = part.fill(settings, tokenizer)
        if not isinstance(more, dict):
            said = f"returned {type(more).__name__}, not the settings: return those that it gets, with what it fills in"
            raise PluginError(f'{whose}granularity "{name}": `fill` {said}.')
        return spec if more == settings else PartSpec(name=name, **more)

    if config.latents:
        scales = {name: filled(latent.granularity, f"{name}.") for name, latent in config.latents.items()}
        latents = {name: latent.model_copy(update={"granularity": scales[name]}) for name, latent in config.latents.items()}
        return config.model_copy(update={"latents": latents})
    return config.model_copy(update={"granularity": filled(config.granularity)}) if config.event_dims else config
