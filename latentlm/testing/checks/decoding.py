"""Generation with a cache: prefill and step compute what a pass over the whole text does.

Legend: B rows, T tokens, S sites, E event dimensions, V vocabulary.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from latentlm.generation import generate
from latentlm.interface import Batch, Context, Latent, LatentDecoder, Latents, State
from latentlm.testing.comparing import TOLERANCE, assert_close, detached
from latentlm.testing.registry import check, need
from latentlm.testing.subject import Subject, noise

_LENGTHS = [6, 3]
_STEPS = 9


def _prompts(subject: Subject) -> tuple[Tensor, Tensor]:
    """Two prompts of unequal length, right-padded: (B, T) and (B,)."""
    rows = subject.tokens(2, max(_LENGTHS))
    for row, length in zip(rows, _LENGTHS, strict=True):
        row[length:] = [0] * (len(row) - length)
    return torch.tensor(rows), torch.tensor(_LENGTHS)


def _continuations(subject: Subject) -> Tensor:
    """(B, steps) tokens to feed."""
    return torch.tensor(subject.tokens(2, _STEPS, seed=4))


@check("decoding")
@torch.no_grad()
def cached_equals_uncached(subject: Subject) -> None:
    """Next-token logits of prefill and step are those of one pass over the text, for prompts of unequal length."""
    model = subject.model
    sources: list[Literal["posterior", "prior"]] = ["posterior", "prior"] if model.has_latents else ["posterior"]
    for source in sources:
        prompts, lengths = _prompts(subject)
        fed = _continuations(subject)
        state = model.prefill(prompts, lengths, latents=source, noise=noise(2))
        cached = [state.logits]
        for token in fed.T:
            state = model.step(state, token, noise=noise(2))
            cached.append(state.logits)
        for row, length in enumerate(_LENGTHS):
            text = [*prompts[row, :length].tolist(), *fed[row].tolist()]
            context = model.context(Batch.of([text], given=[length]))
            full = model.logits(model.hidden(context, _met(state, row, context)))[0, length - 1 :]
            stepped = torch.stack([step[row] for step in cached])
            assert_close(stepped, full, f"logits of row {row} from the cache ({source} prompt latents)")
            assert int(state.lengths[row]) == len(text), f"state.lengths[{row}] is {int(state.lengths[row])}, not {len(text)}"
            for name, met in state.met.items():
                sites = context.sites_of(name).mask.shape[1]
                assert int(met.counts[row]) == sites, (
                    f"after {sites} sites of {name}, the state has counted {int(met.counts[row])} in row {row}"
                )


def _met(state: State, row: int, context: Context) -> Latents | None:
    """The latents of a row's sites; None without latents."""
    values = {
        name: Latent(met.value[row : row + 1, : context.sites_of(name).mask.shape[1]]) for name, met in state.met.items()
    }
    return Latents(values) if values else None


@check("decoding")
@torch.no_grad()
def batched_equals_single(subject: Subject) -> None:
    """A prompt generates beside others what it generates alone: logits, latents, and sampled tokens."""
    model = subject.model
    prompts, lengths = _prompts(subject)
    together, apart = _generated(model, subject, prompts, lengths, [0, 1]), []
    for row, length in enumerate(_LENGTHS):
        apart.append(_generated(model, subject, prompts[row : row + 1, :length], lengths[row : row + 1], [row]))
    for row, (logits, state) in enumerate(apart):
        assert_close(logits[:, 0], together[0][:, row], f"logits of row {row} generated alone")
        for name, met in state.met.items():
            beside = together[1].met[name].value[row, : met.value.shape[1]]
            assert_close(met.value[0], beside, f"the latents {name} of row {row} generated alone")
    texts = [prompts[row, :length].tolist() for row, length in enumerate(_LENGTHS)]
    batch = generate(model, texts, max_tokens=6, seed=1)
    for row, text in enumerate(texts):
        alone = generate(model, [text], max_tokens=6, seed=1)[0]
        assert alone.tokens == batch[row].tokens, f"row {row} alone writes {alone.tokens}, beside another {batch[row].tokens}"


def _generated(
    model: LatentDecoder, subject: Subject, prompts: Tensor, lengths: Tensor, rows: list[int]
) -> tuple[Tensor, State]:
    """Logits (steps, B, V) and the last state of a generation of these rows."""
    fed, keys = _continuations(subject)[rows], noise(2).select(rows)
    state = model.prefill(prompts, lengths, noise=keys)
    logits = [state.logits]
    for token in fed.T:
        state = model.step(state, token, noise=keys)
        logits.append(state.logits)
    return torch.stack(logits), state


