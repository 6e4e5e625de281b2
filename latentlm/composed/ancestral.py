"""Ancestral sampling of an autoregressive prior: site after site, by one step of the prior per token.

Some sites may be held at given values. Defensive paths of the likelihood need that: their context sites come from the encoder,
the later ones from the prior given those.

Legend: R rows, T tokens, T' tokens of one document, S sites, E event dimensions, D width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from latentlm.interface import PADDING, Context, Latent, Noise, Prior, site_mask


def sample_autoregressive(
    prior: Prior,
    context: Context,
    noise: Noise,
    event_dims: int,
    *,
    temperature: float = 1.0,
    held: Tensor | None = None,
    needed: Tensor | None = None,
) -> Latent:
    """Draw sites one after another, feeding the prior the tokens of `context` and the latents before: (R, S, E).

    `needed` (R, S) bool says which sites to draw; the others keep their value in `held` (R, S, E; zero by default), on which
    later sites depend like on any. One step of the prior per token; site s draws `noise.at(s)`. Documents that share a row are
    fed one after another, each as a row of its own: `Prior.step` has no word for a document's end."""
    shape = (context.rows, context.sites, event_dims)
    values = torch.zeros(shape, device=context.tokens.device) if held is None else held.clone()
    wanted = context.site_mask if needed is None else needed
    every = torch.arange(context.rows, device=values.device)
    for own, columns in _documents(context):
        taps = dict(own.taps.items())  # taps of repeated rows are gathered when they are read: once, not at every token
        state, previous = prior.start(_nothing_of(own), None), None
        site_of = context.site_of.gather(1, columns)  # (R, T'): in the numbering of the row
        place = torch.arange(columns.shape[1], device=values.device)
        starts = (own.first_positions().gather(1, own.site_of) == place) & (own.documents >= 0)  # (R, T')
        drawn_at = starts & wanted.gather(1, site_of)
        used = drawn_at.any(0)  # (T',)
        for t in range(int((used * (place + 1)).max())):
            now = {k: tap[:, t] for k, tap in taps.items()}
            p, state = prior.step(state, now, previous, starts[:, t], {name: value[:, t] for name, value in own.above.items()})
            site = site_of[:, t]
            previous = values[every, site]
            if bool(used[t]):
                drawn = p.tempered(temperature).sample(noise.at(site)).value[:, 0].to(values)  # (R, E)
                previous = torch.where(drawn_at[:, t, None], drawn, previous)
                values[every, site] = previous
    return Latent(values)


def _documents(context: Context) -> Iterator[tuple[Context, Tensor]]:
    """Each document number's tokens as rows of their own, left-aligned, and the columns (R, T') that they come from. `given`
    counts the prompt tokens that lie in the document. Rows of one document each are not copied."""
    length, last = context.tokens.shape[1], int(context.documents.max())
    if last <= 0:
        yield context, torch.arange(length, device=context.tokens.device).expand(context.rows, -1)
        return
    for document in range(last + 1):
        inside = context.documents == document  # (R, T)
        begins, counts = inside.long().argmax(1), inside.sum(1)
        place = torch.arange(int(counts.max()), device=begins.device)
        columns = (begins[:, None] + place).clamp(max=length - 1)  # (R, T')
        documents = torch.where(place < counts[:, None], 0, PADDING)
        site_of = context.site_of.gather(1, columns) - context.site_of.gather(1, begins[:, None])
        site_of = site_of.masked_fill(documents < 0, 0)
        own = Context(
            tokens=context.tokens.gather(1, columns),
            taps={k: _columns(tap, columns) for k, tap in context.taps.items()},
            positions=context.positions.gather(1, columns),
            documents=documents,
            site_of=site_of,
            site_mask=site_mask(site_of, documents, int(site_of.max()) + 1),
            given=(context.given - begins).clamp(min=0).minimum(counts),
            above={name: _columns(value, columns) for name, value in context.above.items()},
        )
        yield own, columns


def _columns(x: Tensor, columns: Tensor) -> Tensor:
    """Columns (R, T') of x (R, T, ...)."""
    return x.gather(1, columns[..., None].expand(-1, -1, x.shape[-1]))


def _nothing_of(context: Context) -> Context:
    """The same rows before their first token."""
    return context.before(torch.zeros(context.rows, dtype=torch.long, device=context.tokens.device))
