"""Token-by-token decoding for ComposedDecoder: prefill and step.

Prefill runs the encoders on the prompt and feeds every prompt position with its latents; each step feeds one token together
with the latents of its sites, drawn where the token begins a site. Latents come in order: one that reads a block above an
earlier one's injection waits for it, and each block runs once. The keys and values of all blocks share one cache.

Legend: B rows, T tokens, D width, V vocabulary, S sites, E event dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from latentlm.backbone import KVCache, rotation
from latentlm.composed import stages
from latentlm.composed.decoder import ComposedDecoder
from latentlm.composed.sockets import Sockets
from latentlm.composed.state import ComposedState, Kept, stored
from latentlm.config.checking import real
from latentlm.errors import UserError
from latentlm.interface import (
    PADDING,
    Batch,
    Context,
    Latent,
    Latents,
    LatentSource,
    Met,
    Noise,
    StepSource,
    begins_now,
    by_name,
    noise_of,
    recent_tokens,
)
from latentlm.interface.granularity import Token
from latentlm.interface.latents import prior_temperatures

LastLatent = Literal["posterior", "prior"]


def prefill(
    decoder: ComposedDecoder,
    tokens: Tensor,
    lengths: Tensor,
    *,
    latents: LatentSource | Mapping[str, LatentSource],
    noise: Noise | Mapping[str, Noise],
    last_latent: LastLatent | Mapping[str, LastLatent],
    prior_temperature: float | Mapping[str, float],
    capacity: int | None,
) -> ComposedState:
    """Feed prompts (B, T), right-padded; see `LatentDecoder.prefill`."""
    rows, length = tokens.shape
    positions = torch.arange(length, device=tokens.device).expand(rows, -1)
    documents = torch.zeros_like(tokens).masked_fill(positions >= lengths[:, None], PADDING)
    batch = Batch(tokens, tokens, documents, positions, documents >= 0, given=lengths)
    cache = KVCache(decoder.config.backbone.blocks, capacity=max(capacity or 0, length + 1))
    names = list(decoder.latents)
    words = ("posterior", "prior")
    sources: dict[str, LatentSource] = by_name(
        latents, names, default="posterior", what="latents", words=words, or_values=True  # type: ignore[arg-type]
    )
    last: dict[str, LastLatent] = by_name(last_latent, names, default="posterior", what="last_latent", words=words)
    temperatures = prior_temperatures(prior_temperature, names)
    noises = _noises(noise, names)
    context = decoder.context(batch, cache)
    drawn = Latents({})
    for name in names:
        context = decoder.shown(context, name, drawn, cache)
        one = _Prompt(decoder, context, name, lengths, drawn, noises[name], temperatures[name])
        drawn = drawn.plus(name, one.latent(sources[name], last[name]))
    hidden = decoder.hidden(context, drawn, cache)  # (B, T, D)
    newest = (lengths - 1)[:, None, None].expand(-1, 1, hidden.shape[-1])
    logits = decoder.logits(hidden.gather(1, newest)[:, 0])
    met, kept = {}, {}
    for name, latent in decoder.latents.items():
        value, counts = drawn[name].value, context.sites_of(name).mask.sum(-1)
        met[name] = Met(value, counts)
        newest = (counts - 1)[:, None, None].expand(-1, 1, value.shape[-1])
        kept[name] = Kept(
            current=value.gather(1, newest)[:, 0],
            store=value.clone(),
            prior_state=latent.prior.start(stages.view(decoder, context, name, "prior", drawn, cache), drawn[name]),
            recent=recent_tokens(latent.granularity, tokens, lengths),
        )
    return ComposedState(logits, lengths, met, cache, kept)


def _noises(noise: Noise | Mapping[str, Noise], names: list[str]) -> dict[str, Noise]:
    """The noise of each latent."""
    if isinstance(noise, Mapping):
        if missing := [name for name in names if name not in noise]:
            raise UserError(f"The noise given by name lacks {', '.join(missing)}: give one for each latent, or one for all.")
        return {name: noise[name] for name in names}
    return {name: noise_of(noise, name, names) for name in names}


@dataclass(frozen=True)
class _Prompt:
    """One latent of prompts under way."""

    decoder: ComposedDecoder
    context: Context
    name: str
    lengths: Tensor
    above: Latents
    noise: Noise
    temperature: float

    def latent(self, source: LatentSource, last: LastLatent) -> Latent:
        """Latents of the prompt's sites, zero where a row has fewer sites: (B, S, E)."""
        sites = self.context.sites_of(self.name)
        count = sites.mask.shape[1]
        if isinstance(source, Latent | Tensor):
            value = self._given(source.value if isinstance(source, Latent) else source, count)
        elif not isinstance(source, str):
            raise _no_values(self.name, source, '"posterior", "prior", or values (B, S, E)')
        elif source == "prior" or not self.decoder.latents[self.name].has_encoder:
            value = self.decoder.sample_prior_of(
                self.context, self.name, self.noise, self.above, temperature=self.temperature
            ).value
        else:
            value = self.decoder.posterior(self.context, self.name, self.above).sample(self.noise).value
            if last == "prior":
                last_site = sites.site_of.gather(1, (self.lengths - 1)[:, None])  # (B, 1)
                is_last = torch.arange(count, device=last_site.device)[None] == last_site
                # Teacher-forced: an autoregressive prior goes on from the posterior's draws, not from a path of its own.
                p = self.decoder.prior(self.context, self.name, self.above.plus(self.name, Latent(value)))
                drawn = p.tempered(self.temperature).sample(self.noise).value
                value = torch.where(is_last[..., None], drawn, value)
        return Latent(value * sites.mask[..., None])

    def _given(self, value: Tensor, count: int) -> Tensor:
        """The caller's values of the prompt's `count` sites. Raises UserError where they are none."""
        rows, dims = self.context.rows, self.decoder.latents[self.name].dims
        if value.dim() != 3 or (value.shape[0], value.shape[2]) != (rows, dims):
            raise UserError(
                f"The latents given for {self.name} have shape {tuple(value.shape)}, but {rows} rows of sites of {dims} "
                f"dimensions, ({rows}, S, {dims}), are needed; give each latent by name."
            )
        if value.shape[1] < count:
            raise UserError(
                f"The given latents cover {value.shape[1]} sites, but the prompt has {count}; "
                "give latents for the whole prompt, or let the encoder make them."
            )
        return value[:, :count].to(self.context.tokens.device)


