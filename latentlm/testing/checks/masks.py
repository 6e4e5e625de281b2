"""Padding, documents that share a row, rows that share a batch: none of them may change what a document computes.

Legend: B rows, T tokens, S sites, P probes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from latentlm.interface import Batch, Context, Latent, LatentDecoder, Latents
from latentlm.testing.comparing import (
    TEXTS,
    UNMOVED,
    assert_close,
    called,
    fingerprint,
    fingerprints,
    other_tokens,
    pack,
    posteriors,
    priors,
    probes,
)
from latentlm.testing.registry import check, need
from latentlm.testing.subject import MovedNoise, Subject, drawn, noise


@dataclass(frozen=True)
class _Pass:
    """What a decoder makes of a batch with given latents."""

    context: Context
    hidden: Tensor
    """(B, T, D)."""
    parts: Mapping[tuple[str, str], Tensor] = field(default_factory=dict)
    """{(latent, what it is called): (B, S, P)} fingerprints of priors and posteriors."""


@torch.no_grad()
def _run(model: LatentDecoder, batch: Batch, latents: Latents | None, values: Mapping[str, Tensor]) -> _Pass:
    context = model.context(batch)
    parts: dict[tuple[str, str], Tensor] = {}
    if latents is not None:
        for socket, made in {"encoder": posteriors, "prior": priors}.items():
            found = fingerprints(made(model, context, latents), values)
            parts |= {(name, called(model, socket, name)): marks for name, marks in found.items()}
    return _Pass(context, model.hidden(context, latents), parts)


@torch.no_grad()
def _reference(subject: Subject, batch: Batch) -> tuple[_Pass, Latents | None, dict[str, Tensor]]:
    """The pass of a batch with latents of its own, those, and the probes."""
    context = subject.model.context(batch)
    latents = drawn(subject.model, context)
    values = probes(subject.model, context) if latents is not None else {}
    return _run(subject.model, batch, latents, values), latents, values


def _compare(one: _Pass, other: _Pass, positions: Tensor, sites: Mapping[str, Tensor], what: str) -> None:
    """Equal at `positions` (B, T) and at `sites` (B, S) of each latent."""
    for (name, part), first in one.parts.items():
        assert_close(other.parts[name, part][sites[name]], first[sites[name]], f"{part} with {what}", tolerance=UNMOVED)
    assert_close(other.hidden[positions], one.hidden[positions], f"hidden states with {what}", tolerance=UNMOVED)


def _packed(subject: Subject) -> Batch:
    return pack(TEXTS, vocabulary=subject.config.backbone.vocabulary)


@check("masks")
def padding_ignored(subject: Subject) -> None:
    """Other tokens in the padding change nothing at real positions: posterior, prior, hidden states, loss."""
    model, batch = subject.model, _packed(subject)
    holes = batch.documents < 0
    assert bool(holes.any())
    changed = other_tokens(model, batch, holes, by=5)
    one, latents, values = _reference(subject, batch)
    other = _run(model, changed, latents, values)
    sites = {name: one.context.sites_of(name).mask for name in model.latents}
    _compare(one, other, ~holes, sites, "other tokens in the padding")
    with torch.no_grad():
        losses = [model.loss(made, step=0, noise=noise(2)).reconstruction for made in (batch, changed)]
    assert_close(losses[1], losses[0], "the loss with other tokens in the padding", tolerance=UNMOVED)


@check("masks")
def documents_separate(subject: Subject) -> None:
    """Other tokens and other latents in a neighbouring document change nothing: posterior, prior, hidden states."""
    model, batch = subject.model, _packed(subject)
    one, latents, values = _reference(subject, batch)
    for number in range(int(batch.documents.max()) + 1):
        inside = batch.documents == number
        changed = other_tokens(model, batch, ~inside, by=3)
        sites = {name: _sites_of(one.context, name, inside) for name in model.latents}
        mixed = latents
        if latents is not None:
            with torch.no_grad():
                others = model.sample_prior(model.context(changed), noise(2, seed=9))
            mixed = Latents(
                {
                    name: Latent(torch.where(sites[name][..., None], own.value, others[name].value.to(own.value)))
                    for name, own in latents.items()
                }
            )
        found = _run(model, changed, mixed, values)
        what = f"everything but document {number} changed (mask by context.documents, and read latents by context.site_of)"
        _compare(one, found, inside, sites, what)


def _sites_of(context: Context, name: str, inside: Tensor) -> Tensor:
    """(B, S) bool: sites of the positions `inside` (B, T)."""
    sites = context.sites_of(name)
    counts = torch.zeros_like(sites.mask, dtype=torch.long)
    return counts.scatter_add(1, sites.site_of, inside.long()) > 0


@check("masks")
@torch.no_grad()
def packed_equals_separate(subject: Subject) -> None:
    """A document packed beside others computes what it does alone: posterior, prior, hidden states, and its loss and KL."""
    model, batch = subject.model, _packed(subject)
    together, latents, values = _reference(subject, batch)
    whole = model.loss(batch, step=0, noise=noise(2))
    for row, texts in enumerate(TEXTS):
        for number in range(len(texts)):
            inside = batch.documents[row] == number
            sites = {name: together.context.sites_of(name).site_of[row][inside].unique() for name in model.latents}
            what = f"document {number} of row {row} alone"
            alone = Batch.of([batch.inputs[row][inside].tolist()], [batch.targets[row][inside].tolist()])
            own = None
            if latents is not None:
                own = Latents({name: Latent(latents[name].value[row, sites[name]][None]) for name in latents})
            found = _run(model, alone, own, {name: value[:, row, sites[name]][:, None] for name, value in values.items()})
            for (name, part), expected in together.parts.items():
                assert_close(found.parts[name, part][0], expected[row, sites[name]], f"{part} of {what}")
            assert_close(found.hidden[0], together.hidden[row, inside], f"hidden states of {what}")
            moved = MovedNoise(noise(2).select([row]), {name: int(first[0]) for name, first in sites.items()})
            loss = model.loss(alone, step=0, noise=moved)  # the sites' own numbers
            for name, expected_loss in whole.latents.items():
                kl = loss.latents[name].kl[0]
                assert_close(kl, expected_loss.kl[row, sites[name]], f"the KL of {name} of {what}")
            assert_close(loss.reconstruction[0], whole.reconstruction[row, inside], f"the loss of {what}")


@check("masks")
@torch.no_grad()
def batch_independent(subject: Subject) -> None:
    """A text beside a longer one, in any order, computes what it does alone: posterior, prior, hidden states, loss."""
    model = subject.model
    texts = [subject.tokens(length=length, seed=length)[0] for length in (5, 12, 8)]
    batch = Batch.of(texts)
    together, latents, values = _reference(subject, batch)
    losses = model.loss(batch, step=0, noise=noise(3))
    order = [2, 0, 1]
    shuffled = model.loss(Batch.of([texts[row] for row in order]), step=0, noise=noise(3).select(order))
    assert_close(shuffled.reconstruction, losses.reconstruction[order], "the loss of rows in another order")
    for row, text in enumerate(texts):
        context = model.context(Batch.of([text]))
        counts = {name: context.sites_of(name).mask.shape[1] for name in model.latents}
        own, probed = None, {name: value[:, row : row + 1, : counts[name]] for name, value in values.items()}
        if latents is not None:
            own = Latents({name: Latent(latents[name].value[row : row + 1, : counts[name]]) for name in latents})
        found = _run(model, Batch.of([text]), own, probed)
        for (name, part), expected in together.parts.items():
            assert_close(found.parts[name, part][0], expected[row, : counts[name]], f"{part} of row {row} alone")
        assert_close(found.hidden[0], together.hidden[row, : len(text)], f"hidden states of row {row} alone")
        loss = model.loss(Batch.of([text]), step=0, noise=noise(3).select([row]))
        assert_close(loss.reconstruction[0], losses.reconstruction[row, : len(text)], f"the loss of row {row} alone")


@check("masks")
@torch.no_grad()
def hiding_equals_cutting(subject: Subject) -> None:
    """The posterior of a context that hides what comes after (`before`) is that of the shorter text."""
    model, text = subject.model, subject.tokens()[0]
    need(model.has_encoder, "it has no encoder")
    context = model.context(Batch.of([text, text]))
    values = probes(model, context)
    latents = drawn(model, context)
    assert latents is not None
    lengths = [5, 8]
    hidden = fingerprints(posteriors(model, context.before(torch.tensor(lengths)), latents), values)
    for row, length in enumerate(lengths):
        short = model.context(Batch.of([text[:length]]))
        counts = {name: short.sites_of(name).mask.shape[1] for name in model.latents}
        own = Latents({name: Latent(latents[name].value[row : row + 1, : counts[name]]) for name in latents})
        for name, posterior in posteriors(model, short, own).items():
            expected = fingerprint(posterior, values[name][:, row : row + 1, : counts[name]])
            assert_close(
                hidden[name][row, : counts[name]],
                expected[0],
                f"{called(model, 'encoder', name)} on the first {length} tokens, the rest hidden: the encoder reads what "
                "context.documents hides",
            )


@check("masks")
@torch.no_grad()
def samples_equal_one_by_one(subject: Subject) -> None:
    """Several latents per text, as one batch, give what each gives alone: posterior, prior and hidden states."""
    model = subject.model
    need(model.has_latents, "it has no latents")
    context = model.context(Batch.of([subject.tokens(length=9)[0], subject.tokens(length=7, seed=1)[0]]))
    samples = 3
    rows = torch.arange(2).repeat_interleave(samples)
    draws = [drawn(model, context, seed=seed) for seed in range(samples)]
    known = [draw for draw in draws if draw is not None]
    wide = Latents(  # row b*K + k
        {name: Latent(torch.stack([draw[name].value for draw in known], dim=1).flatten(0, 1)) for name in model.latents}
    )
    hidden, values = model.hidden(context, wide), probes(model, context)
    found = {"prior": priors(model, context, wide), "encoder": posteriors(model, context, wide)}
    for k, one in enumerate(known):
        assert_close(model.hidden(context, one), hidden[k::samples], f"hidden states of sample {k} alone")
        alone = {"prior": priors(model, context, one), "encoder": posteriors(model, context, one)}
        for socket, distributions in found.items():
            for name, distribution in distributions.items():
                each = distribution.shape[0] == len(rows)  # what depends on no latent may have the rows of the texts
                marks = fingerprint(distribution, values[name].index_select(1, rows) if each else values[name])
                expected = marks[k::samples] if each else marks
                again = fingerprint(alone[socket][name], values[name])
                assert_close(again, expected, f"{called(model, socket, name)} of sample {k} alone")
