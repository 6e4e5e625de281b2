"""The prior token by token is the prior of the whole text: the same distributions, and the same draws from the same noise.

Legend: B rows, S sites, E event dimensions, P probes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from latentlm.interface import Batch, Distribution, Latent
from latentlm.testing.comparing import TEXTS, assert_close, fingerprint, pack, probes
from latentlm.testing.registry import check, need
from latentlm.testing.subject import Subject, noise

_LENGTHS = [6, 3]
_STEPS = 9


@check("decoding")
@torch.no_grad()
def step_equals_forward(subject: Subject) -> None:
    """`Prior.step` gives each site the distribution that `Prior.forward` gives it, after a prompt too."""
    model = subject.copied()
    part = getattr(model, "prior_part", None)
    need(part is not None, "it has no prior in a socket")
    assert part is not None
    met: list[tuple[Distribution, Tensor]] = []
    original = part.step

    def watched(
        state: Any, taps: Mapping[int, Tensor], previous: Tensor | None, starts: Tensor
    ) -> tuple[Distribution, Any]:
        p, state = original(state, taps, previous, starts)
        assert tuple(p.shape) == (len(starts), 1, model.event_dims), f"Prior.step returns shape {tuple(p.shape)}"
        met.append((p, starts.clone()))
        return p, state

    part.step = watched
    prompts, fed = subject.tokens(2, max(_LENGTHS)), subject.tokens(2, _STEPS, seed=4)
    texts = [[*prompts[row][:length], *fed[row]] for row, length in enumerate(_LENGTHS)]
    state = model.prefill(torch.tensor(prompts), torch.tensor(_LENGTHS), latents="prior", noise=noise(2))
    met.clear()  # what prefill drew of the prompt is the other check's
    counts = [state.site_counts.clone()]
    for number in range(_STEPS):
        state = model.step(state, torch.tensor([row[number] for row in fed]), noise=noise(2))
        counts.append(state.site_counts.clone())
    steps = list(met)  # the probes below are drawn through the same part
    need(steps, "its decoder draws latents without Prior.step")
    assert state.latents is not None
    for row, text in enumerate(texts):
        context = model.context(Batch.of([text], given=[_LENGTHS[row]]))
        latent = Latent(state.latents[row : row + 1, : context.sites])
        values = probes(model, context)
        forward = fingerprint(model.prior(context, latent), values)[0]  # (S, P)
        for number, (p, starts) in enumerate(steps):
            site = int(counts[number + 1][row]) - 1
            if bool(starts[row]):
                one = p.select(torch.tensor([row]))
                assert_close(
                    fingerprint(one, values[:, :, site : site + 1])[0, 0],
                    forward[site],
                    f"the prior of site {site} by step, {number + 1} tokens after a prompt of {_LENGTHS[row]}, against forward",
                )
    assert any(bool(starts.any()) for _, starts in steps) or model.granularity == "document", "no step began a site"


@check("decoding")
@torch.no_grad()
def draws_equal_teacher_forced(subject: Subject) -> None:
    """The latents that prefill, step and `sample_prior` draw are what the prior of the whole text makes of the same noise."""
    model = subject.model
    need(model.has_latents, "it has no latents")
    prompts, fed = subject.tokens(2, max(_LENGTHS)), subject.tokens(2, _STEPS, seed=4)
    state = model.prefill(torch.tensor(prompts), torch.tensor(_LENGTHS), latents="prior", noise=noise(2))
    for number in range(_STEPS):
        state = model.step(state, torch.tensor([row[number] for row in fed]), noise=noise(2))
    assert state.latents is not None
    for row, length in enumerate(_LENGTHS):
        text = [*prompts[row][:length], *fed[row]]
        context = model.context(Batch.of([text], given=[length]))
        value = state.latents[row : row + 1, : context.sites]
        again = model.prior(context, Latent(value)).sample(noise(2).select([row])).value
        assert_close(again, value, f"latents of row {row}, generated after a prompt of {length} tokens")
    batches = {"packed documents": pack(TEXTS, vocabulary=subject.config.backbone.vocabulary)}
    batches |= {"texts with prompts": Batch.of([subject.tokens()[0], subject.tokens(length=5)[0]], given=[7, 0])}
    for what, batch in batches.items():
        context = model.context(batch)
        latent = model.sample_prior(context, noise(2))
        again = model.prior(context, latent).sample(noise(2)).value
        assert_close(again[context.site_mask], latent.value[context.site_mask].to(again), f"prior draws of {what}")
