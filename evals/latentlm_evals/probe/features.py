"""Numbers that stand for a text: its latents, a plain decoder's states, its words.

    latents    one draw from the posterior of every site, z of a document as it is, of finer sites the mean over the text's
    states     a decoder's last hidden states without latents, their mean over the text's positions
    words      which of the 200 commonest words it has

Legend: N texts, S sites, E event dimensions, D width, F features.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from latentlm.interface import Batch, Latent, LatentDecoder, Latents, Noise
from latentlm_evals.probe.classify import Features

_ROWS = 32
_WORD = re.compile(rb"[a-z]+(?:'[a-z]+)?")
_MOST_WORDS = 200
Progress = Callable[[int, int], None]


def tokens_of(model: LatentDecoder, texts: Sequence[bytes]) -> list[list[int]]:
    """The inputs of each text as in training, the first token before them, no more than the model's context."""
    assert model.tokenizer is not None
    limit = model.config.backbone.context
    return [[model.tokenizer.first, *model.tokenizer.encode(text)][:limit] for text in texts]


@dataclass(frozen=True)
class Encoded:
    """The latents of texts."""

    latents: list[Latents]
    """(1, S, E) each, of every text."""
    pooled: dict[str, Features]
    """(N, E) of each latent."""

    @property
    def joined(self) -> Features:
        """(N, F) of all latents."""
        return np.concatenate(list(self.pooled.values()), axis=1)


@torch.no_grad()
def encoded(model: LatentDecoder, texts: Sequence[bytes], *, seed: int, progress: Progress) -> Encoded:
    """One posterior draw for each text."""
    found: list[Latents] = []
    pooled: dict[str, list[np.ndarray]] = {name: [] for name in model.latents}
    for first, batch in _batches(model, texts, progress):
        context = model.context(batch)
        drawn = model.infer(context, Noise.keyed(seed, [("probe", first + row) for row in range(context.rows)]))
        masks = {name: context.sites_of(name).mask for name in model.latents}
        for row in range(context.rows):
            values = {name: drawn[name].value[row : row + 1, masks[name][row]] for name in model.latents}  # (1, S, E)
            found.append(Latents({name: Latent(value) for name, value in values.items()}))
            for name, value in values.items():
                pooled[name].append(value[0].double().mean(0).cpu().numpy())
    return Encoded(found, {name: np.stack(rows) for name, rows in pooled.items()})


@torch.no_grad()
def states(model: LatentDecoder, texts: Sequence[bytes], *, progress: Progress) -> Features:
    """(N, D)."""
    found = []
    for _, batch in _batches(model, texts, progress):
        real = (batch.documents >= 0)[..., None]
        hidden = model.hidden(model.context(batch), None).double() * real
        found.append((hidden.sum(1) / real.sum(1)).cpu().numpy())
    return np.concatenate(found)


def _batches(model: LatentDecoder, texts: Sequence[bytes], progress: Progress) -> Iterator[tuple[int, Batch]]:
    """(number of its first text, batch) after batch."""
    tokens = tokens_of(model, texts)
    for first in range(0, len(tokens), _ROWS):
        rows = tokens[first : first + _ROWS]
        yield first, Batch.of(rows, given=[len(row) for row in rows], device=model.device)
        progress(min(first + _ROWS, len(tokens)), len(tokens))


@dataclass(frozen=True)
class Vocabulary:
    """The commonest words of some texts."""

    words: list[bytes]

    @classmethod
    def of(cls, texts: Sequence[bytes]) -> Vocabulary:
        """By the number of texts that have a word."""
        counts = Counter(word for text in texts for word in set(_WORD.findall(text.lower())))
        return cls([word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_MOST_WORDS]])

    def counts(self, texts: Sequence[bytes]) -> Features:
        """(N, F): 1 where a text has the word."""
        present = [set(_WORD.findall(text.lower())) for text in texts]
        return np.array([[float(word in own) for word in self.words] for own in present])
