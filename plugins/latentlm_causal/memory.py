"""A prior that remembers the latents before (ours): a gated linear memory beside the stream.

    u_s = [norm(tap at the site's first token), z_{s-1} as +-1 (0 at a document's first site)]
    a_s = sigmoid(gate u_s),   h_s = a_s h_{s-1} + (1 - a_s) candidate u_s        h = 0 before a document
    p(z_s | x up to the site's first token, z_<s) = readout([u_s, h_s])

The memory is a minGRU (Feng et al. 2024, "Were RNNs All We Needed?", arXiv 2410.01201, with a = 1 - z of theirs): gate and
candidate do not depend on h, so all sites are computed at once by a parallel scan in log2(S) passes (Hillis & Steele 1986), and
a generated token costs the same however long the text is. Why not attention over the latents: the trunk has attended over the
text already, which attention would repeat; what is missing are the few bits per site that were drawn, and of those a memory of
fixed size needs no cache, no positions and no masks. What it cannot do is look up one bit of long ago by what it stands beside.

Bits are drawn without gradient: an encoder is not told that z_{s-1} makes z_s cheaper (in the ELBO's gradient this term would
be a score-function estimate; we leave it out).

Legend: R latent rows, S sites, E bits, D width, G memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from latentlm.backbone import wide_linear
from latentlm.composed.recurrence import scan, spread_memories
from latentlm.interface import Bits, Codes, Context, Latent, Shape
from latentlm_causal.sites import Prompt
from latentlm_causal.trunk import LearnedBits, LearnedPriorConfig


class CausalBitsConfig(LearnedPriorConfig):
    """Settings of `trunk_bits`, and the size of the memory."""

    memory: int | None = Field(None, ge=1, description="width of the memory of earlier latents; default: the backbone's width")
    longest: float = Field(64.0, gt=1, description="sites that the slowest part of the memory holds on to, at the start")


class Remembered(NamedTuple):
    """State of a step, rows first."""

    memory: Tensor
    """(B, G) float32: h of the newest site."""
    prompt: Prompt | None


class CausalBits(LearnedBits):
    """The stream beside a memory of the latents before."""

    Config = CausalBitsConfig
    config: CausalBitsConfig
    autoregressive = True

    def __init__(self, config: CausalBitsConfig, shape: Shape) -> None:
        memory = config.memory or shape.width
        super().__init__(config, shape, features=shape.latent.dims + memory)
        self.gate = nn.Linear(shape.width + shape.latent.dims, memory)
        self.candidate = nn.Linear(shape.width + shape.latent.dims, memory)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Memories of 1 to `longest` sites, evenly in the logarithm: a = 1 - 1 / (1 + length)."""
        super().init_weights(generator)
        spread_memories(self.gate.bias, longest=self.config.longest)

    def distribution(self, context: Context, latent: Latent | None) -> Bits | Codes:
        """(R, S, E), teacher-forced on the latent."""
        assert latent is not None, "an autoregressive prior needs the latents before"
        features, memory = self._remember(context, latent.value)
        both = torch.cat((features, memory), dim=-1)
        p: Bits | Codes = self.readout(self.beside(both, self.above_at_sites(context)))
        return p

    def start(self, context: Context, latent: Latent | None) -> Remembered:
        """After the tokens of `context` and their latents."""
        if latent is None:
            memory = torch.zeros(context.rows, self.gate.out_features, device=context.tokens.device)
        else:
            newest = (context.site_mask.sum(-1) - 1)[:, None, None].expand(-1, 1, self.gate.out_features)
            memory = self._remember(context, latent.value)[1].gather(1, newest)[:, 0]
        return Remembered(memory, self.prompt(context))

    def step(
        self,
        state: Remembered,
        taps: Mapping[int, Tensor],
        previous: Tensor | None,
        starts: Tensor,
        above: Mapping[str, Tensor],
    ) -> tuple[Bits | Codes, Any]:
        """(B, 1, E). The memory moves where a site begins."""
        stream, prompt = self.read_step(state.prompt, taps)
        if previous is None:
            previous = torch.full((len(starts), self.shape.latent.dims), 0.5, device=starts.device)
        features = _features(stream, _signs(previous))
        keep, add = self._gates(features)
        memory = torch.where(starts[:, None], keep * state.memory + add, state.memory)
        p = self.readout(self.beside(torch.cat((features, memory), dim=-1), above)[:, None])
        return p, Remembered(memory, prompt)

    def _remember(self, context: Context, value: Tensor) -> tuple[Tensor, Tensor]:
        """u (R, S, D + E) and h (R, S, G) of every site."""
        begins = context.begins_document()[..., None]
        signs = F.pad(_signs(value), (0, 0, 1, 0))[:, :-1].masked_fill(begins, 0.0)
        features = _features(self.read(context), signs)
        keep, add = self._gates(features)
        return features, scan(keep.masked_fill(begins, 0.0), add)

    def _gates(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """a and (1 - a) * candidate, (..., G)."""
        logits = wide_linear(features, self.gate)
        return torch.sigmoid(logits), torch.sigmoid(-logits) * wide_linear(features, self.candidate)


def _signs(bits: Tensor) -> Tensor:
    """Bits as -1 and 1."""
    return 2.0 * bits - 1.0


def _features(stream: Tensor, signs: Tensor) -> Tensor:
    """Both side by side, float32 or wider."""
    wide = torch.promote_types(stream.dtype, torch.float32)
    return torch.cat((stream.to(wide), signs.to(wide)), dim=-1)
