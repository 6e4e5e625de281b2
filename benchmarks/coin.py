"""A decoder that is told z and sees no toss, on the coin of Fleuret 2025, section 2: what its latent should be worth, and is.

A fair coin Z is shown n times by a liar. Given Z the tosses are independent, so a decoder that sees z alone loses nothing: at
the optimum of the bound KL = I(Z; X), a text costs I(Z; X) + n h(flip), and the likelihood is the data's. z is one bit for the
document, the bound has all of the KL, and the estimators of the bit's gradient are compared.

The straight-through (`exact`, the paper's) has a fixed point of its own, in closed form where the decoder's logits are linear
in the table's row. Let p be what it writes heads with under z = 1, tails under z = 0, l = log p / (1 - p), k the heads of a
text and q its posterior of z = 1. The slope of log p(x | z) at the sampled end, averaged over z ~ q, meets that of the KL where

    log q / (1 - q) = 2 l (k - n (q p + (1 - q) (1 - p))),      p = E[q k + (1 - q) (n - k)] / n

while the bound's own optimum has log q / (1 - q) = l (2 k - n), the trapezoid of both slopes, which is ReinMax's. Behind a
block and its norms the logits are not linear in the row, and neither closed form binds an estimator.

Run: ``python -m benchmarks.coin [--seeds N] [--markdown] [--json FILE]`` (about 20 seconds a training on a core, 12 of them).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics

import numpy as np
import torch
from rich.console import Console
from torch import nn

from benchmarks.outputs import writable
from benchmarks.report import Table
from latentlm import plugins
from latentlm.composed import ComposedDecoder, build
from latentlm.config import ModelConfig
from latentlm.interface import Batch, BlockCondition, Condition, Context, Latent, Loss, Noise, Shape
from latentlm.likelihood import score_texts
from latentlm.training.data.synthetic import Coin
from latentlm_free.injection import TableInjection, TableInjectionConfig

SOURCE = Coin(length=15, flip=0.25)
ARMS = {
    "`exact`, row on the logits": ("exact", True),
    "`reinmax`, row on the logits": ("reinmax", True),
    "`exact`, row through a block": ("exact", False),
    "`reinmax`, row through a block": ("reinmax", False),
}
"""Estimator, and whether the logits are linear in the row."""
STEPS, ROWS, RATE = 600, 64, 0.003


class InsteadOfTheText(TableInjection):
    """From block 1 on the stream holds a position's row and no text; z's row is added to what the readout reads (`linear`), or
    to that stream."""

    taps = (1,)
    linear = True

    def __init__(self, config: TableInjectionConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        self.blocks, self.slots = (1,), ("residual", "logit_bias")
        self.place = nn.Embedding(shape.backbone.context, shape.width)

    def forward(self, latent: Latent, context: Context) -> Condition:
        """(R, T, D)."""
        (told,) = [each.kv for each in super().forward(latent, context).blocks.values()]
        blank = self.place(context.positions) - context.taps[1]
        if self.linear:
            return Condition({1: BlockCondition(residual=blank)}, logit_bias=told)
        return Condition({1: BlockCondition(residual=blank + told)})


class ThroughABlock(InsteadOfTheText):
    """The row enters the stream, so that a block and its norms stand between z and the logits."""

    linear = False


def rows_of(texts: list[bytes]) -> list[list[int]]:
    """Three tokens: end of text, with which a row begins and ends (so that the encoder reads the last toss), tails, heads."""
    return [[0, *(1 + (toss == ord("H")) for toss in text), 0] for text in texts]


def told(estimator: str, *, seed: int, steps: int = STEPS, linear: bool = True) -> ComposedDecoder:
    """Trained by the plain bound, whose KL comes in over the first fifth of the steps: at once, it puts one seed of three to
    sleep. The learning rate falls to nothing, so that what is left is no noise of steps."""
    settings = {
        "decoder": "composed",
        "backbone": {"vocabulary": 3, "width": 32, "blocks": 2, "heads": 2, "context": 32, "init_std": 0.2},
        "granularity": "document",
        "event_dims": 1,
        "encoder": {"name": "free", "zeta_residual": False},
        "prior": "uniform_bits",
        "injection": {"name": "instead_of_the_text", "estimator": estimator},
        "kl_schedule": {"name": "linear", "steps": max(1, steps // 5)},
    }
    plugins.register("injection", "instead_of_the_text", InsteadOfTheText if linear else ThroughABlock)
    try:
        model = build(ModelConfig.model_validate(settings), seed=seed)
    finally:
        plugins.unregister("injection", "instead_of_the_text")
    assert isinstance(model, ComposedDecoder)
    optimiser = torch.optim.Adam(model.parameters(), lr=RATE)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    rows = rows_of(SOURCE.texts(ROWS * steps, seed=seed))
    for step in range(steps):
        loss = loss_of(model, rows[ROWS * step : ROWS * (step + 1)], step=step, seed=seed)
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
        falling.step()
    return model.eval()


def loss_of(model: ComposedDecoder, rows: list[list[int]], *, step: int, seed: int) -> Loss:
    """Of a batch, z drawn for each text alone."""
    batch = Batch.of([row[:-1] for row in rows], [row[1:] for row in rows])
    return model.loss(batch, step=step, noise=Noise.keyed(seed, [(step, row) for row in range(len(rows))]))


@torch.no_grad()
def measured(model: ComposedDecoder, *, seed: int) -> dict[str, float]:
    """Of fresh texts, nats a text: KL, cost given z, and what the exact likelihood is above the data's own (of 1,000)."""
    loss = loss_of(model, rows_of(SOURCE.texts(8000, seed=seed)), step=0, seed=seed)
    assert loss.kl is not None
    texts = SOURCE.texts(1000, seed=seed + 1)
    scores = score_texts(model, rows_of(texts), method="auto")
    assert {score.method for score in scores} == {"exact"}
    above = np.array([-score.value for score in scores]) - SOURCE.nats(texts)
    kl, given_z = loss.kl.sum(-1), loss.reconstruction.sum(-1)
    return {"kl": float(kl.mean()), "given_z": float(given_z.mean()), "above": float(above.mean())}


