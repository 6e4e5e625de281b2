"""The loop of generation: a batch of rows, one token each per turn, until every row has ended.

A row that ends leaves the batch. Each site's latent is given or drawn by the prior; where a batch comes to hold rows of both
kinds, it goes on as two.

Legend: B rows, S sites, E event dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from latentlm.generation.prompts import count_sites
from latentlm.generation.sampling import TokenSampling
from latentlm.generation.stopping import StopStrings
from latentlm.interface import Finish, Latent, Noise, State

if TYPE_CHECKING:
    from latentlm.interface import LatentDecoder

@dataclass(kw_only=True)
class Row:
    """A continuation under way."""

    number: int
    prompt: list[int]
    sites: int
    """Sites of the prompt."""
    covered: Tensor | None
    """(S', E) given latents of the sites from the first one on."""
    continuation: Tensor | None
    """(S'', E) given latents of the sites after the prompt's."""
    tokens: list[int] = field(default_factory=list)
    latents: Latent | None = None
    finish: Finish | None = None

    def given(self, site: int) -> Tensor | None:
        """The given latent of a site, (E,), or None where the prior is to draw it."""
        if self.continuation is not None and 0 <= site - self.sites < len(self.continuation):
            return self.continuation[site - self.sites]
        return self.covered[site] if self.covered is not None and site < len(self.covered) else None


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all rows of a call have in common."""

    model: LatentDecoder
    sampling: TokenSampling
    stop: StopStrings
    end_of_text: int | None
    vocabulary: int | None
    """Tokens that may be drawn are 0 .. vocabulary - 1; None = all."""
    max_tokens: int
    prefill: Literal["posterior", "prior"]
    last_latent: Literal["posterior", "prior"]
    prior_temperature: float
    on_token: Callable[[int, int], None]
    uniforms: Tensor | None
    """(rows, max_tokens), None where greedy."""
    noise: Noise
    """Of the latents, one per row, aligned."""


@torch.no_grad()
def run(job: Job, rows: list[Row]) -> None:
    """Generate all rows of one batch."""
    longest = max(len(row.prompt) for row in rows)
    tokens = torch.tensor([row.prompt + [0] * (longest - len(row.prompt)) for row in rows], device=job.model.device)
    lengths = torch.tensor([len(row.prompt) for row in rows], device=job.model.device)
    noise = job.noise.select([row.number for row in rows])
    latents: Latent | Literal["posterior", "prior"] = job.prefill
    if any(row.covered is not None for row in rows):
        latents = _covered_prompt(job, rows, tokens, lengths, noise)
    state = job.model.prefill(
        tokens,
        lengths,
        latents=latents,
        noise=noise,
        last_latent=job.last_latent,
        prior_temperature=job.prior_temperature,
        capacity=longest + job.max_tokens,
    )
    _extend(job, rows, state)


def _covered_prompt(job: Job, rows: list[Row], tokens: Tensor, lengths: Tensor, noise: Noise) -> Latent:
    """Latents of the prompts' sites: the given ones as far as they go, then what a prefill without them draws. (B, S, E)."""
    sites = max(row.sites for row in rows)
    value = torch.zeros(len(rows), sites, job.model.event_dims, device=tokens.device)
    if any(row.covered is None or len(row.covered) < row.sites for row in rows):
        state = job.model.prefill(
            tokens,
            lengths,
            latents=job.prefill,
            noise=noise,
            last_latent=job.last_latent,
            prior_temperature=job.prior_temperature,
        )
        assert state.latents is not None
        value = state.latents[:, :sites].clone()
    for index, row in enumerate(rows):
        if row.covered is not None:
            count = min(row.sites, len(row.covered))
            value[index, :count] = row.covered[:count].to(value)
    return Latent(value)


def _extend(job: Job, rows: list[Row], state: State) -> None:
    """Draw and feed tokens until every row has finished. Finished rows leave the batch."""
    while True:
        place = len(rows[0].tokens)  # the rows of a batch have drawn equally many
        numbers = [row.number for row in rows]
        uniform = None if job.uniforms is None else job.uniforms[numbers, place].to(state.logits.device)
        drawn = job.sampling.draw(state.logits[:, : job.vocabulary], uniform)
        for row, token in zip(rows, drawn.tolist(), strict=True):
            _take(job, row, token)
        staying = _leave(rows, state)
        if not staying:
            return
        if len(staying) < len(rows):
            rows, state = [rows[index] for index in staying], _selected(job, state, staying)
        parts = _parts(job, rows)
        if len(parts) > 1:
            # Some rows' latents are given and others' come from the prior: two batches from here on.
            for part in parts:
                _advance(job, [rows[index] for index in part], _selected(job, state, part))
            return
        state = _fed(job, rows, state)


def _advance(job: Job, rows: list[Row], state: State) -> None:
    """Feed the last tokens, then go on."""
    _extend(job, rows, _fed(job, rows, state))


def _take(job: Job, row: Row, token: int) -> None:
    """Add a token to its row, and see whether the row ends."""
    if token == job.end_of_text:
        row.finish = "end_of_text"
        return
    row.tokens.append(token)
    job.on_token(row.number, token)
    if job.stop.found(row.tokens):
        row.finish = "stop"
    elif len(row.tokens) == job.max_tokens:
        row.finish = "length"


def _leave(rows: list[Row], state: State) -> list[int]:
    """Keep the latents of finished rows; returns the places of the others."""
    for index, row in enumerate(rows):
        if row.finish is not None and state.latents is not None:
            row.latents = Latent(state.latents[index, : int(state.site_counts[index])][None].cpu())
    return [index for index, row in enumerate(rows) if row.finish is None]


def _selected(job: Job, state: State, places: list[int]) -> State:
    """Rows of a state by their places."""
    return job.model.select(state, torch.tensor(places, device=state.logits.device))


def _next_given(job: Job, row: Row) -> Tensor | None:
    """The given latent of the site that the row's last token is about to begin (or of the next, where it begins none)."""
    return row.given(count_sites(job.model, len(row.prompt) + len(row.tokens) - 1))


def _parts(job: Job, rows: list[Row]) -> list[list[int]]:
    """Places of the rows whose next latent is given, and of those whose is not; empty parts left out."""
    known = [_next_given(job, row) is not None for row in rows]
    parts = [[index for index, is_known in enumerate(known) if is_known is wanted] for wanted in (True, False)]
    return [part for part in parts if part]


def _fed(job: Job, rows: list[Row], state: State) -> State:
    """Feed the rows' last tokens with their latents, all given or all drawn."""
    tokens = torch.tensor([row.tokens[-1] for row in rows], device=state.logits.device)
    given = [value for row in rows if (value := _next_given(job, row)) is not None]
    noise = job.noise.select([row.number for row in rows])
    return job.model.step(
        state,
        tokens,
        latents=torch.stack(given) if given else "prior",
        noise=noise,
        prior_temperature=job.prior_temperature,
    )
