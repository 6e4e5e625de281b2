"""Token-by-token decoding for ComposedDecoder: prefill and step.

Prefill runs the encoder on the prompt and feeds every prompt position with its latent; each step feeds one token together with
the latent of its site, drawn where the token begins a site. The trunk's and the upper blocks' keys and values share one cache.

Legend: B rows, T tokens, D width, S sites, E event dimensions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from latentlm.backbone import KVCache
from latentlm.composed.ancestral import sample_autoregressive
from latentlm.errors import UserError
from latentlm.interface import PADDING, Batch, Context, Distribution, Latent, Latents, Noise, State, begins_site, chunk_length

if TYPE_CHECKING:
    from latentlm.composed.decoder import ComposedDecoder


@dataclass(frozen=True)
class ComposedState(State):
    """A generation in progress and its caches. `current` (B, E) is the latent of each row's newest site; `store` (B, S', E),
    S' >= S, is the memory behind `latents`, with room for the sites to come."""

    cache: KVCache
    current: Tensor | None
    store: Tensor | None
    prior_state: Any

    def select(self, rows: Tensor) -> ComposedState:
        """The given rows, in that order, as a generation of their own."""

        def pick(tensor: Any) -> Any:
            return tensor.index_select(0, rows) if isinstance(tensor, Tensor) else tensor

        store = pick(self.store)
        return ComposedState(
            logits=pick(self.logits),
            lengths=pick(self.lengths),
            latents=store if store is None or self.latents is None else store[:, : self.latents.shape[1]],
            site_counts=pick(self.site_counts),
            cache=self.cache.select(rows),
            current=pick(self.current),
            store=store,
            prior_state=tree_map(pick, self.prior_state),
        )


class _PlacedNoise(Noise):
    """One key for all rows; the numbers of a site are those of its place (B, S)."""

    def __init__(self, places: Tensor) -> None:
        super().__init__(Noise.keyed(0, [0] * len(places)).keys)
        self.places = places

    def uniform(self, sites: int, events: int, *, device: torch.device | str | None = None) -> Tensor:
        """(B, S, E)."""
        if sites != self.places.shape[1]:
            return super().uniform(sites, events, device=device)
        return super().uniform(sites, events, device=device).gather(1, self.places[..., None].expand(-1, -1, events))


class RowObjective:
    """q -> (B,) nats: cross-entropy of each row's next tokens under one sample of q, plus KL(q || prior)."""

    def __init__(self, decoder: ComposedDecoder, context: Context) -> None:
        self.decoder = decoder
        taps = {k: tap.detach() for k, tap in context.taps.items()}
        self.context = replace(context, taps=taps)
        same = (context.documents[:, 1:] == context.documents[:, :-1]) & (context.documents[:, 1:] >= 0)
        self.mask = F.pad(same, (0, 1))  # (B, T): positions whose next token is in the same document
        self.targets = F.pad(context.tokens[:, 1:], (0, 1))
        first = context.first_positions().clamp(max=context.tokens.shape[1] - 1)
        length = chunk_length(decoder.granularity)
        begins = context.positions.gather(1, first)
        self.places = torch.zeros_like(begins) if length is None else begins // length  # (B, S): of a site in its document

    def __call__(self, q: Distribution) -> Tensor:
        """(B,) nats, differentiable in q alone."""
        # One key, and numbers by a site's place in its document: neither neighbours nor packing change a document's objective.
        latent = q.sample(_PlacedNoise(self.places), differentiable=True)
        with _frozen(self.decoder):
            logits = self.decoder.logits(self.decoder.hidden(self.context, latent))
            kl = q.kl(self.decoder.prior(self.context, latent), latent)  # (B, S, E)
        nats = F.cross_entropy(logits.flatten(0, 1), self.targets.flatten(), reduction="none").view_as(self.mask)
        kl = kl.masked_fill(~self.context.site_mask[..., None], 0.0)  # a padded site's KL may be anything
        return (nats * self.mask).sum(-1) + kl.sum((1, 2))


