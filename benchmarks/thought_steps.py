"""What the fast steps of a latent thought model cost, and what they buy at test time.

    python -m benchmarks.thought_steps cost                one training step against vanilla, by fast steps
    python -m benchmarks.thought_steps bounds              honest bounds on held-out text, by fast steps at test time
    python -m benchmarks.thought_steps bounds --encoder clipped

`bounds` trains a decoder of width 48 and 2 blocks on 70 modules of the standard library, 800 steps of 8 x 64 bytes with 2 fast
steps, and scores 96 windows of 10 other modules. Encoders: `adam` is the recipe's (Adam from log sigma^2 = -5 at 5 / steps a
step), `clipped` starts at the prior with epsilon = 1. ELBO: mean of 8 fresh draws. `same draw`: the bound under the last fast
step's own draw, which flatters. All numbers are nats per byte; one thread.
"""

from __future__ import annotations

import argparse
import statistics
import sysconfig
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from latentlm.composed import ComposedDecoder, build
from latentlm.config import BackboneConfig, ModelConfig, PartSpec
from latentlm.interface import Batch, Gaussian, Latent, LatentDecoder, Noise, Shape
from latentlm.likelihood import score_texts
from latentlm_ltm.encoder import FittedThoughts, FittedThoughtsConfig

SMALL = BackboneConfig(vocabulary=257, width=48, blocks=2, heads=2, context=64, init_std=0.06)
TINY = BackboneConfig(vocabulary=257, width=128, blocks=4, heads=4, context=256, init_std=0.06)
CLIPPED = {"rate": 0.5, "epsilon": 1.0, "initial_log_variance": 0.0}


def fast(encoder: str, steps: int) -> dict[str, Any]:
    """Settings of the fast learner."""
    return {"steps": steps, **(CLIPPED if encoder == "clipped" else {"variance_rate": 5.0 / max(steps, 1)})}


def thinking(backbone: BackboneConfig, event_dims: int, settings: dict[str, Any]) -> LatentDecoder:
    """A decoder with 2 thought vectors per block."""
    encoder = PartSpec.model_validate({"name": "fitted_thoughts", **settings})
    injection = PartSpec.model_validate({"name": "thoughts", "slots": 2})
    parts = {"encoder": encoder, "injection": injection}
    return build(ModelConfig(decoder="ltm", backbone=backbone, event_dims=event_dims, **parts), seed=0)


def cost() -> None:
    """Median of 6 training steps of 4 x 256 bytes, models in turn."""
    models = {"vanilla": build(ModelConfig(decoder="vanilla", backbone=TINY))}
    models |= {str(steps): thinking(TINY, 128, fast("adam", steps)) for steps in (0, 1, 4, 16)}
    tokens = torch.randint(0, 256, (4, 257), generator=torch.Generator().manual_seed(0))
    batch = Batch.of(tokens[:, :-1].tolist(), tokens[:, 1:].tolist())
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for trial in range(7):
        for name, model in models.items():
            start = time.perf_counter()
            model.loss(batch, step=0, noise=Noise.keyed(trial, range(4))).total.backward()
            model.zero_grad()
            if trial:
                seconds[name].append(time.perf_counter() - start)
    base = statistics.median(seconds["vanilla"])
    for name, times in seconds.items():
        print(f"{name:8} {statistics.median(times):.3f} s, {statistics.median(times) / base:.2f} times vanilla")


def windows(text: bytes, count: int, generator: torch.Generator) -> list[list[int]]:
    """Random windows of 64 bytes, end-of-text first."""
    starts = torch.randint(0, len(text) - 65, (count,), generator=generator).tolist()
    return [[256, *text[start : start + 64]] for start in starts]


def as_batch(rows: list[list[int]]) -> Batch:
    """Each row a document; the last byte is a target alone."""
    return Batch.of([row[:-1] for row in rows], [row[1:] for row in rows])


def trained(model: LatentDecoder, text: bytes, steps: int) -> LatentDecoder:
    """AdamW at 0.003."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for step in range(1, steps + 1):
        loss = model.loss(as_batch(windows(text, 8, generator)), step=step, noise=Noise.keyed(step, range(8)))
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
    return model.eval()


@torch.no_grad()
def bounds(encoder: str, steps: int) -> None:
    """Train vanilla and the latent thought model, then vary the fast steps."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:80]
    train, held = (b"".join(file.read_bytes() for file in part) for part in (files[:70], files[70:]))
    rows = windows(held, 96, torch.Generator().manual_seed(9))
    batch = as_batch(rows)
    with torch.enable_grad():
        vanilla = trained(build(ModelConfig(decoder="vanilla", backbone=SMALL), seed=0), train, steps)
        model = trained(thinking(SMALL, 32, fast(encoder, 2)), train, steps)
    assert isinstance(model, ComposedDecoder)
    print(f"vanilla  {vanilla.loss(batch, step=0, noise=Noise.keyed(0, range(96))).total:.4f}")
    context = model.context(batch)

    def nats(value: Tensor) -> float:
        logits = model.logits(model.hidden(context, Latent(value)))
        return float(F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten()))

    for count in (0, 1, 2, 4, 8, 16, 32):
        settings = FittedThoughtsConfig.model_validate(fast(encoder, count))
        model.encoder = FittedThoughts(settings, Shape(SMALL, 32, "document"))
        q = model.posterior(context)
        assert isinstance(q, Gaussian)
        kl = float(q.kl(model.prior(context), Latent(q.mean)).sum()) / batch.targets.numel()
        fresh = statistics.mean(nats(q.sample(Noise.keyed(draw, range(96))).value) for draw in range(8))
        epsilon = Noise.keyed(0, [0]).stream(f"fast step {max(count - 1, 0)}").normal(1, 32)
        same = nats(q.mean + q.log_std.exp() * epsilon) + kl
        iwae = -sum(score.value for score in score_texts(model, rows, samples=16)) / batch.targets.numel()
        print(f"{count:7}  KL {kl:.4f}  ELBO {fresh + kl:.4f}  IWAE, 16 samples {iwae:.4f}  same draw {same:.4f}", flush=True)


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description="Fast steps of latent thought models")
    parser.add_argument("what", choices=("cost", "bounds"))
    parser.add_argument("--encoder", choices=("adam", "clipped"), default="adam")
    parser.add_argument("--steps", type=int, default=800, help="training steps of the small models")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.what == "cost":
        cost()
    else:
        bounds(arguments.encoder, arguments.steps)


if __name__ == "__main__":
    main()
