"""Training reaches every part.

Weights that begin at zero hide those behind them, so a few optimiser steps are taken and a parameter counts as reached by the
first gradient that it gets.

Legend: B rows, T tokens, S sites, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from latentlm.composed import ComposedDecoder
from latentlm.composed.objective import RowObjective
from latentlm.interface import Batch, Condition, Context, Latent, LatentDecoder, Loss, Noise
from latentlm.testing.comparing import (
    TEXTS,
    UNMOVED,
    assert_close,
    before,
    called,
    fingerprint,
    moved,
    pack,
    posteriors,
    probes,
)
from latentlm.testing.registry import check, need
from latentlm.testing.subject import Subject, drawn

_STEPS = 3
Watched = Callable[[LatentDecoder], dict[str, Tensor]]


def parts_of(model: LatentDecoder) -> dict[tuple[str, str], nn.Module]:
    """{(latent, socket): part} of encoders, priors and injections, where there are any."""
    found = {
        (name, socket): getattr(latent, socket, None)
        for name, latent in model.latents.items()
        for socket in ("encoder", "prior", "injection")
    }
    return {key: part for key, part in found.items() if isinstance(part, nn.Module)}


def _named(model: LatentDecoder, socket: str | None = None, *, fitted: bool = True) -> dict[str, Tensor]:
    """Trainable parameters of the parts by "the encoder of z (Free): readout.weight"; without those of encoders that are fitted
    where `fitted` is false."""
    return {
        f"{called(model, own, name)}: {key}": parameter
        for (name, own), part in parts_of(model).items()
        if socket in (None, own) and (fitted or not getattr(part, "needs_objective", False))
        for key, parameter in part.named_parameters()
        if parameter.requires_grad
    }


def _silent(subject: Subject, objective: Callable[[Loss], Tensor], watched: Watched) -> list[str]:
    """Names of the watched parameters that a few steps of training on `objective` never give a gradient."""
    model = subject.copied().train()
    batch = pack(TEXTS, vocabulary=subject.config.backbone.vocabulary)
    parameters = watched(model)
    silent = set(parameters)
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(_STEPS):
        loss = model.loss(batch, step=step, noise=Noise.keyed(step, range(2)))
        optimiser.zero_grad()
        objective(loss).backward()
        silent -= {name for name, tensor in parameters.items() if tensor.grad is not None and bool(tensor.grad.any())}
        optimiser.step()
    return sorted(silent)


def _whole(loss: Loss) -> Tensor:
    """The total, and KL at its full price: a schedule may charge nothing for it at first."""
    kl = loss.reconstruction.sum()
    for own in loss.latents.values():
        kl = kl + own.kl[own.site_mask].sum()
    return loss.total + kl / loss.target_mask.sum()


@check("gradients")
def gradients_reach_parts(subject: Subject) -> None:
    """Every parameter of encoder, prior and injection gets a gradient."""
    need(subject.model.has_latents, "it has no latents")
    need(_named(subject.model, fitted=False), "its parts have no parameters")
    silent = _silent(subject, _whole, lambda model: _named(model, fitted=False))
    assert not silent, (
        f"no gradient reaches {', '.join(silent)}: a detach, a value without a surrogate, or a parameter that nothing uses"
    )


@check("gradients")
def backbone_hears_loss(subject: Subject) -> None:
    """Every parameter outside the parts, and of no feed-forward that an injection replaces, gets a gradient from the loss."""

    def watched(model: LatentDecoder) -> dict[str, Tensor]:
        inside = {id(parameter) for part in parts_of(model).values() for parameter in part.parameters()}
        injections = [part for (_, socket), part in parts_of(model).items() if socket == "injection"]
        replaced = tuple(
            f"backbone.blocks.{block}.feed_forward."
            for injection in injections
            if "feed_forward" in getattr(injection, "slots", ())
            for block in getattr(injection, "blocks", ())
        )
        return {
            name: p
            for name, p in model.named_parameters()
            if id(p) not in inside and p.requires_grad and not name.startswith(replaced)
        }

    silent = _silent(subject, lambda loss: loss.total, watched)
    assert not silent, f"no gradient reaches {', '.join(silent)}"


@check("gradients")
def encoder_hears_reconstruction(subject: Subject) -> None:
    """Every parameter of the encoder gets a gradient from the reconstruction alone, without KL."""
    encoders = {name: part for (name, socket), part in parts_of(subject.model).items() if socket == "encoder"}
    need(encoders, "it has no encoder")
    trained = [part for part in encoders.values() if not getattr(part, "needs_objective", False)]
    need(trained, "its encoder is fitted, not trained")
    need(any(list(part.parameters()) for part in trained), "its encoder has no parameters")
    silent = _silent(
        subject, lambda loss: loss.reconstruction.sum(), lambda model: _named(model, "encoder", fitted=False)
    )
    assert not silent, (
        f"no gradient of the reconstruction reaches {', '.join(silent)}: the encoder learns nothing about the "
        "text there. Let the injection build its surrogate from `latent.distribution`, or let `sample(differentiable=True)` "
        "carry the gradient through the value"
    )


@check("gradients")
def fitted_posterior_fits(subject: Subject) -> None:
    """An encoder without a network fits each text better than another and than the prior does, and leaves the decoder alone."""
    model = copy.deepcopy(subject.lively)
    fitted = [
        name
        for (name, socket), part in parts_of(model).items()
        if socket == "encoder" and getattr(part, "needs_objective", False)
    ]
    need(isinstance(model, ComposedDecoder) and fitted, "its encoder has a network")
    assert isinstance(model, ComposedDecoder)
    context = model.context(Batch.of(subject.tokens(4)))
    latents = drawn(model, context)
    assert latents is not None
    for name in fitted:
        above, what = before(model, latents, name), called(model, "encoder", name)
        objective, q = RowObjective(model, context, name, above), model.posterior(context, name, above)
        own = float(objective(q).detach().sum())
        others = float(objective(q.select(torch.tensor([1, 2, 3, 0]))).detach().sum())
        assert own < others * (1.0 - UNMOVED), (
            f"four texts cost {own:.3f} nats under the posteriors that {what} fitted to them, {others:.3f} under those fitted "
            "to one another: the fit does not follow its objective, or not far enough (steps, rate)"
        )
        with torch.no_grad():
            unfitted = float(objective(model.prior(context, name, latents)).sum())
        assert own < unfitted * (1.0 - UNMOVED), (
            f"four texts cost {own:.3f} nats under the posteriors that {what} fitted to them, {unfitted:.3f} under the prior: "
            "the fit does not go far enough from where it starts (steps, rate)"
        )
    marked = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert not marked, f"fitting leaves gradients in {', '.join(marked)}"


@check("gradients")
@torch.no_grad()
def posterior_varies_between_sites(subject: Subject) -> None:
    """Different sites of one text have different posteriors."""
    model = subject.model
    need(model.has_encoder, "it has no encoder")
    spread = {name: 0.0 for name, latent in model.latents.items() if latent.has_encoder}
    for seed in range(3):
        text = subject.tokens(seed=seed)[0]
        context = model.context(Batch.of([text]))
        two = model.context(pack([[text, subject.tokens(length=7, seed=seed + 5)[0]]]))
        for name in spread:
            # A document is one site: take two of them.
            seen = context if context.sites_of(name).mask.shape[1] > 1 else two
            latents = drawn(model, seen)
            assert latents is not None
            sites = seen.sites_of(name).mask.shape[1]
            # The probes of the first site serve all, so that only the posterior can differ.
            values = probes(model, seen)[name][:, :, :1].expand(-1, -1, sites, -1)
            found = fingerprint(posteriors(model, seen, latents)[name], values)
            spread[name] = max(spread[name], float(moved(found, found[:, :1].expand_as(found)).max()))
    for name, found_spread in spread.items():
        assert found_spread > UNMOVED, (
            f"{called(model, 'encoder', name)} gives every site the same posterior: it does not know where it is (positions, "
            "or `context.site_of`)"
        )


@check("gradients")
@torch.no_grad()
def zero_injection_equals_vanilla(subject: Subject) -> None:
    """With every parameter of an injection zero, the decoder is what it is without that injection."""
    model = subject.composed
    need(model is not None and model.latents, "it has no injection")
    assert model is not None
    lasting = {"prefix", "feed_forward"}
    chosen = [name for name, latent in model.latents.items() if not lasting & set(latent.injection.slots)]
    need(chosen, "a prefix takes attention whatever it holds, a map stands in the feed-forward's place whatever it does")
    chosen = [name for name in chosen if list(model.latents[name].injection.parameters())]
    need(chosen, "its injection has no parameters")
    batch = pack(TEXTS, vocabulary=subject.config.backbone.vocabulary)
    latents = drawn(model, model.context(batch))
    real = batch.documents >= 0
    for name in chosen:
        silenced, without = copy.deepcopy(model), copy.deepcopy(model)
        for parameter in silenced.latents[name].injection.parameters():
            parameter.zero_()
        without.latents[name].injection.forward = _nothing  # type: ignore[method-assign]
        found, expected = (one.hidden(one.context(batch), latents)[real] for one in (silenced, without))
        what = f"hidden states with {called(model, 'injection', name)} of zeros"
        assert_close(found, expected, what, tolerance=UNMOVED)


def _nothing(latent: Latent, context: Context) -> Condition:
    """What an injection that is not there adds."""
    return Condition({})


@check("gradients")
def training_lowers_loss(subject: Subject) -> None:
    """Thirty steps on one batch lower its reconstruction."""
    model = subject.copied().train()
    batch = pack(TEXTS, vocabulary=subject.config.backbone.vocabulary)
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    totals = []
    for step in range(30):
        loss = model.loss(batch, step=step, noise=Noise.keyed(step, range(2)))
        assert bool(loss.total.isfinite()), f"the loss is {float(loss.total)} at step {step}"
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
        model.advance(step)
        totals.append(float(loss.reconstruction.detach().sum()))
    first, last = sum(totals[:3]) / 3, sum(totals[-3:]) / 3
    assert last < 0.9 * first, f"the reconstruction goes from {first:.2f} to {last:.2f} nats in thirty steps on one batch"


@check("gradients")
@torch.no_grad()
def loss_adds_up(subject: Subject) -> None:
    """The loss is the mean cross-entropy plus the penalty of each latent's schedule, which sees its own KL and sites."""
    model = subject.copied()  # a schedule may note what it sees
    batch = pack(TEXTS, vocabulary=subject.config.backbone.vocabulary)
    loss = model.loss(batch, step=5, noise=Noise.keyed(0, range(2)))
    assert set(loss.latents) == set(model.latents), f"the loss speaks of {list(loss.latents)}, not of {list(model.latents)}"
    expected = loss.reconstruction.sum() / loss.target_mask.sum()
    again = subject.copied()
    for name, schedule in again.kl_schedules.items():
        own = loss.latents[name]
        penalty, _ = schedule.penalty(own.kl, loss.reconstruction, own.site_mask, loss.target_mask, step=5)
        expected = expected + penalty
    if loss.auxiliary is not None:
        expected = expected + loss.auxiliary
    assert_close(loss.total, expected, "the loss, against cross-entropy plus the schedules' penalties", tolerance=UNMOVED)
