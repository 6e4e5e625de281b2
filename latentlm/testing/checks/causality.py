"""Who may see what, found by changing one token or one latent and looking at what moves.

    decoder    given z, position t depends on x_<=t and on the sites of positions <= t
    prior      site s depends on x up to max(first position of s, given), on earlier sites where it is autoregressive, and on
               what has begun by its first position of the latents that its `above` names
    encoder    `sees_future` says whether a site depends on tokens after its first position; of other latents it reads those
               that its `above` names
    trunk      everything below the first injected block is free of z, with a cache too

Legend: T tokens, S sites.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from latentlm.composed.sockets import Sockets, needs
from latentlm.interface import Batch, Context, Latent, LatentDecoder, Latents
from latentlm.testing.comparing import (
    MOVED,
    UNMOVED,
    assert_close,
    called,
    detached,
    fingerprints,
    moved,
    other_text,
    posteriors,
    priors,
    probes,
)
from latentlm.testing.registry import check, need
from latentlm.testing.subject import Subject, drawn, noise

_LENGTH = 12


@check("causality")
@torch.no_grad()
def causal_given_z(subject: Subject) -> None:
    """With z held fixed, another token at t moves position t and nothing before it."""
    model, text = subject.model, subject.tokens()[0]
    context = model.context(Batch.of([text]))
    latents = drawn(model, context)
    before = model.hidden(context, latents)
    met = 0
    for place in range(_LENGTH):
        batch = other_text(model, text, place)
        if batch.inputs[0].tolist() == text:  # no other token leaves the sites where they are
            continue
        met += 1
        difference = moved(before, model.hidden(model.context(batch), latents))[0]  # (T,)
        ahead = difference[:place]
        assert not bool((ahead > UNMOVED).any()), (
            f"another token at position {place} moves position {int(ahead.argmax())} by {float(ahead.max()):.1e}: something "
            "above the trunk is not causal (attention mask, or an injection that reads later tokens)"
        )
        assert float(difference[place]) > MOVED, f"another token at position {place} does not move that position"
    need(met, "no token can be exchanged without moving a site")


@check("causality")
@torch.no_grad()
def latent_conditions_own_positions(subject: Subject) -> None:
    """Another value at a site of a latent moves the site's first position and nothing before it."""
    model = subject.model
    need(model.has_latents, "it has no latents")
    context = model.context(Batch.of(subject.tokens()))
    latents = drawn(model, context)
    assert latents is not None
    before = model.hidden(context, latents)
    for name in model.latents:
        another = _another(model, context, latents, name)
        first_positions = context.of(name).first_positions()[0].tolist()
        for site, first in enumerate(first_positions):
            other = latents.plus(name, _with_site(latents[name], another, site))
            difference = moved(before, model.hidden(context, other))[0]
            ahead = difference[:first]
            assert not bool((ahead > UNMOVED).any()), (
                f"another value at site {site} of {name} moves position {int(ahead.argmax())}, before the site begins at "
                f"{first}: in {called(model, 'injection', name)}, the condition of a position depends on the latent of its own "
                "site only (see `context.site_of`)"
            )
            assert float(difference[first]) > MOVED, (
                f"another value at site {site} of {name} does not move its first position {first}: "
                f"{called(model, 'injection', name)} puts it elsewhere, or nowhere (see `context.site_of`)"
            )


def _another(model: LatentDecoder, context: Context, latents: Latents, name: str) -> Tensor:
    """A value (B, S, E) of one latent that its prior draws and that differs from its own at every site."""
    own = latents[name].value
    value = own.clone()
    for seed in range(100):
        drawn_now = model.sample_prior(context, noise(context.rows, seed=1000 + seed))[name].value.to(value)
        same = (value == own).all(-1, keepdim=True)
        value = torch.where(same, drawn_now, value)
        if not bool((value == own).all(-1).any()):
            return value
    raise AssertionError(f"a hundred draws from {called(model, 'prior', name)} are one value: nothing tells its latents apart")


def _with_site(latent: Latent, another: Tensor, site: int) -> Latent:
    """The latent with another value at one site."""
    value = latent.value.clone()
    value[:, site] = another[:, site]
    return Latent(value)


