"""Padding, documents that share a row, rows that share a batch: none of them may change what a document computes.

Legend: B rows, T tokens, S sites, P probes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from latentlm.interface import Batch, Context, Latent, LatentDecoder
from latentlm.testing.comparing import TEXTS, UNMOVED, assert_close, fingerprint, pack, probes
from latentlm.testing.registry import check, need
from latentlm.testing.subject import Subject, drawn, noise


@dataclass(frozen=True)
class _Pass:
    """What a decoder makes of a batch with given latents."""

    context: Context
    hidden: Tensor
    """(B, T, D)."""
    posterior: Tensor | None
    """(B, S, P) fingerprint; None where there is no encoder."""
    prior: Tensor | None
    """(B, S, P) fingerprint; None without latents."""


@torch.no_grad()
def _run(model: LatentDecoder, batch: Batch, latent: Latent | None, values: Tensor | None) -> _Pass:
    context = model.context(batch)
    prior = None if latent is None or values is None else fingerprint(model.prior(context, latent), values)
    posterior = fingerprint(model.posterior(context), values) if model.has_encoder and values is not None else None
    return _Pass(context, model.hidden(context, latent), posterior, prior)


@torch.no_grad()
def _reference(subject: Subject, batch: Batch) -> tuple[_Pass, Latent | None, Tensor | None]:
    """The pass of a batch with latents of its own, those, and the probes."""
    context = subject.model.context(batch)
    latent = drawn(subject.model, context)
    values = probes(subject.model, context) if latent is not None else None
    return _run(subject.model, batch, latent, values), latent, values


def _compare(one: _Pass, other: _Pass, positions: Tensor, sites: Tensor, what: str) -> None:
    """Equal at `positions` (B, T) and `sites` (B, S)."""
    for name in ("posterior", "prior"):
        first, second = getattr(one, name), getattr(other, name)
        if first is not None:
            assert_close(second[sites], first[sites], f"the {name} with {what}", tolerance=UNMOVED)
    assert_close(other.hidden[positions], one.hidden[positions], f"hidden states with {what}", tolerance=UNMOVED)


def _packed(subject: Subject) -> Batch:
    return pack(TEXTS, vocabulary=subject.config.backbone.vocabulary)


@check("masks")
def padding_ignored(subject: Subject) -> None:
    """Other tokens in the padding change nothing at real positions: posterior, prior, hidden states, loss."""
    batch = _packed(subject)
    holes = batch.documents < 0
    assert bool(holes.any())
    garbage = torch.where(holes, (batch.inputs + 5) % subject.config.backbone.vocabulary, batch.inputs)
    changed = replace(batch, inputs=garbage)
    one, latent, values = _reference(subject, batch)
    other = _run(subject.model, changed, latent, values)
    _compare(one, other, ~holes, one.context.site_mask, "other tokens in the padding")
    with torch.no_grad():
        losses = [subject.model.loss(made, step=0, noise=noise(2)).reconstruction for made in (batch, changed)]
    assert_close(losses[1], losses[0], "the loss with other tokens in the padding", tolerance=UNMOVED)


@check("masks")
def documents_separate(subject: Subject) -> None:
    """Other tokens and other latents in a neighbouring document change nothing: posterior, prior, hidden states."""
    model, batch = subject.model, _packed(subject)
    one, latent, values = _reference(subject, batch)
    for number in range(int(batch.documents.max()) + 1):
        inside = batch.documents == number
        inputs = torch.where(inside, batch.inputs, (batch.inputs + 3) % subject.config.backbone.vocabulary)
        changed = replace(batch, inputs=inputs)
        sites = _sites_of(one.context, inside)
        mixed = latent
        if latent is not None:
            with torch.no_grad():
                other = model.sample_prior(model.context(changed), noise(2, seed=9)).value.to(latent.value)
            mixed = Latent(torch.where(sites[..., None], latent.value, other))
        found = _run(model, changed, mixed, values)
        _compare(one, found, inside, sites, f"everything but document {number} changed (mask by context.documents)")


def _sites_of(context: Context, inside: Tensor) -> Tensor:
    """(B, S) bool: sites of the positions `inside` (B, T)."""
    counts = torch.zeros_like(context.site_mask, dtype=torch.long)
    return counts.scatter_add(1, context.site_of, inside.long()) > 0


@check("masks")
@torch.no_grad()
def packed_equals_separate(subject: Subject) -> None:
    """A document packed beside others computes what it does alone: posterior, prior, hidden states, and its loss and KL."""
    model, batch = subject.model, _packed(subject)
    together, latent, values = _reference(subject, batch)
    whole = model.loss(batch, step=0, noise=noise(2))
    for row, texts in enumerate(TEXTS):
        for number in range(len(texts)):
            inside = batch.documents[row] == number
            sites = together.context.site_of[row][inside].unique()
            what = f"document {number} of row {row}"
            text, targets = batch.inputs[row][inside].tolist(), batch.targets[row][inside].tolist()
            alone = Batch.of([text], [targets])
            own = None if latent is None else Latent(latent.value[row, sites][None])
            found = _run(model, alone, own, None if values is None else values[:, row, sites][:, None])
            for name in ("posterior", "prior"):
                expected = getattr(together, name)
                if expected is not None:
                    assert_close(getattr(found, name)[0], expected[row, sites], f"the {name} of {what} alone")
            assert_close(found.hidden[0], together.hidden[row, inside], f"hidden states of {what} alone")
            first = int(sites[0])
            loss = model.loss(alone, step=0, noise=noise(2).select([row]).at([first]))  # the sites' own numbers
            if loss.kl is not None and whole.kl is not None:
                assert_close(loss.kl[0], whole.kl[row, sites], f"the KL of {what} alone")
            assert_close(loss.reconstruction[0], whole.reconstruction[row, inside], f"the loss of {what} alone")


@check("masks")
@torch.no_grad()
def batch_independent(subject: Subject) -> None:
    """A text beside a longer one, in any order, computes what it does alone: posterior, prior, hidden states, loss."""
    model = subject.model
    texts = [subject.tokens(length=length, seed=length)[0] for length in (5, 12, 8)]
    batch = Batch.of(texts)
    together, latent, values = _reference(subject, batch)
    losses = model.loss(batch, step=0, noise=noise(3))
    order = [2, 0, 1]
    shuffled = model.loss(Batch.of([texts[row] for row in order]), step=0, noise=noise(3).select(order))
    assert_close(shuffled.reconstruction, losses.reconstruction[order], "the loss of rows in another order")
    for row, text in enumerate(texts):
        alone = model.context(Batch.of([text]))
        own = None if latent is None else Latent(latent.value[row : row + 1, : alone.sites])
        found = _run(model, Batch.of([text]), own, None if values is None else values[:, row : row + 1, : alone.sites])
        for name in ("posterior", "prior"):
            expected = getattr(together, name)
            if expected is not None:
                assert_close(getattr(found, name)[0], expected[row, : alone.sites], f"the {name} of row {row} alone")
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
    lengths = [5, 8]
    hidden = fingerprint(model.posterior(context.before(torch.tensor(lengths))), values)
    for row, length in enumerate(lengths):
        short = model.context(Batch.of([text[:length]]))
        expected = fingerprint(model.posterior(short), values[:, row : row + 1, : short.sites])
        assert_close(
            hidden[row, : short.sites],
            expected[0],
            f"the posterior of the first {length} tokens, the rest hidden: the encoder reads what context.documents hides",
        )


@check("masks")
@torch.no_grad()
def samples_equal_one_by_one(subject: Subject) -> None:
    """Several latents per text, as one batch, give what each gives alone: prior and hidden states."""
    model = subject.model
    need(model.has_latents, "it has no latents")
    context = model.context(Batch.of([subject.tokens(length=9)[0], subject.tokens(length=7, seed=1)[0]]))
    samples = 3
    rows = torch.arange(2).repeat_interleave(samples)
    if subject.autoregressive or not model.has_encoder:
        draws = [model.sample_prior(context, noise(2, seed=seed)).value for seed in range(samples)]
        value = torch.stack(draws, dim=1).flatten(0, 1)  # (B * K, S, E)
    else:
        value = model.posterior(context).select(rows).sample(noise(2, samples)).value
    hidden, p = model.hidden(context, Latent(value)), model.prior(context, Latent(value))
    values = probes(model, context)
    wide = fingerprint(p, values.index_select(1, rows)) if p.shape[0] == len(rows) else fingerprint(p, values)
    for k in range(samples):
        one = Latent(value[k::samples])
        assert_close(model.hidden(context, one), hidden[k::samples], f"hidden states of sample {k} alone")
        expected = wide[k::samples] if p.shape[0] == len(rows) else wide
        assert_close(fingerprint(model.prior(context, one), values), expected, f"the prior of sample {k} alone")
