"""ComposedDecoder: a backbone plus parts in the four sockets = the LatentDecoder that most plugins use.

    context    embedding and blocks below the first injected one (the trunk, free of z), once per text
    posterior  encoder on the trunk's taps                       q(z | x)
    hidden     injection -> conditions -> the remaining blocks, once per latent sample
    loss       cross-entropy under z ~ q, plus the schedule's penalty on KL(q || p)   (nats per target token)

Legend: B rows, T tokens, D width, S sites, E event dimensions, K samples, R = B*K latent rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentlm.backbone import KVCache, Mask, Rotation, Transformer, rotation
from latentlm.backbone.init import normal_
from latentlm.composed import decoding
from latentlm.composed.ancestral import sample_autoregressive
from latentlm.composed.decoding import ComposedState
from latentlm.composed.initialisation import initialise
from latentlm.config import ModelConfig, PartSpec
from latentlm.errors import UserError
from latentlm.interface import (
    Batch,
    Condition,
    Context,
    Distribution,
    Encoder,
    Injection,
    KLSchedule,
    Latent,
    LatentDecoder,
    Latents,
    Loss,
    Noise,
    Part,
    Prior,
    State,
    assign_sites,
    site_mask,
)


class ComposedDecoder(LatentDecoder):
    """A transformer with an encoder, a prior, an injection and a KL schedule; without any of them, a plain decoder."""

    defaults: ClassVar[Mapping[str, PartSpec]] = {}
    """Socket -> the part that an open one takes."""
    default_event_dims: ClassVar[int] = 0
    default_granularity: ClassVar[str] = "token"

    prior_part: Prior | None
    injection: Injection | None
    encoder: Encoder | None

    @classmethod
    def complete(cls, config: ModelConfig) -> ModelConfig:
        """Fill open sockets, event_dims and granularity with this decoder's `defaults`."""
        filled = {socket: getattr(config, socket) or spec for socket, spec in cls.defaults.items()}
        granularity = config.granularity if "granularity" in config.model_fields_set else cls.default_granularity
        more = {"event_dims": config.event_dims or cls.default_event_dims, "granularity": granularity}
        return config.model_copy(update=filled | more)

    def __init__(
        self,
        config: ModelConfig,
        *,
        encoder: Encoder | None = None,
        prior: Prior | None = None,
        injection: Injection | None = None,
        kl_schedule: KLSchedule | None = None,
    ) -> None:
        super().__init__()
        if (prior is None) != (injection is None):
            raise UserError("A latent decoder needs both a prior and an injection; a plain decoder has neither.")
        if prior is None and (encoder is not None or kl_schedule is not None):
            raise UserError("An encoder or a KL schedule needs latents: give the model a prior and an injection.")
        if prior is not None and config.event_dims == 0:
            raise UserError("A model with latents needs event_dims >= 1 (bits or dimensions per site).")
        self.config = config
        self.backbone = Transformer(config.backbone)
        self.encoder, self.prior_part, self.injection = encoder, prior, injection
        self.kl_schedule = kl_schedule
        self.has_latents = prior is not None
        self.has_encoder = encoder is not None
        self.sees_future = encoder.sees_future if encoder is not None else False
        self.event_dims = config.event_dims if self.has_latents else 0
        self.granularity = config.granularity
        self.cut = min(injection.sites) if injection is not None else config.backbone.blocks
        """First injected block: the trunk ends here."""
        self._check_sockets()
        if prior is not None:
            prior.bind(encoder)

    def _check_sockets(self) -> None:
        """Refuse conditions that the backbone has no slot for, and parts that would read z."""
        blocks = self.config.backbone.blocks
        if self.injection is None:
            return
        name = type(self.injection).__name__
        if outside := [site for site in self.injection.sites if not 0 <= site < blocks]:
            raise UserError(f"{name} injects into blocks {outside}, but the backbone has blocks 0 to {blocks - 1}.")
        if missing := sorted(set(self.injection.slots) - self.backbone.slots):
            known = ", ".join(sorted(self.backbone.slots))
            raise UserError(f"{name} needs the condition slots {missing}, which this backbone lacks. It has: {known}.")
        if "prefix" in self.injection.slots and self.granularity != "document":
            raise UserError(f'{name} injects a prefix, which a whole document sees: set granularity to "document".')
        if "cross" in self.injection.slots and self.granularity != "document":
            raise UserError(f'{name} injects memory slots, which a whole document reads: set granularity to "document".')
        if "embedding" in self.injection.slots and self.cut != 0:
            raise UserError(f"{name} adds to the embedding, so its injection must begin at block 0, not {self.cut}.")
        for part in (self.encoder, self.prior_part):
            if part is not None and any(tap > self.cut or tap < 0 for tap in part.taps):
                raise UserError(
                    f"{type(part).__name__} reads taps {part.taps}, but only 0 to {self.cut} are free of z "
                    f"(the first injected block is {self.cut})."
                )
        self._check_latents()

    def _check_latents(self) -> None:
        """Refuse parts that do not agree on what z is, or do not serve the granularity."""
        parts = [part for part in (self.encoder, self.prior_part, self.injection) if part is not None]
        kinds = {type(part).__name__: part.latents for part in parts if part.latents is not None}
        if len(set(kinds.values())) > 1:
            listed = ", ".join(f"{part}: {kind}" for part, kind in kinds.items())
            raise UserError(f"The parts do not agree on the kind of latents ({listed}). Choose parts of one kind.")
        scale = self.granularity.partition(":")[0]
        for part in parts:
            if scale not in part.granularities:
                known = " or ".join(f'"{name}:n"' if name == "chunk" else f'"{name}"' for name in part.granularities)
                raise UserError(f'{type(part).__name__} does not serve granularity "{self.granularity}": set it to {known}.')

    @property
    def taps(self) -> frozenset[int]:
        """Taps to keep: the parts' and the trunk's end."""
        wanted = {self.cut}
        for part in (self.encoder, self.prior_part):
            wanted.update(part.taps if part is not None else ())
        return frozenset(wanted)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Embedding and Linear: normal(0, init_std), the last Linear of each sub-layer over sqrt(2 L); norms: one; then each
        part sets its own."""
        std, scaled = self.config.backbone.init_std, (2 * self.config.backbone.blocks) ** -0.5
        for name, module in self.named_modules():
            if isinstance(module, nn.Embedding | nn.Linear):
                last = name.endswith(("attention.output", "feed_forward.down"))
                normal_(module.weight, std=std * scaled if last else std, generator=generator)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
            if isinstance(module, nn.RMSNorm) and module.weight is not None:
                module.weight.fill_(1.0)
        for module in self.modules():
            if isinstance(module, Part):
                initialise(module, generator)

    # ------------------------------------------------------------------------------------------------ forward pass

    def context(self, batch: Batch, cache: KVCache | None = None) -> Context:
        """Embed and run the trunk. With a cache, the batch's tokens continue it."""
        site_of, sites = assign_sites(batch.documents, batch.positions, self.granularity)
        turn = rotation(self.config.backbone, batch.positions)
        plain = bool((batch.documents == 0).all())
        if cache is not None:
            cache.extend(batch.documents, rotation=turn, plain=plain)
        x = self.backbone.embedding(batch.inputs)  # (B, T, D)
        given = batch.given if batch.given is not None else batch.inputs.new_zeros(batch.inputs.shape[0])
        shell = Context(
            tokens=batch.inputs,
            taps={},
            positions=batch.positions,
            documents=batch.documents,
            site_of=site_of,
            site_mask=batch.documents >= 0 if self.granularity == "token" else site_mask(site_of, batch.documents, sites),
            given=given,
        )
        mask = Mask(batch.documents, batch.documents, plain=plain) if cache is None else cache.mask
        assert mask is not None
        _, taps = self.backbone.run(
            x, start=0, stop=self.cut, mask=mask, rotation=turn, cache=cache, taps=self.taps
        )
        return replace(shell, taps=taps)

    def posterior(self, context: Context) -> Distribution:
        """q(z | x), (B, S, E); the prior where there is no encoder. Raises UserError where that prior goes site by site: it is
        no distribution over all sites before they are drawn."""
        if self.encoder is None:
            if self.prior_part is not None and self.prior_part.autoregressive:
                raise UserError(
                    "This decoder has no encoder, and therefore no posterior but its prior; "
                    f"{type(self.prior_part).__name__} draws each site given those before it: use sample_prior."
                )
            return self.prior(context)
        if not self.encoder.needs_objective:
            amortised: Distribution = self.encoder(context)
            return amortised
        with torch.enable_grad():  # it descends on the objective in scores and generation too
            fitted: Distribution = self.encoder(context, self._objective(context))
        return fitted

    def prior(self, context: Context, latent: Latent | None = None) -> Distribution:
        """p(z), (R, S, E). The context's rows are repeated to match the latent's."""
        assert self.prior_part is not None, "a plain decoder has no prior"
        p: Distribution = self.prior_part(_rows_like(context, latent), latent)
        return p

    def sample_prior(self, context: Context, noise: Noise) -> Latent:
        """Draw every site from the prior given the tokens; site by site where it is autoregressive."""
        assert self.prior_part is not None, "a plain decoder has no prior"
        if not self.prior_part.autoregressive:
            return self.prior(context).sample(noise)
        return sample_autoregressive(self.prior_part, context, noise, self.event_dims)

    def sample_sites(self, context: Context, noise: Noise, *, held: Tensor, needed: Tensor) -> Latent:
        """Draw some sites given the others; one step of the prior per token."""
        assert self.prior_part is not None, "a plain decoder has no prior"
        return sample_autoregressive(self.prior_part, context, noise, self.event_dims, held=held, needed=needed)

    def hidden(self, context: Context, latent: Latent | None, cache: KVCache | None = None) -> Tensor:
        """The blocks from the first injected one up, and the final norm: (R, T, D)."""
        x = context.taps[self.cut]
        repeats = 1 if latent is None else latent.value.shape[0] // context.rows
        wide = _rows_like(context, latent)
        if repeats > 1:
            assert cache is None, "a cache holds one latent per row"
            x = x.repeat_interleave(repeats, dim=0)
        condition = Condition()
        if self.injection is not None and not self._held_by(cache):
            assert latent is not None, "a latent decoder needs a latent"
            condition = self.injection(latent, wide)
        if condition.embedding is not None:
            x = x + condition.embedding
        if cache is None:
            # A single document without padding needs no document mask; `before` contexts have a mask of their own.
            plain = bool((context.documents == 0).all())
            mask: Mask | None = Mask(context.documents, context.documents, plain=plain).repeat(repeats)
            turn: Rotation | None = rotation(self.config.backbone, wide.positions)
        else:
            mask, turn = cache.mask, cache.rotation
        assert mask is not None
        assert turn is not None
        x, _ = self.backbone.run(
            x,
            start=self.cut,
            stop=self.config.backbone.blocks,
            mask=mask,
            rotation=turn,
            conditions=condition.blocks,
            cache=cache,
        )
        out: Tensor = self.backbone.norm(x)
        return out if condition.logit_bias is None else out + condition.logit_bias

    def _held_by(self, cache: KVCache | None) -> bool:
        """Whether the cache holds all that the injection would make: prefixes and memory slots are made with the prompt."""
        assert self.injection is not None
        made_once = set(self.injection.slots) <= {"prefix", "cross"}
        return made_once and cache is not None and cache.start > 0

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V) float32."""
        return self.backbone.logits(hidden)

    def loss(self, batch: Batch, *, step: int, noise: Noise) -> Loss:
        """Cross-entropy under one posterior sample plus the schedule's penalty; without latents, plain cross-entropy."""
        context = self.context(batch)
        posterior, latent, kl = None, None, None
        if self.has_latents:
            if self.encoder is None and self.prior_part is not None and self.prior_part.autoregressive:
                latent = self.sample_prior(context, noise)  # site by site: there is no posterior to draw them all from
                posterior = self.prior(context, latent)
            else:
                posterior = self.posterior(context)
                latent = posterior.sample(noise, differentiable=True)
            kl = posterior.kl(self.prior(context, latent), latent)  # (B, S, E)
        reconstruction = self._cross_entropy(self.hidden(context, latent), batch)
        total = reconstruction.sum() / batch.target_mask.sum().clamp(min=1)
        logs: dict[str, Tensor] = {}
        if kl is not None and self.kl_schedule is not None:
            penalty, logs = self.kl_schedule.penalty(
                kl, reconstruction, context.site_mask, batch.target_mask, step=step
            )
            total = total + penalty
        auxiliary = None
        if self.training and latent is not None:
            for part in (self.encoder, self.prior_part, self.injection):
                extra = None if part is None else part.auxiliary(latent, context, batch)
                if extra is not None:
                    auxiliary = extra[0] if auxiliary is None else auxiliary + extra[0]
                    logs = logs | extra[1]
        return Loss(
            total=total if auxiliary is None else total + auxiliary,
            reconstruction=reconstruction,
            kl=kl,
            site_mask=context.site_mask,
            target_mask=batch.target_mask,
            posterior=posterior,
            logs=logs,
            auxiliary=auxiliary,
        )

    def _cross_entropy(self, hidden: Tensor, batch: Batch) -> Tensor:
        """(B, T) nats, zero outside the target mask."""
        logits = self.logits(hidden).flatten(0, 1)
        targets = batch.targets.masked_fill(~batch.target_mask, -100).flatten()
        nats = F.cross_entropy(logits, targets, ignore_index=-100, reduction="none")
        return nats.view(batch.targets.shape)

    def _objective(self, context: Context) -> decoding.RowObjective:
        """q -> (B,) nats of each row under q, the decoder frozen: what an encoder without a network minimises."""
        return decoding.RowObjective(self, context)

    # -------------------------------------------------------------------------------------------------- generation

    @torch.no_grad()
    def prefill(
        self,
        tokens: Tensor,
        lengths: Tensor,
        *,
        latents: Latents = "posterior",
        noise: Noise,
        last_latent: Literal["posterior", "prior"] = "posterior",
        prior_temperature: float = 1.0,
        capacity: int | None = None,
    ) -> ComposedState:
        """Feed prompts; see `LatentDecoder.prefill`."""
        return decoding.prefill(
            self,
            tokens,
            lengths,
            latents=latents,
            noise=noise,
            last_latent=last_latent,
            prior_temperature=prior_temperature,
            capacity=capacity,
        )

    @torch.no_grad()
    def step(
        self,
        state: State,
        tokens: Tensor,
        *,
        latents: Literal["prior"] | Tensor = "prior",
        noise: Noise,
        prior_temperature: float = 1.0,
    ) -> ComposedState:
        """Feed one token per row; see `LatentDecoder.step`."""
        assert isinstance(state, ComposedState)
        return decoding.step(self, state, tokens, latents=latents, noise=noise, prior_temperature=prior_temperature)

    def select(self, state: State, rows: Tensor) -> ComposedState:
        """The given rows of a generation."""
        assert isinstance(state, ComposedState)
        return state.select(rows)


def _rows_like(context: Context, latent: Latent | None) -> Context:
    """The context with each row repeated to match the latent's rows (row b*K + k is context row b)."""
    if latent is None or latent.value.shape[0] == context.rows:
        return context
    assert latent.value.shape[0] % context.rows == 0, "latent rows must be a multiple of the context's rows"
    repeats = latent.value.shape[0] // context.rows
    rows = torch.arange(context.rows, device=context.tokens.device).repeat_interleave(repeats)
    # The taps are the bulk of a context and most parts never read them again: repeat them on demand only.
    return replace(replace(context, taps={}).select(rows), taps=_SelectedTaps(context.taps, rows))


class _SelectedTaps(Mapping[int, Tensor]):
    """Rows of taps, gathered when they are read."""

    def __init__(self, taps: Mapping[int, Tensor], rows: Tensor) -> None:
        self._taps, self._rows = taps, rows

    def __getitem__(self, tap: int) -> Tensor:
        return self._taps[tap].index_select(0, self._rows)

    def __iter__(self) -> Iterator[int]:
        return iter(self._taps)

    def __len__(self) -> int:
        return len(self._taps)
