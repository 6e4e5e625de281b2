"""The contract of a decoder: what training, generation, likelihood, zoo and evaluation talk to.

Legend: that of `latentlm.interface`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from latentlm.config import Strict
from latentlm.errors import UserError, unknown_name
from latentlm.interface.batches import Batch, Context, Stems, one_document_a_row
from latentlm.interface.distributions import Distribution, Latent
from latentlm.interface.generation import CompiledSteps, Continued, Generation, OnToken, State, Wanted
from latentlm.interface.granularity import Granularity, assign_sites
from latentlm.interface.latents import Latents, only
from latentlm.interface.losses import Loss
from latentlm.interface.noise import Noise
from latentlm.interface.parts import KLSchedule

if TYPE_CHECKING:
    from latentlm.config import Card, ModelConfig
    from latentlm.tokenizer import Tokenizer


class LatentInfo(Protocol):
    """What one of a decoder's latents is."""

    @property
    def name(self) -> str:
        """Of the latent."""

    @property
    def dims(self) -> int:
        """E."""

    @property
    def granularity(self) -> Granularity:
        """Where its sites begin."""

    @property
    def granularity_text(self) -> str:
        """The granularity as a recipe writes it: "token", "chunk:8", "line"."""

    @property
    def has_encoder(self) -> bool:
        """False: its posterior is its prior."""

    @property
    def sees_future(self) -> bool:
        """The posterior of a site depends on tokens after the site's first position."""

    @property
    def autoregressive(self) -> bool:
        """A site's prior depends on the latents of earlier sites."""

    kl_schedule: KLSchedule | None


LatentSource = Literal["posterior", "prior"] | Latent | Tensor
"""Who says what a latent is: the encoder, the prior, or the caller, (B, S', E)."""
StepSource = Literal["prior"] | Tensor
"""Likewise for the next token: the prior, or the caller (B, E)."""


