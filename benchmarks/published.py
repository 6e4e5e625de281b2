"""The measurements behind the numbers of the docs: one JSON file for each model and kind, kept in docs/numbers.

    likelihood    48 documents of 1,024 bytes, to a tolerance: latentlm_evals/measure.py
    coverage      how often intervals hold the truth: benchmarks/coverage.py
    shares        the bias of few samples by their defensive share: benchmarks/convergence.py
    refining      what refining a document's vector gains: the same

A file has the `facts` that its numbers depend on: hashes of the weights and of the texts, and the settings. What was measured
under other facts is measured again, everything else is kept, so that a run that was stopped goes on. The `machine` that it was
measured on, and the `seconds`, stand beside them and count for nothing: draws are keyed, results differ by rounding.

Run: ``python -m benchmarks.published KIND MODEL [--device cuda]`` measures one; ``python docs/build_numbers.py --measure`` all.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import convergence, coverage
from benchmarks.texts import DOCUMENTS, published_texts, texts_hash, trained_cards
from latentlm import zoo
from latentlm.config import Card
from latentlm.errors import UserError, unknown_name
from latentlm.interface import LatentDecoder
from latentlm_evals.fingerprint import machine_facts
from latentlm_evals.measure import Precision, measure

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "docs" / "numbers"
BYTES = 1_024
"""Of each document: four windows, of which one by a particle filter takes a CPU some seconds."""
BASELINE = "vanilla-tiny"
PRECISION = Precision(max_samples=512)
VECTORS = ("gaussian-tiny", "ltm-tiny", "della-tiny", "two-level-tiny")
"""Of which a document's vector is proposed for."""
PROPOSALS = {
    "likelihood": dict.fromkeys(VECTORS, 3),
    "coverage": {"gaussian-tiny": 3, "two-level-tiny": 3, "ltm-tiny": 2},
    "refining": {"gaussian-tiny": 2, "ltm-tiny": 2},
}
"""Raised where these proposals are others: 2 has a full covariance (latentlm/likelihood/refining.py), 3 is refined anew where
samples do not settle, and weighs a filter's particles in even parts. (By 3, none of the scores behind the coverage of ltm-tiny
and 7 in 1,000 of della-tiny's would be others, and the truths so far as they are not known.)"""
Facts = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """A measurement of a model."""

    run: Callable[[str, LatentDecoder, Console], dict[str, Any]]
    settings: Facts
    applies: Callable[[Card], object]
    """Whether it says anything of the model."""


@functools.cache
def models() -> dict[str, Card]:
    """The cards trained on the texts by name, the baseline first."""
    cards = trained_cards()
    return {name: cards[name] for name in sorted(cards, key=lambda name: (name != BASELINE, name))}


def file_of(kind: str, name: str) -> Path:
    """Where a measurement is kept."""
    return KEPT / f"{kind}-{name}.json"


def kept(kind: str) -> dict[str, dict[str, Any] | None]:
    """What is kept of one kind by model: None where it is not measured, or of other weights, texts or settings."""
    return {name: _kept(kind, card) for name, card in models().items() if KINDS[kind].applies(card)}


def _kept(kind: str, card: Card) -> dict[str, Any] | None:
    path = file_of(kind, card.name)
    found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    return found if found is not None and found["facts"] == facts_of(kind, card) else None


# ---------------------------------------------------------------------------------------------------------- measuring


def measure_missing(
    names: Sequence[str], kinds: Sequence[str], *, device: str, jobs: int, console: Console
) -> list[str]:
    """Measure what is not kept yet of these models, or of all where none is named, `jobs` at a time, each in a process of its
    own. Each is written when it is done; one that fails stops no other. Returns what failed and why. Raises UserError for a
    model or a device that is not there."""
    for name in names:
        if name not in models():
            raise unknown_name("trained model", name, models())
    zoo.load(BASELINE, device=device)  # a device that is not there is found here, once
    wanted = list(_missing(names or list(models()), kinds or list(KINDS)))
    console.print(f"{len(wanted)} to measure on {device}, {jobs} at a time.")
    failures = []
    with ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(_apart, kind, name, device, shown=jobs == 1): (kind, name) for kind, name in wanted}
        for future in as_completed(running):
            kind, name = running[future]
            if (reason := future.result()) is None:
                seconds = json.loads(file_of(kind, name).read_text(encoding="utf-8"))["seconds"]
                console.print(f"Measured the {kind} of {name} in {seconds:.0f} s.")
            else:
                console.print(f"The {kind} of {name} failed.")
                failures.append(f"The {kind} of {name} failed:\n{reason}")
    return failures


