"""The one primitive behind the estimators: K log-weights for each text.

    log w_k = sum over targets of log p(x_{t+1} | x_<=t, z_k) + log target(z_k) - log proposal(z_k),    z_k ~ proposal

Their log-mean-exp estimates log E_target p(targets | z). The trunk and the encoder run once per text; the upper blocks run on
all K samples as one batch, and logits are taken at target positions only, a few positions at a time.

Greedy check. A target x_{t+1} is greedy if it is the argmax of the predictive mixture sum_k w_k(t) p(. | x_<=t, z_k), where
z_k ~ target (never from a posterior that has seen the targets: that would leak them) and w_k(t) is proportional to the
likelihood of the targets before t. Under `generation` this is the token to bet on, given all that was written.

Legend: B texts, K samples, R = B*K, T inputs, N targets, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from latentlm.interface import Batch, Context, Latent, LatentDecoder, Noise
from latentlm.likelihood.paths import LastLatent, Proposal, Target, classify, draw, draw_paths

LATENT_TOKENS = 2**16
"""Latent rows times tokens that one pass of the upper blocks takes."""
_LOGITS = 2**25
"""Logits held at a time (128 MiB in float32)."""


@dataclass(frozen=True)
class Texts:
    """Texts of which the first `lengths` tokens are given and the rest are targets, with the trunk's pass over their inputs."""

    context: Context
    lengths: Tensor
    """(B,) long: given tokens, m >= 1."""
    targets: Tensor
    """(B, N) long, padded."""
    positions: Tensor
    """(B, N) long: row position that predicts each target, m-1 .. n-2."""
    mask: Tensor
    """(B, N) bool: real targets."""

    @classmethod
    def of(cls, model: LatentDecoder, tokens: Sequence[Sequence[int]], lengths: Sequence[int]) -> Texts:
        """Run the trunk. The last token of each text is a target only: it is no input, and no site is drawn for it."""
        assert all(1 <= given < len(text) for text, given in zip(tokens, lengths, strict=True))
        batch = Batch.of([text[:-1] for text in tokens], given=lengths, device=model.device)
        counts = [len(text) - given for text, given in zip(tokens, lengths, strict=True)]
        targets = torch.zeros(len(tokens), max(counts), dtype=torch.long)
        for row, (text, given) in enumerate(zip(tokens, lengths, strict=True)):
            targets[row, : counts[row]] = torch.tensor(list(text[given:]), dtype=torch.long)
        step = torch.arange(max(counts), device=model.device)
        given_tokens = torch.tensor(list(lengths), device=model.device)
        mask = step[None] < torch.tensor(counts, device=model.device)[:, None]
        positions = torch.where(mask, given_tokens[:, None] - 1 + step[None], 0)
        return cls(model.context(batch), given_tokens, targets.to(model.device), positions, mask)


@dataclass(frozen=True)
class Weights:
    """What a set of draws says about each text."""

    log_weights: Tensor
    """(B, K) float64 nats."""
    near_ties: Tensor
    """(B,) long."""
    greedy: Tensor | None = None
    """(B, N) bool: the target is the argmax of the predictive mixture; true outside the mask."""


def log_weights(
    model: LatentDecoder,
    texts: Texts,
    noise: Noise,
    *,
    target: Target,
    proposal: Proposal,
    defensive: float = 0.0,
    last_latent: LastLatent = "posterior",
    greedy: bool = False,
) -> Weights:
    """K = len(noise) / B log-weights of each text; see the module's docstring. Without latents K is 1 and the weight exact."""
    if not model.has_latents:
        nats, chosen = path_likelihood(model, texts, None, greedy=greedy)
        return Weights(nats, torch.zeros_like(texts.lengths), chosen)
    sites = classify(
        texts.context, texts.lengths, target=target, last_latent=last_latent, has_encoder=model.has_encoder
    )
    if not bool(sites.proposed.any()):  # nothing to weight: the same draws serve the greedy check
        proposal = "target"
    paths = draw_paths(
        model,
        texts.context,
        texts.lengths,
        noise,
        target=target,
        proposal=proposal,
        defensive=defensive,
        last_latent=last_latent,
    )
    at_once = greedy and proposal == "target"
    nats, chosen = path_likelihood(model, texts, paths.latent, greedy=at_once)
    if greedy and not at_once:
        unseeing = draw_paths(
            model, texts.context, texts.lengths, noise, target=target, proposal="target", last_latent=last_latent
        )
        _, chosen = path_likelihood(model, texts, unseeing.latent, greedy=True)
    return Weights(nats + paths.log_ratio.view_as(nats), paths.near_ties, chosen)


