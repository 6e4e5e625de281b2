"""A prior that reads the bits of a site off the trunk (ours):

    p(z_s | x up to the site's first token, z above) = readout(norm(tap at that token), the latents above that are open there)

and what both learned priors have in common: where they read, how they are read out, and how they learn.

How it learns. The schedule's penalty is a function of KL(q || p), so its gradient reaches prior and encoder alike, or neither:
free bits below their budget teach the prior nothing, and the latents pay for being predictable. With `learns: always` the prior
gets the gradient of KL(stop_gradient(q) || p) at weight 1 whatever the schedule (maximum likelihood on the codes that the
encoder draws), and the penalty moves the encoder alone. Under `constant` with weight 1 both are the ELBO's gradient.

Legend: B rows, R latent rows, T tokens, S sites, E bits, D width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from latentlm.config import Strict
from latentlm.interface import Batch, Bits, Codes, Context, Latent, Prior, Shape
from latentlm_causal.readout import Readout, Within, detached
from latentlm_causal.sites import Prompt, Reads, read_at


class LearnedPriorConfig(Strict):
    """Settings of both priors."""

    tap: int | None = Field(None, ge=0, description="block whose input is read; default: L//2, the injected block")
    hidden: int | None = Field(None, ge=0, description="width of the hidden layer, 0 = none; default: the backbone's width")
    within: Within = Field("independent", description="bits of a site independent given the past, or one table of 2^E codes")
    start: Literal["uniform", "random"] = Field("uniform", description="the last layer starts at zero (a uniform prior) or not")
    reads: Reads = Field("own", description="a prompt's sites read their own first token, or all the prompt's last one")
    learns: Literal["always", "penalty"] = Field(
        "always", description="from KL(stop_gradient(q) || p) whatever the schedule says, or from the schedule's penalty alone"
    )


class LearnedBits(Prior):
    """What the two priors share; `distribution` is theirs."""

    family = "bits"
    reads_above = True
    config: LearnedPriorConfig

    def __init__(self, config: LearnedPriorConfig, shape: Shape, *, features: int) -> None:
        """`features`: what the readout sees beside the stream and the latents above."""
        super().__init__(config, shape)
        self.taps = (shape.blocks // 2 if config.tap is None else config.tap,)
        self.norm = nn.RMSNorm(shape.width, eps=shape.backbone.norm_eps)
        hidden = shape.width if config.hidden is None else config.hidden
        self.above = tuple(shape.latent.above)
        features += sum(latent.dims for latent in shape.latent.above.values())
        self.readout = Readout(shape.width + features, shape.latent.dims, hidden=hidden, within=config.within)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """The frame has set the Linear layers; the last starts at zero where the prior starts uniform."""
        if self.config.start == "uniform":
            self.readout.start_uniform()

    @abstractmethod
    def distribution(self, context: Context, latent: Latent | None) -> Bits | Codes:
        """Prior over every site, (R, S, E), with gradient."""

    def forward(self, context: Context, latent: Latent | None = None) -> Bits | Codes:
        """Prior over every site, (R, S, E). In training, where the latent carries its posterior and the prior learns from
        `auxiliary`, it comes without gradient: the penalty is the encoder's."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._learns_apart(latent)):
            return self.distribution(context, latent)

    def auxiliary(self, latent: Latent, context: Context, batch: Batch) -> tuple[Tensor, dict[str, Tensor]] | None:
        """The gradient of KL(stop_gradient(q) || p), nats per target token, on a value of zero: the loss stays cross-entropy
        plus penalty. Logs `prior_gap_nats`, that KL."""
        if not self._learns_apart(latent):
            return None
        p, q = self.distribution(context, latent), latent.distribution
        if isinstance(q, Bits | Codes):
            gap = detached(q).kl(p, latent).sum(-1)  # (B, S)
        else:  # of another kind: the same gradient from the one sample at hand
            gap = -p.log_prob(latent)
        nats = gap.masked_fill(~context.site_mask, 0.0).sum() / batch.target_mask.sum().clamp(min=1)
        return nats - nats.detach(), {"prior_gap_nats": nats.detach()}

    def _learns_apart(self, latent: Latent | None) -> bool:
        """Whether this is a training pass on an encoder's latents and `learns` is "always"."""
        return (
            self.training
            and self.config.learns == "always"
            and latent is not None
            and latent.distribution is not None
        )

    def read(self, context: Context) -> Tensor:
        """The normed stream where each site reads it, (B, S, D)."""
        out: Tensor = self.norm(read_at(context.taps[self.taps[0]], context, self.config.reads))
        return out

    def above_at_sites(self, context: Context) -> dict[str, Tensor]:
        """The latents above that are open where each site begins, (B, S, E') each."""
        return {name: context.at_first_positions(context.above[name]) for name in self.above}

    def beside(self, features: Tensor, above: Mapping[str, Tensor]) -> Tensor:
        """Features (..., F) and the latents above (..., E') side by side, float32 or wider; alone where there are none."""
        if not self.above:
            return features
        wide = torch.promote_types(features.dtype, torch.float32)
        return torch.cat([features.to(wide), *(above[name].to(wide) for name in self.above)], dim=-1)

    def prompt(self, context: Context) -> Prompt | None:
        """What later steps must know of the prompt; nothing where each site reads its own token."""
        return Prompt.of(context, context.taps[self.taps[0]]) if self.config.reads == "prompt" else None

    def read_step(self, prompt: Prompt | None, taps: Mapping[int, Tensor]) -> tuple[Tensor, Prompt | None]:
        """The normed stream to read at one token, (B, D), and the prompt one token later."""
        tap = taps[self.taps[0]]
        if prompt is None:
            return self.norm(tap), None
        return self.norm(prompt.at(tap)), prompt.moved()


class TrunkBits(LearnedBits):
    """The stream alone."""

    Config = LearnedPriorConfig

    def __init__(self, config: LearnedPriorConfig, shape: Shape) -> None:
        super().__init__(config, shape, features=0)

    def distribution(self, context: Context, latent: Latent | None) -> Bits | Codes:
        """(R, S, E)."""
        p: Bits | Codes = self.readout(self.beside(self.read(context), self.above_at_sites(context)))
        return p

    def start(self, context: Context, latent: Latent | None) -> Prompt | None:
        """Where the prompt ends, if that matters."""
        return self.prompt(context)

    def step(
        self, state: Any, taps: Mapping[int, Tensor], previous: Tensor | None, starts: Tensor, above: Mapping[str, Tensor]
    ) -> tuple[Bits | Codes, Any]:
        """(B, 1, E)."""
        stream, state = self.read_step(state, taps)
        return self.readout(self.beside(stream, above)[:, None]), state
