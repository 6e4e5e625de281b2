"""Codes per chunk on the standard library's sources, bytes, width 64, 2 blocks, 8 texts of 128 bytes a step. Two questions:

    usage    how many of its codes does an encoder use where they cost nothing (KL weight 0, uniform prior)? Mentzer et al. 2023
             claim nearly all for FSQ, and a falling share for a learned codebook as it grows. Our other code is no VQ: it is a
             categorical with the exact straight-through gradient. 16,000 chunks of held-out text, see `latentlm_chunk.usage`
    bounds   what the ELBO and importance weighting say of a point mass, whose proposals come from the prior: bits per byte of
             the first 128 bytes of 32 held-out places, ELBO with 4 samples and IWAE with 1, 16, 128

The cross-entropy beside the usage is that of the last 50 steps under the posterior's code, which has seen the text.

Run: ``python -m benchmarks.chunk_codes usage|bounds [--steps 300] [--seeds 0] [--only NAME ...]``, one JSON line per run.
"""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

import torch
from torch import Tensor

from latentlm.composed import build
from latentlm.config import DataConfig, ModelConfig
from latentlm.interface import Batch, LatentDecoder, Noise
from latentlm.likelihood import score_continuations
from latentlm.training.data import load_documents
from latentlm_chunk.usage import code_usage

BATCH, LENGTH, PEAK = 8, 128, 3e-3
CHUNKS, PLACES = 16_000, 32
BACKBONE = {"vocabulary": 257, "width": 64, "blocks": 2, "heads": 4, "context": LENGTH, "init_std": 0.06}


def fsq(*levels: int, prior: str = "uniform_levels", **settings: Any) -> dict[str, Any]:
    """An arm with a grid."""
    return {"encoder": {"name": "fsq", "levels": levels, **settings}, "prior": prior}


FREE: dict[str, Any] = {"kl_schedule": {"name": "constant", "weight": 0.0}}
USAGE: dict[str, dict[str, Any]] = {
    "fsq 15": fsq(5, 3) | FREE,
    "codes 16": {"event_dims": 4, "prior": "uniform_bits"} | FREE,
    "fsq 240": fsq(8, 6, 5) | FREE,
    "codes 256": {"event_dims": 8, "prior": "uniform_bits"} | FREE,
    "fsq 1000": fsq(8, 5, 5, 5) | FREE,
    "codes 1024": {"event_dims": 10, "prior": "uniform_bits"} | FREE,
}
BOUNDS: dict[str, dict[str, Any]] = {
    "fsq, uniform": fsq(8, 6, 5),
    "fsq, causal": fsq(8, 6, 5, prior="causal_levels"),
    "fsq, causal, pays nothing": fsq(8, 6, 5, prior="causal_levels", pays=False),
    "codes": {"event_dims": 8},
    "vanilla": {"decoder": "vanilla", "granularity": "token"},
}


def texts() -> tuple[Tensor, Tensor]:
    """Bytes of 200 training documents and of the held-out ones, end to end."""
    corpus = load_documents(DataConfig())
    parts = (corpus.train[:200], corpus.held_out)
    train, held_out = (torch.tensor(list(b"".join(document.data for document in part))) for part in parts)
    return train, held_out


def trained(arm: dict[str, Any], data: Tensor, steps: int, seed: int) -> tuple[LatentDecoder, float]:
    """The model, and the nats per byte of its last 50 steps."""
    settings = {"decoder": "chunk", "granularity": "chunk:8", "backbone": BACKBONE, **arm}
    model = build(ModelConfig.model_validate(settings), seed=seed).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=0.0)
    generator, nats = torch.Generator().manual_seed(seed), []
    for step in range(steps):
        starts = torch.randint(len(data) - LENGTH - 1, (BATCH, 1), generator=generator)
        rows = data[starts + torch.arange(LENGTH + 1)]
        for group in optimiser.param_groups:
            group["lr"] = PEAK * min(1.0, (step + 1) / 30) * (1 - 0.9 * step / steps)
        batch = Batch.of(rows[:, :-1].tolist(), rows[:, 1:].tolist())
        loss = model.loss(batch, step=step, noise=Noise.keyed(seed, [(step, row) for row in range(BATCH)]))
        optimiser.zero_grad()
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        nats.append(float(loss.reconstruction.detach().sum() / loss.target_mask.sum()))
    return model.eval(), sum(nats[-50:]) / len(nats[-50:])


def usage(model: LatentDecoder, data: Tensor) -> dict[str, float]:
    """Of held-out text."""
    rows = data[: CHUNKS * 8].view(-1, LENGTH).tolist()
    found = code_usage(model, rows, batch_size=32)
    return {
        "codes": found.codes,
        "used": found.used,
        "used_share": round(found.used / found.codes, 3),
        "perplexity": round(found.perplexity, 1),
        "sites": found.sites,
    }


def bounds(model: LatentDecoder, data: Tensor) -> dict[str, float]:
    """Bits per byte."""
    rows = [data[start : start + LENGTH].tolist() for start in range(0, 4000 * PLACES, 4000)]
    requests = [(row[:1], row[1:]) for row in rows]
    found = {}
    for method, samples in (("elbo", 4), ("iwae", 1), ("iwae", 16), ("iwae", 128)):
        scores = score_continuations(model, requests, method=method, samples=samples)  # type: ignore[arg-type]
        nats = -sum(score.value for score in scores) / (PLACES * (LENGTH - 1))
        found[f"{method} {samples}"] = round(nats / math.log(2), 3)
    return found


def main() -> None:
    """One JSON line per arm and seed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("question", choices=("usage", "bounds"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", help="names of arms")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    train, held_out = texts()
    arms, measure = (USAGE, usage) if asked.question == "usage" else (BOUNDS, bounds)
    for seed in asked.seeds:
        for name in asked.only or arms:
            model, nats = trained(arms[name], train, asked.steps, seed)
            line = {"arm": name, "seed": seed, "nats_per_byte_seen": round(nats, 3), **measure(model, held_out)}
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