def _missing(names: Sequence[str], kinds: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What is not kept under the facts of today, what takes longest first, so that at the end no process works alone."""
    cards = models()
    for name in sorted(names, key=lambda name: name not in VECTORS):
        for kind in kinds:
            if KINDS[kind].applies(cards[name]) and _kept(kind, cards[name]) is None:
                yield kind, name


def facts_of(kind: str, card: Card) -> Facts:
    """What the numbers depend on."""
    assert card.weights is not None
    facts: Facts = {"weights": card.weights.sha256, "texts": texts_hash(), "settings": KINDS[kind].settings}
    proposals = PROPOSALS.get(kind, {}).get(card.name)
    return facts if proposals is None else facts | {"proposals": proposals}


def _apart(kind: str, name: str, device: str, *, shown: bool) -> str | None:
    """Measure in another process; the end of what it said where it failed. `shown`: it may write to the terminal."""
    command = [sys.executable, "-m", "benchmarks.published", kind, name, "--device", device]
    pipe = None if shown else subprocess.PIPE
    done = subprocess.run(
        command, cwd=ROOT, env={"OMP_NUM_THREADS": "1", **os.environ}, stdout=pipe, stderr=pipe and subprocess.STDOUT, text=True
    )
    if done.returncode == 0:
        return None
    return (done.stdout or "").strip()[-2000:] or f"exit status {done.returncode}"


def measure_one(kind: str, name: str, *, device: str, console: Console) -> Path:
    """Measure and write. Raises UserError for a kind, a model or a device that is not there."""
    if kind not in KINDS:
        raise unknown_name("kind of measurement", kind, KINDS)
    start = time.perf_counter()
    model = zoo.load(name, device=device)
    found = KINDS[kind].run(name, model, console)
    seconds = round(time.perf_counter() - start, 1)
    assert model.card is not None
    whole = {"facts": facts_of(kind, model.card), "machine": machine_facts(model), "seconds": seconds, **found}
    path = file_of(kind, name)
    path.parent.mkdir(exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)
    return path


def _likelihood(name: str, model: LatentDecoder, console: Console) -> dict[str, Any]:
    with console.status(f"Measuring the likelihood of {name}") as status:
        result = measure(
            model, name, published_texts(limit=BYTES), precision=PRECISION, seed=0,
            progress=lambda done, total: status.update(f"Measuring the likelihood of {name}: {done} of {total} windows"),
        )  # fmt: skip
    return json.loads(json.dumps(asdict(result)))  # type: ignore[no-any-return]


def _coverage(name: str, model: LatentDecoder, console: Console) -> dict[str, Any]:
    return coverage.run(name, **_COVERAGE, console=console, device=str(model.device))


def _shares(name: str, model: LatentDecoder, console: Console) -> dict[str, Any]:
    return {"rows": convergence.bias(name, convergence.Sizes(), str(model.device))}


def _refining(name: str, model: LatentDecoder, console: Console) -> dict[str, Any]:
    return {"rows": convergence.vector(name, convergence.Sizes(), str(model.device))}


_COVERAGE = {"texts": 20, "size": 64, "estimates": 50, "samples": 2048}
KINDS: dict[str, Kind] = {
    "likelihood": Kind(
        _likelihood, {"documents": DOCUMENTS, "bytes": BYTES, **asdict(PRECISION), "rule": coverage.RULE}, lambda card: True
    ),
    "coverage": Kind(_coverage, {**_COVERAGE, "rule": coverage.RULE}, lambda card: card.model.by_latent),
    "shares": Kind(_shares, asdict(convergence.Sizes()), lambda card: card.name in convergence.BITS),
    "refining": Kind(_refining, asdict(convergence.Sizes()), lambda card: card.name in convergence.VECTORS),
}


def main() -> None:
    """The command line described above."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.published", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", help=" or ".join(KINDS))
    parser.add_argument("model")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    try:
        measure_one(options.kind, options.model, device=options.device, console=Console())
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
