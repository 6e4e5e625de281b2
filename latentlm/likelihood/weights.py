"""The one primitive behind the estimators: K log-weights for each text.

    log w_k = sum over targets of log p(x_{t+1} | x_<=t, z_k) + log target(z_k) - log proposal(z_k),    z_k ~ proposal

Their log-mean-exp estimates log E_target p(targets | z). Densities are kept apart from the weights that they make, since these
depend on which samples are taken together: with a defensive mixture, log proposal = log ((1-e) g + e r) with e the share of r's
paths among them. So any run of the samples is an estimate of its own, and more samples join those that are there. The trunk
and the encoder run once per text; the upper blocks run on all K samples as one batch, and logits are taken at target
positions only, a few positions at a time.

Greedy check. A target x_{t+1} is greedy if it is the argmax of the predictive mixture sum_k w_k(t) p(. | x_<=t, z_k), where
z_k ~ target (never from a posterior that has seen the targets: that would leak them) and w_k(t) is proportional to the
likelihood of the targets before t. Under `generation` this is the token to bet on, given all that was written.

Legend: B texts, K samples, R = B*K, T inputs, N targets, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from einops import rearrange
from torch import Tensor

from latentlm.interface import Batch, Context, Distribution, Latent, LatentDecoder, Latents, Noise, noise_of
from latentlm.likelihood.paths import LastLatent, Paths, Proposal, Target, classify, draw, draw_paths, from_target, mixture

LATENT_TOKENS = 2**16
"""Latent rows times tokens that one pass of the upper blocks takes, at least."""
CUDA_STREAM = 2**25
"""Values of the residual stream (128 MiB in float32) that a pass on a GPU may hold: small passes of a narrow model would wait
for launches."""
_CUDA_GRID = 2**16 - 1
"""Rows that attention kernels take at most."""
LOGITS = 2**25
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
    """What a set of draws says about each text: samples 0 .. K-1, or those from `first` on."""

    nats: Tensor
    """(B, K) float64: log p(targets | z_k); for `elbo` minus the KL."""
    log_target: Tensor
    """(B, K) float64 nats, of the sites that are proposed (see `Paths`)."""
    log_proposal: Tensor
    """(B, K) float64 nats."""
    near_ties: Tensor
    """(B,) long."""
    defensive: float = 0.0
    first: int = 0
    greedy: Tensor | None = None
    """(B, N) bool: the target is the argmax of the predictive mixture; true outside the mask."""
    proposals: Mapping[str, str] = field(default_factory=dict)
    """Latent -> what its sites were drawn from, "posterior" or "target" (see `Paths`)."""

    @classmethod
    def of(cls, nats: Tensor, near_ties: Tensor, *, greedy: Tensor | None = None) -> Weights:
        """Of draws from the target itself."""
        return cls(nats, torch.zeros_like(nats), torch.zeros_like(nats), near_ties, greedy=greedy)

    @property
    def count(self) -> int:
        """K."""
        return self.nats.shape[1]

    @property
    def log_weights(self) -> Tensor:
        """(B, K) nats, of all samples."""
        return self.run(0, self.count)

    def run(self, start: int, stop: int) -> Tensor:
        """(B, stop - start) log-weights of some of the samples, as they are without the others."""
        share = len(from_target(self.defensive, self.first + start, self.first + stop)) / max(1, stop - start)
        target, proposal = self.log_target[:, start:stop], self.log_proposal[:, start:stop]
        return self.nats[:, start:stop] + target - mixture(proposal, target, share)

    def quarters(self) -> list[Tensor]:
        """Four runs of about K/4 samples; none of fewer than four."""
        bounds = [quarter * self.count // 4 for quarter in range(5)]
        return [self.run(start, stop) for start, stop in pairwise(bounds)] if self.count >= 4 else []

    def strata(self) -> Tensor | None:
        """(K,) bool: samples that come from the target itself; None where all come from one distribution."""
        own = from_target(self.defensive, self.first, self.first + self.count)
        if not own:
            return None
        kinds = torch.zeros(self.count, dtype=torch.bool)
        kinds[torch.tensor(own) - self.first] = True
        return kinds

    def plus(self, more: Weights) -> Weights:
        """With the samples that follow."""
        assert more.first == self.first + self.count
        return replace(
            self,
            nats=torch.cat((self.nats, more.nats), dim=1),
            log_target=torch.cat((self.log_target, more.log_target), dim=1),
            log_proposal=torch.cat((self.log_proposal, more.log_proposal), dim=1),
            near_ties=self.near_ties + more.near_ties,
            proposals={**self.proposals, **{name: kind for name, kind in more.proposals.items() if kind == "posterior"}},
        )

    def row(self, index: int) -> Weights:
        """Of one text, on the CPU."""
        here = slice(index, index + 1)
        return replace(
            self,
            nats=self.nats[here].cpu(),
            log_target=self.log_target[here].cpu(),
            log_proposal=self.log_proposal[here].cpu(),
            near_ties=self.near_ties[here].cpu(),
            greedy=None if self.greedy is None else self.greedy[here].cpu(),
        )


def log_weights(
    model: LatentDecoder,
    texts: Texts,
    noise: Noise,
    *,
    target: Target,
    proposal: Proposal,
    defensive: float = 0.0,
    first: int = 0,
    last_latent: LastLatent | Mapping[str, LastLatent] = "posterior",
    greedy: bool = False,
    refined: Mapping[str, Distribution] | None = None,
) -> Weights:
    """K = len(noise) / B log-weights of each text, of its samples from `first` on; see the module's docstring. Without
    latents K is 1 and the weight exact."""
    if not model.has_latents:
        nats, chosen = path_likelihood(model, texts, None, greedy=greedy)
        return Weights.of(nats, torch.zeros_like(texts.lengths), greedy=chosen)
    share = defensive if proposal == "posterior" else 0.0  # whatever the texts beside: a score does not depend on them
    sites = classify(model, texts.context, texts.lengths, target=target, last_latent=last_latent)
    if not any(bool(own.proposed.any()) for own in sites.values()):  # nothing to weight: the same draws serve the greedy check
        proposal = "target"
    paths = draw_paths(
        model,
        texts.context,
        texts.lengths,
        noise,
        target=target,
        proposal=proposal,
        defensive=defensive,
        first=first,
        last_latent=last_latent,
        refined=refined,
    )
    at_once = greedy and proposal == "target"
    nats, chosen = path_likelihood(model, texts, paths.latents, greedy=at_once)
    if greedy and not at_once:
        unseeing = draw_paths(
            model, texts.context, texts.lengths, noise, target=target, proposal="target", last_latent=last_latent
        )
        _, chosen = path_likelihood(model, texts, unseeing.latents, greedy=True)
    return Weights(
        nats,
        paths.log_target.view_as(nats),
        paths.log_proposal.view_as(nats),
        paths.near_ties,
        defensive=share,
        first=first,
        greedy=chosen,
        proposals=paths.proposals,
    )


def bound_samples(model: LatentDecoder, texts: Texts, noise: Noise) -> Weights:
    """K one-sample bounds log p(targets | z_k) - KL(q || p) of each text, z_k ~ q(z | all inputs), in closed form where the
    distributions have one. Sites that condition given tokens alone come from the prior and cost nothing."""
    if not model.has_latents or not model.has_encoder:
        return log_weights(model, texts, noise, target="prior", proposal="target")
    context, names = texts.context, list(model.latents)
    rows = torch.arange(context.rows, device=model.device).repeat_interleave(len(noise) // context.rows)
    sites = classify(model, context, texts.lengths, target="prior", last_latent="prior")
    unseeing = draw_paths(model, context, texts.lengths, noise, target="prior", proposal="target")
    latents, cost, ties = Latents({}), torch.zeros(len(noise), dtype=torch.float64, device=model.device), unseeing.near_ties
    for name in names:
        own, latent = sites[name].select(rows), model.latents[name]
        if not latent.has_encoder:  # from its prior, given the latents above it in these very paths
            latents = latents.plus(name, _from_prior(model, texts, name, noise_of(noise, name, names), latents, unseeing))
            continue
        posterior = model.posterior(context, name, latents)
        posterior = posterior.select(rows) if posterior.shape[0] == context.rows else posterior
        drawn, near = draw(posterior, noise_of(noise, name, names), own.proposed)
        seen = _from_prior(model, texts, name, noise_of(noise, name, names), latents, unseeing)
        latents = latents.plus(name, Latent(torch.where(own.proposed[..., None], drawn, seen.value)))
        kl = posterior.kl(model.prior(context, name, latents), latents[name]).double().sum(-1)  # (R, S)
        cost = cost + kl.masked_fill(~own.proposed, 0.0).sum(-1)
        ties = ties + near.view(context.rows, -1).sum(-1)
    nats, _ = path_likelihood(model, texts, latents, greedy=False)
    proposals = {name: "posterior" if latent.has_encoder else "target" for name, latent in model.latents.items()}
    return replace(Weights.of(nats - cost.view_as(nats), ties), proposals=proposals)


def _from_prior(
    model: LatentDecoder, texts: Texts, name: str, noise: Noise, above: Latents, unseeing: Paths
) -> Latent:
    """A draw of one latent from its prior, (R, S, E): that of `unseeing` for the first latent, which has none above it."""
    if not above:
        return unseeing.latents[name]
    each = torch.arange(texts.context.rows, device=model.device)
    wide = texts.context.select(each.repeat_interleave(len(noise) // texts.context.rows))
    every = wide.sites_of(name).mask
    held = torch.zeros(*every.shape, model.latents[name].dims, device=model.device)
    if model.latents[name].autoregressive:
        return model.sample_sites(wide, noise.stream("prior"), held=held, needed=every, name=name, above=above)
    return Latent(draw(model.prior(texts.context, name, above), noise.stream("prior"), every)[0])


def latent_rows(model: LatentDecoder, tokens: int) -> int:
    """Latent rows of so many tokens (at least one) that one pass of the upper blocks takes, where the model is."""
    on_gpu = model.device.type == "cuda"
    most = max(LATENT_TOKENS, CUDA_STREAM // model.config.backbone.width) if on_gpu else LATENT_TOKENS
    return max(1, min(most // tokens, _CUDA_GRID))


def fitting_rows(model: LatentDecoder, *, samples: int, tokens: int | None) -> int:
    """Texts (at least one) that a batch may hold, so that the logits at one position of every sample fit `LOGITS` and, where
    `tokens`, the length of the longest, is given, all latent tokens fit one pass (`latent_rows`)."""
    rows = LOGITS // (samples * model.config.backbone.vocabulary)
    if tokens is not None:
        rows = min(rows, latent_rows(model, tokens) // samples)
    return max(1, rows)


def path_likelihood(
    model: LatentDecoder, texts: Texts, latents: Latent | Latents | None, *, greedy: bool
) -> tuple[Tensor, Tensor | None]:
    """log p(targets | z_k), (B, K) float64, and with `greedy` the (B, N) check of the module's docstring."""
    hidden = _target_hidden(model, texts, latents)  # (B, K, N, D)
    rows, samples, length, _ = hidden.shape
    total = torch.zeros(rows, samples, dtype=torch.float64, device=hidden.device)
    chosen = torch.ones(rows, length, dtype=torch.bool, device=hidden.device) if greedy else None
    start = 0
    while start < length:
        logits = model.logits(hidden[:, :, start : start + 1])  # learns V on the first round without asking the config
        width = max(1, LOGITS // (rows * samples * logits.shape[-1]))
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


def _target_hidden(model: LatentDecoder, texts: Texts, given: Latent | Latents | None) -> Tensor:
    """The upper blocks' output at the positions that predict targets: (B, K, N, D)."""
    rows, latents = texts.context.rows, Latents.of(given, list(model.latents))
    if not latents:
        return _at_targets(model.hidden(texts.context, None), texts)
    values = {name: rearrange(latent.value, "(b k) s e -> b k s e", b=rows) for name, latent in latents.items()}
    count = latents.rows // rows
    size = max(1, latent_rows(model, texts.context.tokens.shape[1]) // rows)
    pieces = []
    for start in range(0, count, size):
        part = {
            name: Latent(rearrange(value[:, start : start + size], "b k s e -> (b k) s e")) for name, value in values.items()
        }
        pieces.append(_at_targets(model.hidden(texts.context, Latents(part)), texts))
    return torch.cat(pieces, dim=1)


def _at_targets(hidden: Tensor, texts: Texts) -> Tensor:
    """(R, T, D) -> (B, K, N, D)."""
    wide = rearrange(hidden, "(b k) t d -> b k t d", b=texts.context.rows)
    index = texts.positions[:, None, :, None].expand(-1, wide.shape[1], -1, wide.shape[-1])
    return wide.gather(2, index)