@check("decoding")
@torch.no_grad()
def select_forks(subject: Subject) -> None:
    """Rows picked from a generation, some of them twice, go on as they would have."""
    model = subject.model
    prompts, lengths = _prompts(subject)
    fed, rows = _continuations(subject), torch.tensor([1, 0, 1])
    state = model.step(model.prefill(prompts, lengths, noise=noise(2)), fed[:, 0], noise=noise(2))
    forked, straight = model.select(state, rows), state
    picked, whole = _facts(forked), _facts(straight)
    for what in whole:
        assert_close(picked[what].float(), whole[what][rows].float(), f"{what} of selected rows")
    for token in fed.T[1:5]:
        straight = model.step(straight, token, noise=noise(2))
        forked = model.step(forked, token[rows], noise=noise(2).select(rows))
        picked, whole = _facts(forked), _facts(straight)
        for what in whole:
            assert_close(picked[what].float(), whole[what][rows].float(), f"{what} of selected rows, some steps later")
    # A fork's branches may part: what one is fed must not reach the other.
    one = model.select(model.prefill(prompts, lengths, noise=noise(2)), torch.tensor([0, 0]))
    parted = model.step(one, torch.tensor([1, 2]), noise=noise(2).select([0, 0]))
    parted = model.step(parted, torch.tensor([3, 3]), noise=noise(2).select([0, 0]))
    other = model.select(model.prefill(prompts, lengths, noise=noise(2)), torch.tensor([0]))
    for token in (2, 3):
        other = model.step(other, torch.tensor([token]), noise=noise(1))
    assert_close(parted.logits[1:], other.logits, "logits of a branch beside another branch")


@check("decoding")
@torch.no_grad()
def steps_along_texts(subject: Subject) -> None:
    """Rows that go along texts whose trunk has run, some of them resampled on the way, go on as by `step` and `select`."""
    model = subject.model
    prompts, lengths = _prompts(subject)
    fed = _continuations(subject)
    texts = [[*prompts[row, :length].tolist(), *fed[row].tolist()] for row, length in enumerate(_LENGTHS)]
    context = model.context(Batch.of(texts, given=_LENGTHS))
    rows, keys = torch.tensor([0, 0, 1, 1]), noise(4)
    along, apart = (model.prefill(prompts[rows], lengths[rows], noise=keys) for _ in range(2))
    for place, tokens in enumerate(fed.T):
        along = model.step_along(along, context, lengths + place, noise=keys)
        apart = model.step(apart, tokens[rows], noise=keys)
        if place == 2:
            parents = torch.tensor([1, 1, 2, 2])
            along, apart = model.resample(along, parents), model.select(apart, parents)
        found, wanted = _facts(along), _facts(apart)
        for what in wanted:
            assert_close(found[what].float(), wanted[what].float(), f"{what} after {place + 1} steps along a text")


def _facts(state: State) -> dict[str, Tensor]:
    """What a caller sees of a generation, each with rows first."""
    found = {"logits": state.logits, "lengths": state.lengths}
    found |= {f"the latents {name}": met.value for name, met in state.met.items()}
    return found | {f"the number of sites of {name}": met.counts for name, met in state.met.items()}


@check("decoding")
@torch.no_grad()
def given_latents_used(subject: Subject) -> None:
    """Latents that the caller gives to prefill and step are the ones that condition the text and are reported."""
    model = subject.model
    need(model.has_latents, "it has no latents")
    prompts, lengths = _prompts(subject)
    fed = _continuations(subject)
    texts = [[*prompts[row, :length].tolist(), *fed[row].tolist()] for row, length in enumerate(_LENGTHS)]
    context = model.context(Batch.of(texts))
    given = detached(model.sample_prior(context, noise(2, seed=7)))
    state = model.prefill(prompts, lengths, latents=given, noise=noise(2))
    for number, token in enumerate(fed.T):
        now = {}
        for name, latent in given.items():
            site_of = context.sites_of(name).site_of
            sites = torch.stack([site_of[row, length + number] for row, length in enumerate(_LENGTHS)])
            now[name] = latent.value[torch.arange(2), sites]
        state = model.step(state, token, latents=now, noise=noise(2))
    for row in range(2):
        alone = model.context(Batch.of([texts[row]]))
        own = {name: alone.sites_of(name).mask.shape[1] for name in model.latents}
        latents = Latents({name: Latent(given[name].value[row : row + 1, : own[name]]) for name in given})
        for name, met in state.met.items():
            what = f"the latents {name} of row {row} after they were given"
            assert_close(met.value[row, : own[name]], latents[name].value[0], what)
        full = model.logits(model.hidden(alone, latents))[0, -1]
        assert_close(state.logits[row], full, f"logits of row {row} under given latents", tolerance=TOLERANCE)
