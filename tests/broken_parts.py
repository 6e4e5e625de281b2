"""Parts and decoders with one bug each, for the proof that the conformance kit finds it. Everything else about them is right.

`LINEAR` is the decoder that the bugs are put into: one linear layer reads bits off the trunk through a small window of later
tokens, one adds them to block L//2; it passes every check as it is.

Legend: B rows, R latent rows, T tokens, S sites, E bits, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import model_validator
from torch import Tensor, nn

from latentlm import plugins
from latentlm.backbone import Block, KVCache, Mask, rotation
from latentlm.composed import ComposedDecoder
from latentlm.composed.decoding import ComposedState
from latentlm.config import ModelConfig, PartSpec, Strict
from latentlm.interface import (
    Batch,
    Bits,
    BlockCondition,
    Condition,
    Context,
    Distribution,
    Encoder,
    Injection,
    KLSchedule,
    Latent,
    Loss,
    Noise,
    Objective,
    Prior,
    Shape,
)


class Settings(Strict):
    """None."""


# ------------------------------------------------------------------------------------------------- parts that are right


class WindowBits(Encoder):
    """A non-causal block over the trunk, then a linear readout."""

    Config = Settings
    sees_future = True
    latents = "bits"
    granularities = ("token",)

    def __init__(self, config: Settings, shape: Shape) -> None:
        super().__init__(config, shape)
        self.taps = (shape.blocks // 2,)
        self.block = Block(shape.backbone)
        self.readout = nn.Linear(shape.width, shape.event_dims)

    def mask(self, context: Context) -> Mask:
        """Who sees whom."""
        return Mask(context.documents, context.documents, causal=False)

    def forward(self, context: Context, objective: Objective | None = None) -> Distribution:
        """(B, S, E)."""
        turn = rotation(self.shape.backbone, context.positions)
        stream = self.block(context.taps[self.taps[0]], mask=self.mask(context), rotation=turn)
        return self.distribution(self.readout(stream))

    def distribution(self, logits: Tensor) -> Distribution:
        """Of bit logits."""
        return Bits(logits)


class LearnedBits(Prior):
    """Bits read off the stream at the site's own token."""

    Config = Settings
    latents = "bits"
    granularities = ("token",)

    def __init__(self, config: Settings, shape: Shape) -> None:
        super().__init__(config, shape)
        self.taps = (shape.blocks // 2,)
        self.readout = nn.Linear(shape.width, shape.event_dims)

    def forward(self, context: Context, latent: Latent | None = None) -> Distribution:
        """(R, S, E)."""
        index = torch.arange(context.tokens.shape[1], device=context.tokens.device)[None]
        seen = index.maximum(context.given[:, None] - 1)[..., None].expand(-1, -1, self.shape.width)
        return Bits(self.readout(context.taps[self.taps[0]].gather(1, seen)))

    def start(self, context: Context, latent: Latent | None) -> Any:
        """Before the first token: the stream at the prompt's last, and how far it is; after the prompt it is never used."""
        last = (context.given - 1).clamp(min=0)[:, None, None].expand(-1, 1, self.shape.width)
        return ((context.documents >= 0).sum(-1), context.given, context.taps[self.taps[0]].gather(1, last)[:, 0])

    def step(
        self, state: Any, taps: Mapping[int, Tensor], previous: Tensor | None, starts: Tensor
    ) -> tuple[Distribution, Any]:
        """(B, 1, E)."""
        fed, given, last = state
        stream = torch.where((fed < given)[:, None], last, taps[self.taps[0]])
        return Bits(self.readout(stream)[:, None]), (fed + 1, given, last)


class LinearBits(Injection):
    """A linear map of the bits, straight through, added to the residual stream of block L//2."""

    Config = Settings
    slots = ("residual",)
    latents = "bits"
    granularities = ("token",)

    def __init__(self, config: Settings, shape: Shape) -> None:
        super().__init__(config, shape)
        self.sites = (shape.blocks // 2,)
        self.map = nn.Linear(shape.event_dims, shape.width)

    def forward(self, latent: Latent, context: Context) -> Condition:
        """(R, T, D)."""
        code = latent.value
        if isinstance(latent.distribution, Bits):
            soft = latent.distribution.probabilities
            code = code + soft - soft.detach()
        return Condition({self.sites[0]: BlockCondition(residual=self.rows(self.map(code.to(self.map.weight))))})

    def rows(self, rows: Tensor) -> Tensor:
        """What enters, (R, T, D)."""
        return rows


class Linear(ComposedDecoder):
    """The parts above in the open sockets."""

    defaults: ClassVar[dict[str, PartSpec]] = {
        "encoder": PartSpec(name="right_encoder"),
        "prior": PartSpec(name="right_prior"),
        "injection": PartSpec(name="right_injection"),
        "kl_schedule": PartSpec(name="constant"),
    }

    @classmethod
    def complete(cls, config: ModelConfig) -> ModelConfig:
        """Fill the open sockets."""
        filled = {socket: getattr(config, socket) or spec for socket, spec in cls.defaults.items()}
        return config.model_copy(update=filled)


# --------------------------------------------------------------------------------------------------- encoders with a bug


class NoPositions(WindowBits):
    """Queries with one vector everywhere and without rotation: every site has the same posterior."""

    def __init__(self, config: Settings, shape: Shape) -> None:
        super().__init__(config, shape)
        self.query = nn.Linear(1, shape.width)

    def forward(self, context: Context, objective: Objective | None = None) -> Distribution:
        trunk = context.taps[self.taps[0]]
        queries = self.query(trunk.new_ones(*trunk.shape[:2], 1))
        stream = self.block(queries, source=trunk, mask=self.mask(context), rotation=None)
        return self.distribution(self.readout(stream))


class IgnoresDocuments(WindowBits):
    """Looks across documents that share a row, though not into padding."""

    def mask(self, context: Context) -> Mask:
        real = context.documents.clamp(max=0)
        return Mask(real, real, causal=False)


class IgnoresPadding(WindowBits):
    """Looks into padding, and at what `before` hides."""

    def mask(self, context: Context) -> Mask:
        filled = torch.where(context.documents < 0, 0, context.documents)
        return Mask(filled, filled, causal=False)


class SaysCausal(WindowBits):
    """Sees the future and says that it does not."""

    sees_future = False


class CutsGradient(WindowBits):
    """Detaches what it read."""

    def forward(self, context: Context, objective: Objective | None = None) -> Distribution:
        q = super().forward(context, objective)
        assert isinstance(q, Bits)
        return Bits(q.logits.detach())


class LeavesUnset(WindowBits):
    """A parameter of its own that no one sets."""

    def __init__(self, config: Settings, shape: Shape) -> None:
        super().__init__(config, shape)
        self.shift = nn.Parameter(torch.zeros(shape.event_dims))

    def distribution(self, logits: Tensor) -> Distribution:
        return Bits(logits + self.shift)


class TakesAnything(WindowBits):
    """Its Config drops settings that it does not have, so that a typing error goes unseen."""

    class Config(Strict):
        """Loose."""

        @model_validator(mode="before")
        @classmethod
        def _drop(cls, data: Any) -> Any:
            return {key: value for key, value in data.items() if key in cls.model_fields}


class SummedOverSites(Bits):
    """KL summed over the sites of a row."""

    def kl(self, prior: Distribution, latent: Latent) -> Tensor:
        return super().kl(prior, latent).sum((1, 2), keepdim=True)


class BatchMeanKL(Bits):
    """KL of the right shape, averaged over the batch too early."""

    def kl(self, prior: Distribution, latent: Latent) -> Tensor:
        return super().kl(prior, latent).sum(-1, keepdim=True) / self.shape[0]

    def select(self, rows: Tensor) -> BatchMeanKL:
        return BatchMeanKL(self.logits.index_select(0, rows))


class GlobalDraws(Bits):
    """Draws from torch's global state."""

    def sample(self, noise: Noise, *, differentiable: bool = False) -> Latent:
        bits = (torch.rand_like(self.logits) < self.probabilities.detach()).to(self.logits.dtype)
        return Latent(bits, self, noise) if differentiable else Latent(bits)

    def select(self, rows: Tensor) -> GlobalDraws:
        return GlobalDraws(self.logits.index_select(0, rows))

    def narrow(self, start: int, length: int) -> GlobalDraws:
        return GlobalDraws(self.logits.narrow(1, start, length))


class WrongDensity(Bits):
    """A log-probability that is half of what it should be: it belongs to other samples."""

    def log_prob(self, latent: Latent) -> Tensor:
        return 0.5 * super().log_prob(latent)

    def select(self, rows: Tensor) -> WrongDensity:
        return WrongDensity(self.logits.index_select(0, rows))

    def narrow(self, start: int, length: int) -> WrongDensity:
        return WrongDensity(self.logits.narrow(1, start, length))

    def tempered(self, temperature: float) -> WrongDensity:
        return WrongDensity(self.logits / temperature)


class NegativeKL(Bits):
    """A constant too little."""

    def kl(self, prior: Distribution, latent: Latent) -> Tensor:
        return super().kl(prior, latent) - 1.0

    def select(self, rows: Tensor) -> NegativeKL:
        return NegativeKL(self.logits.index_select(0, rows))


class PricedKL(Bits):
    """A constant too much, against whatever it is compared with."""

    def kl(self, prior: Distribution, latent: Latent) -> Tensor:
        return super().kl(prior, latent) + 0.1


class RealBuffer(WindowBits):
    """A table that takes memory wherever the model is built."""

    table: Tensor

    def __init__(self, config: Settings, shape: Shape) -> None:
        super().__init__(config, shape)
        self.register_buffer("table", torch.zeros(4, device="cpu"))

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        self.table.zero_()


class FitsNothing(Encoder):
    """Wants the objective, and answers the same whatever it says."""

    Config = Settings
    taps = ()
    sees_future = False
    needs_objective = True
    latents = "bits"

    def forward(self, context: Context, objective: Objective | None = None) -> Distribution:
        return Bits(torch.full((context.rows, context.sites, self.shape.event_dims), 4.0))


def with_family(family: type[Bits]) -> type[WindowBits]:
    """An encoder whose posterior is of another family of bits."""

    class Encoder(WindowBits):
        def distribution(self, logits: Tensor) -> Distribution:
            return family(logits)

    return Encoder


# ------------------------------------------------------------------------------------------------ priors and injections


class PeekingPrior(LearnedBits):
    """Reads the token after its site's, where there is one."""

    def forward(self, context: Context, latent: Latent | None = None) -> Distribution:
        stream = context.taps[self.taps[0]]
        return Bits(self.readout(torch.cat((stream[:, 1:], stream[:, -1:]), dim=1)))


class OtherStep(LearnedBits):
    """Its step says something else than its forward."""

    def step(
        self, state: Any, taps: Mapping[int, Tensor], previous: Tensor | None, starts: Tensor
    ) -> tuple[Distribution, Any]:
        p, state = super().step(state, taps, previous, starts)
        assert isinstance(p, Bits)
        return Bits(p.logits + 0.5), state


class HiddenMemory(LearnedBits):
    """Depends on the latent before, without saying that it is autoregressive."""

    def forward(self, context: Context, latent: Latent | None = None) -> Distribution:
        p = super().forward(context, latent)
        assert isinstance(p, Bits)
        if latent is None:
            return p
        before = torch.cat((torch.zeros_like(latent.value[:, :1]), latent.value[:, :-1]), dim=1)
        return Bits(p.logits + before)


class UnseededPrior(LearnedBits):
    """Initialises from torch's global state."""

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        nn.init.normal_(self.readout.weight, std=0.1)


class PricedPrior(LearnedBits):
    """A family whose KL to itself is not zero."""

    def forward(self, context: Context, latent: Latent | None = None) -> Distribution:
        p = super().forward(context, latent)
        assert isinstance(p, Bits)
        return PricedKL(p.logits)


class DetachedInjection(LinearBits):
    """No gradient through the bits."""

    def forward(self, latent: Latent, context: Context) -> Condition:
        return super().forward(Latent(latent.value), context)


class EarlySite(LinearBits):
    """Off by one: each position takes the latent of the position after it."""

    def rows(self, rows: Tensor) -> Tensor:
        return torch.cat((rows[:, 1:], rows[:, -1:]), dim=1)


class LateSite(LinearBits):
    """Off by one the other way, in the whole text only: generation feeds one position at a time."""

    def rows(self, rows: Tensor) -> Tensor:
        return torch.cat((torch.zeros_like(rows[:, :1]), rows[:, :-1]), dim=1) if rows.shape[1] > 1 else rows


class UnusedWeight(LinearBits):
    """A parameter that nothing reads."""

    def __init__(self, config: Settings, shape: Shape) -> None:
        super().__init__(config, shape)
        self.spare = nn.Linear(shape.width, shape.width)


class OtherCompiled(LinearBits):
    """Another computation where it is compiled."""

    def rows(self, rows: Tensor) -> Tensor:
        return 2.0 * rows if torch.compiler.is_compiling() else rows


class Offset(LinearBits):
    """Adds a constant, which is not nothing when its parameters are."""

    def rows(self, rows: Tensor) -> Tensor:
        return rows + 0.1


# --------------------------------------------------------------------------------------------------- decoders with a bug


class NotCausal(Linear):
    """The last position's stream reaches every position."""

    def hidden(self, context: Context, latent: Latent | None, cache: KVCache | None = None) -> Tensor:
        out = super().hidden(context, latent, cache)
        return out + 0.1 * out.mean(1, keepdim=True) if cache is None else out


class LeakingScores(Linear):
    """Weighs nothing: its prior is the posterior, so that scores are read off under latents which saw their targets."""

    def prior(self, context: Context, latent: Latent | None = None) -> Distribution:
        q = self.posterior(context)
        rows = context.rows if latent is None else latent.value.shape[0]
        return q.select(torch.arange(context.rows).repeat_interleave(rows // context.rows))


class TrunkReadsZ(Linear):
    """With a cache, the last latent reaches the trunk of the next token."""

    def context(self, batch: Batch, cache: KVCache | None = None) -> Context:
        context = super().context(batch, cache)
        seen = getattr(cache, "seen", None)
        if seen is None:
            return context
        return replace(context, taps={k: tap + 0.5 * seen for k, tap in context.taps.items()})

    def hidden(self, context: Context, latent: Latent | None, cache: KVCache | None = None) -> Tensor:
        if cache is not None and latent is not None:
            cache.seen = latent.value[:, -1:].mean(-1, keepdim=True)  # type: ignore[attr-defined]
        return super().hidden(context, latent, cache)


class StaleCache(Linear):
    """Steps at the position before: rotary positions are off by one after the prompt."""

    def context(self, batch: Batch, cache: KVCache | None = None) -> Context:
        if cache is not None and cache.length > 0:
            batch = replace(batch, positions=batch.positions - 1)
        return super().context(batch, cache)


class ForksShare(Linear):
    """Selected rows keep the latents of the first."""

    def select(self, state: Any, rows: Tensor) -> ComposedState:
        chosen = super().select(state, rows)
        assert chosen.current is not None
        return replace(chosen, latents=chosen.latents[:1].expand_as(chosen.latents).clone())  # type: ignore[index]


class LosesState(Linear):
    """Computes with a tensor that is not saved with it."""

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        super().init_weights(generator)
        self.scale = 1.0 + float(torch.rand((), generator=generator))

    def logits(self, hidden: Tensor) -> Tensor:
        return super().logits(hidden) * getattr(self, "scale", 1.0)


class Dropout(Linear):
    """Draws from torch's global state in training."""

    def hidden(self, context: Context, latent: Latent | None, cache: KVCache | None = None) -> Tensor:
        return nn.functional.dropout(super().hidden(context, latent, cache), 0.1, training=self.training)


class CompletesTwice(Linear):
    """Halves the weight of its schedule whenever it is completed."""

    @classmethod
    def complete(cls, config: ModelConfig) -> ModelConfig:
        filled = super().complete(config)
        assert filled.kl_schedule is not None
        weight = 0.5 * filled.kl_schedule.settings.get("weight", 1.0)
        return filled.model_copy(update={"kl_schedule": PartSpec.model_validate({"name": "constant", "weight": weight})})


class WrongRows(Linear):
    """Takes latent row k*B + b for sample k of context row b."""

    def hidden(self, context: Context, latent: Latent | None, cache: KVCache | None = None) -> Tensor:
        if latent is not None and latent.value.shape[0] > context.rows:
            times = latent.value.shape[0] // context.rows
            context = context.select(torch.arange(context.rows).repeat(times))
        return super().hidden(context, latent, cache)


class Spare(Linear):
    """A layer that nothing reads."""

    def __init__(self, config: ModelConfig, **parts: Any) -> None:
        super().__init__(config, **parts)
        self.spare = nn.Linear(4, 4)


class Ascends(Linear):
    """Trains uphill."""

    def loss(self, batch: Batch, *, step: int, noise: Noise) -> Loss:
        loss = super().loss(batch, step=step, noise=noise)
        return replace(loss, total=-2.0 * loss.total)


class Encoderless(Linear):
    """Bits from the prior alone: right, and without an encoder."""

    @classmethod
    def complete(cls, config: ModelConfig) -> ModelConfig:
        """All but the encoder."""
        return super().complete(config).model_copy(update={"encoder": None})


class ForgetsState(KLSchedule):
    """Its weight grows with every step, and it does not say so when it is saved."""

    Config = Settings

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.weight = 0.0

    def penalty(
        self, kl: Tensor, reconstruction: Tensor, site_mask: Tensor, target_mask: Tensor, *, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self.weight * kl.sum(-1)[site_mask].sum() / target_mask.sum(), {}

    def advance(self) -> None:
        self.weight += 0.1


PARTS: dict[str, dict[str, type]] = {
    "encoder": {
        "right_encoder": WindowBits,
        "no_positions": NoPositions,
        "ignores_documents": IgnoresDocuments,
        "ignores_padding": IgnoresPadding,
        "says_causal": SaysCausal,
        "cuts_gradient": CutsGradient,
        "leaves_unset": LeavesUnset,
        "takes_anything": TakesAnything,
        "summed_over_sites": with_family(SummedOverSites),
        "batch_mean_kl": with_family(BatchMeanKL),
        "global_draws": with_family(GlobalDraws),
        "wrong_density": with_family(WrongDensity),
        "negative_kl": with_family(NegativeKL),
        "real_buffer": RealBuffer,
        "fits_nothing": FitsNothing,
    },
    "prior": {
        "right_prior": LearnedBits,
        "peeking_prior": PeekingPrior,
        "other_step": OtherStep,
        "hidden_memory": HiddenMemory,
        "unseeded_prior": UnseededPrior,
        "priced_prior": PricedPrior,
    },
    "injection": {
        "right_injection": LinearBits,
        "detached_injection": DetachedInjection,
        "early_site": EarlySite,
        "late_site": LateSite,
        "unused_weight": UnusedWeight,
        "offset": Offset,
        "other_compiled": OtherCompiled,
    },
    "decoder": {
        "right": Linear,
        "not_causal": NotCausal,
        "leaking_scores": LeakingScores,
        "trunk_reads_z": TrunkReadsZ,
        "stale_cache": StaleCache,
        "forks_share": ForksShare,
        "loses_state": LosesState,
        "dropout": Dropout,
        "completes_twice": CompletesTwice,
        "wrong_rows": WrongRows,
        "spare": Spare,
        "ascends": Ascends,
        "encoderless": Encoderless,
    },
    "kl_schedule": {"forgets_state": ForgetsState},
}


def register() -> None:
    """Offer them all in this process."""
    for socket, parts in PARTS.items():
        for name, part in parts.items():
            plugins.register(socket, name, part)


def unregister() -> None:
    """Take them back."""
    for socket, parts in PARTS.items():
        for name in parts:
            plugins.unregister(socket, name)