def bound_samples(model: LatentDecoder, texts: Texts, noise: Noise) -> Weights:
    """K one-sample bounds log p(targets | z_k) - KL(q || p) of each text, z_k ~ q(z | all inputs), in closed form where the
    distributions have one. Sites that condition given tokens alone come from the prior and cost nothing."""
    if not model.has_latents or not model.has_encoder:
        return log_weights(model, texts, noise, target="prior", proposal="target")
    context = texts.context
    rows = torch.arange(context.rows, device=model.device).repeat_interleave(len(noise) // context.rows)
    sites = classify(context, texts.lengths, target="prior", last_latent="prior", has_encoder=True).select(rows)
    unseeing = draw_paths(model, context, texts.lengths, noise, target="prior", proposal="target")
    posterior = model.posterior(context).select(rows)
    drawn, ties = draw(posterior, noise, sites.proposed)
    latent = Latent(torch.where(sites.proposed[..., None], drawn, unseeing.latent.value))
    kl = posterior.kl(model.prior(context, latent), latent).double().sum(-1)  # (R, S)
    kl = kl.masked_fill(~sites.proposed, 0.0).sum(-1)
    nats, _ = path_likelihood(model, texts, latent, greedy=False)
    return Weights(nats - kl.view_as(nats), unseeing.near_ties + ties.view_as(nats).sum(-1))


def fitting_rows(model: LatentDecoder, *, samples: int, tokens: int | None) -> int:
    """Texts (at least one) that a batch may hold, so that the logits at one position of every sample fit `_LOGITS` and, where
    `tokens`, the length of the longest, is given, all latent tokens fit `LATENT_TOKENS`."""
    rows = _LOGITS // (samples * model.config.backbone.vocabulary)
    if tokens is not None:
        rows = min(rows, LATENT_TOKENS // (samples * tokens))
    return max(1, rows)


def path_likelihood(
    model: LatentDecoder, texts: Texts, latent: Latent | None, *, greedy: bool
) -> tuple[Tensor, Tensor | None]:
    """log p(targets | z_k), (B, K) float64, and with `greedy` the (B, N) check of the module's docstring."""
    hidden = _target_hidden(model, texts, latent)  # (B, K, N, D)
    rows, samples, length, _ = hidden.shape
    total = torch.zeros(rows, samples, dtype=torch.float64, device=hidden.device)
    chosen = torch.ones(rows, length, dtype=torch.bool, device=hidden.device) if greedy else None
    start = 0
    while start < length:
        logits = model.logits(hidden[:, :, start : start + 1])  # learns V on the first round without asking the config
        width = max(1, _LOGITS // (rows * samples * logits.shape[-1]))
        if width > 1:
            logits = model.logits(hidden[:, :, start : start + width])
        stop = start + logits.shape[2]
        log_probs = logits.log_softmax(-1)  # (B, K, n, V)
        wanted = texts.targets[:, None, start:stop, None].expand(-1, samples, -1, 1)
        nats = log_probs.gather(-1, wanted)[..., 0].double()
        nats = nats.masked_fill(~texts.mask[:, None, start:stop], 0.0)  # (B, K, n)
        if chosen is not None:
            before = total[..., None] + nats.cumsum(-1) - nats  # (B, K, n): likelihood of the targets before each
            before = (before - before.amax(1, keepdim=True)).to(log_probs.dtype)
            mixture = (log_probs + before[..., None]).logsumexp(1)  # (B, n, V), unnormalised
            matches = mixture.argmax(-1) == texts.targets[:, start:stop]
            chosen[:, start:stop] = matches | ~texts.mask[:, start:stop]
        total = total + nats.sum(-1)
        start = stop
    return total, chosen


def _target_hidden(model: LatentDecoder, texts: Texts, latent: Latent | None) -> Tensor:
    """The upper blocks' output at the positions that predict targets: (B, K, N, D)."""
    rows = texts.context.rows
    if latent is None:
        return _at_targets(model.hidden(texts.context, None), texts)
    value = rearrange(latent.value, "(b k) s e -> b k s e", b=rows)
    size = max(1, LATENT_TOKENS // texts.context.tokens.numel())
    pieces = []
    for part in value.split(size, dim=1):
        hidden = model.hidden(texts.context, Latent(rearrange(part, "b k s e -> (b k) s e")))
        pieces.append(_at_targets(hidden, texts))
    return torch.cat(pieces, dim=1)


def _at_targets(hidden: Tensor, texts: Texts) -> Tensor:
    """(R, T, D) -> (B, K, N, D)."""
    wide = rearrange(hidden, "(b k) t d -> b k t d", b=texts.context.rows)
    index = texts.positions[:, None, :, None].expand(-1, wide.shape[1], -1, wide.shape[-1])
    return wide.gather(2, index)
