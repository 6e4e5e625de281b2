"""Which parts of a socket a recipe's model could have: each is put in, and the model is built without memory.

The class's own words come first (family, granularities), since they are shorter than what a build that fails has to say; a
decoder that changes its other open sockets along with one (a grid for bits, say) decides for itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from latentlm.errors import UserError, unknown_name
from latentlm.plugins.describing import ON_VALUES, Part, every, family

if TYPE_CHECKING:
    from latentlm.config import LatentConfig, ModelConfig, Recipe

SOCKETS = ("encoder", "prior", "injection", "kl_schedule", "granularity")


@dataclass(frozen=True)
class Place:
    """A socket of one latent of a recipe, whichever form it is written in."""

    latent: str
    socket: str
    key: str
    """Of the recipe: model.prior, or model.latents.bits.prior."""


@dataclass(frozen=True)
class Fit:
    """A part, and whether the recipe's model could have it."""

    part: Part
    reason: str | None
    """Why not; None where it fits."""
    note: str
    """Of one that fits: that it is the recipe's own, or what the decoder changes along with it."""

    def as_json(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return {**self.part.as_json(), "fits": self.reason is None, "reason": self.reason, "note": self.note}


def find(recipe: Recipe, place: str) -> Place:
    """What a socket, or LATENT.SOCKET, means in the recipe; the latent may be left out where there is one. Raises UserError for
    a socket or latent that is none, and for a model without latents."""
    from latentlm.composed import complete

    latent, _, socket = place.rpartition(".")
    if socket not in SOCKETS:
        raise unknown_name("socket", socket, SOCKETS, remedy="The other parts are in `latentlm parts`.")
    names = list(complete(recipe.model, plugin_names=recipe.plugins or None).by_latent)
    if not names:
        what = f'has a model without latents ("{recipe.model.decoder_name}")'
        raise UserError(f'The recipe "{recipe.name}" {what}: no {socket} fits it.')
    if latent and latent not in names:
        raise unknown_name("latent", latent, names)
    if not latent and len(names) > 1:
        listed = " or ".join(f"{name}.{socket}" for name in names)
        raise UserError(f'The recipe "{recipe.name}" has several latents: ask for {listed}.')
    latent = latent or names[0]
    return Place(latent, socket, f"model.latents.{latent}.{socket}" if recipe.model.latents else f"model.{socket}")


def fits(recipe: Recipe, place: Place) -> Iterator[Fit]:
    """Every part of the socket, tried in the recipe."""
    from latentlm.composed import build, complete, fill_granularities
    from latentlm.tokenizer import ByteTokenizer

    names = recipe.plugins or None

    def filled(model: ModelConfig) -> ModelConfig:
        """With the ids that a granularity takes from a tokenizer: bytes' will do to see whether it fits."""
        return fill_granularities(complete(model, plugin_names=names), ByteTokenizer(), plugin_names=names)

    own = complete(recipe.model, plugin_names=names).by_latent[place.latent]
    for part in every(place.socket):
        note, reason = "", None
        try:
            changed = filled(_with(recipe.model, own, place, part.name))
            build(changed, device="meta", plugin_names=names)
            mine = _name(own, place.socket) == part.name
            note = "the recipe's own" if mine else _changes(own, changed.by_latent[place.latent], place.socket)
            if place.socket == "granularity" and not mine and part.name in _SHORT:
                note = f"for example {_SHORT[part.name]}"
        except Exception as error:  # a plugin's part may fail in any way; the others are still of interest
            said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            reason = _mismatch(part, own, names) or said
        yield Fit(part, reason, note)


def _name(latent: LatentConfig, socket: str) -> str | None:
    """Of the part in a socket; None where it is empty."""
    spec = getattr(latent, socket)
    return spec.partition(":")[0] if isinstance(spec, str) else None if spec is None else spec.name


def _with(model: ModelConfig, own: LatentConfig, place: Place, name: str) -> ModelConfig:
    """The model with a part of that name and its default settings in the socket; a granularity keeps its own, since some
    (a chunk's length) have no default."""
    from latentlm.config import PartSpec

    spec: PartSpec | str = PartSpec(name=name)
    if place.socket == "granularity":
        spec = own.granularity if _name(own, "granularity") == name else _SHORT.get(name, name)
    if not model.latents:
        return model.model_copy(update={place.socket: spec})
    changed = model.latents[place.latent].model_copy(update={place.socket: spec})
    return model.model_copy(update={"latents": {**model.latents, place.latent: changed}})


_SHORT = {"chunk": "chunk:8"}
"""Granularities that cannot be without a setting, as an example of one."""


def _changes(before: LatentConfig, after: LatentConfig, socket: str) -> str:
    """What else the decoder changes along with the part."""
    pairs = [(other, _name(before, other), _name(after, other)) for other in SOCKETS if other != socket]
    changed = [f"{other} {new}" for other, old, new in pairs if new is not None and old != new]
    return f"with {', '.join(changed)}" if changed else ""


def _mismatch(part: Part, whole: LatentConfig, names: list[str] | None) -> str | None:
    """What the classes say of family and granularity; None where they agree."""
    from latentlm import plugins
    from latentlm.interface import parse_granularity

    scale = parse_granularity(whole.granularity if isinstance(whole.granularity, str) else whole.granularity.model_dump())[0]
    if part.granularities is not None and scale not in part.granularities:
        return f'it serves {" and ".join(part.granularities)}; the recipe\'s granularity is "{scale}"'
    if part.family is None:
        return None
    for other in ON_VALUES:
        spec = getattr(whole, other)
        if other == part.socket or spec is None:
            continue
        theirs = family(plugins.get(other, spec.name, plugins=names))
        if theirs is not None and theirs != part.family:
            return f'its family is "{part.family}"; the {other} "{spec.name}" has "{theirs}"'
    return None
