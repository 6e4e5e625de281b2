"""The task: "here is y, find an s with f(s) = y", of a plan-first source (latentlm.training.data.synthetic).

    task = make_task("sums,shown=6", prompts=200, calibration=100, least=2, seed=0)
    prompt = task.measured[0]
    answer in prompt.answers          # the checker; len(prompt.answers) is the number of answers that are right

All secrets of a source are written down once, by their consequence, so the right answers of a prompt are known, every one.
Prompts come as the source draws them, so that one with more answers comes up more often, each of them once; those that are
measured and those on which a temperature is chosen are different ones, split at random.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from latentlm.errors import UserError, unknown_name
from latentlm.training.data import synthetic
from latentlm.training.data.synthetic import PREFIX, Plan
from latentlm.training.data.synthetic.source import uniform

_MOST_SECRETS = 2**18
"""Of which all are written down: a few seconds."""


@dataclass(frozen=True)
class Prompt:
    """What a model continues, and every answer that is right."""

    text: str
    answers: frozenset[str]


@dataclass(frozen=True)
class Task:
    """Prompts of one source, none in both lists."""

    name: str
    """"synthetic:" and what `synthetic.source` takes."""
    length: int
    """Characters of an answer."""
    measured: list[Prompt]
    calibration: list[Prompt]
    """On which temperatures are chosen."""


def make_task(spec: str, *, prompts: int, calibration: int, least: int, seed: int) -> Task:
    """Prompts of a plan-first source that have at least `least` right answers. Raises UserError for another source, for one
    with too many secrets to write down, and where there are not enough such prompts."""
    source = plan_source(spec)
    answers: dict[str, list[str]] = defaultdict(list)
    for number in range(source.secrets):
        secret = source.secret(number)
        answers[source.consequence(secret)].append(secret)
    name = f"{PREFIX}{spec.removeprefix(PREFIX)}"
    fitting = [found for found in answers.values() if len(found) >= least]
    wanted = prompts + calibration
    if len(fitting) < wanted:
        most = max(map(len, answers.values()))
        raise UserError(
            f"{name} has {len(fitting)} prompts with at least {least} right answers (none has more than {most}), but "
            f"{prompts} to measure and {calibration} to choose a temperature on are wanted: lower --prompts, --calibration or "
            "--answers, or take a task that has more, such as synthetic:sums,shown=6 or synthetic:subset."
        )
    chosen = _drawn([len(found) for found in fitting], wanted, seed)
    every = [_prompt(source, fitting[number]) for number in chosen]
    return Task(name, source.length, every[:prompts], every[prompts:])


def plan_source(spec: str) -> Plan:
    """A plan-first source, "synthetic:" before its name or not. Raises UserError for another, and for one too large."""
    spec = spec.removeprefix(PREFIX)
    plans = [name for name, kind in synthetic.SOURCES.items() if issubclass(kind, Plan)]
    name = spec.partition(",")[0]
    if name not in plans:
        what = "The task must be a plan-first source, of which answers can be checked."
        raise unknown_name("task", name, plans, remedy=what)
    source = synthetic.source(spec)
    assert isinstance(source, Plan)
    if source.forwards:
        raise UserError(f"{PREFIX}{spec} writes the secret first, so that no prompt asks for it: leave forwards out.")
    if source.secrets > _MOST_SECRETS:
        raise UserError(
            f"{PREFIX}{spec} has {source.secrets:,} secrets, and all are written down to know the right answers, which at most "
            f"{_MOST_SECRETS:,} can be: lower its length."
        )
    return source


def _prompt(source: Plan, secrets: list[str]) -> Prompt:
    """What stands before the secret in a text of the source."""
    return Prompt(source.text(secrets[0]).decode().removesuffix(secrets[0]), frozenset(secrets))


def _drawn(weights: list[int], count: int, seed: int) -> list[int]:
    """`count` numbers without repeats, in random order, each drawn in proportion to its weight among those that are left: the
    smallest of exponential waiting times (Efraimidis and Spirakis 2006)."""
    rows = np.concatenate(list(uniform(len(weights), 2, seed=seed)))[: len(weights)]
    waiting = -np.log1p(-rows[:, 0]) / np.array(weights)
    first = np.argsort(waiting, kind="stable")[:count]
    return [int(number) for number in first[np.argsort(rows[first, 1], kind="stable")]]
