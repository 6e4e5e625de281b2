"""Golden losses: the first two steps of every shipped recipe and two scores after them, in one process, as a test runs them.

At its start a model hardly listens to its latents (tables and output weights are tiny), and a wrong z would pass unseen. So
each parameter is first moved by a normal number of standard deviation 0.1, keyed by the parameter's name. Even so a wrong z can
move the mean over hundreds of targets by less than the tolerance, because it helps some and harms others: some single targets
of the first batch are among the numbers. tests/test_losses.py puts faults in, and shows that these move by more than ten times
the tolerance.

The file is written on one machine and compared on others. With torch's plain or AVX2 kernels in place of its AVX-512 ones no
number moved by more than 2.2e-5 of its size: the tolerance is for such rounding, not for changes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from rich.progress import track

from benchmarks.losses.texts import make_texts

# What is taken from inside of latentlm; these modules may move, and then this is the place to mend.
from latentlm.interface import LatentDecoder, Noise
from latentlm.likelihood import score_continuations, score_texts
from latentlm.training.data.prepared import prepare
from latentlm.training.recipes import load_recipe
from latentlm.training.setup import make_model, make_stream, resolve
from latentlm.training.trainer import Trainer

TOLERANCE = 1e-4
"""Relative."""
STEPS = 2
MOVED = 0.1
EVERY = 29
"""Of so many targets of the first batch, one is among the numbers."""
SETTINGS = {
    "data.held_out": 0.25, "data.tokenizer": "bytes", "train.steps": STEPS, "train.warmup": 1, "train.batch": 4,
    "train.accumulate": 1, "train.context": 96, "train.learning_rate": 0.001, "train.dtype": "float32",
}  # fmt: skip
GIVEN, CONTINUED = b"    return self\n", b"the old river waits\n"

Numbers = dict[str, float]


def all_numbers(recipes: Mapping[str, Path], *, console: Console) -> dict[str, Numbers]:
    """The numbers of each recipe, by its name."""
    torch.set_num_threads(1)
    with TemporaryDirectory(prefix="latentlm-golden-") as name:
        make_texts(Path(name))
        return {recipe: numbers(path, texts=Path(name)) for recipe, path in track(recipes.items(), console=console)}


def numbers(path: Path, *, texts: Path) -> Numbers:
    """Nats of single targets of the first batch, nats per target token of each step by what they are made of, and nats of two
    scores after the last."""
    settings = {**SETTINGS, "data.path": texts}
    recipe = resolve(load_recipe(str(path), [f"{key}={value}" for key, value in settings.items()]))
    prepared = prepare(recipe.data)
    model = make_model(recipe, "cpu")
    move(model)
    trainer = Trainer(model, recipe.train, make_stream(recipe, prepared))
    found = _single_targets(model, trainer)
    for step in range(1, STEPS + 1):
        facts = trainer.advance()
        cross_entropy = facts.cross_entropy / facts.targets
        penalty, auxiliary = facts.penalty / facts.targets, facts.auxiliary / facts.targets
        found[f"step {step}: loss"] = cross_entropy + penalty + auxiliary
        found[f"step {step}: cross-entropy"] = cross_entropy
        found[f"step {step}: KL"] = facts.kl / facts.targets
        found[f"step {step}: gradient norm"] = facts.gradient_norm
    encode, end = prepared.tokenizer.encode, prepared.tokenizer.end_of_text
    given, continued = [end, *encode(GIVEN)], [*encode(CONTINUED), end]
    found["iwae of a text"] = score_texts(model, [given], method="iwae", samples=4)[0].value
    found["operational of a continuation"] = score_continuations(
        model, [(given, continued)], method="operational", samples=4
    )[0].value
    return found


def _single_targets(model: LatentDecoder, trainer: Trainer) -> Numbers:
    """Some targets of the first batch, under noise like that of training."""
    batch = trainer.stream.batch(0)
    noise = Noise.keyed(0, [("train", row) for row in range(batch.inputs.shape[0])])
    loss = model.train().loss(batch, step=0, noise=noise)
    nats = loss.reconstruction.detach()[batch.target_mask]
    return {f"target {place}": float(nats[place]) for place in range(0, len(nats), EVERY)}


@torch.no_grad()
def move(model: torch.nn.Module) -> None:
    """Add to each parameter normal numbers that depend on its name alone."""
    for name, parameter in model.named_parameters():
        seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "little")
        noise = MOVED * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
        parameter.add_(noise)


def differing(golden: Mapping[str, float], found: Mapping[str, float], *, tolerance: float = TOLERANCE) -> list[str]:
    """What is not the same within the tolerance, one line each: numbers that moved, that are lacking, that are new."""
    lines = [f"{name}: lacking" for name in golden if name not in found]
    lines += [f"{name}: not in the golden file" for name in found if name not in golden]
    for name in golden.keys() & found.keys():
        before, after = golden[name], found[name]
        moved = abs(after - before) / max(abs(after), abs(before), 1e-300)
        if not moved <= tolerance:  # a NaN is a difference
            lines.append(f"{name}: {before:.9g} is now {after:.9g} ({moved:.1e} of its size)")
    return sorted(lines)


def write(path: Path, golden: Mapping[str, Numbers]) -> None:
    """Write the golden file, nine digits of each number."""
    rounded = {recipe: {name: float(f"{value:.9g}") for name, value in found.items()} for recipe, found in golden.items()}
    path.write_text(json.dumps(rounded, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read(path: Path) -> dict[str, Numbers]:
    """The golden file."""
    found: dict[str, Numbers] = json.loads(path.read_text(encoding="utf-8"))
    return found
