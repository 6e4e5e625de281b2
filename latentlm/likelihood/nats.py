"""log p(targets | z) of texts under given latents, and whether greedy decoding would have written them.

The upper blocks run on all samples of a text, `pass_tokens` at a time; the beginnings that rows share, with their latents, run
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
"""Latent rows times tokens that one pass of the upper blocks takes at most."""
CPU_TOKENS, CPU_NUMBERS = 2**9, 2**17
"""On a CPU fewer, so that what a layer leaves fits the caches: so many tokens, or where D is small so many numbers. (At width
256, one pass over 16,384 tokens took 1.4 times as long as passes over 1,024, and these 1.2 times as long as those over 512.)"""
CUDA_STREAM = 2**25
"""Values of the residual stream (128 MiB in float32) that a pass on a GPU may hold: small passes of a narrow model would wait
for launches."""
CUDA_ROWS = 2**16 - 1
"""Rows that attention kernels take at most."""
LOGITS = 2**25
"""Logits held at a time (128 MiB in float32)."""


def pass_tokens(model: LatentDecoder) -> int:
    """Latent rows times tokens that one pass of the upper blocks takes on the model's device."""
    width = model.config.backbone.width
    if model.device.type == "cpu":
        return min(LATENT_TOKENS, max(CPU_TOKENS, CPU_NUMBERS // width))
    return max(LATENT_TOKENS, CUDA_STREAM // width) if model.device.type == "cuda" else LATENT_TOKENS


def fitting_rows(model: LatentDecoder, *, samples: int, tokens: int | None) -> int:
    """Rows (at least one) that a batch may hold, so that the logits at one position of every sample fit `LOGITS` and, where
    `tokens`, the length of the longest, is given, all latent tokens fit `LATENT_TOKENS`, or a GPU's pass."""
    rows = LOGITS // (samples * model.config.backbone.vocabulary)
    if tokens is not None:
        rows = min(rows, max(LATENT_TOKENS, pass_tokens(model)) // (samples * tokens))
    return max(1, rows)


def path_likelihood(
    model: LatentDecoder,
    texts: Texts,
    latents: Latent | Latents | None,
    *,
    greedy: bool,
    voters: Tensor | None = None,
    shared: Stems | None = None,
    log_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """log p(targets | z_k), (A, K) float64, and with `greedy`, (A, N) bool, whether each target is the argmax of the predictive
    mixture of the samples, true outside the mask. In it samples count as `log_weights` (B, K), nats, say (alike, if None), and
    those outside `voters`, (B, K) bool, do not. `shared`: rows that begin alike, and whose latents do."""
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
                if log_weights is not None:
                    before = before + log_weights[:, first : first + together, None]
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
    size = max(1, min(pass_tokens(model) // tokens, CUDA_ROWS // rows))
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
