"""Training on one GPU: tokens a second, share of the card's peak (MFU), and memory, at the sizes of the paper and below.

A step is `Trainer.advance`, as `latentlm train` takes it: batches made on the CPU, keyed noise, forward and backward in
bfloat16, clipping, AdamW with float32 weights and moments. Contenders run one after another; ratios are to vanilla's of the
same size, documents and compilation.

    vanilla, free (the full table at H=16), free additive (one vector per bit)
    compiled     blocks and cross-entropy by torch.compile (`train.compile`)
    bf16 scores  the product with the table in bfloat16 (`model.injection.scores: bfloat16`)
    TF32         what is left in float32, foremost the table's product, rounded to TF32
    packed       documents of about 600 tokens side by side; otherwise each row is one document
    flex         with FlexAttention (`model.backbone.attention: flex`), where documents are packed

MFU counts the operations of `latentlm zoo show` (a causal block sees half its context; look-ups, norms and recomputation are
left out) over the card's dense bfloat16 peak.

Run: ``python -m benchmarks.gpu_training --json FILE [--only SIZE ...] [--quick]`` (about 4 minutes on an H100).
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.outputs import writable
from benchmarks.timing import Row
from latentlm.composed import build
from latentlm.config import BackboneConfig, ModelConfig, TrainConfig
from latentlm.training.data.packing import PackedStream, TokenStore
from latentlm.training.trainer import Trainer
from latentlm.zoo.accounting import cost

PEAKS = {"H100": 989.4e12, "H200": 989.4e12, "A100": 312e12}
"""Dense bfloat16 operations a second, from NVIDIA's data sheets, by a part of the card's name."""
WARM, TIMED, LOGGED = 4, 12, 4
"""Steps before the clock counts, those that it counts, and how many of them are read together, as a run's log does."""


@dataclass(frozen=True)
class Size:
    """A backbone and the work of a step."""

    backbone: BackboneConfig
    rows: int
    note: str = ""

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.rows * self.backbone.context


def _backbone(width: int, blocks: int, heads: int, kv_heads: int, feed_forward: int, **more: Any) -> BackboneConfig:
    return BackboneConfig(width=width, blocks=blocks, heads=heads, kv_heads=kv_heads, feed_forward=feed_forward, **more)


SIZES = {
    "51M": Size(_backbone(512, 8, 8, 8, 1408, vocabulary=50176, context=512), rows=64),
    "124M": Size(_backbone(768, 12, 12, 12, 2048, vocabulary=50304, context=1024), rows=32),
    "1.5B": Size(_backbone(1536, 28, 12, 2, 8960, vocabulary=131072, context=2048), rows=4),
    "8B": Size(
        _backbone(4096, 8, 32, 8, 14336, vocabulary=131072, context=2048, tie_embeddings=False),
        rows=2,
        note="8 of its 32 blocks: weights, gradients and moments of all would take 129 GB in float32",
    ),
}
QUICK = {"quick": Size(_backbone(64, 2, 2, 2, 128, vocabulary=512, context=64), rows=2)}
CONTENDERS = ("vanilla", "free", "free, TF32", "free, bf16 scores", "free additive")
PACKED = ("vanilla", "vanilla, flex", "free, TF32", "free, flex, bf16 scores")


