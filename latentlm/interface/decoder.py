"""The contract of a decoder: what training, generation, likelihood, zoo and evaluation talk to.

Legend: that of `latentlm.interface`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from latentlm.interface.batches import Batch, Context
from latentlm.interface.distributions import Distribution, Latent
from latentlm.interface.generation import Generation, Given, OnToken
from latentlm.interface.noise import Noise
from latentlm.interface.parts import KLSchedule

if TYPE_CHECKING:
    from latentlm.config import Card, ModelConfig
    from latentlm.tokenizer import Tokenizer


@dataclass(frozen=True)
class Loss:
    """One training forward pass."""

    total: Tensor
    """Scalar, nats per target token, with gradient: mean cross-entropy + penalty + auxiliary."""
    reconstruction: Tensor
    """(B, T) cross-entropy under the posterior's z in nats, zero outside `target_mask`. Not a language-model loss."""
    kl: Tensor | None
    """(B, S, E) or (B, S, 1) nats; None without latents."""
    site_mask: Tensor
    """(B, S) bool."""
    target_mask: Tensor
    """(B, T) bool."""
    posterior: Distribution | None
    """None without latents."""
    logs: dict[str, Tensor]
    """What the schedule did, and what the parts say of losses of their own."""
    auxiliary: Tensor | None = None
    """Scalar, nats per target token: the parts' own losses, in training; None where there are none."""


@dataclass(frozen=True)
class State:
    """A generation in progress, B rows. Decoders extend it with their caches."""

    logits: Tensor
    """(B, V) float32: next-token logits."""
    lengths: Tensor
    """(B,) long: tokens fed so far."""
    latents: Tensor | None
    """(B, S, E) latents of the sites met so far (None without latents); rows shorter than S are padded with zeros."""
    site_counts: Tensor
    """(B,) long: sites met so far in each row."""


Latents = Literal["posterior", "prior"] | Latent


class LatentDecoder(nn.Module, ABC):
    """The one interface that training, generation, likelihood, zoo and evaluation talk to.

    Most plugins use `latentlm.composed.ComposedDecoder`, which builds this from a backbone and four parts.

    Example::

        backbone = BackboneConfig(width=32, blocks=2, heads=2, context=32)
        model = build(ModelConfig(decoder="free", event_dims=4, backbone=backbone))
        context = model.context(Batch.of([[256, 100, 101, 102]]))  # the trunk, free of z
        posterior, latent = model.posterior(context), model.sample_prior(context, Noise.keyed(0, ["row"]))
        logits = model.logits(model.hidden(context, latent))  # (1, 4, 257): p(next token | tokens, z)
        nats = posterior.kl(model.prior(context, latent), latent)  # (1, 4, 4)
    """

    config: ModelConfig
    has_latents: bool
    """False: a plain decoder; every likelihood method is exact and latents arguments are ignored."""
    has_encoder: bool
    """False: `posterior` is the prior."""
    sees_future: bool
    """The posterior of a site depends on later tokens."""
    event_dims: int
    """E, 0 without latents."""
    granularity: str
    kl_schedule: KLSchedule | None
    card: Card | None = None
    """Where the weights came from; set by `zoo.load`, None for a model built by hand."""
    tokenizer: Tokenizer | None = None
    """Set by `zoo.load`; None where the card has none."""

    @classmethod
    def complete(cls, config: ModelConfig) -> ModelConfig:
        """Fill the sockets that `config` leaves open with this decoder's defaults, and refuse what it cannot take."""
        return config

    @abstractmethod
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Set every parameter (after a build on the meta device nothing may stay unset)."""

    @abstractmethod
    def context(self, batch: Batch, cache: Any = None) -> Context:
        """Run the trunk: everything below the first injected block, free of z."""

    @abstractmethod
    def posterior(self, context: Context) -> Distribution:
        """q(z | x) for every site, (B, S, E); the prior where there is no encoder."""

    @abstractmethod
    def prior(self, context: Context, latent: Latent | None = None) -> Distribution:
        """p(z | ...) for every site, (R, S, E); teacher-forced on `latent` where autoregressive."""

    @abstractmethod
    def sample_prior(self, context: Context, noise: Noise) -> Latent:
        """Draw every site from the prior given the tokens of `context`; one row of noise per row."""

    def sample_sites(self, context: Context, noise: Noise, *, held: Tensor, needed: Tensor) -> Latent:
        """Draw the sites in `needed` (R, S) from the prior, one after another, given the others' values in `held` (R, S, E) and
        those drawn before; R rows of context and noise, site s draws `noise.at(s)`. By one pass of the whole prior per site; a
        decoder whose prior steps does it by one step per token."""
        value = held.clone()
        for site in needed.any(0).nonzero()[:, 0].tolist():
            one = self.prior(context, Latent(value)).narrow(site, 1)
            drawn = one.sample(noise.at([site])).value[:, 0].to(value)  # (R, E)
            value[:, site] = torch.where(needed[:, site, None], drawn, value[:, site])
        return Latent(value)

    @abstractmethod
    def hidden(self, context: Context, latent: Latent | None, cache: Any = None) -> Tensor:
        """Run the blocks above the trunk: (R, T, D), final norm included. R is a multiple of B; latent row b*K + k uses
        context row b."""

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V) float32."""

    @abstractmethod
    def loss(self, batch: Batch, *, step: int, noise: Noise) -> Loss:
        """Training loss; `noise` has one row per row of the batch."""

    @abstractmethod
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
    ) -> State:
        """Feed prompts (B, T), right-padded, of lengths (B,) >= 1. Latents from the encoder run on the prompt, from the prior,
        or given (B, S', E) with S' >= the prompt's sites. `last_latent` says whose draw the site at the last prompt token takes
        when the rest comes from the posterior. Sites draw `noise.at(site index)`. `capacity` reserves cache for that many
        tokens in all."""

    @abstractmethod
    def step(
        self,
        state: State,
        tokens: Tensor,
        *,
        latents: Literal["prior"] | Tensor = "prior",
        noise: Noise,
        prior_temperature: float = 1.0,
    ) -> State:
        """Feed tokens (B,) together with their latents: drawn from the prior where the token begins a site, or given (B, E).
        The site with index s draws `noise.at(s)`. The state passed in is used up."""

    @abstractmethod
    def select(self, state: State, rows: Tensor) -> State:
        """The given rows of a generation, in that order; rows may repeat (forking, resampling)."""

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
        latents: Literal["fresh", "shared"] | Given = "fresh",
        continuation_latents: Given | None = None,
        prefill: Literal["posterior", "prior"] = "posterior",
        last_latent: Literal["posterior", "prior"] = "posterior",
        prior_temperature: float = 1.0,
        truncate: Literal["left"] | None = None,
        keys: Sequence[Hashable] | None = None,
        batch_size: int = 32,
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
            on_token=on_token,
        )

    def encode(
        self, text: str | Sequence[int], *, temperature: float = 1.0, samples: int = 1, seed: int = 0
    ) -> Latent:
        """Latents of a text, (K, S, E), drawn by the encoder; see `latentlm.generation.encode`."""
        from latentlm.generation import encode

        return encode(self, text, temperature=temperature, samples=samples, seed=seed)
