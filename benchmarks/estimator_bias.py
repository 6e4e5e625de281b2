"""Bias and variance of the gradient estimators on a model whose latents can all be written down.

The truth is the gradient of E_{z~q} f(z) with respect to the bit logits l of one text, f(z) the decoder's cross-entropy in nats
per target token given z, summed over all 2^(H T) latents:

    truth = sum_z q(z) f(z) (z - p)                               d log q(z) / dl = z - p
    bias = |E g - truth|     noise = sqrt(E |g - E g|^2)          both divided by |truth|

A gradient g is what `torch.autograd` sends back to l from the decoder's own forward pass for one z ~ q. Its mean and variance
are sums over all z, weighted by q(z). What an estimator draws beyond z adds variance, which is averaged over keyed repetitions
(`m=`), or over a grid of quantiles of the uniform numbers given the bits (`concrete`). The mean of a sampled form is
that of its full sum, term by term (tests/test_estimators.py sums over all draws), so it is taken from there.

The control is REINFORCE with a leave-one-out baseline (Kool, van Hoof & Welling 2019, "Buy 4 REINFORCE samples, get a baseline
for free!"): unbiased, K forward passes, no backward.

Models: width 32, 2 blocks, H = 3, T = 3, in float64; as initialised, and after training to pass on random symbols of 3 bits
with 2 bits of KL free (`train`): nothing but the latent tells the next token, which the encoder sees.

Legend: K latents (all of them, or those of one REINFORCE estimate), T tokens = sites, H bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.timing import Row
from latentlm.composed import ComposedDecoder, build
from latentlm.config import BackboneConfig, ModelConfig
from latentlm.interface import Batch, Bits, Latent, Noise

BITS, TOKENS, SYMBOLS = 3, 3, 8
TABLES = ("full", "grouped", "additive")
ESTIMATORS: dict[str, dict[str, Any]] = {
    "exact": {},
    "sampled, m=1": {"estimator": "sampled", "samples": 1},
    "sampled, m=8": {"estimator": "sampled", "samples": 8},
    "reinmax": {"estimator": "reinmax"},
    "reinmax, m=8": {"estimator": "reinmax", "samples": 8},
    "straight_through": {"estimator": "straight_through"},
    "concrete": {"estimator": "concrete"},
}
FULL_SUM = {"sampled, m=1": "exact", "sampled, m=8": "exact", "reinmax, m=8": "reinmax"}
CONTROLS = {"REINFORCE, K=2": 2, "REINFORCE, K=8": 8}
SETS = 20_000  # REINFORCE estimates whose variance is taken


class _Told(Noise):
    """Uniform numbers that are given: (K, T, H)."""

    def __init__(self, uniform: Tensor) -> None:
        super().__init__(range(len(uniform)))
        self._uniform = uniform

    def uniform(self, sites: int, events: int, *, device: torch.device | str | None = None) -> Tensor:
        assert self._uniform.shape[1:] == (sites, events)
        return self._uniform


def model_of(
    table: str, settings: dict[str, Any], *, seed: int, bits: int = BITS, symbols: int = SYMBOLS, free: float = 2.0
) -> ComposedDecoder:
    """A Free Transformer of 2 blocks; `free` bits of KL per token cost nothing."""
    backbone = BackboneConfig(vocabulary=symbols + 1, width=32, blocks=2, heads=2, context=32, init_std=0.1)
    injection = {"name": "free", "table": table, "group": 2, **settings}
    parts: dict[str, Any] = {"injection": injection, "kl_schedule": {"name": "free_bits", "bits": free}}
    model = build(ModelConfig(decoder="free", event_dims=bits, backbone=backbone, **parts), seed=seed)
    assert isinstance(model, ComposedDecoder)
    return model


def texts(rows: int, tokens: int, *, seed: int, symbols: int = SYMBOLS) -> Batch:
    """Independent uniform symbols: what a token is, no other token tells. The last input has no target."""
    drawn = torch.randint(1, symbols + 1, (rows, tokens), generator=torch.Generator().manual_seed(seed))
    return Batch.of(drawn.tolist())


def train(model: ComposedDecoder, *, steps: int, seed: int, symbols: int = SYMBOLS, rows: int = 32, tokens: int = 8) -> None:
    """AdamW on fresh random texts, learning rate 3e-3."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    for step in range(steps):
        batch = texts(rows, tokens, seed=1_000_000 * seed + step, symbols=symbols)
        loss = model.loss(batch, step=step, noise=Noise.keyed(seed, [(step, row) for row in range(rows)]))
        optimiser.zero_grad()
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()


