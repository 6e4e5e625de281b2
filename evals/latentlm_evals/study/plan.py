"""What a study file says.

    name: controls
    description: What each part of the Free Transformer does.
    baseline: vanilla                 # the arm that the others are compared with; default: the first
    seeds: 3                          # runs of an arm
    set: {train.steps: 4000}          # settings of every arm
    arms:
      vanilla: {recipe: vanilla-synthetic}
      free-1-8:
        recipe: free-synthetic        # a name, or a YAML file beside the study
        set: {model.kl_schedule.bits: 0.125}
        seeds: 1
    measure: {texts: 24, bytes: 256, max_samples: 1024}

Arms are measured on the same held-out texts. Of a synthetic source (`data.path: synthetic:NAME`) these are fresh draws, and the
likelihood is compared with the exact one; of anything else the beginnings of held-out documents.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from fnmatch import filter as matching
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from latentlm.config import Recipe, Strict, as_yaml, parse, read_yaml
from latentlm.errors import UserError, did_you_mean, unknown_name
from latentlm.likelihood import Method
from latentlm.likelihood.estimating import FIRST_SAMPLES
from latentlm.training.data.synthetic import PREFIX
from latentlm.training.recipes import load_recipe

MOST_RUNS = 1_000
"""Of a study: each is resolved before the first is trained, and has its line in a table of progress."""
MOST_TEXTS = 10**6
"""That runs are measured on: a synthetic source makes as many as it is asked for."""
_OWN = ("name", "train.seed")
"""Settings that a study makes for each run."""
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class Arm(Strict):
    """One configuration of the study."""

    recipe: str = Field(description="a recipe's name, or a YAML file beside the study")
    set: dict[str, Any] = Field(default_factory=dict, description="settings that differ from the recipe's")
    seeds: int | None = Field(None, ge=1, le=MOST_RUNS, description="runs; default: the study's")
    says: str = Field("", description="what the arm is for")


class Measures(Strict):
    """What runs are measured on, and how well."""

    texts: int = Field(24, ge=2, le=MOST_TEXTS, description="held-out texts")
    bytes: int = Field(256, ge=1, description="of each, from its start; a synthetic source's are whole")
    given: int = Field(0, ge=0, description="of them, a prompt: what follows is scored given these")
    max_samples: int = Field(1024, ge=FIRST_SAMPLES, description="importance samples of a window, at most")
    tolerance: float = Field(0.01, gt=0, description="bits per byte that the likelihood is to be good to")
    method: Method = Field("iwae", description="estimator of the likelihood; auto, over long texts of a latent that is used")

    @model_validator(mode="after")
    def _leaves_something(self) -> Self:
        if self.given >= self.bytes:
            raise ValueError(f"of {self.bytes} bytes, {self.given} are given: nothing is left to score; give fewer.")
        return self

    @property
    def facts(self) -> dict[str, Any]:
        """What results depend on. Settings that came later are left out where they say what held before, so that lines of then
        stay good."""
        return self.model_dump(exclude={name for name in ("given", "method") if getattr(self, name) in (0, "iwae")})


class Study(Strict):
    """A study file."""

    name: str = Field(pattern=NAME)
    description: str = ""
    baseline: str | None = Field(None, description="arm that the others are compared with; default: the first")
    seeds: int = Field(1, ge=1, le=MOST_RUNS, description="runs of an arm that does not say")
    set: dict[str, Any] = Field(default_factory=dict, description="settings of every arm")
    arms: dict[str, Arm]
    measure: Measures = Measures()

    @model_validator(mode="after")
    def _has_its_baseline(self) -> Self:
        if not self.arms:
            raise ValueError("a study needs an arm: name one under `arms`.")
        if self.baseline is not None and self.baseline not in self.arms:
            raise ValueError(f'baseline "{self.baseline}" is none of the arms.{did_you_mean(self.baseline, self.arms)}')
        for where, settings in (("set", self.set), *((f"arms.{name}.set", arm.set) for name, arm in self.arms.items())):
            if own := [key for key in _OWN if key in settings]:
                raise ValueError(f"{where}: each run has a {own[0]} of its own: leave it out.")
        if (runs := sum(arm.seeds or self.seeds for arm in self.arms.values())) > MOST_RUNS:
            raise ValueError(f"arms and seeds make {runs:,} runs; a study has at most {MOST_RUNS:,}: part it into several.")
        return self

    @property
    def first(self) -> str:
        """The baseline."""
        return self.baseline or next(iter(self.arms))


class Run:
    """One run: an arm and a seed, with its recipe."""

    def __init__(self, study: Study, arm: str, seed: int, recipe: str, overrides: list[str]) -> None:
        self.arm, self.seed, self.recipe, self.overrides = arm, seed, recipe, overrides
        self.resolved: Recipe = load_recipe(recipe, overrides)
        self.folder = f"{self.name}-{_hash(as_yaml(self.resolved))[:8]}"
        """Where it is trained: another recipe has another folder."""
        self.facts = _hash(as_yaml(self.resolved) + json.dumps(study.measure.facts, sort_keys=True))
        """Of everything that the results depend on but the code."""

    @property
    def name(self) -> str:
        """Unique in a study."""
        return f"{self.arm}-{self.seed}"


def study_file(path: Path) -> Path:
    """The path of a study file. Raises UserError for its name without the ending, for its results, and where there is none."""
    if path.suffix == ".jsonl":
        beside = path.with_suffix(".yaml")
        meant = f' Did you mean "{beside}"?' if beside.is_file() else ""
        raise UserError(f"{path} holds results; a study is a YAML file.{meant}")
    if not os.path.lexists(path):
        there = {str(other): str(other) for pattern in ("*.yaml", "*.yml") for other in path.parent.glob(pattern)}
        whole = f"{path}.yaml"
        meant = f' Did you mean "{whole}"?' if whole in there else did_you_mean(str(path), there)
        raise UserError(f"study {path} does not exist.{meant}")
    return path


def read_study(path: Path) -> Study:
    """Read and check a study file. Raises UserError."""
    study = parse(Study, read_yaml(path), source=f"study {path}")
    for name in study.arms:
        if not re.fullmatch(NAME, name):
            raise UserError(f'study {path}: "{name}" is no name for an arm: letters, digits, "-", "_", ".", first no mark.')
    return study


def chosen(study: Study, patterns: Sequence[str]) -> list[str]:
    """The arms whose names fit, in the file's order, or all. Raises UserError for a pattern that none fits."""
    fitting: set[str] = set()
    for pattern in patterns:
        found = matching(study.arms, pattern)
        if not found:
            raise unknown_name("arm", pattern, study.arms)
        fitting.update(found)
    return [arm for arm in study.arms if arm in fitting or not patterns]


def runs_of(study: Study, folder: Path) -> list[Run]:
    """Every run, first seeds first, so that a study that is stopped has something of each arm. `folder`: of the study file.
    Raises UserError for a recipe or a setting that is wrong, before anything is trained."""
    found = []
    for name, arm in study.arms.items():
        beside = folder / arm.recipe
        recipe = str(beside) if beside.is_file() else arm.recipe
        for seed in range(arm.seeds or study.seeds):
            settings = {**study.set, **arm.set, "train.seed": seed, "name": f"{name}-{seed}"}
            overrides = [f"{key}={_as_yaml(value)}" for key, value in settings.items()]
            try:
                found.append(_checked(Run(study, name, seed, recipe, overrides), study))
            except UserError as error:
                raise UserError(f'study {study.name}, arm "{name}": {error}') from None
    return sorted(found, key=lambda run: run.seed)


def _checked(run: Run, study: Study) -> Run:
    """The run, if it can be measured as the study asks. Raises UserError."""
    if study.measure.given and run.resolved.data.path.startswith(PREFIX):
        raise UserError(
            f"measure.given is {study.measure.given}, but the density of {run.resolved.data.path} is that of whole texts: "
            "leave it out."
        )
    return run


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _as_yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