class LatentDecoder(nn.Module, ABC):
    """The one interface that training, generation, likelihood, zoo and evaluation talk to.

    A decoder has latents z^1 .. z^N in order, N = 0 for a plain decoder:

        p(x, z) = prod_t p(x_(t+1) | x_<=t, z begun by t)
                  prod_n prod_(s of z^n that begins at t) p(z^n_s | x_<=max(t, given), z^n_<s, z^m begun by t, m above n)
        q(z | x) = prod_n q(z^n | x, z^m for m above n)

    Methods take latents by name; where there is one latent, its name may be left out, and a `Latent` stands for `Latents`.
    Most plugins use `latentlm.composed.ComposedDecoder`, which builds this from a backbone and the parts of its latents.

    Example::

        backbone = BackboneConfig(width=32, blocks=2, heads=2, context=32)
        model = build(ModelConfig(decoder="free", event_dims=4, backbone=backbone))
        context = model.context(Batch.of([[256, 100, 101, 102]]))  # the trunk, free of z
        posterior, latents = model.posterior(context), model.sample_prior(context, Noise.keyed(0, ["row"]))
        logits = model.logits(model.hidden(context, latents))  # (1, 4, 257): p(next token | tokens, z)
        nats = posterior.kl(model.prior(context, latents=latents), latents["z"])  # (1, 4, 4)
    """

    Config: ClassVar[type[BaseModel]] = Strict
    """Settings of the decoder itself, which stand beside its name: `decoder: {name: ..., setting: ...}`. Most have none."""
    config: ModelConfig
    latents: Mapping[str, LatentInfo]
    """By name, in order; empty for a plain decoder, whose likelihood is exact under every method."""
    card: Card | None = None
    """Where the weights came from; set by `zoo.load`, None for a model built by hand."""
    tokenizer: Tokenizer | None = None
    """Set by `zoo.load`; None where the card has none."""
    end_tokens: frozenset[int] | None = None
    """Tokens any of which ends a generated text; None: the tokenizer's end-of-text alone."""

    @property
    def has_latents(self) -> bool:
        """False: a plain decoder."""
        return bool(self.latents)

    @property
    def has_encoder(self) -> bool:
        """Some latent has one. False: `posterior` is the prior."""
        return any(latent.has_encoder for latent in self.latents.values())

    @property
    def sees_future(self) -> bool:
        """The posterior of a site of some latent depends on later tokens."""
        return any(latent.sees_future for latent in self.latents.values())

    @property
    def event_dims(self) -> int:
        """E of the only latent, 0 without latents."""
        return only(self.latents, 'model.latents["{}"].dims').dims if self.latents else 0

    @property
    def granularity(self) -> str:
        """Of the only latent, as a recipe writes it; "token" without latents."""
        return only(self.latents, 'model.latents["{}"].granularity_text').granularity_text if self.latents else "token"

    @property
    def kl_schedules(self) -> dict[str, KLSchedule]:
        """By latent; those without one are left out."""
        return {name: latent.kl_schedule for name, latent in self.latents.items() if latent.kl_schedule is not None}

    @property
    def kl_schedule(self) -> KLSchedule | None:
        """Of the only latent; None without latents."""
        return only(self.latents, 'model.latents["{}"].kl_schedule').kl_schedule if self.latents else None

    def name_of(self, name: str | None = None) -> str:
        """The name of a latent; of the only one where it is left out. Raises UserError where there are several."""
        if name is None and len(self.latents) != 1:
            listed = ", ".join(self.latents) or "none"
            raise UserError(f"This decoder has the latents {listed}: say which one is meant.")
        if name is not None and name not in self.latents:
            raise unknown_name("latent", name, self.latents)
        return next(iter(self.latents)) if name is None else name

    @classmethod
    def complete(cls, config: ModelConfig) -> ModelConfig:
        """Fill the sockets that `config` leaves open with this decoder's defaults, and refuse what it cannot take."""
        return config

    @abstractmethod
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Set every parameter (after a build on the meta device nothing may stay unset)."""

    def counted(self, batch: Batch) -> Batch:
        """The batch with what a pass would have to wait for on a GPU: the number of sites of each latent, and whether rows are
        whole documents. Asked where the batch lies: on the CPU, before it is moved."""
        counts = {
            name: assign_sites(latent.granularity, batch.inputs, batch.documents, batch.positions)[1]
            for name, latent in self.latents.items()
        }
        return replace(batch, sites=counts, single=one_document_a_row(batch.documents))

    @abstractmethod
    def context(self, batch: Batch, cache: Any = None) -> Context:
        """Run the trunk: everything below the first injected block, free of z."""

    def shared_context(self, batch: Batch, stems: Stems) -> Context:
        """`context` of rows that begin alike, each beginning at most once. Here every row runs by itself; a decoder that can go
        on from what it keeps of a beginning overrides this and `shared_hidden`, and no number differs but by rounding."""
        return self.context(batch)

    @abstractmethod
    def posterior(
        self, context: Context, name: str | None = None, above: Latent | Latents | None = None
    ) -> Distribution:
        """q(z^n | x, z above) for every site, (B, S, E), or (R, S, E) where it depends on the latents before, `above`; the
        prior where there is no encoder."""

    @abstractmethod
    def prior(
        self, context: Context, name: str | None = None, latents: Latent | Latents | None = None
    ) -> Distribution:
        """p(z^n | ...) for every site, (R, S, E); teacher-forced on `latents` where autoregressive or below others."""

    @abstractmethod
    def infer(self, context: Context, noise: Noise) -> Latents:
        """Draw all latents in order from their posteriors; one row of noise per row."""

    @abstractmethod
    def sample_prior(self, context: Context, noise: Noise) -> Latents:
        """Draw all latents in order from their priors given the tokens of `context`; one row of noise per row."""

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
        """Draw the sites in `needed` (R, S) of one latent from its prior, one after another, given the others' values in `held`
        (R, S, E), those drawn before and the latents `above`; R rows of context and noise, site s draws `noise.at(s)`. By one
        pass of the whole prior per site; a decoder whose prior steps does it by one step per token."""
        name = self.name_of(name)
        value = held.clone()
        for site in needed.any(0).nonzero()[:, 0].tolist():
            given = (above or Latents({})).plus(name, Latent(value))
            one = self.prior(context, name, given).narrow(site, 1)
            drawn = one.sample(noise.at([site])).value[:, 0].to(value)  # (R, E)
            value[:, site] = torch.where(needed[:, site, None], drawn, value[:, site])
        return Latent(value)

    @abstractmethod
    def hidden(self, context: Context, latents: Latent | Latents | None, cache: Any = None) -> Tensor:
        """Run the blocks above the trunk: (R, T, D), final norm included. R is a multiple of B; latent row b*K + k uses
        context row b."""

    def shared_hidden(self, context: Context, latents: Latents, positions: Tensor, stems: Stems) -> Tensor:
        """`hidden` at the positions (B, N) of each row, none of them before the last of its stem: (R, N, D). Rows of a stem
        have the same latents over it, sample by sample."""
        rows = torch.arange(context.rows, device=positions.device).repeat_interleave(latents.rows // context.rows)
        found = self.hidden(context, latents)
        return found.gather(1, positions[rows][..., None].expand(-1, -1, found.shape[-1]))

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V) float32."""

    @abstractmethod
    def loss(self, batch: Batch, *, step: int, noise: Noise) -> Loss:
        """Training loss; `noise` has one row per row of the batch."""

    def advance(self, step: int) -> None:
        """Called once after optimiser step `step`, counted from 0: schedules and parts move."""
        for schedule in self.kl_schedules.values():
            schedule.advance(step)

    @abstractmethod
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
    ) -> State:
        """Feed prompts (B, T), right-padded, of lengths (B,) >= 1. Latents from the encoder run on the prompt, from the prior,
        or given (B, S', E) with S' >= the prompt's sites. `last_latent` says whose draw the site at the last prompt token takes
        when the rest comes from the posterior. Settings are one for all latents, or by name (what is not named takes the
        default). Sites draw `noise.at(site index)`; noise by name is taken as it is, one for all is split by latent. `capacity`
        reserves cache for that many tokens in all."""

    @abstractmethod
    def step(
        self,
        state: State,
        tokens: Tensor,
        *,
        latents: StepSource | Mapping[str, StepSource] = "prior",
        noise: Noise | Mapping[str, Noise],
        prior_temperature: float | Mapping[str, float] = 1.0,
    ) -> State:
        """Feed tokens (B,) together with their latents: drawn from the prior where the token begins a site, or given (B, E).
        The site with index s draws `noise.at(s)`. The state passed in is used up."""

    @abstractmethod
    def select(self, state: State, rows: Tensor) -> State:
        """The given rows of a generation, in that order; rows may repeat (forking)."""

    def resample(self, state: State, rows: Tensor) -> State:
        """`select` as many rows as there are, most of them as they were: what a particle filter asks for. The state passed in
        is used up, so that a decoder may write the rows that change alone."""
        return self.select(state, rows)

    def step_along(
        self,
        state: State,
        context: Context,
        positions: Tensor,
        *,
        latents: StepSource | Mapping[str, StepSource] = "prior",
        noise: Noise | Mapping[str, Noise],
    ) -> State:
        """`step` with the tokens at `positions` (B,) of texts whose trunk has run, `context`. The state has K rows for each of
        them, which have fed the tokens before; of a row that has fed them all, any will do. A decoder that overrides this need
        not run the trunk for every row; a state that went along a text goes on so."""
        tokens = context.tokens.gather(1, positions[:, None])[:, 0]
        return self.step(
            state, tokens.repeat_interleave(len(state.lengths) // context.rows), latents=latents, noise=noise
        )

    def check_compiled(self) -> None:
        """Raise UserError where steps of this decoder cannot be compiled, as far as that is known before any work."""
        raise UserError(f"{type(self).__name__} has no compiled step: leave compile out.")

    def compiled_steps(self, state: State, *, capacity: int) -> CompiledSteps:
        """Steps of a generation that `prefill` began, of at most `capacity` columns, as one compiled graph; the state is used
        up. Raises UserError where the decoder has none."""
        self.check_compiled()
        raise NotImplementedError(f"{type(self).__name__} has check_compiled without compiled_steps.")

    @property
    def device(self) -> torch.device:
        """Device of the first parameter."""
        return next(self.parameters()).device

    def generate(
        self,
        prompts: str | Sequence[str | Sequence[int]],
        *,
        max_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        stop: str | Sequence[str] = (),
        seed: int = 0,
        samples: int = 1,
        latents: Wanted | Mapping[str, Wanted] | Sequence[Latents] = "fresh",
        continuation_latents: Continued | Mapping[str, Continued] | Sequence[Latents] | None = None,
        prefill: Literal["posterior", "prior"] | Mapping[str, Literal["posterior", "prior"]] = "posterior",
        last_latent: Literal["posterior", "prior"] | Mapping[str, Literal["posterior", "prior"]] = "posterior",
        prior_temperature: float | Mapping[str, float] = 1.0,
        truncate: Literal["left"] | None = None,
        keys: Sequence[Hashable] | None = None,
        batch_size: int = 32,
        compile: bool = False,
        on_token: OnToken | None = None,
    ) -> list[Generation]:
        """Continue each prompt `samples` times; see `latentlm.generation.generate`."""
        from latentlm.generation import generate

        return generate(
            self,
            prompts,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            stop=stop,
            seed=seed,
            samples=samples,
            latents=latents,
            continuation_latents=continuation_latents,
            prefill=prefill,
            last_latent=last_latent,
            prior_temperature=prior_temperature,
            truncate=truncate,
            keys=keys,
            batch_size=batch_size,
            compile=compile,
            on_token=on_token,
        )

    def encode(
        self, text: str | Sequence[int], *, temperature: float = 1.0, samples: int = 1, seed: int = 0
    ) -> Latents:
        """Latents of a text, (K, S, E) each, drawn by the encoder; see `latentlm.generation.encode`."""
        from latentlm.generation import encode

        return encode(self, text, temperature=temperature, samples=samples, seed=seed)
