"""The one primitive behind the estimators: K log-weights for each text.

    log w_k = sum over targets of log p(x_{t+1} | x_<=t, z_k) + log target(z_k) - log proposal(z_k),    z_k ~ proposal

Their log-mean-exp estimates log E_target p(targets | z). Densities are kept apart from the weights that they make, since these
depend on which samples are taken together: with a defensive mixture, log proposal = log ((1-e) g + e r) with e the share of r's
paths among them. So any run of the samples is an estimate of its own, and more samples join those that are there.

Greedy check. A target x_{t+1} is greedy if it is the argmax of the predictive mixture sum_k w_k(t) p(. | x_<=t, z_k), where
z_k ~ target (never from a posterior that has seen the targets: that would leak them) and w_k(t) is proportional to the
likelihood of the targets before t. Under `generation` this is the token to bet on, given all that was written. The samples are
those of the K that come from the target itself; where none does, K more are drawn.

Legend: A texts on B rows (`texts`), K samples, R = B*K, T inputs, N targets, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from latentlm.interface import Distribution, Latent, LatentDecoder, Latents, Noise, noise_of
from latentlm.likelihood.nats import path_likelihood
from latentlm.likelihood.paths import (
    LastLatent,
    Paths,
    Proposal,
    Target,
    alike,
    classify,
    draw,
    draw_paths,
    from_target,
    mixture,
)
from latentlm.likelihood.results import SIXTEENTHS_FROM, runs
from latentlm.likelihood.texts import Texts


@dataclass(frozen=True)
class Weights:
    """What a set of draws says about each text: samples 0 .. K-1, or those from `first` on."""

    nats: Tensor
    """(A, K) float64: log p(targets | z_k); for `elbo` minus the KL."""
    log_target: Tensor
    """(A, K) float64 nats, of the sites that are proposed (see `Paths`)."""
    log_proposal: Tensor
    """(A, K) float64 nats."""
    near_ties: Tensor
    """(A,) long."""
    defensive: float = 0.0
    first: int = 0
    greedy: Tensor | None = None
    """(A, N) bool: the target is the argmax of the predictive mixture; true outside the mask."""
    proposals: Mapping[str, Tensor] = field(default_factory=dict)
    """Latent -> (A,) bool: some of its sites came from a posterior that has seen the targets (see `Paths`)."""

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
        """(A, K) nats, of all samples."""
        return self.run(0, self.count)

    def run(self, start: int, stop: int) -> Tensor:
        """(A, stop - start) log-weights of some of the samples, as they are without the others."""
        share = len(from_target(self.defensive, self.first + start, self.first + stop)) / max(1, stop - start)
        target, proposal = self.log_target[:, start:stop], self.log_proposal[:, start:stop]
        return self.nats[:, start:stop] + target - mixture(proposal, target, share)

    def parts(self) -> tuple[list[Tensor], list[Tensor]]:
        """Four runs of about K/4 samples, unless there are fewer than four, and sixteen of about K/16, unless there would be
        fewer than two in each."""
        sixteenths = runs(self.count, 16) if self.count >= SIXTEENTHS_FROM else []
        return [self.run(*each) for each in runs(self.count, 4)], [self.run(*each) for each in sixteenths]

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
            proposals={name: own | more.proposals[name] for name, own in self.proposals.items()},
        )

    def select(self, rows: Tensor) -> Weights:
        """Of some texts."""
        return self._mapped(lambda tensor: tensor[rows])

    def cpu(self) -> Weights:
        """The same, there."""
        return self._mapped(lambda tensor: tensor.cpu())

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Weights:
        """With every tensor changed alike."""
        return replace(
            self,
            nats=change(self.nats),
            log_target=change(self.log_target),
            log_proposal=change(self.log_proposal),
            near_ties=change(self.near_ties),
            greedy=None if self.greedy is None else change(self.greedy),
            proposals={name: change(own) for name, own in self.proposals.items()},
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
        return Weights.of(nats, torch.zeros_like(texts.rows), greedy=chosen)
    share = defensive if proposal == "posterior" else 0.0  # whatever the texts beside: a score does not depend on them
    sites = classify(model, texts.context, texts.lengths, target=target, last_latent=last_latent)
    if not any(bool(own.proposed.any()) for own in sites.values()):  # nothing to weight: every draw is the target's own
        proposal = "target"
    shared = None if texts.stems is None else alike(texts.context, sites, texts.stems)

    def drawn(proposal: Proposal) -> Paths:
        return draw_paths(
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
            stems=texts.stems,
        )

    paths = drawn(proposal)
    count = len(noise) // texts.context.rows
    voters = _unseeing(paths, defensive, first, count)
    lacking = greedy and not bool(voters.any(1).all())
    nats, chosen = path_likelihood(
        model, texts, paths.latents, greedy=greedy and not lacking, voters=voters, shared=shared
    )
    if lacking:
        _, chosen = path_likelihood(model, texts, drawn("target").latents, greedy=True, shared=shared)
    return Weights(
        nats,
        paths.log_target.view(texts.context.rows, count)[texts.rows],
        paths.log_proposal.view(texts.context.rows, count)[texts.rows],
        paths.near_ties[texts.rows],
        defensive=share,
        first=first,
        greedy=chosen,
        proposals={name: own[texts.rows] for name, own in paths.proposals.items()},
    )


def _unseeing(paths: Paths, defensive: float, first: int, count: int) -> Tensor:
    """(B, K) bool: samples that no posterior proposed which has seen the targets. In a row without proposals, all."""
    kinds = torch.zeros(count, dtype=torch.bool)
    kinds[[k - first for k in from_target(defensive, first, first + count)]] = True
    proposed = torch.stack(list(paths.proposals.values())).any(0)  # (B,)
    return kinds.to(proposed.device) | ~proposed[:, None]


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
    shared = None if texts.stems is None else alike(context, sites, texts.stems)
    nats, _ = path_likelihood(model, texts, latents, greedy=False, shared=shared)
    proposals = {
        name: sites[name].proposed.any(1)[texts.rows] & latent.has_encoder for name, latent in model.latents.items()
    }
    cost = cost.view(context.rows, -1)[texts.rows]
    return replace(Weights.of(nats - cost, ties[texts.rows]), proposals=proposals)


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