def optimum() -> dict[str, float]:
    """Of the bound."""
    return {"kl": SOURCE.information, "given_z": SOURCE.entropy - SOURCE.information, "above": 0.0}


def fixed_point(*, rounds: int = 20_000) -> dict[str, float]:
    """Of the straight-through (module docstring), by iteration from the optimum."""
    n, heads = SOURCE.length, np.arange(SOURCE.length + 1)
    ways = np.array([math.comb(n, int(k)) for k in heads], dtype=float)
    data = np.exp(-SOURCE.nats([b"H" * k + b"T" * (n - k) for k in heads]))
    p, logits = 1 - SOURCE.flip, (2 * heads - n) * math.log((1 - SOURCE.flip) / SOURCE.flip)
    for _ in range(rounds):
        q = 1 / (1 + np.exp(-logits))
        slope = 2 * math.log(p / (1 - p)) * (heads - n * (q * p + (1 - q) * (1 - p)))
        logits = logits + 0.02 * (slope - logits)
        p = float((ways * data * (q * heads + (1 - q) * (n - heads))).sum() / n)
    one, other = (-(k * math.log(p) + (n - k) * math.log(1 - p)) for k in (heads, n - heads))
    model = (np.exp(-one) + np.exp(-other)) / 2
    found = {
        "kl": q * np.log(2 * q) + (1 - q) * np.log(2 * (1 - q)),
        "given_z": q * one + (1 - q) * other,
        "above": np.log(data / model),
    }
    return {name: float((ways * data * values).sum()) for name, values in found.items()}


def table(found: dict[str, list[dict[str, float]]]) -> Table:
    """Estimators as trained, between what should be."""
    cells = [["optimum of the bound", "closed form", *(f"{value:.3f}" for value in optimum().values())]]
    cells += [["fixed point of the straight-through", "closed form", *(f"{value:.3f}" for value in fixed_point().values())]]
    for arm, seeds in found.items():
        columns = [[seed[name] for seed in seeds] for name in ("kl", "given_z", "above")]
        ranges = [f"{statistics.median(each):.3f} ({min(each):.3f} to {max(each):.3f})" for each in columns]
        cells.append([arm, f"{len(seeds)} seeds", *ranges])
    note = "Nats a text of 15 tosses; median and range over the seeds. The likelihood is exact."
    return Table("A decoder that sees z alone", note, ["", "", "KL", "cost given z", "likelihood, above the data's"], cells)


def main() -> None:
    """The command line described above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each estimator")
    parser.add_argument("--json", type=writable, help="also write the results to this file")
    parser.add_argument("--markdown", action="store_true", help="print the table as on the page")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=130)
    found: dict[str, list[dict[str, float]]] = {}
    with console.status("Training"):
        for arm, (estimator, linear) in ARMS.items():
            models = (told(estimator, seed=seed, linear=linear) for seed in range(options.seeds))
            found[arm] = [measured(model, seed=1000 + seed) for seed, model in enumerate(models)]
    made = table(found)
    if options.markdown:
        print(made.markdown())
    else:
        console.print(made.rich())
    if options.json:
        options.json.write_text(json.dumps({"optimum": optimum(), "fixed_point": fixed_point(), **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
