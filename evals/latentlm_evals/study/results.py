"""The results of a study: one JSON line for each finished run, kept beside the study file.

    study, arm, seed, facts     which run; `facts` is a hash of its recipe and of how it was measured
    commit, machine             of the code, and where it ran
    training                    steps, tokens, tokens_per_second, seconds, parameters, operations per token, peak memory (MiB)
    scores                      nats of each text, honest, in order; `exact` beside them where the source's density is known
    standard_errors, quarters, sixteenths, bytes, targets    of each text
    groups                      of the synthetic letter: what continuations under one z agree in (letter/measure.py)
    bits_per_byte, converged    what the scores come to, and whether they are good to the tolerance
    samples, kl_bits, information_bits, live_bits, units, persistence, cross_entropy (nats per token under z from elsewhere)
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from latentlm.config import read_text
from latentlm.config.reading import json_data
from latentlm.config.writing import open_to_append
from latentlm.errors import UserError, invalid
from latentlm.likelihood import Estimate, Score, bits_per_byte
from latentlm_evals.paired import Difference, Stratum, crossed_difference
from latentlm_evals.study.plan import Run, Study

Line = dict[str, Any]
_KEYS = {"study": str, "arm": str, "seed": int, "facts": str}
_FIRST = '{"study": "'
"""What a line begins with, and so does what a crash has left of one."""
USED = 0.01
"""Bits per token by which another text's z has to be worse for a latent to count as used."""
_SOURCES = ("posterior", "shuffled", "prior", "constant")
"""Where the z of cross-entropies is from, of a decoder with latents."""
SPENT = 0.001
"""Bits per token of KL below which nothing was spent, and no recovery of it can be said."""


def read_lines(path: Path) -> list[Line]:
    """The lines of a results file, without what a crash cut short, and each once however often it stands there; none where
    there is no file. Raises UserError for a file with a line of another kind."""
    found: dict[str, Line] = {}
    texts = read_text(path, most=2**28).split("\n") if os.path.lexists(path) else []
    for number, text in enumerate(texts, start=1):
        line = _read(text)
        if isinstance(line, dict) and all(isinstance(line.get(key), kind) for key, kind in _KEYS.items()):
            found.setdefault(text, {key: value for key, value in line.items() if value is not None})
        elif text.strip() and not (line is None and (text.startswith(_FIRST) or _FIRST.startswith(text))):
            raise UserError(f"{path}, line {number}, is no line of a study: give another file with --results.")
    return list(found.values())


def _read(text: str) -> Any:
    """The value of a line; None for one that is no JSON."""
    try:
        return json_data(text, source="a line")
    except UserError:
        return None


def check_lines(path: Path) -> None:
    """Before any work: raise UserError unless lines can be added, anew or to those of a study."""
    if not path.parent.is_dir():  # one that is misspelt is not made
        raise UserError(f"{path} cannot be written: no folder {path.parent}. Give --results a file in a folder that is there.")
    read_lines(path)
    new = not os.path.lexists(path)
    open_to_append(path).close()
    if new:
        path.unlink()


def add_line(path: Path, line: Line) -> None:
    """Append, on a line of its own whatever a crash has left."""
    with open_to_append(path) as file:
        size = os.fstat(file.fileno()).st_size
        last = os.pread(file.fileno(), 1, size - 1) if size else b"\n"
        file.write("\n" * (last != b"\n") + json.dumps(line, allow_nan=False) + "\n")


def finished(runs: Sequence[Run], lines: Iterable[Line]) -> dict[str, Line]:
    """The newest line of each run that has one of its present facts, by the run's name. Raises UserError for a damaged one, and
    for runs of an arm whose lines are not of the same texts."""
    by_facts = {line.get("facts"): line for line in lines}
    found = {run.name: by_facts[run.facts] for run in runs if run.facts in by_facts}
    first: dict[str, str] = {}
    for run in (run for run in runs if run.name in found):
        line = found[run.name]
        _check(run, line)
        other = first.setdefault(run.arm, run.name)
        if _measures(line) != _measures(found[other]):
            said = f"the lines of {other} and {run.name} in the results are not of the same texts: one is damaged"
            raise UserError(f"{said}. Remove it, and its run is measured anew.")
    return found


def _check(run: Run, line: Line) -> None:
    """Raise UserError where the line is not what `measured` says of the run."""
    said = f"the line of {run.name} in the results is damaged"
    try:
        Measured.model_validate(line)
    except ValidationError as error:
        said = str(invalid(error, Measured, source=said))
    else:
        if (line.get("arm"), line.get("seed")) == (run.arm, run.seed):
            return
        said += ": it says that it is of another"
    raise UserError(f"{said}. Remove the line, and the run is measured anew.")


