"""The prior token by token is the prior of the whole text: the same distributions, and the same draws from the same noise.

Legend: B rows, S sites, E event dimensions, P probes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from latentlm.interface import Batch, Context, Distribution, Latent, LatentDecoder, Latents, State, noise_of
from latentlm.testing.comparing import TEXTS, assert_close, called, fingerprint, pack, probes
from latentlm.testing.registry import check, need
from latentlm.testing.subject import Subject, noise

_LENGTHS = [6, 3]
_STEPS = 9
Steps = dict[str, list[tuple[Distribution, Tensor]]]
"""{latent: [(p, starts (B,) bool) of each step]}."""


@check("decoding")
@torch.no_grad()
def step_equals_forward(subject: Subject) -> None:
    """`Prior.step` gives each site the distribution that `Prior.forward` gives it, after a prompt too."""
    model = subject.copied()
    parts = {name: getattr(latent, "prior", None) for name, latent in model.latents.items()}
    need(any(part is not None for part in parts.values()), "it has no prior in a socket")
    met: Steps = {name: [] for name in model.latents}
    for name, part in parts.items():
        if part is not None:
            part.step = _watched(part.step, met[name], called(model, "prior", name), model.latents[name].dims)
    prompts, fed = subject.tokens(2, max(_LENGTHS)), subject.tokens(2, _STEPS, seed=4)
    texts = [[*prompts[row][:length], *fed[row]] for row, length in enumerate(_LENGTHS)]
    state = model.prefill(torch.tensor(prompts), torch.tensor(_LENGTHS), latents="prior", noise=noise(2))
    for found in met.values():
        found.clear()  # what prefill drew of the prompt is the other check's
    counts = [_counts(state)]
    for number in range(_STEPS):
        state = model.step(state, torch.tensor([row[number] for row in fed]), noise=noise(2))
        counts.append(_counts(state))
    steps = {name: list(found) for name, found in met.items()}  # the probes below are drawn through the same parts
    need(any(steps.values()), "its decoder draws latents without Prior.step")
    for row, text in enumerate(texts):
        context = model.context(Batch.of([text], given=[_LENGTHS[row]]))
        latents = _met(state, row, context)
        values = probes(model, context)
        for name, own in steps.items():
            forward = fingerprint(model.prior(context, name, latents), values[name])[0]  # (S, P)
            for number, (p, starts) in enumerate(own):
                site = int(counts[number + 1][name][row]) - 1
                if bool(starts[row]):
                    one = p.select(torch.tensor([row]))
                    assert_close(
                        fingerprint(one, values[name][:, :, site : site + 1])[0, 0],
                        forward[site],
                        f"{called(model, 'prior', name)} at site {site} by step, {number + 1} tokens after a prompt of "
                        f"{_LENGTHS[row]}, against forward",
                    )
    for name, own in steps.items():
        begun = any(bool(starts.any()) for _, starts in own)
        longer = _may_begin(model, name, texts)
        assert begun or not longer, f"no step began a site of {name}"


def _watched(
    step: Callable[..., tuple[Distribution, Any]], met: list[tuple[Distribution, Tensor]], what: str, dims: int
) -> Callable[..., tuple[Distribution, Any]]:
    """A step that notes what it gives."""

    def watched(
        state: Any, taps: Mapping[int, Tensor], previous: Tensor | None, starts: Tensor, above: Mapping[str, Tensor]
    ) -> tuple[Distribution, Any]:
        p, state = step(state, taps, previous, starts, above)
        assert tuple(p.shape) == (len(starts), 1, dims), f"{what}: step returns shape {tuple(p.shape)}, not (B, 1, E)"
        met.append((p, starts.clone()))
        return p, state

    return watched


def _counts(state: State) -> dict[str, Tensor]:
    """Sites met so far of each latent, (B,)."""
    return {name: met.counts.clone() for name, met in state.met.items()}


def _met(state: State, row: int, context: Context) -> Latents:
    """The latents of a row's sites."""
    return Latents(
        {
            name: Latent(met.value[row : row + 1, : context.sites_of(name).mask.shape[1]])
            for name, met in state.met.items()
        }
    )


def _may_begin(model: LatentDecoder, name: str, texts: list[list[int]]) -> bool:
    """Some site begins after a prompt."""
    for text, length in zip(texts, _LENGTHS, strict=True):
        first = model.context(Batch.of([text])).of(name).first_positions()[0]
        if bool((first >= length).any()):
            return True
    return False


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
    names = list(model.latents)
    for row, length in enumerate(_LENGTHS):
        context = model.context(Batch.of([[*prompts[row][:length], *fed[row]]], given=[length]))
        latents = _met(state, row, context)
        for name in names:
            own = noise_of(noise(2), name, names).select([row])
            again = model.prior(context, name, latents).sample(own).value
            what = f"{called(model, 'prior', name)}: the latents of row {row}, generated after a prompt of {length} tokens"
            assert_close(again, latents[name].value, what)
    batches = {"packed documents": pack(TEXTS, vocabulary=subject.config.backbone.vocabulary)}
    batches |= {"texts with prompts": Batch.of([subject.tokens()[0], subject.tokens(length=5)[0]], given=[7, 0])}
    for what, batch in batches.items():
        context = model.context(batch)
        latents = model.sample_prior(context, noise(2))
        for name in names:
            mask = context.sites_of(name).mask
            again = model.prior(context, name, latents).sample(noise_of(noise(2), name, names)).value
            expected = latents[name].value[mask].to(again)
            assert_close(again[mask], expected, f"draws of {called(model, 'prior', name)} for {what}")


@check("decoding")
@torch.no_grad()
def prefill_draws_posterior(subject: Subject) -> None:
    """The latents that prefill draws of a prompt are those that `infer` draws of the prompt alone, from the same noise."""
    model = subject.model
    need(model.has_encoder, "it has no encoder")
    prompts = subject.tokens(2, max(_LENGTHS))
    state = model.prefill(torch.tensor(prompts), torch.tensor(_LENGTHS), noise=noise(2))
    for row, length in enumerate(_LENGTHS):
        context = model.context(Batch.of([prompts[row][:length]], given=[length]))
        found, expected = _met(state, row, context), model.infer(context, noise(2).select([row]))
        for name in model.latents:
            what = f"{called(model, 'encoder', name)}: what prefill draws for a prompt of {length} tokens"
            assert_close(found[name].value, expected[name].value.to(found[name].value), what)
