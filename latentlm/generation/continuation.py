"""The loop of generation: a batch of rows, one token each per turn, until every row has ended.

A row that ends leaves the batch. Each site of each latent is given or drawn by the prior; where a batch comes to hold rows that
differ in which are given, it goes on in parts.

Legend: B rows, S sites, E event dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from latentlm.errors import compiling
from latentlm.generation.sampling import TokenSampling
from latentlm.generation.stopping import StopStrings
from latentlm.interface import Finish, Latent, Latents, LatentSource, Noise, State, count_sites

if TYPE_CHECKING:
    from latentlm.interface import LatentDecoder

@dataclass(kw_only=True)
class Row:
    """A continuation under way. What is by latent has no entry where nothing is given."""

    number: int
    prompt: list[int]
    sites: dict[str, int]
    """Sites of the prompt, by latent."""
    covered: dict[str, Tensor]
    """(S', E) given latents of the sites from the first one on."""
    continuation: dict[str, Tensor]
    """(S'', E) given latents of the sites after the prompt's."""
    tokens: list[int] = field(default_factory=list)
    latents: Latents | None = None
    finish: Finish | None = None

    @property
    def gives_after_prompt(self) -> bool:
        """Whether a latent of a site after the prompt's is given."""
        beyond = (len(own) > self.sites[name] for name, own in self.covered.items())
        return any(map(len, self.continuation.values())) or any(beyond)

    def given(self, name: str, site: int) -> Tensor | None:
        """The given value of a site, (E,), or None where the prior is to draw it."""
        after, covered = self.continuation.get(name), self.covered.get(name)
        if after is not None and 0 <= site - self.sites[name] < len(after):
            return after[site - self.sites[name]]
        return covered[site] if covered is not None and site < len(covered) else None


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all rows of a call have in common."""

    model: LatentDecoder
    sampling: TokenSampling
    stop: StopStrings
    end_tokens: frozenset[int]
    """Any of which ends a row; it is none of the row's tokens."""
    vocabulary: int | None
    """Tokens that may be drawn are 0 .. vocabulary - 1; None = all."""
    max_tokens: int
    compile: bool
    prefill: dict[str, Literal["posterior", "prior"]]
    last_latent: dict[str, Literal["posterior", "prior"]]
    prior_temperature: dict[str, float]
    on_token: Callable[[int, int], None]
    uniforms: Tensor | None
    """(rows, max_tokens), None where greedy."""
    noise: dict[str, Noise]
    """Of each latent, one per row, aligned."""

    def noise_of(self, rows: list[Row]) -> dict[str, Noise]:
        """Of some rows."""
        return {name: noise.select([row.number for row in rows]) for name, noise in self.noise.items()}


@torch.no_grad()
def run(job: Job, rows: list[Row]) -> None:
    """Generate all rows of one batch."""
    capacity = max(len(row.prompt) for row in rows) + job.max_tokens
    if job.compile:
        _extend_compiled(job, rows, _prefilled(job, rows, capacity=capacity), capacity=capacity)
        return
    _extend(job, rows, _prefilled(job, rows, capacity=capacity))


def _prefilled(job: Job, rows: list[Row], *, capacity: int) -> State:
    """The prompts fed."""
    longest = max(len(row.prompt) for row in rows)
    tokens = torch.tensor([row.prompt + [0] * (longest - len(row.prompt)) for row in rows], device=job.model.device)
    lengths = torch.tensor([len(row.prompt) for row in rows], device=job.model.device)
    noise = job.noise_of(rows)
    latents: dict[str, LatentSource] = {**job.prefill, **_covered_prompt(job, rows, tokens, lengths, noise)}
    return job.model.prefill(
        tokens,
        lengths,
        latents=latents,
        noise=noise,
        last_latent=job.last_latent,
        prior_temperature=job.prior_temperature,
        capacity=capacity,
    )


def _extend_compiled(job: Job, rows: list[Row], state: State, *, capacity: int) -> None:
    """As `_extend`, with rows that have finished going along: a graph is made for their number."""
    steps, noise, place = job.model.compiled_steps(state, capacity=capacity), job.noise_of(rows), 0
    while True:
        drawn = _drawn(job, [row.number for row in rows], place, state)
        for row, token in zip(rows, drawn.tolist(), strict=True):
            if row.finish is None:
                _take(job, row, token)
        if not _leave(rows, state):
            return
        with compiling(remedy="Leave compile out"):
            state = steps.step(drawn, noise=noise, prior_temperature=job.prior_temperature)
        place += 1


def _drawn(job: Job, numbers: list[int], place: int, state: State) -> Tensor:
    """The next token of each row, (B,)."""
    uniform = None if job.uniforms is None else job.uniforms[numbers, place].to(state.logits.device)
    return job.sampling.draw(state.logits[:, : job.vocabulary], uniform)


def _covered_prompt(
    job: Job, rows: list[Row], tokens: Tensor, lengths: Tensor, noise: dict[str, Noise]
) -> dict[str, Latent]:
    """Latents of the prompts' sites, for each latent of which some are given: these as far as they go, then what a prefill
    draws below them. (B, S, E) each."""
    found: dict[str, Latent] = {}
    for name, latent in job.model.latents.items():
        if not any(name in row.covered for row in rows):
            continue
        sites = max(row.sites[name] for row in rows)
        value = torch.zeros(len(rows), sites, latent.dims, device=tokens.device)
        if any(len(row.covered.get(name, ())) < row.sites[name] for row in rows):
            state = job.model.prefill(
                tokens,
                lengths,
                latents={**job.prefill, **found},
                noise=noise,
                last_latent=job.last_latent,
                prior_temperature=job.prior_temperature,
            )
            value = state.met[name].value[:, :sites].clone()
        for index, row in enumerate(rows):
            if name in row.covered:
                count = min(row.sites[name], len(row.covered[name]))
                value[index, :count] = row.covered[name][:count].to(value)
        found[name] = Latent(value)
    return found


def _extend(job: Job, rows: list[Row], state: State) -> None:
    """Draw and feed tokens until every row has finished. Finished rows leave the batch."""
    while True:
        place = len(rows[0].tokens)  # the rows of a batch have drawn equally many
        numbers = [row.number for row in rows]
        for row, token in zip(rows, _drawn(job, numbers, place, state).tolist(), strict=True):
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
    if token in job.end_tokens:
        row.finish = "end_of_text"
        return
    row.tokens.append(token)
    job.on_token(row.number, token)
    if job.stop.found(row.prompt, row.tokens):
        row.finish = "stop"
    elif len(row.tokens) == job.max_tokens:
        row.finish = "length"


def _leave(rows: list[Row], state: State) -> list[int]:
    """Keep the latents of finished rows; returns the places of the others."""
    for index, row in enumerate(rows):
        if row.finish is not None and row.latents is None and state.met:
            row.latents = Latents(
                {name: Latent(met.value[index, : int(met.counts[index])][None].cpu()) for name, met in state.met.items()}
            )
    return [index for index, row in enumerate(rows) if row.finish is None]


def _selected(job: Job, state: State, places: list[int]) -> State:
    """Rows of a state by their places."""
    return job.model.select(state, torch.tensor(places, device=state.logits.device))


def _next_given(job: Job, row: Row) -> dict[str, Tensor]:
    """The given values of the sites that the row's last token is about to begin (or of the next, where it begins none)."""
    found: dict[str, Tensor] = {}
    for name in (row.covered | row.continuation):
        fed = [*row.prompt, *row.tokens[:-1]]
        value = row.given(name, count_sites(job.model.latents[name].granularity, fed))
        if value is not None:
            found[name] = value
    return found


def _parts(job: Job, rows: list[Row]) -> list[list[int]]:
    """Places of the rows of which the same latents are given next, in the order in which they come up."""
    parts: dict[tuple[str, ...], list[int]] = {}
    for index, row in enumerate(rows):
        parts.setdefault(tuple(sorted(_next_given(job, row))), []).append(index)
    return [parts[known] for known in sorted(parts, key=len, reverse=True)]


def _fed(job: Job, rows: list[Row], state: State) -> State:
    """Feed the rows' last tokens with their latents, each given for all rows or drawn for all."""
    tokens = torch.tensor([row.tokens[-1] for row in rows], device=state.logits.device)
    given = [_next_given(job, row) for row in rows]
    return job.model.step(
        state,
        tokens,
        latents={name: torch.stack([row[name] for row in given]) for name in given[0]},
        noise=job.noise_of(rows),
        prior_temperature=job.prior_temperature,
    )