def _measures(line: Line) -> tuple[Any, ...]:
    """What the lines of all runs of an arm have in common."""
    return line["bytes"], line["targets"], line["cross_entropy"].keys(), "exact" in line


Count = Annotated[int, Field(ge=0, lt=2**63)]
Number = Annotated[float, Field(ge=-1e50, le=1e50, allow_inf_nan=False)]
"""A measurement, of which squares of squares are numbers too."""
Positive = Annotated[Number, Field(ge=0)]
Many = Annotated[int, Field(ge=1, lt=2**50)]
"""Bytes or targets of a text."""


class Training(BaseModel):
    """What the tables say of a run's training."""

    model_config = ConfigDict(strict=True)

    tokens_per_second: Positive
    parameters: Count
    peak_memory_mib: Positive | None = None


class Machine(BaseModel):
    """What the tables say of where a run was trained."""

    model_config = ConfigDict(strict=True)

    device: str


class Agreement(BaseModel):
    """What the tables say of a kind of groups of the synthetic letter."""

    model_config = ConfigDict(strict=True)

    valid: Number
    near_within: Number
    near_across: Number
    masks: Number


class Groups(BaseModel):
    """Of the synthetic letter, by where z is from; nothing is shared where there is no z."""

    model_config = ConfigDict(strict=True)

    independent: dict[str, Agreement]
    shared: dict[str, Agreement]

    @model_validator(mode="after")
    def _the_prior_among_them(self) -> Self:
        if "prior" not in self.independent or (self.shared and "prior" not in self.shared):
            raise ValueError('"prior" is missing.')
        return self


class Measured(BaseModel):
    """What the tables read of a line; lines of before lack what has a default."""

    model_config = ConfigDict(strict=True)

    training: Training
    method: str
    samples: Count
    scores: list[Number]
    standard_errors: list[Positive]
    quarters: list[Number | None]
    sixteenths: list[Number | None]
    freedoms: list[Annotated[Number, Field(gt=0)] | None]
    bytes: list[Many]
    targets: list[Many]
    kl_bits: Number
    information_bits: Number
    live_bits: Number
    persistence: list[Number]
    cross_entropy: dict[str, Number]
    settled: list[Annotated[float, Field(ge=-1e-6, le=1 + 1e-6)]] | None = None
    islands: list[Annotated[list[Number | None], Field(min_length=2, max_length=2)]] | None = None
    exact: list[Number] | None = None
    groups: Groups | None = None
    machine: Machine | None = None

    @model_validator(mode="after")
    def _one_of_each_text(self) -> Self:
        each = (self.standard_errors, self.quarters, self.sixteenths, self.freedoms, self.bytes, self.targets, self.settled,
                self.islands, self.exact)  # fmt: skip
        if not self.scores or any(values is not None and len(values) != len(self.scores) for values in each):
            raise ValueError("it should say as much of one text as of another.")
        if not ({"exact"} <= self.cross_entropy.keys() or set(_SOURCES) <= self.cross_entropy.keys()):
            raise ValueError(f'cross_entropy should say "exact", or {", ".join(_SOURCES)}.')
        return self


@dataclass(frozen=True)
class ArmResult:
    """What the finished runs of an arm say."""

    arm: str
    runs: int
    bits_per_byte: float
    spread: float | None
    """Standard deviation over seeds; None for one."""
    uncertainty: float
    """What the likelihoods are good to, bits per byte; the worst run's."""
    converged: bool
    excess_nats: float | None
    """Above the source's own density, nats per target; None where that is not known."""
    difference: Difference | None
    """From the baseline, bits per byte; the interval covers texts and, where there are several runs, seeds."""
    recovery: float | None
    """Cross-entropy gained on the baseline under the posterior's z, per KL spent; None without a KL, or where no run uses z."""
    means: dict[str, float]
    """Over runs: kl_bits, information_bits, live_bits, persistence, tokens_per_second, peak_memory_mib, and ce_* (nats per
    token)."""
    machine: str
    """Where the runs were trained: "CPU", "GPU", or both, and then a mean speed or memory means nothing; empty: not known."""
    parameters: int
    awake: int | None
    """Runs whose decoder uses z: another text's costs at least `USED` more than the text's own; None without latents."""
    groups: dict[str, float] | None
    """Of the synthetic letter, z from the prior: `near` and `masks` within groups under one z, `across` different ones, `valid`
    with z drawn for each. Means over runs."""


def tabulated(study: Study, lines: dict[str, Line]) -> list[ArmResult]:
    """A result for each arm that has a finished run, in the file's order."""
    by_arm = {arm: [line for line in lines.values() if line["arm"] == arm] for arm in study.arms}
    baseline = by_arm[study.first]
    return [_result(study, arm, runs, baseline) for arm, runs in by_arm.items() if runs]