def main() -> None:
    """The command line described above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=writable, help="write all results to this file")
    parser.add_argument("--only", nargs="*", choices=list(SIZES), default=list(SIZES), help="sizes (default: all)")
    parser.add_argument("--quick", action="store_true", help="one tiny size, also on a CPU: says that everything runs")
    options = parser.parse_args()
    if not (options.quick or torch.cuda.is_available()):
        sys.exit("error: torch sees no GPU here; --quick runs one tiny size on the CPU")
    console = Console(width=120)
    rows: list[Row] = []
    for row in measured(QUICK if options.quick else {name: SIZES[name] for name in options.only}):
        rows.append(row)
        console.print(_line(row), highlight=False)
        if options.json:
            options.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    console.print(table(rows))


def machine() -> dict[str, str]:
    """What was measured on."""
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return {"card": card, "torch": torch.__version__}


def measured(sizes: dict[str, Size]) -> Iterator[Row]:
    """A row for each size, contender and mode; a failure (memory, a compiler) is a row with a note."""
    for name, size in sizes.items():
        modes = [(False, False), (True, False), (True, True)]
        for compiled, packed in modes:
            vanilla = None
            for contender in PACKED if packed else CONTENDERS:
                facts: Row = {"size": name, "contender": contender, "compiled": compiled, "packed": packed}
                try:
                    row = _measure(size, contender, compiled=compiled, packed=packed)
                    vanilla = vanilla or row["tokens_per_second"]
                    yield facts | row | {"ratio": vanilla / row["tokens_per_second"], "note": size.note}
                except Exception as error:  # a row that says why
                    yield facts | {"note": f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"}
                _forget()


def _measure(size: Size, contender: str, *, compiled: bool, packed: bool) -> Row:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = contender.endswith("TF32")
    config = _model(size, contender)
    train = TrainConfig(batch=size.rows, steps=100, dtype="bfloat16", compile=compiled, context=size.backbone.context)
    trainer = Trainer(build(config, device=device, seed=0), train, _stream(size, packed=packed))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    _steps(trainer, WARM)
    warm = time.perf_counter() - began
    times = [_steps(trainer, LOGGED) / LOGGED for _ in range(TIMED // LOGGED)]
    seconds = statistics.median(times)
    operations = cost(config, dtype=torch.bfloat16).training_flops_per_token
    rate = size.tokens / seconds
    peak = next((peak for part, peak in PEAKS.items() if part in machine()["card"]), None)
    return {
        "tokens_per_second": rate,
        "step_seconds": seconds,
        "spread": (max(times) - min(times)) / seconds,
        "flops_per_token": operations,
        "mfu": None if peak is None else rate * operations / peak,
        "gib": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None,
        "warm_up_seconds": warm,
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "tokens": size.tokens,
    }


def _steps(trainer: Trainer, count: int) -> float:
    """Seconds that so many steps take, their numbers read at the end."""
    start = time.perf_counter()
    for _ in range(count):
        trainer.take()
    trainer.read()
    if trainer.model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _model(size: Size, contender: str) -> ModelConfig:
    backbone = size.backbone.model_copy(update={"attention": "flex"} if "flex" in contender else {})
    if contender.startswith("vanilla"):
        return ModelConfig(decoder="vanilla", backbone=backbone)
    table = "additive" if contender.endswith("additive") else "full"
    bits = 4 if size.backbone.width < 256 else 16
    injection = {"name": "free", "table": table, "scores": "bfloat16" if "bf16" in contender else "float32"}
    data = {"decoder": "free", "backbone": backbone, "event_dims": bits, "injection": injection}
    return ModelConfig.model_validate(data)


def _stream(size: Size, *, packed: bool) -> PackedStream:
    """Random tokens: of documents that fill a row, or of lengths drawn around 600 tokens."""
    random, vocabulary, context = np.random.default_rng(0), size.backbone.vocabulary, size.backbone.context
    steps = WARM + TIMED + 1
    if packed:
        lengths = 1 + random.geometric(1 / min(600, context // 2), size=steps * size.tokens // min(600, context // 2))
    else:
        lengths = np.full(steps * size.rows, context - 1)
    documents = [random.integers(1, vocabulary, int(length), dtype=np.uint32) for length in lengths]
    store = TokenStore.of(documents, end_of_text=0)
    return PackedStream(store, context=context, batch=size.rows, seed=0)


def _forget() -> None:
    """Free the last contender's memory and graphs."""
    gc.collect()
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _line(row: Row) -> str:
    name = f"{row['size']}, {row['contender']}{', compiled' * row['compiled']}{', packed' * row['packed']}"
    if "tokens_per_second" not in row:
        return f"{name}: {row['note']}"
    return f"{name}: {row['tokens_per_second']:,.0f} tokens/s after {row['warm_up_seconds']:.0f} s"


def table(rows: list[Row]) -> Table:
    """For the terminal."""
    columns = ("size", "contender", "compiled", "packed", "tokens/s", "time, ratio to vanilla", "MFU", "GiB", "note")
    made = Table(*columns, title="Training on one GPU")
    for row in rows:
        facts = [row["size"], row["contender"], "yes" * row["compiled"], "yes" * row["packed"]]
        if "tokens_per_second" in row:
            mfu, memory = row["mfu"], row["gib"]
            facts += [f"{row['tokens_per_second']:,.0f}", f"{row['ratio']:.3f}", "" if mfu is None else f"{mfu:.1%}"]
            facts.append("" if memory is None else f"{memory:.1f}")
        else:
            facts += [""] * 4
        made.add_row(*facts, row["note"])
    return made


if __name__ == "__main__":
    main()
