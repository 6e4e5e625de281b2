"""One latent of a ComposedDecoder: its four sockets, and what can be said of it.

A decoder of one latent holds the parts as modules of its own, so that their parameters are called `encoder.`, `prior_part.` and
`injection.`; one of several holds them under `latents.NAME.`. `Sockets` is the same view of both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from latentlm.composed.declared import blamed
from latentlm.config import LatentConfig
from latentlm.errors import UserError
from latentlm.interface import Encoder, Granularity, Injection, KLSchedule, LatentShape, Part, Parts, Prior


@dataclass(frozen=True)
class Filled:
    """The parts of one latent, as the build makes them."""

    config: LatentConfig
    shape: LatentShape
    granularity: Granularity
    encoder: Encoder | None
    prior: Prior
    injection: Injection
    kl_schedule: KLSchedule | None
    whose: str = ""
    """What stands before a socket in messages: `NAME.` of a latent that the configuration names."""


class Holder(nn.Module):
    """Holds the parts of one latent of several."""


class Sockets:
    """One latent. The parts are looked up in the module that holds them, so one that is exchanged there is exchanged here."""

    def __init__(self, filled: Filled, holder: nn.Module) -> None:
        self.config, self.shape, self.granularity = filled.config, filled.shape, filled.granularity
        self.kl_schedule = filled.kl_schedule
        self._whose = filled.whose
        self._holder = cast(Any, holder)
        self._holder.encoder, self._holder.prior_part, self._holder.injection = filled.encoder, filled.prior, filled.injection

    @property
    def name(self) -> str:
        """Of the latent."""
        return self.shape.name

    @property
    def dims(self) -> int:
        """E."""
        return self.shape.dims

    @property
    def encoder(self) -> Encoder | None:
        """Who infers it."""
        found: Encoder | None = self._holder.encoder
        return found

    @property
    def prior(self) -> Prior:
        """Where it comes from otherwise."""
        found: Prior = self._holder.prior_part
        return found

    @property
    def injection(self) -> Injection:
        """Where it enters."""
        found: Injection = self._holder.injection
        return found

    @property
    def has_encoder(self) -> bool:
        """False: its posterior is its prior."""
        return self.encoder is not None

    @property
    def sees_future(self) -> bool:
        """The posterior of a site depends on later tokens."""
        return self.encoder is not None and self.encoder.sees_future

    @property
    def autoregressive(self) -> bool:
        """A site's prior depends on the latents of earlier sites."""
        return self.prior.autoregressive

    @property
    def granularity_text(self) -> str:
        """As a recipe writes it; a chunk with its length, of others the name alone."""
        spec = self.config.granularity
        if isinstance(spec, str):
            return spec
        return f"{spec.name}:{self.granularity.length}" if spec.name == "chunk" else str(spec.name)

    @property
    def parts(self) -> Parts:
        """What `Part.bind` gets."""
        return Parts(self.encoder, self.prior, self.injection)

    def named_parts(self) -> Iterator[tuple[str, Part]]:
        """(socket, part) of those that are filled."""
        for socket, part in (("encoder", self.encoder), ("prior", self.prior), ("injection", self.injection)):
            if part is not None:
                yield socket, part

    def called(self, socket: str) -> str:
        """How messages call a part: bits.encoder "free"."""
        spec = getattr(self.config, socket)
        return f'{self._whose}{socket} "{spec if spec is None or isinstance(spec, str) else spec.name}"'

    def key(self, socket: str) -> str:
        """Of a recipe, for a part."""
        return f"model.latents.{self._whose}{socket}" if self._whose else f"model.{socket}"

    def above_of(self, socket: str) -> tuple[str, ...]:
        """The latents that a part names in `above`."""
        spec = getattr(self.config, socket)
        return () if spec is None else tuple(spec.above)

    @property
    def first_block(self) -> int:
        """The lowest block that it enters."""
        return min(self.injection.blocks)

    def changes(self, tap: int) -> bool:
        """Whether the stream entering block `tap` depends on it. Tap 0 is the bare embedding."""
        return self.first_block < tap or ("embedding" in self.injection.slots and tap > 0)

    def plant(self, encoder: Encoder) -> None:
        """Put another encoder in the place of its own."""
        self._holder.encoder = encoder

    def bind(self) -> None:
        """Introduce the parts to one another."""
        for socket, part in self.named_parts():
            with blamed(self.called(socket)):
                part.bind(self.parts)


def check_compiled(decoder: nn.Module, latents: Iterable[Sockets]) -> None:
    """Raise UserError where steps of a decoder of these latents are no one graph, or one that torch would not make anew: it
    does not look whether hooks have come since."""
    if nn.modules.module._global_forward_hooks or nn.modules.module._global_forward_pre_hooks:
        raise UserError("All modules have a forward hook, which is not compiled: leave compile out, or remove it.")
    for module in decoder.modules():
        if module._forward_hooks or module._forward_pre_hooks:
            hooked = f"{type(module).__name__} has a forward hook, which is not compiled"
            raise UserError(f"{hooked}: leave compile out, or remove it.")
    for latent in latents:
        if "prefix" in latent.injection.slots and latent.shape.granularity != "document":
            grows = f"{latent.called('injection')} makes prefixes that grow with the text, which are not compiled"
            raise UserError(f"{grows}: leave compile out.")


