"""Who may see what, found by changing one token or one latent and looking at what moves.

    decoder    given z, position t depends on x_<=t and on the sites of positions <= t
    prior      site s depends on x up to max(first position of s, given), and on earlier sites where it is autoregressive
    encoder    `sees_future` says whether a site depends on tokens after its first position
    trunk      everything below the first injected block is free of z, with a cache too

Legend: T tokens, S sites.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from latentlm.interface import Batch, Context, Latent, LatentDecoder
from latentlm.testing.comparing import MOVED, UNMOVED, assert_close, fingerprint, moved, probes
from latentlm.testing.registry import check, need
from latentlm.testing.subject import Subject, drawn, noise

_LENGTH = 12


@check("causality")
@torch.no_grad()
def causal_given_z(subject: Subject) -> None:
    """With z held fixed, another token at t moves position t and nothing before it."""
    model, text = subject.model, subject.tokens()[0]
    context = model.context(Batch.of([text]))
    latent = drawn(model, context)
    before = model.hidden(context, latent)
    for place in range(_LENGTH):
        other = model.hidden(model.context(Batch.of([subject.changed(text, place)])), latent)
        difference = moved(before, other)[0]  # (T,)
        ahead = difference[:place]
        assert not bool((ahead > UNMOVED).any()), (
            f"another token at position {place} moves position {int(ahead.argmax())} by {float(ahead.max()):.1e}: something "
            "above the trunk is not causal (attention mask, or an injection that reads later tokens)"
        )
        assert float(difference[place]) > MOVED, f"another token at position {place} does not move that position"


@check("causality")
@torch.no_grad()
def latent_conditions_own_positions(subject: Subject) -> None:
    """Another latent at a site moves the site's first position and nothing before it."""
    model = subject.model
    need(model.has_latents, "it has no latents")
    context = model.context(Batch.of(subject.tokens()))
    latent = drawn(model, context)
    assert latent is not None
    before = model.hidden(context, latent)
    for site in range(context.sites):
        value = latent.value.clone()
        value[:, site] = _another(model, context, latent)[:, site]
        difference = moved(before, model.hidden(context, Latent(value)))[0]
        first = int(context.first_positions()[0, site])
        ahead = difference[:first]
        assert not bool((ahead > UNMOVED).any()), (
            f"another latent at site {site} moves position {int(ahead.argmax())}, before the site begins at {first}: "
            "the condition of a position depends on the latent of its own site only (see `context.site_of`)"
        )
        assert float(difference[first]) > MOVED, f"another latent at site {site} does not move its first position {first}"


def _another(model: LatentDecoder, context: Context, latent: Latent) -> Tensor:
    """A value (B, S, E) that the prior draws and that differs from `latent` at every site."""
    value = latent.value.clone()
    for seed in range(100):
        drawn_now = model.sample_prior(context, noise(context.rows, seed=1000 + seed)).value.to(value)
        same = (value == latent.value).all(-1, keepdim=True)
        value = torch.where(same, drawn_now, value)
        if not bool((value == latent.value).all(-1).any()):
            return value
    raise AssertionError("a hundred draws from the prior are one value: nothing tells its latents apart")


@check("causality")
@torch.no_grad()
def prior_causal(subject: Subject) -> None:
    """The prior of a site sees tokens up to its first position or the prompt's end, whichever is later, and no further."""
    model, text = subject.model, subject.tokens()[0]
    need(model.has_latents, "it has no latents")
    for given in (0, 6):
        context = model.context(Batch.of([text], given=[given]))
        latent = Latent(model.sample_prior(context, noise(1)).value)
        values = probes(model, context)
        before = fingerprint(model.prior(context, latent), values)
        seen_until = context.first_positions()[0].clamp(min=given - 1)  # (S,)
        for place in range(_LENGTH):
            other = model.context(Batch.of([subject.changed(text, place)], given=[given]))
            difference = moved(before, fingerprint(model.prior(other, latent), values))[0]  # (S,)
            wrong = (difference > UNMOVED) & (seen_until < place)
            assert not bool(wrong.any()), (
                f"with {given} tokens given, another token at position {place} moves the prior of site "
                f"{int(wrong.long().argmax())}, "
                f"which may see tokens up to position {int(seen_until[wrong][0])}"
            )


