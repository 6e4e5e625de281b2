"""ComposedDecoder: a backbone plus latents, each with parts in its four sockets = the LatentDecoder that most plugins use.

    context    embedding and blocks below the first injected one (the trunk, free of z), once per text
    posterior  a latent's encoder on the taps                    q(z^n | x, z above)
    hidden     injections -> conditions -> the remaining blocks, once per latent sample
    loss       cross-entropy under z ~ q, plus each latent's penalty on KL(q || p)   (nats per target token)

Legend: B rows, T tokens, D width, S sites, E event dimensions, K samples, R = B*K latent rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentlm.backbone import KVCache, Transformer, rotation
from latentlm.composed import sharing, stages
from latentlm.composed.ancestral import sample_autoregressive
from latentlm.composed.declared import check_declared
from latentlm.composed.initialisation import initialise
from latentlm.composed.objective import RowObjective
from latentlm.composed.sockets import Filled, Holder, Sockets, check_compiled, check_latent, check_order, needs
from latentlm.composed.state import ComposedState
from latentlm.config import ModelConfig, PartSpec
from latentlm.errors import UserError
from latentlm.interface import (
    Batch,
    BlockCondition,
    CompiledSteps,
    Context,
    Distribution,
    Encoder,
    Injection,
    Latent,
    LatentDecoder,
    LatentLoss,
    Latents,
    LatentSource,
    Loss,
    Noise,
    Part,
    Prior,
    State,
    Stems,
    StepSource,
    noise_of,
    one_document_a_row,
)


class ComposedDecoder(LatentDecoder):
    """A transformer and any number of latents, each with an encoder, a prior, an injection and a KL schedule; without latents,
    a plain decoder."""

    defaults: ClassVar[Mapping[str, PartSpec]] = {}
    """Socket -> the part that an open one takes."""
    default_event_dims: ClassVar[int] = 0
    default_granularity: ClassVar[str] = "token"
    prompt_both_ways: ClassVar[bool] = False
    """The tokens that are given see one another both ways, in the trunk and above it."""

    encoder: Encoder | None
    """Of the only latent; None in a decoder of several, as the other two."""
    prior_part: Prior | None
    injection: Injection | None
    latents: Mapping[str, Sockets]

    @classmethod
    def complete(cls, config: ModelConfig) -> ModelConfig:
        """Fill open sockets, event_dims and granularity with this decoder's `defaults`; settings without a name change them."""
        given = {socket: getattr(config, socket) for socket in cls.defaults}
        filled = {socket: spec if given[socket] is None else given[socket].over(spec) for socket, spec in cls.defaults.items()}
        granularity = config.granularity if "granularity" in config.model_fields_set else cls.default_granularity
        more = {"event_dims": config.event_dims or cls.default_event_dims, "granularity": granularity}
        return config.model_copy(update=filled | more)

    def __init__(self, config: ModelConfig, latents: Sequence[Filled] = ()) -> None:
        super().__init__()
        self.config = config
        self.backbone = Transformer(config.backbone)
        self.encoder = self.prior_part = self.injection = None
        if len(latents) == 1:
            self.latents = {latents[0].shape.name: Sockets(latents[0], self)}
        else:
            holders = {filled.shape.name: Holder() for filled in latents}
            self.latents = {filled.shape.name: Sockets(filled, holders[filled.shape.name]) for filled in latents}
            if latents:  # their parameters are called latents.NAME.encoder. ...; the attribute stays the view
                self._modules["latents"] = nn.ModuleDict(holders)
        for sockets in self.latents.values():
            check_declared(sockets)
        self.cut = min((latent.first_block for latent in self.latents.values()), default=config.backbone.blocks)
        """First injected block: the trunk ends here."""
        for latent in self.latents.values():
            check_latent(latent, self.backbone.slots, config.backbone.blocks)
        check_order(list(self.latents.values()))
        for latent in self.latents.values():
            latent.bind()

    @property
    def taps(self) -> frozenset[int]:
        """Taps to keep: the parts' and the trunk's end."""
        wanted = {self.cut}
        for latent in self.latents.values():
            for _, part in latent.named_parts():
                wanted.update(getattr(part, "taps", ()))
        return frozenset(wanted)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Embedding and Linear: normal(0, init_std), the last Linear of each sub-layer over sqrt(2 L); norms: one; then each
        part sets its own."""
        initialise(self, self.config.backbone, generator)

    def check_compiled(self) -> None:
        """All but prefixes that grow with the text."""
        check_compiled(self, self.latents.values())

    def compiled_steps(self, state: State, *, capacity: int) -> CompiledSteps:
        """One graph: see `latentlm.composed.static`."""
        from latentlm.composed.static import Static  # imports what compiles

        assert isinstance(state, ComposedState), "a state of this decoder's own"
        return Static(self, state, capacity=capacity)

    # ------------------------------------------------------------------------------------------------ forward pass

    def context(self, batch: Batch, cache: KVCache | None = None) -> Context:
        """Embed and run the trunk. With a cache, the batch's tokens continue it."""
        turn = rotation(self.config.backbone, batch.positions)
        if cache is not None:
            prompt = batch.given if self.prompt_both_ways else None
            plain = one_document_a_row(batch.documents) if batch.single is None else batch.single
            cache.extend(batch.documents, rotation=turn, plain=plain, given=prompt)
        return stages.trunk(self, stages.unrun(self, batch), cache, self.token_conditions(batch, cache))

    def token_conditions(self, batch: Batch, cache: KVCache | None) -> Mapping[int, BlockCondition]:
        """What the tokens themselves add to blocks of the trunk, whatever z is; nothing here. A decoder that looks at tokens of
        earlier passes keeps them in `cache.kept`."""
        return {}

    def shared_context(self, batch: Batch, stems: Stems) -> Context:
        """The trunk of each beginning once, and the rest of each row after it."""
        return sharing.context(self, batch, stems)

    def shared_hidden(self, context: Context, latents: Latents, positions: Tensor, stems: Stems) -> Tensor:
        """The upper blocks of each beginning once for each sample, and the rest of each row after it."""
        return sharing.hidden(self, context, latents, positions, stems)

    def posterior(self, context: Context, name: str | None = None, above: Latent | Latents | None = None) -> Distribution:
        """q(z^n | x, z above); the prior where there is no encoder. Raises UserError where that prior goes site by site: it is
        no distribution over all sites before they are drawn."""
        name, known = self.name_of(name), self._by_name(above)
        latent = self.latents[name]
        if latent.encoder is None:
            if latent.autoregressive:
                raise UserError(
                    f"{name} has no encoder, and therefore no posterior but its prior; "
                    f"{type(latent.prior).__name__} draws each site given those before it: use sample_prior."
                )
            return self.prior(context, name, known)
        seen = stages.view(self, context, name, "encoder", known)
        if not latent.encoder.needs_objective:
            amortised: Distribution = latent.encoder(seen)
            return amortised
        with torch.enable_grad():  # it descends on the objective in scores and generation too
            fitted: Distribution = latent.encoder(seen, RowObjective(self, context, name, known))
        return fitted

    def prior(self, context: Context, name: str | None = None, latents: Latent | Latents | None = None) -> Distribution:
        """p(z^n | ...), (R, S, E). The context's rows are repeated to match the latents'."""
        name, known = self.name_of(name), self._by_name(latents)
        seen = stages.rows_like(stages.view(self, context, name, "prior", known), known)
        p: Distribution = self.latents[name].prior(seen, known.get(name))
        return p

    def infer(self, context: Context, noise: Noise) -> Latents:
        """Draw all latents in order; one without an encoder from its prior."""
        return self._inferred(context, noise, differentiable=False)[1]

    def sample_prior(self, context: Context, noise: Noise) -> Latents:
        """Draw all latents in order from the prior given the tokens; site by site where it is autoregressive."""
        drawn = Latents({})
        for name in self.latents:
            drawn = drawn.plus(name, self.sample_prior_of(context, name, noise_of(noise, name, list(self.latents)), drawn))
        return drawn

    def sample_prior_of(
        self, context: Context, name: str, noise: Noise, above: Latents, *, temperature: float = 1.0
    ) -> Latent:
        """Draw every site of one latent from its prior, given the latents above."""
        if not self.latents[name].autoregressive:
            p = self.prior(context, name, above)
            return (p if temperature == 1.0 else p.tempered(temperature)).sample(noise)
        return self._autoregressive(context, name, noise, above, temperature=temperature)

    def sample_sites(
        self,
        context: Context,
        noise: Noise,
        *,
        held: Tensor,
        needed: Tensor,
        name: str | None = None,
        above: Latents | None = None,
    ) -> Latent:
        """Draw some sites given the others; one step of the prior per token."""
        return self._autoregressive(context, self.name_of(name), noise, above or Latents({}), held=held, needed=needed)

    def _autoregressive(
        self,
        context: Context,
        name: str,
        noise: Noise,
        above: Latents,
        *,
        temperature: float = 1.0,
        held: Tensor | None = None,
        needed: Tensor | None = None,
    ) -> Latent:
        """Site after site through the prior's steps."""
        latent = self.latents[name]
        seen = stages.rows_like(stages.view(self, context, name, "prior", above), above)
        return sample_autoregressive(
            latent.prior, seen, noise, latent.dims, temperature=temperature, held=held, needed=needed
        )

    def hidden(self, context: Context, latents: Latent | Latents | None, cache: KVCache | None = None) -> Tensor:
        """The blocks from the first injected one up, and the final norm: (R, T, D)."""
        known = self._by_name(latents)
        missing = [name for name in self.latents if name not in known]
        assert not missing, f"a latent decoder needs its latents: {missing}"
        wide = stages.rows_like(context, known)
        assert cache is None or wide.rows == context.rows, "a cache holds one latent per row"
        return stages.upper(self, wide, known, cache)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V) float32."""
        return self.backbone.logits(hidden)

    def _by_name(self, given: Latent | Latents | None) -> Latents:
        """Latents by name."""
        return Latents.of(given, list(self.latents))

    # ---------------------------------------------------------------------------------------------------- training

    def loss(self, batch: Batch, *, step: int, noise: Noise) -> Loss:
        """Cross-entropy under one posterior sample plus the schedules' penalties; without latents, plain cross-entropy."""
        context, latents, posteriors = self._inferred(self.context(batch), noise, differentiable=True)
        parts: dict[str, LatentLoss] = {}
        for name, q in posteriors.items():
            p = self.prior(context, name, latents)
            mask = context.sites_of(name).mask
            parts[name] = LatentLoss(q.kl(p, latents[name]), mask, q, normalised=p.normalised)
        reconstruction = self._cross_entropy(self.hidden(context, latents), batch)
        total = reconstruction.sum() / batch.target_mask.sum().clamp(min=1)
        logs: dict[str, Tensor] = {}
        for name, schedule in self.kl_schedules.items():
            own = parts[name]
            penalty, said = schedule.penalty(own.kl, reconstruction, own.site_mask, batch.target_mask, step=step)
            total = total + penalty
            logs |= self._named(name, said)
        auxiliary = None
        for name, part, seen in self._with_auxiliaries(context, latents):
            extra = part.auxiliary(latents[name], seen, batch)
            if extra is not None:
                auxiliary = extra[0] if auxiliary is None else auxiliary + extra[0]
                logs |= self._named(name, extra[1])
        return Loss(
            total=total if auxiliary is None else total + auxiliary,
            reconstruction=reconstruction,
            target_mask=batch.target_mask,
            latents=parts,
            logs=logs,
            auxiliary=auxiliary,
        )

    def advance(self, step: int) -> None:
        """After an optimiser step: parts and schedules move."""
        for latent in self.latents.values():
            for _, part in latent.named_parts():
                part.advance(step)
        super().advance(step)

    def _inferred(
        self, context: Context, noise: Noise, *, differentiable: bool
    ) -> tuple[Context, Latents, dict[str, Distribution]]:
        """Draw all latents in order: the context with all blocks run that their parts read, the latents, their posteriors."""
        latents, posteriors = Latents({}), {}
        for name, latent in self.latents.items():
            own = noise_of(noise, name, list(self.latents))
            context = self.shown(context, name, latents)
            if latent.encoder is None and latent.autoregressive:
                drawn = self.sample_prior_of(context, name, own, latents)  # no posterior to draw all sites from at once
                latents = latents.plus(name, drawn)
                posteriors[name] = self.prior(context, name, latents)
            else:
                posteriors[name] = self.posterior(context, name, latents)
                latents = latents.plus(name, posteriors[name].sample(own, differentiable=differentiable))
        return context, latents, posteriors

    def shown(self, context: Context, name: str, latents: Latents, cache: KVCache | None = None) -> Context:
        """The context with every block run that the latent's parts read, so that none is run twice, for the latents' rows."""
        if len(self.latents) == 1:
            return context
        highest = max(needs(self.latents, name, socket)[0] for socket in ("encoder", "prior"))
        return stages.raised(self, context, highest, latents, cache)

    def _with_auxiliaries(self, context: Context, latents: Latents) -> Iterator[tuple[str, Part, Context]]:
        """Parts that may have a loss of their own, in training, and what they see."""
        if self.training:
            for name, latent in self.latents.items():
                for socket, part in latent.named_parts():
                    yield name, part, stages.view(self, context, name, socket, latents)

    def _named(self, name: str, logs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Logs under their latent's name, where there are several."""
        return dict(logs) if len(self.latents) == 1 else {f"{name}/{key}": value for key, value in logs.items()}

    def _cross_entropy(self, hidden: Tensor, batch: Batch) -> Tensor:
        """(B, T) nats, zero outside the target mask."""
        targets = batch.targets.masked_fill(~batch.target_mask, -100).flatten()
        return self._nats(hidden.flatten(0, 1), targets).view(batch.targets.shape)

    def _nats(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """(N,) nats of targets (N,) long, zero where they are -100, from hidden (N, D)."""
        return F.cross_entropy(self.logits(hidden), targets, ignore_index=-100, reduction="none")

    # -------------------------------------------------------------------------------------------------- generation

    @torch.no_grad()
    def prefill(
        self,
        tokens: Tensor,
        lengths: Tensor,
        *,
        latents: LatentSource | Mapping[str, LatentSource] = "posterior",
        noise: Noise | Mapping[str, Noise],
        last_latent: Literal["posterior", "prior"] | Mapping[str, Literal["posterior", "prior"]] = "posterior",
        prior_temperature: float | Mapping[str, float] = 1.0,
        capacity: int | None = None,
    ) -> ComposedState:
        """Feed prompts; see `LatentDecoder.prefill`."""
        from latentlm.composed.decoding import prefill

        return prefill(
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
        latents: StepSource | Mapping[str, StepSource] = "prior",
        noise: Noise | Mapping[str, Noise],
        prior_temperature: float | Mapping[str, float] = 1.0,
    ) -> ComposedState:
        """Feed one token per row; see `LatentDecoder.step`."""
        from latentlm.composed.decoding import step

        assert isinstance(state, ComposedState)
        return step(self, state, tokens, latents=latents, noise=noise, prior_temperature=prior_temperature)

    def select(self, state: State, rows: Tensor) -> ComposedState:
        """The given rows of a generation."""
        assert isinstance(state, ComposedState)
        return state.select(rows)

    def resample(self, state: State, rows: Tensor) -> ComposedState:
        """The given rows; keys and values are written where they change."""
        assert isinstance(state, ComposedState)
        return state.select(rows, cache=state.cache.resample(rows))

    @torch.no_grad()
    def step_along(
        self,
        state: State,
        context: Context,
        positions: Tensor,
        *,
        latents: StepSource | Mapping[str, StepSource] = "prior",
        noise: Noise | Mapping[str, Noise],
    ) -> ComposedState:
        """The upper blocks alone; see `LatentDecoder.step_along`."""
        from latentlm.composed.decoding import step_along

        assert isinstance(state, ComposedState)
        return step_along(self, state, context, positions, latents=latents, noise=noise)
