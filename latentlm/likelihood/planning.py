"""What scoring is going to cost, before it is done: samples, seconds and memory.

Seconds are measured on one window with the samples of the first round, and scaled by tokens: too many rather than too few where
windows go together or share what they begin with, above all by `smc`, which steps through all of a batch at once. The most of
`auto` is what it takes where particle filters take over every window. Memory is counted.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Literal

import torch

from latentlm.errors import UserError
from latentlm.interface import LatentDecoder
from latentlm.likelihood.enumerating import configurations, supports
from latentlm.likelihood.estimating import AGAIN, PARTICLE_TOKENS, estimated, may_filter
from latentlm.likelihood.filtering import open_latents
from latentlm.likelihood.nats import LOGITS, pass_tokens
from latentlm.likelihood.refining import GRADIENT_TOKENS
from latentlm.likelihood.requests import How, Request

FEW_PARTICLES = 64
"""Of the filter that is timed."""


@dataclass(frozen=True)
class Plan:
    """Between the least, every score converged after the first round, and the most, none at all."""

    requests: int
    tokens: int
    """Targets."""
    samples: tuple[int, int]
    """Of each request; (0, 0) where the longest is exact."""
    seconds: tuple[float, float]
    memory: int
    """Bytes beside the weights, at most."""

    def lines(self) -> dict[str, str]:
        """Quantities and their values."""
        few, many = self.samples
        least, most = (seconds_text(seconds) for seconds in self.seconds)
        return {
            "requests": f"{self.requests:,}",
            "targets": f"{self.tokens:,}",
            "samples of each": "none (exact)" if not many else f"{few}" if few == many else f"{few} to {many}",
            "time": least if least == most else f"{least} to {most}",
            "memory, at most": f"{self.memory / 2**20:,.0f} MiB",
        }


@torch.no_grad()
def plan(model: LatentDecoder, requests: list[Request], how: How) -> Plan:
    """Score one of the longest requests to see how long it takes. Raises UserError where there are none."""
    tokens = sum(len(request.tokens) - request.given for request in requests)
    longest = max(requests, key=lambda request: len(request.tokens))
    exact = configurations(model, longest, how, supports(model, longest, how))
    one = how if exact else replace(how, max_samples=how.samples, doubles=False)
    estimated(model, [longest], one)  # the first run of anything is slower
    scale = sum(len(request.tokens) for request in requests) / len(longest.tokens)
    seconds = _seconds(model, longest, one) * scale
    backbone, size = model.config.backbone, next(model.parameters()).element_size()
    if not model.has_latents:
        samples, rows = (0, 0), 1
    elif exact:
        samples, rows = (0, 0), exact
    else:
        samples, rows = (how.samples, how.most), how.most
    held = min(max(pass_tokens(model), len(longest.tokens)), rows * len(longest.tokens) * len(requests))
    assert backbone.feed_forward is not None
    stream = held * size * (6 * backbone.width + 2 * backbone.feed_forward)
    refines = not exact and how.refine and open_latents(model, longest.tokens, longest.given)
    if refines:  # all blocks keep what their gradients need
        kept_tokens = max(GRADIENT_TOKENS, len(longest.tokens))
        stream += kept_tokens * size * backbone.blocks * (16 * backbone.width + 4 * backbone.feed_forward)
    filters = how.method == "smc" or (not exact and how.method == "auto" and how.doubles and may_filter(model, longest))
    keeps = filters or len({request.key for request in requests}) < len(requests)  # particles, or a shared context
    kept = held
    if filters:
        whole = how.max_samples * len(longest.tokens)
        kept = max(whole, min(PARTICLE_TOKENS, whole * len(requests)))
    caches = kept * size * 2 * backbone.width * backbone.blocks if keeps else 0
    doublings = samples[1] / samples[0] if samples[0] else 1.0
    most = seconds * (2 * doublings - 1 if how.method == "smc" else doublings)
    if filters and how.method == "auto":
        few = replace(how, method="smc", samples=FEW_PARTICLES, max_samples=FEW_PARTICLES)
        most = max(most, seconds + _seconds(model, longest, few) * scale * 2 * how.most / FEW_PARTICLES)
    elif refines and how.doubles and how.method not in ("smc", "elbo", "prior"):
        most *= 1 + AGAIN  # where no round settles it
    return Plan(
        requests=len(requests),
        tokens=tokens,
        samples=samples,
        seconds=(seconds, most),
        memory=int(stream + caches + 3 * 4 * min(LOGITS, held * backbone.vocabulary)),
    )


def _seconds(model: LatentDecoder, request: Request, how: How) -> float:
    """Of scoring one request."""
    start = time.perf_counter()
    estimated(model, [request], how)
    return time.perf_counter() - start


def samples_of(text: str, name: str = "samples") -> int | Literal["auto"]:
    """A number of samples as it is written, or "auto". Raises UserError."""
    if text == "auto":
        return "auto"
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise UserError(f'{name}={text}: give a number from 1 on, or "auto" for as many as the tolerance takes.')


def seconds_text(seconds: float) -> str:
    """Roughly how long."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