def _no_values(name: str, source: object, wanted: str) -> UserError:
    """The error for a source of a latent that is neither a word nor values."""
    return UserError(f"The latents given for {name} are {type(source).__name__}: give {wanted}.")


def step(
    decoder: ComposedDecoder,
    state: ComposedState,
    tokens: Tensor,
    *,
    latents: StepSource | Mapping[str, StepSource],
    noise: Noise | Mapping[str, Noise],
    prior_temperature: float | Mapping[str, float],
) -> ComposedState:
    """Feed tokens (B,), one per row; see `LatentDecoder.step`."""
    context = decoder.context(_one_each(state, tokens), state.cache)  # whatever the granularity, with one site: the token's own
    return _stepped(
        decoder, state, tokens, context, latents=latents, noise=noise, prior_temperature=prior_temperature
    )


def step_along(
    decoder: ComposedDecoder,
    state: ComposedState,
    text: Context,
    positions: Tensor,
    *,
    latents: StepSource | Mapping[str, StepSource],
    noise: Noise | Mapping[str, Noise],
) -> ComposedState:
    """Feed the tokens at `positions` of texts, (B,) each, whose trunk has run; see `LatentDecoder.step_along`."""
    samples = len(state.lengths) // text.rows

    def here(whole: Tensor) -> Tensor:
        """(B, T, ...) at the positions, (B*K, 1, ...)."""
        place = positions.view(-1, *[1] * (whole.dim() - 1)).expand(-1, 1, *whole.shape[2:])
        return whole.gather(1, place).repeat_interleave(samples, dim=0)

    tokens = here(text.tokens)[:, 0]
    batch = _one_each(state, tokens)
    state.cache.extend(batch.documents, rotation=rotation(decoder.config.backbone, batch.positions), plain=True)
    state.cache.drop(range(decoder.cut))
    context = replace(stages.unrun(decoder, batch), taps={tap: here(x) for tap, x in text.taps.items()})
    return _stepped(decoder, state, tokens, context, latents=latents, noise=noise, prior_temperature=1.0)


