"""The contracts of latentlm: what a latent decoder is, and what its parts owe each other.

A latent decoder is a language model p(x|z) with a latent z learned by a variational procedure. It has four sockets:

    Encoder      who infers z           q(z | x)
    Prior        where z comes from     p(z | x before)
    Injection    where z enters         latent -> Condition on the backbone's blocks
    KLSchedule   what z costs           KL -> penalty in nats per target token

Training, generation, likelihood, zoo and evaluation talk to `LatentDecoder` only.

Legend: B rows, T tokens, D width, S latent sites, E event dimensions of a site, K latent samples per row, V vocabulary,
R = B*K latent rows (row b*K + k is sample k of context row b), M prefix slots, L blocks, H heads, Hkv key/value heads,
dh head width.

Indices. Position t consumes token x_t and predicts x_{t+1}. A latent *site* conditions one position (granularity `token`), n
consecutive positions of a document (`chunk:n`) or a whole document (`document`). Tap k is the residual stream entering block k;
tap 0 is the embedding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from latentlm.batches import PADDING, Batch, Context, site_mask
from latentlm.conditions import SLOTS, BlockCondition, Condition, Cross, Prefix, ValueMap
from latentlm.distributions import Distribution, Latent
from latentlm.errors import UserError
from latentlm.noise import Noise

if TYPE_CHECKING:
    from latentlm.config import BackboneConfig, Card, ModelConfig
    from latentlm.generation import Generation, Given, OnToken
    from latentlm.tokenizer import Tokenizer

__all__ = [
    "CONTRACT_VERSION", "PADDING", "SLOTS", "Batch", "BlockCondition", "Condition", "Context", "Cross", "Distribution",
    "Encoder", "Injection", "KLSchedule", "Latent", "LatentDecoder", "Latents", "Loss", "Objective", "Part", "Prefix", "Prior",
    "Shape", "Sockets", "State", "ValueMap", "site_mask",
]  # fmt: skip

CONTRACT_VERSION = 1
"""Version of these contracts. A plugin states the one it was written for (`latentlm_contract = 1`); see docs/plugins.md."""

Sockets = Literal["decoder", "encoder", "prior", "injection", "kl_schedule"]


# ---------------------------------------------------------------------------------------------------------- parts


@dataclass(frozen=True)
class Shape:
    """What a part is told about the decoder it is built into.

    Example::

        shape = Shape(backbone=BackboneConfig(width=32, blocks=2, heads=2), event_dims=4, granularity="token")
        assert (shape.width, shape.blocks) == (32, 2)
    """

    backbone: BackboneConfig
    event_dims: int
    granularity: str

    @property
    def width(self) -> int:
        """D."""
        return self.backbone.width

    @property
    def blocks(self) -> int:
        """L."""
        return self.backbone.blocks


class Part(nn.Module, ABC):
    """A pluggable module: `Config` (pydantic, unknown keys refused) holds its settings, `shape` what the decoder tells it.

    A part that makes parameters itself (not through nn.Linear, nn.Embedding or the backbone's modules) sets every one of
    them in `init_weights`.

    Example::

        class TableConfig(Strict):
            init_std: float = 0.02

        class Table(Part):
            Config = TableConfig

            def __init__(self, config, shape):
                super().__init__(config, shape)
                self.weight = nn.Parameter(torch.empty(2**shape.event_dims, shape.width))

            def init_weights(self, generator=None):
                self.weight.data.normal_(0.0, self.config.init_std, generator=generator)
    """

    Config: ClassVar[type[BaseModel]]
    latents: ClassVar[str | None] = None
    """What the values of z are: "bits" (zeros and ones), "real" (any numbers), or a word of your own. Parts of one decoder must
    agree, which is checked when it is built; None is not checked."""
    granularities: ClassVar[tuple[str, ...]] = ("token", "chunk", "document")
    """The granularities that the part serves."""

    def __init__(self, config: Any, shape: Shape) -> None:
        super().__init__()
        self.config = config
        self.shape = shape

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Set this part's own parameters; the frame has already initialised its Linear, Embedding and norm modules."""

    def auxiliary(self, latent: Latent, context: Context, batch: Batch) -> tuple[Tensor, dict[str, Tensor]] | None:
        """A loss of the part's own, in training only: nats per target token (a scalar with gradient), added to the total, and
        logs. The latent carries the distribution that it was drawn from. None: it has none."""
        return None


Objective = Callable[[Distribution], Tensor]
"""q -> (B,) nats: the reconstruction plus KL of each row under q with the decoder frozen; for encoders without a network."""


class Encoder(Part):
    """Infers the latents: q(z | x).

    Example::

        class Linear(Encoder):
            Config = Strict
            latents = "bits"
            granularities = ("token",)
            sees_future = False

            def __init__(self, config, shape):
                super().__init__(config, shape)
                self.taps = (shape.blocks // 2,)
                self.readout = nn.Linear(shape.width, shape.event_dims)

            def forward(self, context, objective=None):
                return Bits(self.readout(context.taps[self.taps[0]]))

        plugins.register("encoder", "linear_example", Linear)
    """

    taps: tuple[int, ...]
    """Blocks whose incoming residual stream the encoder reads; all <= the first injected block."""
    sees_future: bool
    """A site's posterior depends on tokens after the site's first position, which are targets of the positions that it
    conditions. If so, scores must never mix it with targets it has seen."""
    needs_objective: ClassVar[bool] = False
    """`forward` wants `objective` (posteriors fitted by gradient, not by a network)."""
    fitting_passes: int = 0
    """How often that fitting runs the blocks above the trunk, forward and back to the latents; for the count of operations."""

    @abstractmethod
    def forward(self, context: Context, objective: Objective | None = None) -> Distribution:
        """Posterior over every site, shape (B, S, E). No attention across documents or into padding."""


class Prior(Part):
    """Where latents come from when nobody infers them: p(z_s | x up to max(first position of s, given), z of earlier sites).

    Example::

        class LearnedBits(Prior):
            Config = Strict
            latents = "bits"

            def __init__(self, config, shape):
                super().__init__(config, shape)
                self.logits = nn.Parameter(torch.empty(shape.event_dims))

            def init_weights(self, generator=None):
                self.logits.data.zero_()

            def forward(self, context, latent=None):
                return Bits(self.logits.expand(context.rows, context.sites, -1))

            def step(self, state, taps, previous, starts):
                return Bits(self.logits.expand(len(starts), 1, -1)), state

        plugins.register("prior", "learned_example", LearnedBits)
    """

    taps: tuple[int, ...] = ()
    """Blocks whose incoming residual stream the prior reads."""
    autoregressive: bool = False
    """A site depends on the latents of earlier sites: it is sampled site by site through `step`."""

    def bind(self, encoder: Encoder | None) -> None:
        """Called once, when the decoder is put together, with its encoder (None: it has none). A prior made of posteriors keeps
        it, but not as a module of its own: its parameters are the encoder's."""

    @abstractmethod
    def forward(self, context: Context, latent: Latent | None = None) -> Distribution:
        """Prior over every site, teacher-forced on `latent` where autoregressive; shape (R, S, E)."""

    def start(self, context: Context, latent: Latent | None) -> Any:
        """State for `step` after the tokens of `context` and their latents: a tree of tensors with rows first, or None.

        Before the first token (`latent` None) `context` hides every token, but its taps and `given` are there: a prior that
        reads the prompt ahead of the sites in it keeps what it needs."""
        return None

    @abstractmethod
    def step(
        self, state: Any, taps: Mapping[int, Tensor], previous: Tensor | None, starts: Tensor
    ) -> tuple[Distribution, Any]:
        """Feed one token: taps {k: (B, D)} at it, `previous` (B, E) the latent of the site before (None at the first),
        `starts` (B,) bool, true where this token begins a new site. Returns the prior of that site, (B, 1, E), meaningless
        where `starts` is false, and the new state."""


class Injection(Part):
    """Where latents enter. The condition of position t depends on the latent of its own site only.

    Example::

        class AddBits(Injection):
            Config = Strict
            latents = "bits"
            slots = ("residual",)

            def __init__(self, config, shape):
                super().__init__(config, shape)
                self.sites = (shape.blocks // 2,)
                self.map = nn.Linear(shape.event_dims, shape.width)

            def forward(self, latent, context):
                rows = self.map(latent.value)  # (R, S, D)
                rows = rows.gather(1, context.site_of[..., None].expand(-1, -1, rows.shape[-1]))  # (R, T, D)
                return Condition({self.sites[0]: BlockCondition(residual=rows)})

        plugins.register("injection", "add_example", AddBits)
    """

    sites: tuple[int, ...]
    """Blocks that get a condition."""
    slots: tuple[str, ...]
    """The condition slots used, from `SLOTS`."""
    surrogate_operations: float = 0.0
    """Floating-point operations that the gradient of a site's latent takes beyond those of the part's Linear layers."""

    @abstractmethod
    def forward(self, latent: Latent, context: Context) -> Condition:
        """Condition for every position of `context`, whose rows are those of the latent (R). In generation it is called with
        one position and one site, except for prefixes and memory slots, which are made once at prefill."""


class KLSchedule(ABC):
    """What the latents cost. Not a module: it has state, not parameters.

    Example::

        class Half(KLSchedule):
            Config = Strict

            def penalty(self, kl, reconstruction, site_mask, target_mask, *, step):
                nats = kl.masked_fill(~site_mask[..., None], 0.0).sum() / target_mask.sum().clamp(min=1)
                return 0.5 * nats, {"kl_weight": torch.tensor(0.5)}

        plugins.register("kl_schedule", "half_example", Half)
    """

    Config: ClassVar[type[BaseModel]]

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def penalty(
        self, kl: Tensor, reconstruction: Tensor, site_mask: Tensor, target_mask: Tensor, *, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Penalty in nats per target token (a scalar with gradient) and logs of what the schedule did.

        kl (B, S, E) or (B, S, 1) nats; reconstruction (B, T) nats, zero outside `target_mask`; site_mask (B, S);
        target_mask (B, T); `step` counts optimiser steps from 0."""

    def advance(self) -> None:  # noqa: B027 - a schedule without state has nothing to move
        """Move the state by one optimiser step (called once per step, however many micro-batches it had)."""

    def state_dict(self) -> dict[str, float | int]:
        """State to resume from, plain numbers."""
        return {}

    def load_state_dict(self, state: Mapping[str, float | int]) -> None:
        """Take over a state; the next `penalty` is as if never interrupted."""
        if state:
            raise UserError(f"{type(self).__name__} has no state, but the checkpoint has {sorted(state)}.")


# -------------------------------------------------------------------------------------------------------- decoder


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
