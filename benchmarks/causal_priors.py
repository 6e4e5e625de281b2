"""What a learned causal prior buys on texts whose density is known: the synthetic task of Fleuret 2025, section 4.1, shrunken.

One of 4 letters, ">", then 16 underscores with 4 copies of the letter at a random place (13 starts); each of the 16 characters
becomes "!" with probability 1/16 (the paper: 26 letters, 64 underscores, 8 copies). The start is worth 3.7 bits, the noise
16 x 0.337 = 5.4. All 17 predictions after the letter are scored.

For each prior and schedule: the honest likelihood (importance-weighted; a bound, and the looser the larger the KL, so vary
--samples) and the one-sample bound against the true density on the same texts, nats per token; KL and information in bits per
token; live bits; cross-entropy under latents of another text, whose distance to the posterior's shows whether the decoder
reads them.

Run: ``python -m benchmarks.causal_priors [--steps 400] [--samples 16] [--seeds 0 1] [--only NAME ...]``, one JSON line per run.
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
from latentlm.interface import Batch, LatentDecoder, Noise
from latentlm.likelihood import score_continuations
from latentlm.likelihood.diagnostics import diagnose

LETTERS, SPACE, NOISE, PROMPT = 4, 4, 5, 6
FILLED, COPIES, FLIP = 16, 4, 1 / 16
BITS, BATCH, TEXTS = 4, 16, 256
BACKBONE = BackboneConfig(vocabulary=7, width=32, blocks=4, heads=2, context=18, init_std=0.1)

PRIORS: dict[str, dict[str, Any]] = {
    "uniform": {"name": "uniform_bits"},
    "trunk": {"name": "trunk_bits"},
    "causal": {"name": "causal_bits"},
    "causal, penalty": {"name": "causal_bits", "learns": "penalty"},
}
SCHEDULES: dict[str, dict[str, Any]] = {
    "1 bit": {"name": "free_bits", "bits": 1.0},
    "elbo": {"name": "constant", "weight": 1.0},
    "1/8 bit": {"name": "free_bits", "bits": 0.125},
}


def clean(letter: Tensor, start: Tensor) -> Tensor:
    """The characters before the noise: letter (N, 1), start (N, 1) -> (N, 16)."""
    place = torch.arange(FILLED)
    return torch.where((place >= start) & (place < start + COPIES), letter, SPACE)


def texts(count: int, generator: torch.Generator) -> Tensor:
    """(N, 18) tokens."""
    letter = torch.randint(LETTERS, (count, 1), generator=generator)
    start = torch.randint(FILLED - COPIES + 1, (count, 1), generator=generator)
    noisy = torch.rand(count, FILLED, generator=generator) < FLIP
    return torch.cat((letter, torch.full_like(letter, PROMPT), clean(letter, start).masked_fill(noisy, NOISE)), dim=1)


def true_nats(tokens: Tensor) -> Tensor:
    """-log p(text | letter), (N,) float64: a mean over the 13 starts."""
    starts = torch.arange(FILLED - COPIES + 1)[:, None]
    likelihoods = []
    for text in tokens:
        kept = clean(text[:1].expand(len(starts), 1), starts) == text[2:]  # (13, 16)
        chance = torch.where(text[2:] == NOISE, FLIP, kept * (1 - FLIP)).double()
        likelihoods.append(chance.log().sum(-1).logsumexp(0) - math.log(len(starts)))
    return -torch.stack(likelihoods)


def train(prior: str, schedule: str, *, seed: int, steps: int) -> LatentDecoder:
    """AdamW with warm-up and a cosine on fresh texts, the same for every model of a seed."""
    config = ModelConfig(backbone=BACKBONE)
    if prior != "vanilla":
        parts = {"prior": PartSpec.model_validate(PRIORS[prior]), "kl_schedule": PartSpec.model_validate(SCHEDULES[schedule])}
        config = ModelConfig(decoder="causal", backbone=BACKBONE, event_dims=BITS, **parts)  # type: ignore[arg-type]
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


def measure(model: LatentDecoder, *, samples: int) -> dict[str, Any]:
    """Held-out numbers, all of the same texts."""
    held_out = texts(TEXTS, torch.Generator().manual_seed(10_000))
    truth, tokens = true_nats(held_out), held_out.shape[1] - 1
    requests = [(text[:1], text[1:]) for text in held_out.tolist()]
    scores = score_continuations(model, requests, method="iwae", samples=samples, keys=list(range(TEXTS)), batch_size=64)
    excess = (-torch.tensor([score.value for score in scores], dtype=torch.float64) - truth) / tokens
    found = diagnose(model, held_out.tolist(), batch_size=64)
    nats = found.cross_entropy
    bound = nats.get("posterior", nats.get("exact", 0.0)) + found.kl_bits_per_token * math.log(2)
    return {
        "honest_excess_nats": float(excess.mean()),
        "standard_error": float(excess.std() / math.sqrt(TEXTS)),
        "bound_excess_nats": bound - float(truth.mean()) / tokens,
        "kl_bits": found.kl_bits_per_token,
        "information_bits": found.mutual_information_bits,
        "live_bits": found.active_units,
        **{f"ce_{name}": value for name, value in nats.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--samples", type=int, default=16, help="importance samples of the honest likelihood")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", nargs="*", default=[], help='runs by name, such as "trunk/1 bit"')
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = ["vanilla/", *(f"{prior}/{schedule}" for schedule in SCHEDULES for prior in PRIORS)]
    names.remove("causal, penalty/elbo")  # the same gradient as causal/elbo
    for seed in options.seeds:
        for name in options.only or names:
            began = time.process_time()
            prior, _, schedule = name.partition("/")
            model = train(prior, schedule, seed=seed, steps=options.steps)
            spent = time.process_time() - began
            row = {"run": name, "seed": seed, **measure(model, samples=options.samples), "train_cpu_seconds": spent}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
