"""What a study would run, arm by arm: how many runs are left, of how many parameters, tokens and operations (`--dry-run`)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from rich.box import SIMPLE_HEAD

from latentlm.cli.tables import ReadableTable
from latentlm.cli.text import escaped
from latentlm.config import Recipe
from latentlm.zoo.accounting import cost
from latentlm_evals.study.plan import Run, Study


@dataclass(frozen=True)
class PlannedArm:
    """An arm before it is run."""

    arm: str
    runs: int
    waiting: int
    """Runs that have no line yet."""
    parameters: int
    """With the vocabulary that the recipe says, or that of bytes."""
    tokens: int
    """Of training, a run: positions that are filled, padding included."""
    operations: float
    """Floating-point operations of training, a run."""
    says: str


def planned(study: Study, runs: Sequence[Run], finished: Collection[str]) -> list[PlannedArm]:
    """The arms of these runs, in the file's order; `finished` are names of runs. Models are counted, not made."""
    found = []
    for arm in study.arms:
        own = [run for run in runs if run.arm == arm]
        if own:
            recipe = own[0].resolved
            costs = cost(recipe.model, dtype=torch.float32, plugin_names=recipe.plugins or None)
            tokens = tokens_of(recipe)
            found.append(
                PlannedArm(
                    arm=arm,
                    runs=len(own),
                    waiting=sum(run.name not in finished for run in own),
                    parameters=costs.parameters,
                    tokens=tokens,
                    operations=costs.training_flops_per_token * tokens,
                    says=study.arms[arm].says,
                )
            )
    return found


def tokens_of(recipe: Recipe) -> int:
    """Positions that a run is trained on."""
    train = recipe.train
    return train.steps * train.batch * train.accumulate * (train.context or recipe.model.backbone.context)


def planned_table(study: Study, found: Sequence[PlannedArm]) -> ReadableTable:
    """For a terminal."""
    waiting = sum(one.waiting for one in found)
    tokens = sum(one.waiting * one.tokens for one in found)
    title = f"{escaped(study.name)}: {waiting} of {sum(one.runs for one in found)} runs to do, {tokens / 1e6:,.1f}M tokens"
    made = ReadableTable(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for head in ("arm", "to do", "parameters", "tokens a run", "operations a run"):
        made.add_column(head, justify="left" if head == "arm" else "right")
    made.add_column("", overflow="fold")
    for one in found:
        counts = (f"{one.waiting} of {one.runs}", f"{one.parameters:,}", f"{one.tokens:,}", f"{one.operations:.1e}")
        made.add_row(escaped(one.arm), *counts, escaped(one.says))
    return made
