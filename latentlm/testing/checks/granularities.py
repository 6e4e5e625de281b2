"""Where sites begin: causal, and the same token by token, packed or alone.

Looked at on random texts over the whole vocabulary, each granularity of the decoder by itself.

Legend: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from latentlm.interface import Granularity, begins_now, site_starts
from latentlm.testing.comparing import pack
from latentlm.testing.registry import check, need
from latentlm.testing.subject import Subject

_ROWS, _LENGTH = 64, 24


def _each(subject: Subject) -> Iterator[tuple[str, Granularity]]:
    """(what messages call it, granularity) of every latent."""
    need(subject.model.has_latents, "it has no latents")
    for name, latent in subject.model.latents.items():
        yield f"the granularity of {name} ({type(latent.granularity).__name__})", latent.granularity


def _texts(subject: Subject, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, positions, documents of single texts, (B, T)."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(subject.config.backbone.vocabulary, (_ROWS, _LENGTH), generator=generator)
    return tokens, torch.arange(_LENGTH).expand(_ROWS, -1), torch.zeros_like(tokens)


@check("granularity")
def begins_as_the_contract_says(subject: Subject) -> None:
    """`begins` gives (B, T) bool, true at position 0 of every document, and leaves the tokens alone."""
    for what, granularity in _each(subject):
        batch = pack([[[3, 1, 4], [1, 5]], [[9, 2, 6, 5, 3]]], vocabulary=subject.config.backbone.vocabulary)
        tokens = batch.inputs.clone()
        found = granularity.begins(tokens, batch.positions, batch.documents)
        shape = tuple(batch.inputs.shape)
        assert tuple(found.shape) == shape, f"{what}: begins has shape {tuple(found.shape)}, not {shape}"
        assert found.dtype == torch.bool, f"{what}: begins is {found.dtype}, not bool"
        assert torch.equal(tokens, batch.inputs), f"{what}: begins writes to the tokens that it is given"
        first = (batch.positions == 0) & (batch.documents >= 0)
        assert bool(found[first].all()), f"{what}: no site begins at position 0 of a document (begins: `| (positions == 0)`)"


@check("granularity")
def sites_begin_causally(subject: Subject) -> None:
    """Whether a site begins at a position does not depend on later tokens."""
    tokens, positions, documents = _texts(subject)
    for what, granularity in _each(subject):
        before = site_starts(granularity, tokens, documents, positions)
        for place in range(1, _LENGTH):
            for by in (1, 5):
                other = tokens.clone()
                other[:, place] = (other[:, place] + by) % subject.config.backbone.vocabulary
                wrong = (site_starts(granularity, other, documents, positions) != before)[:, :place].any(0)
                assert not bool(wrong.any()), (
                    f"{what}: another token at position {place} says whether a site begins at position "
                    f"{int(wrong.long().argmax())}, before it. In generation that token is not there yet: begins may look at "
                    "tokens t - lookback to t"
                )


@check("granularity")
def lookback_as_declared(subject: Subject) -> None:
    """Token by token, with the `lookback` tokens before it alone, sites begin where they do in the whole text."""
    tokens, positions, documents = _texts(subject)
    other, _, _ = _texts(subject, seed=1)
    for what, granularity in _each(subject):
        assert granularity.lookback >= 0, f"{what}: lookback is {granularity.lookback}"
        whole = site_starts(granularity, tokens, documents, positions)
        # What stands before a text's first token means nothing: other tokens here.
        ahead = torch.cat((other[:, : granularity.lookback], tokens), dim=1) if granularity.lookback else tokens
        for place in range(_LENGTH):
            recent = ahead[:, place : place + granularity.lookback + 1]
            found = begins_now(granularity, recent, torch.full((_ROWS,), place))
            wrong = found != whole[:, place]
            assert not bool(wrong.any()), (
                f"{what}: with lookback {granularity.lookback}, position {place} "
                f"{'begins a site' if bool(found[wrong][0]) else 'begins none'} token by token, and in the whole text the "
                "opposite: declare as many earlier tokens as begins reads, and read none of another document (`from_previous`)"
            )


@check("granularity")
def packed_documents_begin_alike(subject: Subject) -> None:
    """A document packed behind others has its sites where it has them alone."""
    tokens, _, _ = _texts(subject)
    lengths = (7, 9, 8)
    rows = [[part.tolist() for part in row.split(lengths)] for row in tokens]
    batch = pack(rows)
    for what, granularity in _each(subject):
        together = site_starts(granularity, batch.inputs, batch.documents, batch.positions)
        for number, length in enumerate(lengths):
            inside = batch.documents == number
            alone = batch.inputs[inside].view(_ROWS, length)
            places = torch.arange(length).expand(_ROWS, -1)
            expected = site_starts(granularity, alone, torch.zeros_like(alone), places)
            found = together[inside].view(_ROWS, length)
            assert torch.equal(found, expected), (
                f"{what}: document {number} of a row begins its sites elsewhere than alone, first at position "
                f"{int((found != expected).any(0).long().argmax())}: begins reads another document's tokens (`from_previous`), "
                "or counts from the row's beginning (`positions`)"
            )