class Enumerated:
    """One text under one model: every latent, its probability, and what each costs."""

    def __init__(self, model: ComposedDecoder, batch: Batch) -> None:
        self.model, self.batch = model, batch
        with torch.no_grad():
            self.context = model.context(batch)
            posterior = model.posterior(self.context)
        assert isinstance(posterior, Bits)
        self.logits = posterior.logits  # (1, T, H)
        sites, bits = self.logits.shape[1:]
        every = torch.arange(2 ** (sites * bits))[:, None] >> torch.arange(sites * bits) & 1
        self.latents = every.view(-1, sites, bits).to(self.logits)  # (K, T, H)
        repeated = posterior.select(torch.zeros(len(every), dtype=torch.long))
        self.probability = repeated.log_prob(Latent(self.latents)).sum(1).exp()  # (K,)
        self.scores = self.latents - self.logits.sigmoid()  # (K, T, H)
        with torch.no_grad():
            self.costs = self.cost(Latent(self.latents))
        self.truth = ((self.probability * self.costs)[:, None, None] * self.scores).sum(0)  # (T, H)

    def cost(self, latent: Latent) -> Tensor:
        """f(z) of each latent row, (K,) nats per target token."""
        logits = self.model.logits(self.model.hidden(self.context, latent)).to(self.logits)
        targets = self.batch.targets.expand(len(logits), -1)
        nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
        mask = self.batch.target_mask
        return (nats * mask).sum(1) / mask.sum()

    def gradients(self, noise: Noise | None) -> Tensor:
        """What the injection's estimator sends back for each latent, (K, T, H)."""
        wide = self.logits.expand(len(self.latents), -1, -1).clone().requires_grad_()
        (found,) = torch.autograd.grad(self.cost(Latent(self.latents, Bits(wide), noise)).sum(), wide)
        return found

    def noises(self, repeats: int) -> Iterator[Noise | None]:
        """What the estimator is given to draw from, each equally likely; a single None where it draws nothing."""
        assert self.model.injection is not None
        settings = self.model.injection.config
        p = self.logits.sigmoid()
        for turn in range(repeats):
            if settings.estimator == "concrete":
                quantile = (turn + 0.5) / repeats
                yield _Told(torch.where(self.latents > 0, p * quantile, p + (1 - p) * quantile))
            elif settings.samples is not None:
                yield Noise.keyed(turn, range(len(self.latents)))
            else:
                yield None
                return

    def moments(self, repeats: int) -> tuple[Tensor, Tensor]:
        """Mean and mean square of one gradient, (T, H) each."""
        weights = self.probability[:, None, None]
        found = [self.gradients(noise) for noise in self.noises(repeats)]
        return tuple(torch.stack([(weights * g**power).sum(0) for g in found]).mean(0) for power in (1, 2))  # type: ignore[return-value]

    def leave_one_out(self, count: int, *, seed: int = 0) -> float:
        """Total variance of REINFORCE with `count` latents, over many estimates."""
        generator = torch.Generator().manual_seed(seed)
        index = self.probability.multinomial(SETS * count, replacement=True, generator=generator).view(SETS, count)
        return leave_one_out(self.costs[index], self.scores[index]).var(0).sum().item()


def leave_one_out(costs: Tensor, scores: Tensor) -> Tensor:
    """(1/K) sum_k (f_k - mean of the other f) d log q(z_k)/dl: costs (..., K), scores (..., K, T, H) -> (..., T, H)."""
    count = costs.shape[-1]
    centred = (costs - costs.mean(-1, keepdim=True)) * count / (count - 1)
    return (centred[..., None, None] * scores).mean(-3)


def judged(truth: Tensor, mean: Tensor, variance: float) -> dict[str, float]:
    """Relative bias, relative noise of one gradient, and the cosine of its mean with the truth."""
    size = truth.norm()
    cosine = F.cosine_similarity(mean.flatten(), truth.flatten(), dim=0)
    return {"bias": ((mean - truth).norm() / size).item(), "noise": (variance**0.5 / size).item(), "cosine": cosine.item()}


def run(*, quick: bool = False) -> list[Row]:
    """A row for each state (initialised, trained), table, seed and estimator: bias and noise (relative), and cosine."""
    seeds, repeats, steps, tokens = (1, 2, 1, 2) if quick else (5, 8, 300, TOKENS)
    rows: list[Row] = []
    for table in TABLES:
        for seed in range(seeds):
            start = model_of(table, {}, seed=seed)
            trained = model_of(table, {}, seed=seed)
            train(trained, steps=steps, seed=seed)
            for state, weights in (("initialised", start.state_dict()), ("trained", trained.state_dict())):
                facts = {"suite": "bias", "state": state, "table": table, "seed": seed}
                rows += [{**facts, **row} for row in _compared(table, weights, texts(1, tokens, seed=10**9 + seed), repeats)]
    return rows


def _compared(table: str, weights: dict[str, Tensor], batch: Batch, repeats: int) -> list[Row]:
    """Every estimator and control on the same weights and text."""
    rows: list[Row] = []
    means: dict[str, Tensor] = {}
    for name, settings in ESTIMATORS.items():
        model = model_of(table, settings, seed=0)
        model.load_state_dict(weights)
        case = Enumerated(model.double(), batch)
        mean, square = case.moments(repeats)
        means[name] = means[FULL_SUM[name]] if name in FULL_SUM else mean
        rows.append({"estimator": name, **judged(case.truth, means[name], (square - means[name].square()).sum().item())})
    # The control is unbiased; its own mean would show the error of a finite number of estimates.
    rows += [{"estimator": name, **judged(case.truth, case.truth, case.leave_one_out(k))} for name, k in CONTROLS.items()]
    return rows
