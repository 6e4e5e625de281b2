"""The bench on which `latentlm schedules` runs the schedules: a text whose latent is known, a small model, and settings.

The text. 1,600 documents of 15 letters. Each has one of 16 topics, and each letter is drawn evenly from the topic's own 4 of 16
letters. What a document's latent can be of use for is its topic: 4 bits at most. A decoder without it infers the topic from the
letters so far, so a latent pays at the start of a document and hardly at its end; on the whole what it saves in
cross-entropy is the information that it carries, and the ELBO is indifferent between using it and not. That is the setting
in which latents of text collapse (Bowman et al. 2016).

The model. The Free Transformer with one latent of 6 bits per document, width 64, 2 blocks, 58,000 parameters.

The settings. Publications are made for tens of thousands of steps and for vectors of many Gaussians. Here lengths follow the
run; budgets and set points are `bits` per site for every schedule that has one; the gains of control_vae and geco are raised so
that they act within a run, and capacity's gamma is 1, not 1000 (docs/schedules.md shows what 1000 does here). They were chosen
by eye on one seed. Everything else keeps its default.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from latentlm.composed import complete
from latentlm.config import PartSpec, Recipe, apply_overrides, parse
from latentlm.config.writing import write_text
from latentlm.errors import UserError
from latentlm.training.recipes import load_recipe

BITS = 3.0
"""Budget, capacity or set point, bits per site: below the 4 bits of a topic, above nothing."""
CROSS_ENTROPY_BITS = 2.08
"""GECO's target on the built-in text, bits per target token: between what the model reaches with its latent and without it."""
_LETTERS = "abcdefghijklmnop"
_DOCUMENTS, _LENGTH, _TOPICS = 1600, 15, 16


def base_recipe(name: str | None, *, folder: Path, steps: int, seed: int) -> Recipe:
    """The built-in recipe, its text written to `folder`, or the one of that name, with `steps` and `seed`. Raises UserError for
    a recipe without latents."""
    if name is not None:
        recipe = load_recipe(name, [f"train.steps={steps}", f"train.seed={seed}"])
        if complete(recipe.model).kl_schedule is None:
            raise UserError(f"the recipe {name} has no KL schedule to vary: its decoder has no latents. Name one that has.")
        return recipe
    data = {
        "name": "schedules",
        "model": {
            "decoder": "free", "granularity": "document", "event_dims": 6,
            "backbone": {"width": 64, "blocks": 2, "heads": 2, "context": 16, "init_std": 0.06},
        },
        "data": {"path": str(write_topics(folder)), "held_out": 0.1},
        "train": {
            "steps": steps, "batch": 32, "learning_rate": 0.005, "warmup": 20, "seed": seed, "eval_documents": 128,
            "device": "cpu", "threads": 1,
        },
    }  # fmt: skip
    return parse(Recipe, data, source="the built-in recipe")


def write_topics(folder: Path) -> Path:
    """Write the built-in text, the same everywhere, and return its path. Raises UserError where another has its name."""
    draw = random.Random(0)
    topics = [draw.sample(_LETTERS, 4) for _ in range(_TOPICS)]
    texts = ["".join(draw.choices(draw.choice(topics), k=_LENGTH)) for _ in range(_DOCUMENTS)]
    path = folder / "topics.jsonl"
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    write_text(path, lines, ours=lambda there: there.read_bytes() == lines.encode(), kind="the built-in text")
    return path


def settings_for(name: str, *, steps: int, bits: float, event_dims: int, target_bits: float | None) -> dict[str, Any]:
    """Settings of a schedule for a run of `steps` optimiser steps; none for one that this project does not know."""
    lengths = max(1, steps // 2)
    known: dict[str, dict[str, Any]] = {
        "free_bits": {"bits": bits},
        "linear": {"steps": lengths},
        "sigmoid": {"midpoint": steps / 4, "rate": 40 / steps},
        "cyclical": {"steps": steps},
        "optimus": {"steps": steps, "bits": bits / max(1, event_dims)},
        "capacity": {"bits": bits, "steps": lengths, "gamma": 1.0},
        "minimum_desired_rate": {"bits": bits},
        "control_vae": {"bits": bits, "integral": 0.005},
        "geco": {"smoothing": 0.9, "rate": 0.1},
    }
    chosen = known.get(name, {})
    if name == "geco":
        if target_bits is None:
            raise UserError(
                "geco needs its target on a recipe of yours: set --target to a cross-entropy in bits per target token, a "
                "little below what the model reaches without latents, or leave geco out of --schedules."
            )
        chosen = {**chosen, "cross_entropy_bits": target_bits}
    return chosen


def with_schedule(recipe: Recipe, name: str, settings: dict[str, Any], overrides: list[str]) -> Recipe:
    """The recipe with another schedule. Overrides are `NAME.key=value`, and those of other schedules are passed over. Raises
    UserError for settings that the schedule does not have."""
    own = [text.removeprefix(f"{name}.") for text in overrides if text.startswith(f"{name}.")]
    spec = PartSpec(name=name, **apply_overrides(dict(settings), own))
    changed = recipe.model_copy(update={"model": recipe.model.model_copy(update={"kl_schedule": spec})})
    complete(changed.model)
    return changed