def check_latent(latent: Sockets, known: frozenset[str], blocks: int) -> None:
    """Refuse conditions that the backbone has no slot for, and parts that do not agree on what the latent is. `known`: the
    backbone's slots. Raises UserError."""
    injection = latent.injection
    name = latent.called("injection")
    if outside := [block for block in injection.blocks if not 0 <= block < blocks]:
        raise UserError(f"{name} injects into blocks {outside}, but the backbone has blocks 0 to {blocks - 1}.")
    if missing := sorted(set(injection.slots) - known):
        listed = ", ".join(sorted(known))
        raise UserError(f"{name} needs the condition slots {missing}, which this backbone lacks. It has: {listed}.")
    if "cross" in injection.slots and latent.shape.granularity != "document":
        raise UserError(f'{name} injects memory slots, which a whole document reads: set granularity to "document".')
    if "prefix" in injection.slots and latent.shape.granularity != "document" and not injection.prefix_since:
        raise UserError(
            f'{name} injects a prefix, which a whole document sees: set granularity to "document". (An injection whose '
            "prefixes say since when they are seen declares `prefix_since = True`.)"
        )
    if "embedding" in injection.slots and latent.first_block != 0:
        raise UserError(f"{name} adds to the embedding, so its injection must begin at block 0, not {latent.first_block}.")
    _check_families(latent)


def _check_families(latent: Sockets) -> None:
    """Refuse parts that do not agree on the family, or do not serve the granularity."""
    named = list(latent.named_parts())
    families = {latent.called(socket): part.family for socket, part in named if part.family is not None}
    if len(set(families.values())) > 1:
        listed = ", ".join(f"{part}: {family}" for part, family in families.items())
        raise UserError(f"The parts do not agree on the kind of latents, their `family` ({listed}). Choose parts of one kind.")
    for socket, part in named:
        if part.granularities is not None and latent.shape.granularity not in part.granularities:
            known = " or ".join('"chunk:n"' if scale == "chunk" else f'"{scale}"' for scale in part.granularities)
            raise UserError(
                f'{latent.called(socket)} does not serve granularity "{latent.granularity_text}": set it to {known}.'
            )


def check_order(latents: list[Sockets]) -> None:
    """Refuse parts that would read their own latent or a later one, and schedules that steer the same thing."""
    for index, latent in enumerate(latents):
        for socket, part in latent.named_parts():
            if socket != "injection":
                _check_taps(latents, index, socket, part)
            if latent.above_of(socket) and not part.reads_above:
                listed = ", ".join(latent.above_of(socket))
                raise UserError(
                    f"{latent.called(socket)} cannot read other latents (`reads_above`), but its `above` names {listed}: drop "
                    f"it, or choose another {socket}, one that can."
                )
    fitted = [latent.name for latent in latents if latent.encoder is not None and latent.encoder.needs_objective]
    if len(fitted) > 1:
        raise UserError(
            f"Two latents are fitted ({', '.join(fitted)}), each by an objective that would fit the other first: give one of "
            "them an encoder with a network."
        )
    steering = [latent for latent in latents if latent.kl_schedule is not None and latent.kl_schedule.steers_reconstruction]
    if len(steering) > 1:
        listed = ", ".join(f"{latent.name}: {type(latent.kl_schedule).__name__}" for latent in steering)
        raise UserError(f"Two KL schedules steer the reconstruction, which latents share ({listed}): give one of them another.")


def _check_taps(latents: list[Sockets], index: int, socket: str, part: Part) -> None:
    """Every tap lies below the injections of the part's own latent and of those after it."""
    taps: tuple[int, ...] = getattr(part, "taps", ())
    above = [latent for latent in latents[index:] if any(latent.changes(tap) or tap < 0 for tap in taps)]
    if not above:
        return
    own = latents[index]
    highest = min(0 if "embedding" in latent.injection.slots else latent.first_block for latent in latents[index:])
    whose = "" if len(latents) == 1 else f" and of the latents {', '.join(latent.name for latent in latents[index:])}"
    remedy = f"Lower {own.key(socket)}.tap" if "tap" in type(part.config).model_fields else "Let it read lower blocks"
    if own not in above:
        names = " and ".join(latent.name for latent in above)
        remedy += f", or put {names} before {own.name} in `latents`: a part may depend on earlier latents"
    raise UserError(
        f"{own.called(socket)} reads taps {taps}, but only 0 to {highest} are free of z{whose} "
        f"(the first injected block is {above[0].first_block}). {remedy}."
    )


def needs(latents: Mapping[str, Sockets], name: str, socket: str) -> tuple[int, tuple[str, ...]]:
    """What a part must be shown: the highest tap that it reads, and the latents that it depends on (through `above`, or through
    a tap above their injection). None of them: it is free of z, and runs once per text."""
    latent = latents[name]
    taps: tuple[int, ...] = getattr(getattr(latent, socket), "taps", ())
    highest = max(taps, default=0)
    if len(latents) == 1:
        return highest, ()
    through = [other for other, sockets in latents.items() if other != name and any(sockets.changes(tap) for tap in taps)]
    return highest, tuple(dict.fromkeys((*latent.above_of(socket), *through)))
