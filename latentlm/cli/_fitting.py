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

SOCKETS = ("encoder", "prior", "injection", "kl_schedule")


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


def fits(recipe: Recipe, place: str) -> Iterator[Fit]:
    """Every part of the socket, tried in the recipe. `place` is a socket, or NAME.SOCKET of one of several latents. Raises
    UserError for a socket or latent that is none, or a model without latents."""
    from latentlm.composed import build, complete

    latent, _, socket = place.rpartition(".")
    if socket not in SOCKETS:
        raise unknown_name("socket", socket, SOCKETS, remedy="The other parts are in `latentlm parts`.")
    names = recipe.plugins or None
    whole = complete(recipe.model, plugin_names=names)
    own = _chosen(recipe, whole, latent, socket)
    for part in every(socket):
        note, reason = "", None
        try:
            changed = complete(_with(recipe.model, latent, socket, part.name), plugin_names=names)
            build(changed, device="meta", plugin_names=names)
            mine, then = getattr(own, socket), _of(changed, latent)
            note = "the recipe's own" if mine is not None and mine.name == part.name else _changes(own, then, socket)
        except Exception as error:  # a plugin's part may fail in any way; the others are still of interest
            said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            reason = _mismatch(part, own, names) or said
        yield Fit(part, reason, note)


def _chosen(recipe: Recipe, whole: ModelConfig, latent: str, socket: str) -> LatentConfig:
    """The latent that is meant. Raises UserError."""
    latents = whole.by_latent
    if not latents:
        raise UserError(f'The recipe "{recipe.name}" has a model without latents ("{whole.decoder}"): no {socket} fits it.')
    if latent and latent not in latents:
        raise unknown_name("latent", latent, latents)
    if not latent and len(latents) > 1:
        listed = " or ".join(f"{name}.{socket}" for name in latents)
        raise UserError(f'The recipe "{recipe.name}" has several latents: ask for {listed}.')
    return _of(whole, latent)


def _of(model: ModelConfig, latent: str) -> LatentConfig:
    """One latent of a completed model; the only one where it is not named."""
    return model.by_latent[latent] if latent else next(iter(model.by_latent.values()))


def _with(model: ModelConfig, latent: str, socket: str, name: str) -> ModelConfig:
    """The model with a part of that name and its default settings in the socket."""
    from latentlm.config import PartSpec

    if not model.latents:
        return model.model_copy(update={socket: PartSpec(name=name)})
    changed = model.latents[latent].model_copy(update={socket: PartSpec(name=name)})
    return model.model_copy(update={"latents": {**model.latents, latent: changed}})


def _changes(before: LatentConfig, after: LatentConfig, socket: str) -> str:
    """What else the decoder changes along with the part."""
    pairs = [(other, getattr(before, other), getattr(after, other)) for other in SOCKETS if other != socket]
    changed = [f"{other} {new.name}" for other, old, new in pairs if new is not None and (old is None or old.name != new.name)]
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