@check("causality")
@torch.no_grad()
def prior_orders_latents(subject: Subject) -> None:
    """The prior of a site depends on earlier latents where it is autoregressive, and on no others."""
    model = subject.model
    need(model.has_latents, "it has no latents")
    context = model.context(Batch.of(subject.tokens()))
    latent = Latent(model.sample_prior(context, noise(1)).value)
    values = probes(model, context)
    before = fingerprint(model.prior(context, latent), values)
    other = _another(model, context, latent)
    later = 0
    for site in range(context.sites):
        value = latent.value.clone()
        value[:, site] = other[:, site]
        difference = moved(before, fingerprint(model.prior(context, Latent(value)), values))[0]  # (S,)
        wrong = difference[: site + 1] > UNMOVED
        assert not bool(wrong.any()), f"another latent at site {site} moves the prior of site {int(wrong.long().argmax())}"
        later += int((difference[site + 1 :] > UNMOVED).sum())
        assert subject.autoregressive or later == 0, (
            f"another latent at site {site} moves the prior of a later one, but the prior does not say "
            "`autoregressive = True`"
        )
    one_site = context.sites < 2
    assert one_site or not subject.autoregressive or later > 0, (
        "the prior says `autoregressive = True`, but no latent moves the prior of a later site (leave it out: it costs a step "
        "for each site)"
    )


@check("causality")
def sees_future_as_declared(subject: Subject) -> None:
    """The posterior of a site depends on tokens after the site's first position where `sees_future` says so, else never."""
    model = subject.model
    need(model.has_encoder, "it has no encoder")
    effects = 0
    for seed in range(3):
        text = subject.tokens(seed=seed)[0]
        context = model.context(Batch.of([text]))
        values = probes(model, context)
        before = fingerprint(model.posterior(context), values)
        first = context.first_positions()[0]
        for place in range(1, _LENGTH):
            other = model.context(Batch.of([subject.changed(text, place, by=3 + seed)]))
            difference = moved(before, fingerprint(model.posterior(other), values))[0]
            ahead = (difference > UNMOVED) & (first < place)
            effects += int(ahead.sum())
            assert model.sees_future or not bool(ahead.any()), (
                f"another token at position {place} moves the posterior of site {int(ahead.long().argmax())}, which begins "
                "before it: the encoder must say `sees_future = True`, or scores will mix it with targets that it has seen"
            )
    assert effects > 0 or not model.sees_future, (
        "the encoder says `sees_future = True`, but no token after a site's first position moves its posterior"
    )


@check("causality")
@torch.no_grad()
def trunk_free_of_z(subject: Subject) -> None:
    """What encoder and prior read of the trunk is the same under other latents, in training and with a cache."""
    need(subject.model.has_latents, "it has no latents")
    model, text = subject.copied(), subject.tokens()[0]
    context = model.context(Batch.of([text]))
    need(context.taps, "its trunk has no taps")
    latent = Latent(model.sample_prior(context, noise(1)).value)
    other = Latent(_another(model, context, latent))
    taps = []
    for value in (latent, other):
        model.hidden(context, value)
        taps.append([*_taps(model.context(Batch.of([text]))), *_cached_taps(model, text, value)])
    for one, two in zip(*taps, strict=True):
        assert_close(one, two, "a tap under two latents: the trunk reads z", tolerance=UNMOVED)


def _taps(context: Context) -> list[Tensor]:
    return [context.taps[k] for k in sorted(context.taps)]


def _cached_taps(model: LatentDecoder, text: list[int], latent: Latent) -> list[Tensor]:
    """The taps of every pass of a generation with the latents given."""
    found: list[Tensor] = []
    original = model.context

    def watched(*arguments: Any, **options: Any) -> Context:
        context = original(*arguments, **options)
        found.extend(_taps(context))
        return context

    model.context = watched  # type: ignore[method-assign]
    sites = model.context(Batch.of([text])).site_of[0]
    state = model.prefill(torch.tensor([text[:6]]), torch.tensor([6]), latents=latent, noise=noise(1))
    for place in range(6, len(text)):
        state = model.step(state, torch.tensor([text[place]]), latents=latent.value[:, int(sites[place])], noise=noise(1))
    model.context = original  # type: ignore[method-assign]
    return found
