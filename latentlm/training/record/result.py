"""What a finished run leaves: weights and a card, which make its folder a model like any other of the zoo."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from latentlm.config import Card, Recipe, WeightsSpec, as_yaml, parse, read_yaml
from latentlm.config.tensor_files import save_one_by_one
from latentlm.config.writing import write_atomically, write_text
from latentlm.errors import UserError
from latentlm.training.record.folder import CARD, METRICS, WEIGHTS
from latentlm.training.record.metrics import last_line, whole_lines
from latentlm.zoo.unfinished import card_of
from latentlm.zoo.weights import sha256

_SCORES = ("bits_per_byte", "standard_error", "bound", "cross_entropy", "kl_bits_per_token", "live_bits", "documents", "bytes")


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    out: Path
    name: str
    parameters: int
    steps: int
    tokens: int
    """Target tokens trained on."""
    seconds: float
    """Of training: without evaluation and saving."""
    train: dict[str, Any]
    """Last training line of the metrics."""
    held_out: dict[str, Any]
    """Last held-out line."""

    @property
    def tokens_per_second(self) -> float:
        """Over the whole run, evaluation and saving left out."""
        return self.tokens / max(self.seconds, 1e-9)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "out": str(self.out), "tokens_per_second": self.tokens_per_second}


def write_model(
    out: Path,
    *,
    recipe: Recipe,
    weights: Mapping[str, Tensor],
    tensors: Iterable[tuple[str, Tensor]],
    tokenizer: str,
    training: dict[str, Any],
    scores: dict[str, Any],
) -> Card:
    """Write model.safetensors and, last of all, card.yaml. `weights` say names and shapes, `tensors` are all of these in full,
    asked for one by one; `tokenizer` is what the card says of it."""
    path = out / WEIGHTS
    write_atomically(path, lambda temporary: save_one_by_one(temporary, weights, tensors))
    spec = WeightsSpec(uri=path.name, sha256=sha256(path), size=path.stat().st_size)
    card = card_of(recipe, spec, tokenizer=tokenizer, training=training, scores=scores)
    write_text(out / CARD, as_yaml(card, exclude_none=True))
    return card


def training_facts(recipe: Recipe, *, data: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """What the card says of how the model was trained."""
    train = recipe.train
    return {
        **facts,
        "optimizer": f"AdamW, peak learning rate {train.learning_rate}, weight decay {train.weight_decay}",
        "tokens_per_step": train.batch * train.accumulate * (train.context or recipe.model.backbone.context),
        "dtype": train.dtype,
        "seed": train.seed,
        "data": {"path": recipe.data.path, **data},
        "recipe": "recipe.yaml",
    }


def held_out_scores(line: dict[str, Any]) -> dict[str, Any]:
    """What the card says of the last held-out evaluation."""
    measured = {key: line[key] for key in _SCORES if line.get(key) is not None}
    if line.get("no_bound") is not None:
        keys = ("cross_entropy", "live_bits", "documents", "bytes")
        return {"held_out": {**{key: measured[key] for key in keys if key in measured}, "no_bound": line["no_bound"]}}
    return {
        "held_out_bound": {
            **measured,
            "method": "one-sample bound (cross_entropy + KL) on the first window of held-out documents, at the end of training",
        }
    }


def read_result(out: Path) -> RunResult:
    """The result of a finished run, from its files. Raises UserError where its card does not say how it was trained."""
    card = parse(Card, read_yaml(out / CARD), source=f"card {out / CARD}")
    facts = card.training
    kinds: dict[str, Any] = {"parameters": int, "steps": int, "tokens": int, "seconds": int | float}
    if bad := [key for key, kind in kinds.items() if not isinstance(facts.get(key), kind) or isinstance(facts[key], bool)]:
        raise UserError(
            f"the card {out / CARD} does not say how the run was trained: training.{bad[0]} is no number. Bring the card that "
            "the run wrote back, or train into another folder with --out."
        )
    lines = whole_lines(out / METRICS)
    return RunResult(
        out=out,
        name=card.name,
        parameters=facts["parameters"],
        steps=facts["steps"],
        tokens=facts["tokens"],
        seconds=facts["seconds"],
        train=last_line(lines, "train"),
        held_out=last_line(lines, "held_out"),
    )
