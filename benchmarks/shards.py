"""What training on token shards holds in memory, and what batches in random order take.

    python -m benchmarks.shards                               10 GB of shards, rows of 1,024 tokens
    python -m benchmarks.shards --gigabytes 10 --context 256
    python -m benchmarks.shards --folder shards               those of a folder of your own

Makes a folder of shards whose token files are holes (no disk space; they read as zeros) and whose borders are real, opens it as
a training run does, asks for batches of random numbers of two epochs, then takes steps of a small model. Memory is `RssAnon` of
/proc/self/status, looked at every 20 milliseconds: what the process holds itself. Pages of mapped files, which the system takes
back when it needs them, are `RssFile`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from latentlm.config import DataConfig, Recipe, parse
from latentlm.training.data.shards.format import BORDER, INDEX, File, Index, Shard, TokenizerFacts, write_array
from latentlm.training.loop import make_model, make_stream, prepare, resolve
from latentlm.training.trainer import Trainer

_SHARD = 2**26  # tokens


def made(folder: Path, *, gigabytes: float, document: int, seed: int = 0) -> None:
    """A folder of shards of the size asked for, whose documents have `document` tokens in the mean (uint16)."""
    count = max(1, round(gigabytes * 1e9 / 2 / _SHARD))
    rng = np.random.default_rng(seed)
    sizes = 2 + rng.geometric(1 / document, size=2 * _SHARD // document)
    borders = np.cumsum([0, *sizes[np.cumsum(sizes) < _SHARD]]).astype(BORDER)
    tokens = int(borders[-1]) + 1
    zeros = File(size=2 * tokens, sha256=hashlib.sha256(bytes(2 * tokens)).hexdigest())
    shards = []
    for number in range(count):
        name = f"train-{number:05}"
        files = {"tokens": zeros, "borders": write_array(folder / f"{name}.borders", borders)}
        with (folder / f"{name}.tokens").open("wb") as file:
            file.truncate(zeros.size)
        shards.append(Shard(name=name, documents=len(borders) - 1, tokens=tokens, bytes=tokens, files=files))
    texts = {
        "tokens": (np.array([256, 97, 256]), "<u2"), "borders": (np.array([0, 2]), BORDER),
        "texts": (np.frombuffer(b"\0name\0a\0", np.uint8), "u1"), "text_borders": (np.array([0, 5, 7]), BORDER),
    }  # fmt: skip
    place = folder / "held_out-00000"
    files = {ending: write_array(place.with_suffix(f".{ending}"), one.astype(kind)) for ending, (one, kind) in texts.items()}
    index = Index(
        format="latentlm token shards",
        version=1,
        tokenizer=TokenizerFacts(spec="bytes", name="bytes", vocabulary=257, end_of_text=256, files={}),
        dtype="uint16",
        data=DataConfig(path="zeros"),
        shard_bytes=_SHARD,
        duplicates=0,
        empty=0,
        train=shards,
        held_out=[Shard(name="held_out-00000", documents=1, tokens=3, bytes=1, files=files)],
    )
    (folder / INDEX).write_text(index.model_dump_json(indent=1))


def mib(kind: str) -> float:
    """RssAnon or RssFile of this process."""
    found = re.search(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, "Linux has it"
    return int(found[1]) / 2**10


@contextmanager
def watched() -> Iterator[Callable[[], float]]:
    """The most anonymous memory within the block, so far, MiB."""
    most, ended = [mib("RssAnon")], threading.Event()

    def look() -> None:
        while not ended.wait(0.02):
            most[0] = max(most[0], mib("RssAnon"))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield lambda: max(most[0], mib("RssAnon"))
    finally:
        ended.set()
        thread.join()


def run(folder: Path, *, context: int, batch: int, batches: int, steps: int) -> dict[str, Any]:
    """What a run on the shards of a folder holds. MiB and seconds."""
    found: dict[str, Any] = {"before_mib": mib("RssAnon")}
    index = json.loads((folder / INDEX).read_text())
    settings = {key: index["data"][key] for key in ("seed", "held_out")}
    tokenizer = str(folder / "tokenizer.json") if index["tokenizer"]["files"] else "bytes"
    recipe = parse(Recipe, {
        "model": {"decoder": "vanilla", "backbone": {"width": 16, "blocks": 1, "heads": 2, "context": context}},
        "data": {"path": str(folder), "tokenizer": tokenizer, **settings},
        "train": {"batch": batch, "steps": max(steps, 1), "device": "cpu"},
    }, source="benchmark")  # fmt: skip
    with watched() as peak:
        started = time.perf_counter()
        prepared = prepare(recipe.data)
        recipe = resolve(recipe, tokenizer=prepared.tokenizer)
        found["index_seconds"] = time.perf_counter() - started
        stream = make_stream(recipe, prepared)
        found |= {"start_seconds": time.perf_counter() - started, "start_peak_mib": peak()}
    epoch = stream.rows_per_epoch // batch
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, max(epoch, 1), size=max(batches // 2, 1)).tolist()
    with watched() as peak:
        started = time.perf_counter()
        for number in numbers:
            stream.batch(number)
        found |= {"batches": 2 * len(numbers), "ms_per_batch": 1000 * (time.perf_counter() - started) / len(numbers)}
        started = time.perf_counter()
        stream.batch(epoch + 1)
        found["next_epoch_seconds"] = time.perf_counter() - started
        for number in numbers:
            stream.batch(epoch + 1 + number)
        found["batches_peak_mib"] = peak()
    found |= {"held_mib": mib("RssAnon"), "mapped_mib": mib("RssFile")}
    with watched() as peak:
        trainer = Trainer(make_model(recipe, "cpu"), recipe.train, stream)
        for _ in range(steps):
            trainer.advance()
        found |= {"steps": steps, "steps_peak_mib": peak()}
    facts = {
        "gigabytes": sum(shard["files"]["tokens"]["size"] for shard in index["train"]) / 1e9,
        "shards": len(index["train"]), "documents": len(prepared.train), "targets": prepared.train.targets,
        "context": context, "rows_per_batch": batch, "rows_per_epoch": stream.rows_per_epoch,
    }  # fmt: skip
    most = max(found[key] for key in ("start_peak_mib", "batches_peak_mib", "steps_peak_mib"))
    return {**facts, **found, "most_mib": most}


def main() -> None:
    """The command line described above."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.shards", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=10.0, help="of tokens (default: 10)")
    parser.add_argument("--document", type=int, default=800, help="tokens of a document, in the mean (default: 800)")
    parser.add_argument("--context", type=int, default=1024, help="tokens of a row (default: 1024)")
    parser.add_argument("--batch", type=int, default=16, help="rows of a batch (default: 16)")
    parser.add_argument("--batches", type=int, default=4000, help="batches, in random order (default: 4000)")
    parser.add_argument("--steps", type=int, default=3, help="steps of training after them (default: 3)")
    parser.add_argument("--folder", type=Path, help="shards of your own, instead of made ones")
    parser.add_argument("--json", action="store_true", help="print the result as a line of JSON")
    options = parser.parse_args()
    wanted = {"context": options.context, "batch": options.batch, "batches": options.batches, "steps": options.steps}
    if options.folder is not None:
        found = run(options.folder, **wanted)
    else:
        with tempfile.TemporaryDirectory(prefix="latentlm-shards-") as name:
            made(Path(name), gigabytes=options.gigabytes, document=options.document)
            found = run(Path(name), **wanted)
    if options.json:
        print(json.dumps(found))
        return
    for key, value in found.items():
        Console().print(f"{key:18} {value:,.1f}" if isinstance(value, float) else f"{key:18} {value:,}", highlight=False)


if __name__ == "__main__":
    main()
