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
from latentlm.composed.decoding import RowObjective
from latentlm.interface import Batch, LatentDecoder, Loss, Noise
from latentlm.testing.comparing import TEXTS, UNMOVED, assert_close, fingerprint, moved, pack, probes
from latentlm.testing.registry import check, need
from latentlm.testing.subject import Subject, drawn

_STEPS = 3
Watched = Callable[[LatentDecoder], dict[str, Tensor]]


def _parts(model: LatentDecoder) -> dict[str, nn.Module]:
    """Encoder, prior and injection, where there are any."""
    found = {"encoder": "encoder", "prior": "prior_part", "injection": "injection"}
    parts = {name: getattr(model, attribute, None) for name, attribute in found.items()}
    return {name: part for name, part in parts.items() if isinstance(part, nn.Module)}


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
    kl = 0.0 if loss.kl is None else loss.kl[loss.site_mask].sum()
    return loss.total + (loss.reconstruction.sum() + kl) / loss.target_mask.sum()


@check("gradients")
def gradients_reach_parts(subject: Subject) -> None:
    """Every parameter of encoder, prior and injection gets a gradient."""
    need(subject.model.has_latents, "it has no latents")

    def watched(model: LatentDecoder) -> dict[str, Tensor]:
        fitted = getattr(getattr(model, "encoder", None), "needs_objective", False)
        return {
            f"{name}.{key}": parameter
            for name, part in _parts(model).items()
            if not (name == "encoder" and fitted)
            for key, parameter in part.named_parameters()
            if parameter.requires_grad
        }

    need(watched(subject.model), "its parts have no parameters")
    silent = _silent(subject, _whole, watched)
    assert not silent, (
        f"no gradient reaches {', '.join(silent)}: a detach, a value without a surrogate, or a parameter that nothing uses"
    )


@check("gradients")
def backbone_hears_loss(subject: Subject) -> None:
    """Every parameter outside the parts gets a gradient from the loss."""

    def watched(model: LatentDecoder) -> dict[str, Tensor]:
        inside = {id(parameter) for part in _parts(model).values() for parameter in part.parameters()}
        return {name: p for name, p in model.named_parameters() if id(p) not in inside and p.requires_grad}

    silent = _silent(subject, lambda loss: loss.total, watched)
    assert not silent, f"no gradient reaches {', '.join(silent)}"


@check("gradients")
def encoder_hears_reconstruction(subject: Subject) -> None:
    """Every parameter of the encoder gets a gradient from the reconstruction alone, without KL."""
    encoder = _parts(subject.model).get("encoder")
    need(encoder, "it has no encoder")
    assert encoder is not None
    need(not getattr(encoder, "needs_objective", False), "its encoder is fitted, not trained")
    need(list(encoder.parameters()), "its encoder has no parameters")

    def watched(model: LatentDecoder) -> dict[str, Tensor]:
        return {f"encoder.{name}": p for name, p in _parts(model)["encoder"].named_parameters() if p.requires_grad}

    silent = _silent(subject, lambda loss: loss.reconstruction.sum(), watched)
    assert not silent, (
        f"no gradient of the reconstruction reaches {', '.join(silent)}: the encoder learns nothing about the "
        "text there. Let the injection build its surrogate from `latent.distribution`, or let `sample(differentiable=True)` "
        "carry the gradient through the value"
    )


@check("gradients")
def fitted_posterior_fits(subject: Subject) -> None:
    """An encoder without a network fits each text better than another and than the prior does, and leaves the decoder alone."""
    model = copy.deepcopy(subject.lively)
    encoder = _parts(model).get("encoder")
    need(isinstance(model, ComposedDecoder) and getattr(encoder, "needs_objective", False), "its encoder has a network")
    assert isinstance(model, ComposedDecoder)
    context = model.context(Batch.of(subject.tokens(4)))
    objective, q = RowObjective(model, context), model.posterior(context)
    own = float(objective(q).detach().sum())
    others = float(objective(q.select(torch.tensor([1, 2, 3, 0]))).detach().sum())
    assert own < others * (1.0 - UNMOVED), (
        f"four texts cost {own:.3f} nats under the posteriors fitted to them, {others:.3f} under those fitted to one another: "
        "the fit does not follow its objective, or not far enough (steps, rate)"
    )
    with torch.no_grad():
        unfitted = float(objective(model.prior(context, None)).sum())
    assert own < unfitted * (1.0 - UNMOVED), (
        f"four texts cost {own:.3f} nats under the posteriors fitted to them, {unfitted:.3f} under the prior: the fit does not "
        "go far enough from where it starts (steps, rate)"
    )
    marked = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert not marked, f"fitting leaves gradients in {', '.join(marked)}"


@check("gradients")
@torch.no_grad()
def posterior_varies_between_sites(subject: Subject) -> None:
    """Different sites of one text have different posteriors."""
    model = subject.model
    need(model.has_encoder, "it has no encoder")
    spread = 0.0
    for seed in range(3):
        text = subject.tokens(seed=seed)[0]
        context = model.context(Batch.of([text]))
        if context.sites == 1:  # a document is one site: take two of them
            context = model.context(pack([[text, subject.tokens(length=7, seed=seed + 5)[0]]]))
        # The probes of the first site serve all, so that only the posterior can differ.
        values = probes(model, context)[:, :, :1].expand(-1, -1, context.sites, -1)
        found = fingerprint(model.posterior(context), values)
        spread = max(spread, float(moved(found, found[:, :1].expand_as(found)).max()))
    assert spread > UNMOVED, (
        "the posterior is the same at every site: the encoder does not know where it is (positions, or `context.site_of`)"
    )


@check("gradients")
@torch.no_grad()
def zero_injection_equals_vanilla(subject: Subject) -> None:
    """With every parameter of the injection zero, the decoder is its backbone alone."""
    model = subject.composed
    need(model is not None and model.injection is not None, "it has no injection")
    assert model is not None
    assert model.injection is not None
    need("prefix" not in model.injection.slots, "a prefix takes attention whatever it holds")
    need(list(model.injection.parameters()), "its injection has no parameters")
    silenced = copy.deepcopy(model)
    assert silenced.injection is not None
    for parameter in silenced.injection.parameters():
        parameter.zero_()
    plain = ComposedDecoder(model.config)
    plain.backbone = silenced.backbone
    plain.eval()
    batch = pack(TEXTS, vocabulary=subject.config.backbone.vocabulary)
    latent = drawn(model, model.context(batch))
    found = silenced.hidden(silenced.context(batch), latent)
    expected = plain.hidden(plain.context(batch), None)
    real = batch.documents >= 0
    assert_close(found[real], expected[real], "hidden states with an injection of zeros", tolerance=UNMOVED)


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
        if model.kl_schedule is not None:
            model.kl_schedule.advance()
        totals.append(float(loss.reconstruction.detach().sum()))
    first, last = sum(totals[:3]) / 3, sum(totals[-3:]) / 3
    assert last < 0.9 * first, f"the reconstruction goes from {first:.2f} to {last:.2f} nats in thirty steps on one batch"
