"""The contracts of the four parts of a latent: what each owes the decoder, and is told by it.

    Encoder      who infers z           q(z | x)
    Prior        where z comes from     p(z | x before)
    Injection    where z enters         latent -> Condition on the backbone's blocks
    KLSchedule   what z costs           KL -> penalty in nats per target token

Legend: that of `latentlm.interface`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from latentlm.errors import UserError
from latentlm.interface.batches import Batch, Context
from latentlm.interface.conditions import Condition
from latentlm.interface.distributions import Distribution, Latent

if TYPE_CHECKING:
    from latentlm.config import BackboneConfig

CONTRACT_VERSION = 2
"""Version of these contracts. A plugin states the one it was written for (`latentlm_contract = 2`); see docs/plugins.md."""

Sockets = Literal["decoder", "encoder", "prior", "injection", "kl_schedule", "granularity"]


@dataclass(frozen=True)
class LatentShape:
    """What a part is told about its latent."""

    name: str
    dims: int
    """E."""
    granularity: str
    """Name of the part that says where its sites begin: "token", "chunk", "document", "line", ..."""
    length: int | None = None
    """Tokens of a site where all have as many: 1 for `token`, n for `chunk:n`."""
    above: Mapping[str, LatentShape] = field(default_factory=dict)
    """The latents that the part names in `above`."""


@dataclass(frozen=True)
class Shape:
    """What a part is told about the decoder that it is built into.

    Example::

        shape = Shape(BackboneConfig(width=32, blocks=2, heads=2), LatentShape("z", dims=4, granularity="token"))
        assert (shape.width, shape.blocks, shape.latent.dims) == (32, 2, 4)
    """

    backbone: BackboneConfig
    latent: LatentShape

    @property
    def width(self) -> int:
        """D."""
        return self.backbone.width

    @property
    def blocks(self) -> int:
        """L."""
        return self.backbone.blocks


@dataclass(frozen=True)
class Operations:
    """Floating-point operations that a count of matrices does not show."""

    training_per_site: float = 0.0
    """What the gradient of a site's latent takes beyond that of the part's Linear layers."""
    fitting_passes: float = 0.0
    """How often fitting a posterior runs the blocks above the trunk, forward and back to the latents."""


class Part(nn.Module, ABC):
    """A pluggable module: `Config` (pydantic, unknown keys refused) holds its settings, `shape` what the decoder tells it.

    A part that makes parameters itself (not through nn.Linear, nn.Embedding or the backbone's modules) sets every one of
    them in `init_weights`. Where `train.compile` is set, each of its modules with ``compiles = True`` has its
    ``compile(backend=...)`` called (torch.nn.Module's, if it has none of its own), as every block of the backbone has. Where
    several processes train, each of its modules with ``gathered_alone = True`` has its weights gathered while its ``forward``
    runs, as every block has, and nothing else may look at them.

    Example::

        class TableConfig(Strict):
            init_std: float = 0.02

        class Table(Part):
            Config = TableConfig

            def __init__(self, config, shape):
                super().__init__(config, shape)
                self.weight = nn.Parameter(torch.empty(2**shape.latent.dims, shape.width))

            def init_weights(self, generator=None):
                self.weight.data.normal_(0.0, self.config.init_std, generator=generator)
    """

    Config: ClassVar[type[BaseModel]]
    family: ClassVar[str | None] = None
    """What the values of z are: "bits" (zeros and ones), "real" (any numbers), "codes", or a word of your own. The parts of one
    latent must agree, which is checked when the decoder is built; None is not checked."""
    granularities: ClassVar[tuple[str, ...] | None] = None
    """Names of the granularities that the part serves; None: any."""
    reads_above: ClassVar[bool] = False
    """The part can read other latents, those that its `above` names: see `Context.above`."""

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

    def bind(self, parts: Parts) -> None:
        """Called once, when the decoder is put together, with all parts of the part's latent. One that keeps another must not
        keep it as a module of its own: its parameters are the other's. Raises UserError where they do not fit."""

    def advance(self, step: int) -> None:
        """Called once after optimiser step `step`, counted from 0, whatever its micro-batches: moving averages, restarts,
        annealed temperatures. What a part gathers over the micro-batches of a step (in `auxiliary`, called once for each) lies
        in tensors that are no persistent buffers, and is empty again when this returns; `loss` moves no persistent buffer.
        Where several processes train one model, each has gathered of its own rows: `latentlm.interface.summed` adds them up."""

    def operations(self) -> Operations:
        """What a count of the part's Linear layers leaves out."""
        return Operations()


Objective = Callable[[Distribution], Tensor]
"""q -> (B,) nats: the reconstruction plus KL of each row under q with the decoder frozen; for encoders without a network."""


class Encoder(Part):
    """Infers the latents: q(z | x).

    Example::

        class Linear(Encoder):
            Config = Strict
            family = "bits"
            granularities = ("token",)
            sees_future = False

            def __init__(self, config, shape):
                super().__init__(config, shape)
                self.taps = (shape.blocks // 2,)
                self.readout = nn.Linear(shape.width, shape.latent.dims)

            def forward(self, context, objective=None):
                return Bits(self.readout(context.taps[self.taps[0]]))

        plugins.register("encoder", "linear_example", Linear)
    """

    taps: tuple[int, ...]
    """Blocks whose incoming residual stream the encoder reads: none above the first block that its own latent, or a later one,
    is injected into. Above an earlier latent's injection the stream depends on that latent, as if `above` named it."""
    sees_future: bool
    """A site's posterior depends on tokens after the site's first position, which are targets of the positions that it
    conditions. If so, scores must never mix it with targets it has seen."""
    needs_objective: ClassVar[bool] = False
    """`forward` wants `objective` (posteriors fitted by gradient, not by a network)."""

    @abstractmethod
    def forward(self, context: Context, objective: Objective | None = None) -> Distribution:
        """Posterior over every site, shape (B, S, E). No attention across documents or into padding."""


class Prior(Part):
    """Where latents come from when nobody infers them: p(z_s | x up to max(first position of s, given), z of earlier sites).

    Example::

        class LearnedBits(Prior):
            Config = Strict
            family = "bits"

            def __init__(self, config, shape):
                super().__init__(config, shape)
                self.logits = nn.Parameter(torch.empty(shape.latent.dims))

            def init_weights(self, generator=None):
                self.logits.data.zero_()

            def forward(self, context, latent=None):
                return Bits(self.logits.expand(context.rows, context.sites, -1))

            def step(self, state, taps, previous, starts, above):
                return Bits(self.logits.expand(len(starts), 1, -1)), state

        plugins.register("prior", "learned_example", LearnedBits)
    """

    taps: tuple[int, ...] = ()
    """Blocks whose incoming residual stream the prior reads."""
    autoregressive: bool = False
    """A site depends on the latents of earlier sites: it is sampled site by site through `step`."""

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
        self,
        state: Any,
        taps: Mapping[int, Tensor],
        previous: Tensor | None,
        starts: Tensor,
        above: Mapping[str, Tensor],
    ) -> tuple[Distribution, Any]:
        """Feed one token: taps {k: (B, D)} at it, `previous` (B, E) the latent of the site before (None at the first),
        `starts` (B,) bool, true where this token begins a new site, `above` {name: (B, E')} the latents that the part names in
        `above`, open at this token. Returns the prior of that site, (B, 1, E), meaningless where `starts` is false, and the new
        state."""


class Injection(Part):
    """Where latents enter. The condition of position t depends on the latent of its own site only, and, through a prefix, of
    earlier sites.

    Example::

        class AddBits(Injection):
            Config = Strict
            family = "bits"
            slots = ("residual",)

            def __init__(self, config, shape):
                super().__init__(config, shape)
                self.blocks = (shape.blocks // 2,)
                self.map = nn.Linear(shape.latent.dims, shape.width)

            def forward(self, latent, context):
                rows = self.map(latent.value)  # (R, S, D)
                return Condition({self.blocks[0]: BlockCondition(residual=context.at_positions(rows))})

        plugins.register("injection", "add_example", AddBits)
    """

    blocks: tuple[int, ...]
    """Blocks that get a condition."""
    slots: tuple[str, ...]
    """The condition slots used, from `SLOTS`."""
    prefix_since: ClassVar[bool] = False
    """Its prefixes say since when they are seen (`Prefix.since`), so that any granularity can have them."""

    @abstractmethod
    def forward(self, latent: Latent, context: Context) -> Condition:
        """Condition for every position of `context`, whose rows are those of the latent (R). In generation it is called with
        one position and one site, except for prefixes without `since` and memory slots, which are made once at prefill."""


@dataclass(frozen=True)
class Parts:
    """The parts of one latent, for `Part.bind`."""

    encoder: Encoder | None
    prior: Prior
    injection: Injection


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
    steers_reconstruction: ClassVar[bool] = False
    """It aims at a value of the reconstruction, which all latents of a decoder share: only one of its schedules can."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def penalty(
        self, kl: Tensor, reconstruction: Tensor, site_mask: Tensor, target_mask: Tensor, *, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Penalty in nats per target token (a scalar with gradient) and logs of what the schedule did.

        kl (B, S, E) or (B, S, 1) nats; reconstruction (B, T) nats, zero outside `target_mask`; site_mask (B, S);
        target_mask (B, T); `step` counts optimiser steps from 0."""

    def advance(self, step: int) -> None:  # noqa: B027 - a schedule without state has nothing to move
        """Move the state after optimiser step `step`, counted from 0 (called once, however many micro-batches it had)."""

    def state_dict(self) -> dict[str, float | int]:
        """State to resume from, plain numbers."""
        return {}

    def load_state_dict(self, state: Mapping[str, float | int]) -> None:
        """Take over a state; the next `penalty` is as if never interrupted."""
        if state:
            raise UserError(f"{type(self).__name__} has no state, but the checkpoint has {sorted(state)}.")
