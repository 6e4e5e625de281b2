"""Does a latent in every block keep more of its KL than a single one (Hu et al. 2022, "Fuse It More Deeply!", section 5)?

On texts whose density is known: a topic k, one of 8, then 16 letters, each letter k with probability 1/2, else any of the 8.
The topic is worth at most log 8 = 2.08 nats per text. A decoder without latents can learn the density too (it is a mixture over
k), so a latent is used only where training comes by it: what is called KL vanishing.

    layers     one latent of 2 dimensions in each of 4 blocks, each given those below (the paper's model)
    first      one latent of 8 dimensions in the first block alone
    last       ... in the last block alone
    gaussian   as `layers`, but independent standard Gaussians as the prior

under the same schedule: weight 1 throughout, weight 1/4 (the mean over 4 layers, as the authors' code has it, in place of the
sum), and the paper's cycles. For each: the honest likelihood (importance-weighted, 64 samples) above the true density, KL and
mutual information, live units, and how much cross-entropy rises under the latent of another text; nats per text.

Run: ``python -m benchmarks.della_layers [--steps 600] [--seeds 0 1] [--only NAME ...]``, one JSON line per run.

Legend: N texts, L latents of p dimensions, E = L p.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from typing import Any

import torch
from torch import Tensor

from latentlm.composed import build
from latentlm.config import BackboneConfig, ModelConfig, PartSpec
from latentlm.interface import Batch, Context, Distribution, Latent, LatentDecoder, Noise
from latentlm.likelihood import score_continuations

TOPICS, LETTERS, BATCH, TEXTS = 8, 16, 32, 256
BACKBONE = BackboneConfig(vocabulary=TOPICS + 1, width=32, blocks=4, heads=2, context=LETTERS + 1, init_std=0.1)
MODELS: dict[str, dict[str, Any]] = {
    "layers": {},
    "first": {"injection": {"name": "della", "layers": [0]}},
    "last": {"injection": {"name": "della", "layers": [3]}},
    "gaussian": {"prior": {"name": "standard_normal"}},
}


def schedules(steps: int) -> dict[str, dict[str, Any]]:
    """By name."""
    return {
        "weight 1": {"name": "constant", "weight": 1.0},
        "weight 1/4": {"name": "constant", "weight": 0.25},
        "cycles": {"name": "optimus", "bits": 0.0, "cycles": 4, "steps": steps},
    }


def texts(count: int, generator: torch.Generator) -> Tensor:
    """(N, 17) tokens: 0, then letters 1 .. 8."""
    topic = torch.randint(1, TOPICS + 1, (count, 1), generator=generator)
    free = torch.randint(1, TOPICS + 1, (count, LETTERS), generator=generator)
    letters = torch.where(torch.rand(count, LETTERS, generator=generator) < 0.5, topic, free)
    return torch.cat((torch.zeros_like(topic), letters), dim=1)


def true_nats(tokens: Tensor) -> Tensor:
    """-log p(text), (N,) float64."""
    hits = tokens[:, 1:, None] == torch.arange(1, TOPICS + 1)  # (N, 16, 8)
    chance = 0.5 * hits.double() + 0.5 / TOPICS
    return math.log(TOPICS) - chance.log().sum(1).logsumexp(-1)


def train(name: str, schedule: dict[str, Any], *, seed: int, steps: int) -> LatentDecoder:
    """AdamW with warm-up and a cosine on fresh texts, the same for every model of a seed."""
    parts = {socket: PartSpec.model_validate(spec) for socket, spec in {**MODELS[name], "kl_schedule": schedule}.items()}
    config = ModelConfig(decoder="della", backbone=BACKBONE, event_dims=8, **parts)  # type: ignore[arg-type]
    model = build(config, seed=seed).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        rate = min(1.0, (step + 1) / 30) * (0.55 + 0.45 * math.cos(math.pi * step / steps))
        optimiser.param_groups[0]["lr"] = 3e-3 * rate
        tokens = texts(BATCH, generator)
        batch = Batch.of(tokens[:, :-1].tolist(), tokens[:, 1:].tolist())
        loss = model.loss(batch, step=step, noise=Noise.keyed(seed, [(step, row) for row in range(BATCH)]))
        optimiser.zero_grad()
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    return model.eval()


@torch.no_grad()
def measure(model: LatentDecoder) -> dict[str, Any]:
    """Held-out numbers, all of the same texts; nats per text."""
    held_out = texts(TEXTS, torch.Generator().manual_seed(10_000))
    truth = true_nats(held_out)
    requests = [(text[:1], text[1:]) for text in held_out.tolist()]
    scores = score_continuations(model, requests, method="iwae", samples=64, keys=list(range(TEXTS)), batch_size=64)
    excess = -torch.tensor([score.value for score in scores], dtype=torch.float64) - truth
    batch = Batch.of(held_out[:, :-1].tolist(), held_out[:, 1:].tolist())
    context = model.context(batch)
    q = model.posterior(context)
    latent = Latent(q.sample(Noise.keyed(1, range(TEXTS))).value)
    kl = q.kl(model.prior(context, latents=latent), latent)[:, 0]  # (N, E)
    expected = q.expected()
    assert expected is not None
    nats = _cross_entropy(model, context, batch, latent)
    other = _cross_entropy(model, context, batch, Latent(latent.value.roll(TEXTS // 2, dims=0)))
    count = 1 if model.config.injection is None or model.config.injection.settings["layers"] else BACKBONE.blocks
    return {
        "honest_excess": float(excess.mean()),
        "standard_error": float(excess.std() / math.sqrt(TEXTS)),
        "kl": float(kl.sum(-1).mean()),
        "kl_of_layers": [round(float(part), 4) for part in kl.unflatten(-1, (count, -1)).sum(-1).mean(0)],
        "information": information(q, latent),
        "live_units": int((expected[:, 0].var(0, unbiased=False) > 0.01).sum()),
        "shuffled_minus_posterior": float((other - nats).mean()),
    }


def information(q: Distribution, latent: Latent) -> float:
    """Mean of log q(z_i | x_i) - log mean_j q(z_i | x_j), z_i ~ q(. | x_i): at most log N."""
    rows = [q.log_prob(Latent(value[None].expand(TEXTS, -1, -1)))[:, 0] for value in latent.value]
    pairs = torch.stack(rows)  # (i, j)
    return float((pairs.diagonal() - pairs.logsumexp(-1) + math.log(TEXTS)).mean())


def _cross_entropy(model: LatentDecoder, context: Context, batch: Batch, latent: Latent) -> Tensor:
    """(N,)."""
    log_probs = model.logits(model.hidden(context, latent)).log_softmax(-1)
    return -(log_probs.gather(-1, batch.targets[..., None])[..., 0] * batch.target_mask).sum(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", nargs="+", default=list(MODELS))
    options = parser.parse_args()
    for schedule, settings in schedules(options.steps).items():
        for name in options.only:
            for seed in options.seeds:
                began = time.monotonic()
                model = train(name, settings, seed=seed, steps=options.steps)
                row = {"model": name, "schedule": schedule, "seed": seed, **measure(model)}
                print(json.dumps({**row, "seconds": round(time.monotonic() - began, 1)}), flush=True)


if __name__ == "__main__":
    main()