def _one_each(state: ComposedState, tokens: Tensor) -> Batch:
    """Each row's next token, (B,), as a batch."""
    positions = state.lengths[:, None]  # (B, 1)
    zeros = torch.zeros_like(positions)
    return Batch(tokens[:, None], tokens[:, None], zeros, positions, zeros == 0, given=state.lengths, single=True)


def _stepped(
    decoder: ComposedDecoder,
    state: ComposedState,
    tokens: Tensor,
    context: Context,
    *,
    latents: StepSource | Mapping[str, StepSource],
    noise: Noise | Mapping[str, Noise],
    prior_temperature: float | Mapping[str, float],
) -> ComposedState:
    """The latents of tokens whose trunk has run, and the blocks above it."""
    names = list(decoder.latents)
    sources: dict[str, StepSource] = by_name(
        latents, names, default="prior", what="latents", words=("prior",), or_values=True  # type: ignore[arg-type]
    )
    temperatures = by_name(prior_temperature, names, default=1.0, what="prior_temperature")
    noises = _noises(noise, names)
    drawn, met, kept = Latents({}), {}, {}
    for name, latent in decoder.latents.items():
        context = decoder.shown(context, name, drawn, state.cache)
        seen = stages.view(decoder, context, name, "prior", drawn, state.cache)
        level = state.cache.length if isinstance(latent.granularity, Token) and state.cache.plain else None
        turn = _Turn(latent, state.kept[name], state.met[name], tokens, state.lengths, level)
        state.cache.begin(name if len(names) > 1 else "", turn.starts)
        value, counts, prior_state = turn.taken(seen, sources[name], noises[name], temperatures[name])
        drawn = drawn.plus(name, Latent(value[:, None]))
        sites, store = stored(state.kept[name].store, value, counts, level=level, full=state.cache.static)
        met[name] = Met(sites, counts)
        kept[name] = Kept(value, store, prior_state, turn.recent[:, 1:])
    hidden = decoder.hidden(context, drawn, state.cache)
    return ComposedState(decoder.logits(hidden[:, 0]), state.lengths + 1, met, state.cache, kept)


class _Turn:
    """One latent at one token. `level`: the sites that every row has met, this one included, where that is known unseen."""

    def __init__(self, latent: Sockets, kept: Kept, met: Met, tokens: Tensor, lengths: Tensor, level: int | None) -> None:
        self.latent, self.kept, self.met, self.lengths, self.level = latent, kept, met, lengths, level
        self.recent = tokens[:, None]  # (B, lookback + 1)
        if latent.granularity.lookback:
            self.recent = torch.cat((kept.recent, self.recent), dim=1)
        self.by_token = isinstance(latent.granularity, Token)
        self.starts = lengths >= 0 if self.by_token else begins_now(latent.granularity, self.recent, lengths)

    def taken(
        self, seen: Context, source: StepSource, noise: Noise, temperature: float
    ) -> tuple[Tensor, Tensor, object]:
        """The token's latent (B, E), the sites met so far (B,), and the prior's state."""
        taps = {k: tap[:, 0] for k, tap in seen.taps.items()}
        above = {name: value[:, 0] for name, value in seen.above.items()}
        p, prior_state = self.latent.prior.step(self.kept.prior_state, taps, self.kept.current, self.starts, above)
        if isinstance(source, Tensor):
            if source.shape != self.kept.current.shape:
                raise UserError(
                    f"The values given for {self.latent.name} have shape {tuple(source.shape)}, not "
                    f"{tuple(self.kept.current.shape)}; give each latent by name."
                )
            drawn = source.to(self.kept.current)
        elif source != "prior":
            raise _no_values(self.latent.name, source, '"prior", or the token\'s values as a tensor (B, E)')
        else:
            noise = noise.at(self.met.counts if self.level is None else [self.level - 1])
            if temperature != 1.0:
                p = p.tempered(real("prior_temperature", temperature, above=0))
            drawn = p.sample(noise).value[:, 0].to(self.kept.current)
        if self.by_token:
            return drawn, self.met.counts + 1, prior_state
        return torch.where(self.starts[:, None], drawn, self.kept.current), self.met.counts + self.starts, prior_state