def _result(study: Study, arm: str, runs: list[Line], baseline: list[Line]) -> ArmResult:
    estimates = [estimate(line) for line in runs]
    values = [one.value for one in estimates]
    means = {key: float(np.mean([line[key] for line in runs])) for key in ("kl_bits", "information_bits", "live_bits")}
    means["persistence"] = float(np.mean([max(line["persistence"], default=0.0) for line in runs]))
    means["tokens_per_second"] = float(np.mean([line["training"]["tokens_per_second"] for line in runs]))
    if all(line["training"].get("peak_memory_mib") for line in runs):
        means["peak_memory_mib"] = float(np.mean([line["training"]["peak_memory_mib"] for line in runs]))
    for source in runs[0]["cross_entropy"]:
        means[f"ce_{source}"] = float(np.mean([line["cross_entropy"][source] for line in runs]))
    return ArmResult(
        arm=arm,
        runs=len(runs),
        bits_per_byte=float(np.mean(values)),
        spread=float(np.std(values, ddof=1)) if len(values) > 1 else None,
        uncertainty=max(one.uncertainty for one in estimates),
        converged=all(one.converged(study.measure.tolerance) for one in estimates),
        excess_nats=float(np.mean([excess(line) for line in runs])) if "exact" in runs[0] else None,
        difference=_difference(baseline, runs) if baseline and arm != study.first else None,
        recovery=_recovery(baseline, means) if _awake(runs) else None,
        means=means,
        machine=" and ".join(sorted({_kind(line) for line in runs} - {""})),
        parameters=runs[0]["training"]["parameters"],
        awake=_awake(runs),
        groups=_groups([line["groups"] for line in runs if "groups" in line]),
    )


def _kind(line: Line) -> str:
    """Of the machine that a run was trained on."""
    device = (line.get("machine") or {}).get("device", "")
    return {"cpu": "CPU", "cuda": "GPU"}.get(device.partition(":")[0], device)


def _awake(runs: list[Line]) -> int | None:
    entropies = [line["cross_entropy"] for line in runs]
    if "posterior" not in entropies[0]:
        return None
    return sum(one["shuffled"] - one["posterior"] >= USED * math.log(2) for one in entropies)


def _groups(found: list[dict[str, Any]]) -> dict[str, float] | None:
    if not found:
        return None
    means = {"valid": float(np.mean([one["independent"]["prior"]["valid"] for one in found]))}
    if all(one["shared"] for one in found):
        for key, name in (("near", "near_within"), ("across", "near_across"), ("masks", "masks")):
            means[key] = float(np.mean([one["shared"]["prior"][name] for one in found]))
    return means


def estimate(line: Line) -> Estimate:
    """Bits per byte of a run."""
    count = len(line["scores"])
    settled = line.get("settled", [1.0] * count)  # lines of before say nothing of it
    islands = line.get("islands", [(0.0, 0.0)] * count)
    each = zip(
        line["scores"], line["standard_errors"], line["quarters"], line["sixteenths"], line["freedoms"], settled, islands,
        strict=True,
    )  # fmt: skip
    scores = [
        Score(value, error, 1.0, line["samples"], 1, line["method"], quarter=_number(quarter), sixteenth=_number(sixteenth),
              freedom=math.inf if freedom is None else freedom, settled=known, islands=(_number(own[0]), _number(own[1])))
        for value, error, quarter, sixteenth, freedom, known, own in each
    ]  # fmt: skip
    return bits_per_byte(scores, line["bytes"])


def excess(line: Line) -> float:
    """Nats per target above the source's own density."""
    return sum(exact - value for exact, value in zip(line["exact"], line["scores"], strict=True)) / sum(line["targets"])


def _difference(first: list[Line], second: list[Line]) -> Difference | None:
    """Bits per byte of the second arm minus the first's, on the same texts, each weighted by its size; None where the
    texts differ, as their data do."""
    if first[0]["bytes"] != second[0]["bytes"]:
        return None
    sizes = np.array(first[0]["bytes"])
    scale = -len(sizes) / sizes.sum() / math.log(2)
    return crossed_difference([Stratum(*(np.array([line["scores"] for line in runs]) * scale for runs in (first, second)))])


def _recovery(baseline: list[Line], means: dict[str, float]) -> float | None:
    if not baseline or "ce_posterior" not in means or means["kl_bits"] < SPENT or "exact" not in baseline[0]["cross_entropy"]:
        return None
    plain = float(np.mean([line["cross_entropy"]["exact"] for line in baseline]))
    return (plain - means["ce_posterior"]) / (means["kl_bits"] * math.log(2))


def _number(value: float | None) -> float:
    return math.nan if value is None else value