@check("causality")
@torch.no_grad()
def prior_causal(subject: Subject) -> None:
    """The prior of a site sees tokens up to its first position or the prompt's end, whichever is later, and no further."""
    model, text = subject.model, subject.tokens()[0]
    need(model.has_latents, "it has no latents")
    for given in (0, 6):
        context = model.context(Batch.of([text], given=[given]))
        latents = detached(model.sample_prior(context, noise(1)))
        values = probes(model, context)
        before = fingerprints(priors(model, context, latents), values)
        for place in range(_LENGTH):
            other = model.context(other_text(model, text, place, given=given))
            for name, after in fingerprints(priors(model, other, latents), values).items():
                seen_until = context.of(name).first_positions()[0].clamp(min=given - 1)  # (S,)
                difference = moved(before[name], after)[0]  # (S,)
                wrong = (difference > UNMOVED) & (seen_until < place)
                assert not bool(wrong.any()), (
                    f"with {given} tokens given, another token at position {place} moves {called(model, 'prior', name)} at "
                    f"site {int(wrong.long().argmax())}, which may see tokens up to position {int(seen_until[wrong][0])} "
                    "(`Context.first_positions`)"
                )


@check("causality")
@torch.no_grad()
def prior_orders_latents(subject: Subject) -> None:
    """Of z, the prior of a site sees earlier sites where it is autoregressive, and what has begun of the latents above."""
    model = subject.model
    need(model.has_latents, "it has no latents")
    context = model.context(Batch.of(subject.tokens()))
    latents = detached(model.sample_prior(context, noise(1)))
    values = probes(model, context)
    before = fingerprints(priors(model, context, latents), values)
    order, later, reads = list(model.latents), dict.fromkeys(model.latents, 0), set()
    for changed in order:
        another = _another(model, context, latents, changed)
        for site, begins in enumerate(context.of(changed).first_positions()[0].tolist()):
            found = priors(model, context, latents.plus(changed, _with_site(latents[changed], another, site)))
            for name, after in fingerprints(found, values).items():
                difference = moved(before[name], after)[0]  # (S,)
                first = context.of(name).first_positions()[0]
                index = torch.arange(len(first))
                allowed = index > site if name == changed else (first >= begins) & (order.index(changed) < order.index(name))
                wrong = (difference > UNMOVED) & ~allowed
                assert not bool(wrong.any()), (
                    f"another value at site {site} of {changed}, which begins at position {begins}, moves "
                    f"{called(model, 'prior', name)} at site {int(wrong.long().argmax())}, which begins at position "
                    f"{int(first[wrong][0])}: a site sees earlier sites of its own latent, and of those in `above` what is "
                    "open at its first position (`Context.at_first_positions`)"
                )
                if bool((difference > UNMOVED).any()):
                    reads.add((name, changed))
                    later[name] += name == changed
    for name, latent in model.latents.items():
        _as_declared(model, name, later[name], sites=len(context.of(name).first_positions()[0]))
        for other in latent.above_of("prior") if isinstance(latent, Sockets) else ():
            assert (name, other) in reads, (
                f"{called(model, 'prior', name)} names {other} in `above`, but no value of {other} moves it: leave it out, for "
                "it makes the prior run once per sample"
            )


def _as_declared(model: LatentDecoder, name: str, effects: int, *, sites: int) -> None:
    """`autoregressive` says whether an earlier site moves a later one."""
    autoregressive = model.latents[name].autoregressive
    assert autoregressive or effects == 0, (
        f"another value at a site moves {called(model, 'prior', name)} at a later one, but the prior does not say "
        "`autoregressive = True`"
    )
    assert sites < 2 or not autoregressive or effects > 0, (
        f"{called(model, 'prior', name)} says `autoregressive = True`, but no site moves a later one (leave it out: it costs a "
        "step for each site)"
    )


