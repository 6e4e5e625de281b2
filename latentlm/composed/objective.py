"""What an encoder without a network minimises: the bound of each row as a function of one latent's posterior.

    q -> (B,) nats of each row: cross-entropy of its next tokens under one sample of q, plus KL(q || prior)

The decoder stands still. Of several latents, those that the encoder depends on are given; every other one is drawn from its own
encoder, by the same numbers at every call, and its KL counts too.

Legend: B rows, T tokens, S sites, E event dimensions.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from latentlm.composed import stages
from latentlm.composed.sockets import needs
from latentlm.interface import Context, Distribution, Latent, Latents, Noise


class Fitted(stages.Staged, Protocol):
    """What the objective needs of a decoder."""

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Of the whole decoder."""

    def posterior(self, context: Context, name: str | None = None, above: Latent | Latents | None = None) -> Distribution:
        """See `LatentDecoder`, as for the rest."""

    def prior(self, context: Context, name: str | None = None, latents: Latent | Latents | None = None) -> Distribution:
        """p(z)."""

    def sample_prior_of(self, context: Context, name: str, noise: Noise, above: Latents) -> Latent:
        """A draw of one latent."""

    def hidden(self, context: Context, latents: Latent | Latents | None) -> Tensor:
        """The upper blocks."""

    def logits(self, hidden: Tensor) -> Tensor:
        """The readout."""


class _PlacedNoise(Noise):
    """One key for all rows; the numbers of a site are those of its place (B, S)."""

    def __init__(self, places: Tensor, *, stream: str | None = None) -> None:
        one = Noise.keyed(0, [0] * len(places))
        super().__init__((one if stream is None else one.stream(stream)).keys)
        self.places = places

    def uniform(self, sites: int, events: int, *, device: torch.device | str | None = None) -> Tensor:
        """(B, S, E)."""
        if sites != self.places.shape[1]:
            return super().uniform(sites, events, device=device)
        return super().uniform(sites, events, device=device).gather(1, self.places[..., None].expand(-1, -1, events))


class RowObjective:
    """q -> (B,) nats, differentiable in q alone."""

    def __init__(self, decoder: Fitted, context: Context, name: str, above: Latents) -> None:
        self.decoder, self.name = decoder, name
        depends = needs(decoder.latents, name, "encoder")[1]
        self.given = Latents({other: above[other] for other in above if other in depends})
        wide = stages.rows_like(context, self.given)
        self.context = replace(wide, taps={k: tap.detach() for k, tap in wide.taps.items()}, made={}, reach=None)
        same = (wide.documents[:, 1:] == wide.documents[:, :-1]) & (wide.documents[:, 1:] >= 0)
        self.mask = F.pad(same, (0, 1))  # (B, T): positions whose next token is in the same document
        self.targets = F.pad(wide.tokens[:, 1:], (0, 1))
        self.places = {other: _places(wide.of(other)) for other in decoder.latents}

    def __call__(self, q: Distribution) -> Tensor:
        """(B,) nats."""
        # One key, and numbers by a site's place in its document: neither neighbours nor packing change a document's objective.
        latents, posteriors = Latents({}), {}
        with _frozen(self.decoder):
            for other, latent in self.decoder.latents.items():
                if other in self.given:
                    latents = latents.plus(other, self.given[other])
                    continue
                noise = _PlacedNoise(self.places[other], stream=None if other == self.name else f"objective/{other}")
                if other != self.name and not latent.has_encoder:
                    latents = latents.plus(other, self.decoder.sample_prior_of(self.context, other, noise, latents))
                    continue
                posteriors[other] = q if other == self.name else self.decoder.posterior(self.context, other, latents)
                latents = latents.plus(other, posteriors[other].sample(noise, differentiable=True))
            logits = self.decoder.logits(self.decoder.hidden(self.context, latents))
            total = logits.new_zeros(())
            for other, own in posteriors.items():
                kl = own.kl(self.decoder.prior(self.context, other, latents), latents[other])  # (B, S, E)
                mask = self.context.sites_of(other).mask
                total = total + kl.masked_fill(~mask[..., None], 0.0).sum((1, 2))  # a padded site's KL may be anything
        nats = F.cross_entropy(logits.flatten(0, 1), self.targets.flatten(), reduction="none").view_as(self.mask)
        return (nats * self.mask).sum(-1) + total


def _places(context: Context) -> Tensor:
    """(B, S) long: the number of each site within its document."""
    first = context.first_positions().clamp(max=context.tokens.shape[1] - 1)
    begins = first - context.positions.gather(1, first)  # where its document begins
    own = torch.arange(context.sites, device=first.device)
    return (own - context.site_of.gather(1, begins.clamp(min=0))).clamp(min=0)


@contextmanager
def _frozen(decoder: Fitted) -> Iterator[None]:
    """No parameter of the decoder takes part in the graphs recorded meanwhile. Of several threads the first one in freezes, and
    the last one out thaws: what one sees must not depend on where another is."""
    with _lock:
        if id(decoder) not in _freezing:
            parameters = [parameter for parameter in decoder.parameters() if parameter.requires_grad]
            _freezing[id(decoder)] = [0, parameters]
            for parameter in parameters:
                parameter.requires_grad_(False)
        _freezing[id(decoder)][0] += 1
    try:
        yield
    finally:
        with _lock:
            _freezing[id(decoder)][0] -= 1
            if not _freezing[id(decoder)][0]:
                for parameter in _freezing.pop(id(decoder))[1]:
                    parameter.requires_grad_(True)


_lock = threading.Lock()
_freezing: dict[int, list[Any]] = {}
"""Decoder -> threads that need it frozen, and the parameters that are to be thawed."""
