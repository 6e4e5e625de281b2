"""Generation with a cache: prefill and step compute what a pass over the whole text does.

Legend: B rows, T tokens, S sites, E event dimensions, V vocabulary.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from latentlm.generation import generate
from latentlm.interface import Batch, Latent, LatentDecoder, State
from latentlm.testing.comparing import TOLERANCE, assert_close
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
    for latents in sources:
        prompts, lengths = _prompts(subject)
        fed = _continuations(subject)
        state = model.prefill(prompts, lengths, latents=latents, noise=noise(2))
        cached = [state.logits]
        for token in fed.T:
            state = model.step(state, token, noise=noise(2))
            cached.append(state.logits)
        for row, length in enumerate(_LENGTHS):
            text = [*prompts[row, :length].tolist(), *fed[row].tolist()]
            context = model.context(Batch.of([text]))
            latent = _met(state, row, context.sites)
            full = model.logits(model.hidden(context, latent))[0, length - 1 :]
            stepped = torch.stack([step[row] for step in cached])
            assert_close(stepped, full, f"logits of row {row} from the cache ({latents} prompt latents)")
            assert int(state.lengths[row]) == len(text), f"state.lengths[{row}] is {int(state.lengths[row])}, not {len(text)}"
            if latent is not None:
                assert int(state.site_counts[row]) == context.sites, (
                    f"state.site_counts[{row}] is {int(state.site_counts[row])} after {context.sites} sites"
                )


def _met(state: State, row: int, sites: int) -> Latent | None:
    """The latents of a row's sites; None without latents."""
    return None if state.latents is None else Latent(state.latents[row : row + 1, :sites])


@check("decoding")
@torch.no_grad()
def batched_equals_single(subject: Subject) -> None:
    """A prompt generates beside others what it generates alone: logits, latents, and sampled tokens."""
    model = subject.model
    prompts, lengths = _prompts(subject)
    together, apart = _generated(model, subject, prompts, lengths, [0, 1]), []
    for row, length in enumerate(_LENGTHS):
        apart.append(_generated(model, subject, prompts[row : row + 1, :length], lengths[row : row + 1], [row]))
    for row, one in enumerate(apart):
        assert_close(one[0][:, 0], together[0][:, row], f"logits of row {row} generated alone")
        if one[1] is not None and together[1] is not None:
            assert_close(one[1][0], together[1][row, : one[1].shape[1]], f"latents of row {row} generated alone")
    texts = [prompts[row, :length].tolist() for row, length in enumerate(_LENGTHS)]
    batch = generate(model, texts, max_tokens=6, seed=1)
    for row, text in enumerate(texts):
        alone = generate(model, [text], max_tokens=6, seed=1)[0]
        assert alone.tokens == batch[row].tokens, f"row {row} alone writes {alone.tokens}, beside another {batch[row].tokens}"


def _generated(
    model: LatentDecoder, subject: Subject, prompts: Tensor, lengths: Tensor, rows: list[int]
) -> tuple[Tensor, Tensor | None]:
    """Logits (steps, B, V) and latents of a generation of these rows."""
    fed, keys = _continuations(subject)[rows], noise(2).select(rows)
    state = model.prefill(prompts, lengths, noise=keys)
    logits = [state.logits]
    for token in fed.T:
        state = model.step(state, token, noise=keys)
        logits.append(state.logits)
    return torch.stack(logits), state.latents


@check("decoding")
@torch.no_grad()
def select_forks(subject: Subject) -> None:
    """Rows picked from a generation, some of them twice, go on as they would have."""
    model = subject.model
    prompts, lengths = _prompts(subject)
    fed, rows = _continuations(subject), torch.tensor([1, 0, 1])
    state = model.step(model.prefill(prompts, lengths, noise=noise(2)), fed[:, 0], noise=noise(2))
    forked, straight = model.select(state, rows), state
    for name in ("logits", "lengths", "latents", "site_counts"):
        picked, whole = getattr(forked, name), getattr(state, name)
        if whole is not None:
            assert torch.equal(picked, whole[rows]), f"`select` does not pick the rows of state.{name}"
    for token in fed.T[1:5]:
        straight = model.step(straight, token, noise=noise(2))
        forked = model.step(forked, token[rows], noise=noise(2).select(rows))
        assert_close(forked.logits, straight.logits[rows], "logits of selected rows")
        if forked.latents is not None and straight.latents is not None:
            assert_close(forked.latents, straight.latents[rows], "latents of selected rows")
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
def given_latents_used(subject: Subject) -> None:
    """Latents that the caller gives to prefill and step are the ones that condition the text and are reported."""
    model = subject.model
    need(model.has_latents, "it has no latents")
    prompts, lengths = _prompts(subject)
    fed = _continuations(subject)
    texts = [[*prompts[row, :length].tolist(), *fed[row].tolist()] for row, length in enumerate(_LENGTHS)]
    context = model.context(Batch.of(texts))
    value = model.sample_prior(context, noise(2, seed=7)).value
    state = model.prefill(prompts, lengths, latents=Latent(value), noise=noise(2))
    for number, token in enumerate(fed.T):
        site = torch.stack([context.site_of[row, length + number] for row, length in enumerate(_LENGTHS)])
        state = model.step(state, token, latents=value[torch.arange(2), site], noise=noise(2))
    assert state.latents is not None
    for row in range(2):
        sites = int(context.site_mask[row].sum())
        assert_close(state.latents[row, :sites], value[row, :sites], f"latents of row {row} after they were given")
        alone = model.context(Batch.of([texts[row]]))
        full = model.logits(model.hidden(alone, Latent(value[row : row + 1, :sites])))[0, -1]
        assert_close(state.logits[row], full, f"logits of row {row} under given latents", tolerance=TOLERANCE)