@check("causality")
@torch.no_grad()
def posterior_orders_latents(subject: Subject) -> None:
    """The posterior depends on the latents that its encoder names in `above`, or meets through a tap, and on no others."""
    model = subject.composed
    need(model is not None and len(model.latents) > 1, "it has no several latents")
    assert model is not None
    context = model.context(Batch.of(subject.tokens()))
    latents = drawn(model, context)
    assert latents is not None
    values = probes(model, context)
    before = fingerprints(posteriors(model, context, latents), values)
    for changed in model.latents:
        other = latents.plus(changed, Latent(_another(model, context, latents, changed)))
        for name, after in fingerprints(posteriors(model, context, other), values).items():
            effect = float((before[name] - after).abs().max())
            may = changed in needs(model.latents, name, "encoder")[1]
            assert may or effect <= UNMOVED, (
                f"another value of {changed} moves {called(model, 'encoder', name)}, which does not name it in `above`"
            )
            assert effect > MOVED or changed not in model.latents[name].above_of("encoder"), (
                f"{called(model, 'encoder', name)} names {changed} in `above`, but no value of it moves the posterior: "
                "leave it out, for it makes the encoder run once per sample"
            )


@check("causality")
def sees_future_as_declared(subject: Subject) -> None:
    """The posterior of a site depends on tokens after the site's first position where `sees_future` says so, else never."""
    model = subject.model
    need(model.has_encoder, "it has no encoder")
    effects = {name: 0 for name, latent in model.latents.items() if latent.has_encoder}
    for seed in range(3):
        text = subject.tokens(seed=seed)[0]
        context = model.context(Batch.of([text]))
        latents = drawn(model, context)
        assert latents is not None
        values = probes(model, context)
        before = fingerprints(posteriors(model, context, latents), values)
        for place in range(1, _LENGTH):
            other = model.context(other_text(model, text, place, by=3 + seed))
            for name, after in fingerprints(posteriors(model, other, latents), values).items():
                ahead = (moved(before[name], after)[0] > UNMOVED) & (context.of(name).first_positions()[0] < place)
                effects[name] += int(ahead.sum())
                assert model.latents[name].sees_future or not bool(ahead.any()), (
                    f"another token at position {place} moves {called(model, 'encoder', name)} at site "
                    f"{int(ahead.long().argmax())}, which begins before it: the encoder must say `sees_future = True`, or "
                    "scores will mix it with targets that it has seen"
                )
    for name, count in effects.items():
        assert count > 0 or not model.latents[name].sees_future, (
            f"{called(model, 'encoder', name)} says `sees_future = True`, but no token after a site's first position moves its "
            "posterior"
        )


@check("causality")
@torch.no_grad()
def trunk_free_of_z(subject: Subject) -> None:
    """What encoders and priors read of the trunk is the same under other latents, in training and with a cache."""
    need(subject.model.has_latents, "it has no latents")
    model, text = subject.copied(), subject.tokens()[0]
    context = model.context(Batch.of([text]))
    need(context.taps, "its trunk has no taps")
    latents = detached(model.sample_prior(context, noise(1)))
    other = Latents({name: Latent(_another(model, context, latents, name)) for name in model.latents})
    taps = []
    for value in (latents, other):
        model.hidden(context, value)
        taps.append([*_taps(model.context(Batch.of([text]))), *_cached_taps(model, text, value)])
    for one, two in zip(*taps, strict=True):
        assert_close(one, two, "a tap under two latents: the trunk reads z", tolerance=UNMOVED)


def _taps(context: Context) -> list[Tensor]:
    return [context.taps[k] for k in sorted(context.taps)]


def _cached_taps(model: LatentDecoder, text: list[int], latents: Latents) -> list[Tensor]:
    """The taps of every pass of a generation with the latents given."""
    found: list[Tensor] = []
    original = model.context

    def watched(*arguments: Any, **options: Any) -> Context:
        context = original(*arguments, **options)
        found.extend(_taps(context))
        return context

    model.context = watched  # type: ignore[method-assign]
    whole = original(Batch.of([text]))
    state = model.prefill(torch.tensor([text[:6]]), torch.tensor([6]), latents=latents, noise=noise(1))
    for place in range(6, len(text)):
        now = {name: latents[name].value[:, int(whole.sites_of(name).site_of[0, place])] for name in model.latents}
        state = model.step(state, torch.tensor([text[place]]), latents=now, noise=noise(1))
    model.context = original  # type: ignore[method-assign]
    return found