@contextmanager
def _frozen(decoder: ComposedDecoder) -> Iterator[None]:
    """No parameter of the decoder takes part in the graphs recorded meanwhile."""
    parameters = [parameter for parameter in decoder.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def prefill(
    decoder: ComposedDecoder,
    tokens: Tensor,
    lengths: Tensor,
    *,
    latents: Latents,
    noise: Noise,
    last_latent: Literal["posterior", "prior"],
    prior_temperature: float,
    capacity: int | None,
) -> ComposedState:
    """Feed prompts (B, T), right-padded; see `LatentDecoder.prefill`."""
    rows, length = tokens.shape
    positions = torch.arange(length, device=tokens.device).expand(rows, -1)
    documents = torch.zeros_like(tokens).masked_fill(positions >= lengths[:, None], PADDING)
    batch = Batch(tokens, tokens, documents, positions, documents >= 0, given=lengths)
    cache = KVCache(decoder.config.backbone.blocks, capacity=max(capacity or 0, length + 1))
    context = decoder.context(batch, cache)
    latent = None
    if decoder.has_latents:
        latent = _prompt_latents(decoder, context, lengths, latents, noise, last_latent, prior_temperature)
    hidden = decoder.hidden(context, latent, cache)  # (B, T, D)
    last = (lengths - 1)[:, None, None].expand(-1, 1, hidden.shape[-1])
    logits = decoder.logits(hidden.gather(1, last)[:, 0])
    counts = context.site_mask.sum(-1)
    if latent is None:
        return ComposedState(logits, lengths, None, torch.zeros_like(counts), cache, None, None, None)
    assert decoder.prior_part is not None
    newest = (counts - 1)[:, None, None].expand(-1, 1, latent.value.shape[-1])
    return ComposedState(
        logits=logits,
        lengths=lengths,
        latents=latent.value,
        site_counts=counts,
        cache=cache,
        current=latent.value.gather(1, newest)[:, 0],
        store=latent.value.clone(),
        prior_state=decoder.prior_part.start(context, latent),
    )


def _prompt_latents(
    decoder: ComposedDecoder,
    context: Context,
    lengths: Tensor,
    latents: Latents,
    noise: Noise,
    last_latent: Literal["posterior", "prior"],
    prior_temperature: float,
) -> Latent:
    """Latents of the prompt's sites, zero where a row has fewer sites: (B, S, E)."""
    if isinstance(latents, Latent):
        if latents.value.shape[1] < context.sites:
            raise UserError(
                f"The given latents cover {latents.value.shape[1]} sites, but the prompt has {context.sites}; "
                "give latents for the whole prompt, or let the encoder make them."
            )
        value = latents.value[:, : context.sites].to(context.tokens.device)
    elif latents == "prior" or not decoder.has_encoder:
        value = _tempered_prior(decoder, context, noise, prior_temperature)
    else:
        value = decoder.posterior(context).sample(noise).value
        if last_latent == "prior":
            last_site = context.site_of.gather(1, (lengths - 1)[:, None])  # (B, 1)
            is_last = torch.arange(context.sites, device=last_site.device)[None] == last_site
            # Teacher-forced: an autoregressive prior goes on from the posterior's draws, not from a path of its own.
            drawn = decoder.prior(context, Latent(value)).tempered(prior_temperature).sample(noise).value
            value = torch.where(is_last[..., None], drawn, value)
    return Latent(value * context.site_mask[..., None])


def _tempered_prior(decoder: ComposedDecoder, context: Context, noise: Noise, temperature: float) -> Tensor:
    """Prior draw for the prompt's sites, (B, S, E)."""
    assert decoder.prior_part is not None
    if decoder.prior_part.autoregressive:
        return sample_autoregressive(
            decoder.prior_part, context, noise, decoder.event_dims, temperature=temperature
        ).value
    return decoder.prior(context).tempered(temperature).sample(noise).value


def step(
    decoder: ComposedDecoder,
    state: ComposedState,
    tokens: Tensor,
    *,
    latents: Literal["prior"] | Tensor,
    noise: Noise,
    prior_temperature: float,
) -> ComposedState:
    """Feed tokens (B,), one per row; see `LatentDecoder.step`."""
    positions = state.lengths[:, None]  # (B, 1)
    zeros = torch.zeros_like(positions)
    batch = Batch(tokens[:, None], tokens[:, None], zeros, positions, zeros == 0, given=state.lengths)
    context = decoder.context(batch, state.cache)  # whatever the granularity, with one site: the token's own
    latent, counts, prior_state = None, state.site_counts, state.prior_state
    latents_met, store = state.latents, state.store
    if decoder.has_latents:
        value, counts, prior_state = _step_latent(decoder, state, context, latents, noise, prior_temperature)
        latent = Latent(value[:, None])
        latents_met, store = _stored(state.store, value, counts, level=_level(decoder, state.cache))
    hidden = decoder.hidden(context, latent, state.cache)
    return ComposedState(
        logits=decoder.logits(hidden[:, 0]),
        lengths=state.lengths + 1,
        latents=latents_met,
        site_counts=counts,
        cache=state.cache,
        current=None if latent is None else latent.value[:, 0],
        store=store,
        prior_state=prior_state,
    )


def _step_latent(
    decoder: ComposedDecoder,
    state: ComposedState,
    context: Context,
    latents: Literal["prior"] | Tensor,
    noise: Noise,
    temperature: float,
) -> tuple[Tensor, Tensor, Any]:
    """The token's latent (B, E), the sites met so far (B,), and the prior's state."""
    assert decoder.prior_part is not None
    assert state.current is not None
    by_token = decoder.granularity == "token"
    starts = context.site_mask[:, 0] if by_token else begins_site(state.lengths, decoder.granularity)
    taps = {k: tap[:, 0] for k, tap in context.taps.items()}
    p, prior_state = decoder.prior_part.step(state.prior_state, taps, state.current, starts)
    if isinstance(latents, Tensor):
        drawn = latents.to(state.current)
    else:
        level = _level(decoder, state.cache)
        noise = noise.at(state.site_counts if level is None else [level - 1])
        drawn = (p if temperature == 1.0 else p.tempered(temperature)).sample(noise).value[:, 0].to(state.current)
    if by_token:
        return drawn, state.site_counts + 1, prior_state
    value = torch.where(starts[:, None], drawn, state.current)
    return value, state.site_counts + starts, prior_state


def _level(decoder: ComposedDecoder, cache: KVCache) -> int | None:
    """The sites that every row has met, the token under way included, where it is known without a look at the counts."""
    return cache.length if decoder.granularity == "token" and cache.plain else None


def _stored(store: Tensor | None, value: Tensor, counts: Tensor, *, level: int | None) -> tuple[Tensor, Tensor]:
    """Write `value` (B, E) at each row's newest site (counts - 1). Returns the latents of the sites met, and their memory,
    which doubles when it is full. It is shared with the state before, which is used up."""
    assert store is not None
    needed = int(counts.max()) if level is None else level
    if needed > store.shape[1]:
        store = F.pad(store, (0, 0, 0, max(needed, 2 * store.shape[1]) - store.shape[1]))
    if level is None:
        newest = (counts - 1)[:, None, None].expand(-1, 1, value.shape[-1])
        store.scatter_(1, newest, value[:, None].to(store))
    else:
        store[:, level - 1] = value
    return store[:, :needed], store
