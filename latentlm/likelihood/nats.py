"""log p(targets | z) of texts under given latents, and whether greedy decoding would have written them.

The upper blocks run on all samples of a text, `latent_rows` at a time; the beginnings that rows share, with their latents, run
once. Logits are taken at target positions only, at most `LOGITS` numbers at a time, and of a row's logits nothing is kept but
the log of their sum and the numbers that are asked for.

Legend: A texts, B rows, K samples, R = B*K, T inputs, N targets, D width, V vocabulary.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from latentlm.interface import Latent, LatentDecoder, Latents, Stems
from latentlm.likelihood.texts import Texts

LATENT_TOKENS = 2**16
"""Latent rows times tokens of a batch, and of one pass of the upper blocks on a GPU, where more do not serve better."""
CUDA_STREAM = 2**25
"""Values of the residual stream (128 MiB in float32) that a pass on a GPU may hold: small passes of a narrow model would wait
for launches."""
_CUDA_GRID = 2**16 - 1
"""Rows that attention kernels take at most."""
CPU_TOKENS, CPU_NUMBERS = 2**9, 2**17
"""On a CPU fewer, so that what a layer leaves fits the caches: so many tokens, or where D is small so many numbers. (At width
256, one pass over 16,384 tokens took 1.4 times as long as passes over 1,024, and these 1.2 times as long as those over 512.)"""
LOGITS = 2**25
"""Logits held at a time (128 MiB in float32)."""


def _batch_tokens(model: LatentDecoder) -> int:
    """Latent rows times tokens that a batch may have."""
    on_gpu = model.device.type == "cuda"
    return max(LATENT_TOKENS, CUDA_STREAM // model.config.backbone.width) if on_gpu else LATENT_TOKENS


def latent_rows(model: LatentDecoder, tokens: int) -> int:
    """Latent rows of so many tokens (at least one) that one pass of the upper blocks takes, where the model is."""
    most = _batch_tokens(model)
    if model.device.type == "cpu":
        most = min(most, max(CPU_TOKENS, CPU_NUMBERS // model.config.backbone.width))
    return max(1, min(most // tokens, _CUDA_GRID))


def fitting_rows(model: LatentDecoder, *, samples: int, tokens: int | None) -> int:
    """Rows (at least one) that a batch may hold, so that the logits at one position of every sample fit `LOGITS` and, where
    `tokens`, the length of the longest, is given, so do all latent tokens."""
    rows = LOGITS // (samples * model.config.backbone.vocabulary)
    if tokens is not None:
        rows = min(rows, _batch_tokens(model) // tokens // samples, _CUDA_GRID // samples)
    return max(1, rows)


def path_likelihood(
    model: LatentDecoder,
    texts: Texts,
    latents: Latent | Latents | None,
    *,
    greedy: bool,
    voters: Tensor | None = None,
    shared: Stems | None = None,
) -> tuple[Tensor, Tensor | None]:
    """log p(targets | z_k), (A, K) float64, and with `greedy`, (A, N) bool, whether each target is the argmax of the predictive
    mixture of the samples `voters`, (B, K) bool (all, if None); true outside the mask. `shared`: rows that begin alike, and
    whose latents do."""
    hidden = _target_hidden(model, texts, latents, shared)  # (B, K, N, D)
    rows, samples, length, _ = hidden.shape
    vocabulary = model.logits(hidden[:1, :1, :1]).shape[-1]
    together = max(1, min(samples, LOGITS // (rows * vocabulary)))  # samples at a time
    width = max(1, LOGITS // (rows * samples * vocabulary))  # positions, where all samples fit
    total = torch.zeros(len(texts.rows), samples, dtype=torch.float64, device=hidden.device)
    chosen = torch.ones(texts.targets.shape, dtype=torch.bool, device=hidden.device) if greedy else None
    for start in range(0, length, width):
        stop = min(start + width, length)
        mixture: Tensor | None = None
        level: Tensor | None = None  # so large are the likelihoods so far, roughly: what is left is small, and exact in float32
        said = []
        for first in range(0, samples, together):
            logits = model.logits(hidden[:, first : first + together, start:stop])  # (B, k, n, V)
            norm = logits.logsumexp(-1)
            own = _taken(logits, texts, start, stop) - norm[texts.rows]
            nats = own.double().masked_fill(~texts.mask[texts.rows, None, start:stop], 0.0)  # (A, k, n)
            said.append(nats.sum(-1))
            if greedy:
                here = nats[texts.firsts]  # texts of one row have the same targets before each
                before = total[texts.firsts, first : first + together, None] + here.cumsum(-1) - here  # (B, k, n)
                level = before.amax(1, keepdim=True) if level is None else level
                shift = (before - level).to(norm.dtype) - norm
                if voters is not None:
                    shift = shift.masked_fill(~voters[:, first : first + together, None], float("-inf"))
                more = (logits + shift[..., None]).logsumexp(1)  # (B, n, V), unnormalised
                mixture = more if mixture is None else torch.logaddexp(mixture, more)
        if chosen is not None:
            assert mixture is not None
            matches = mixture.argmax(-1)[texts.rows] == texts.targets[:, start:stop]
            chosen[:, start:stop] = matches | ~texts.mask[texts.rows, start:stop]
        total = total + torch.cat(said, dim=1)
    return total, chosen


def _taken(logits: Tensor, texts: Texts, start: int, stop: int) -> Tensor:
    """The logits (B, k, n, V) of each text's targets start .. stop-1: (A, k, n). By one index: a copy for each text of a row
    would be the size of them all."""
    _, samples, width, vocabulary = logits.shape
    sample = torch.arange(samples, device=logits.device)[:, None]
    place = torch.arange(width, device=logits.device)
    index = (texts.rows[:, None, None] * samples + sample) * width + place  # (A, k, n)
    return logits.flatten()[index * vocabulary + texts.targets[:, None, start:stop]]


def _target_hidden(
    model: LatentDecoder, texts: Texts, given: Latent | Latents | None, shared: Stems | None
) -> Tensor:
    """The upper blocks' output at the positions that predict targets: (B, K, N, D)."""
    rows, latents = texts.context.rows, Latents.of(given, list(model.latents))
    if not latents:
        return _at_targets(model.hidden(texts.context, None), texts)
    values = {name: rearrange(latent.value, "(b k) s e -> b k s e", b=rows) for name, latent in latents.items()}
    count = latents.rows // rows
    tokens = texts.context.tokens.numel() - (0 if shared is None else shared.spared)
    size = max(1, latent_rows(model, -(-tokens // rows)) // rows)
    pieces = []
    for start in range(0, count, size):
        part = Latents(
            {
                name: Latent(rearrange(value[:, start : start + size], "b k s e -> (b k) s e"))
                for name, value in values.items()
            }
        )
        if shared is None:
            pieces.append(_at_targets(model.hidden(texts.context, part), texts))
        else:
            found = model.shared_hidden(texts.context, part, texts.positions, shared)
            pieces.append(rearrange(found, "(b k) n d -> b k n d", b=rows))
    return torch.cat(pieces, dim=1)


def _at_targets(hidden: Tensor, texts: Texts) -> Tensor:
    """(R, T, D) -> (B, K, N, D)."""
    wide = rearrange(hidden, "(b k) t d -> b k t d", b=texts.context.rows)
    index = texts.positions[:, None, :, None].expand(-1, wide.shape[1], -1, wide.shape[-1])
    return wide.gather(2, index)
