"""The record of a run: one JSON object per line of metrics.jsonl, the same keys in every line.

    split              "train" (mean since the last such line), "held_out" (see ../evaluation.py), or "evaluation" of what
                       `train.evaluate` asks for (see ../measuring.py)
    step, tokens       optimiser steps and target tokens so far
    cross_entropy      nats per target token. With latents it is under a sample of the posterior, which has seen the target:
                       it is not a likelihood. Without, it is.
    kl                 nats per target token, all of it, whatever the schedule charged; kl_bits_per_token the same in bits
    latents            in a decoder of several latents: kl and kl_bits_per_token of each, by name
    bound              cross_entropy + kl: an upper bound on the model's true nats per token (exact without latents)
    bits_per_byte      bound / (ln 2 * raw bytes per target): the held-out window's bytes, or the training text's average
    penalty            nats per target token that the KL schedule charged
    auxiliary          nats per target token of the parts' own losses (a bag of words, say); loss = the sum of these two and
                       cross_entropy
    schedule           what the schedule, and the parts' own losses, logged
    learning_rate, grad_norm (before clipping), tokens_per_second, elapsed (seconds; both without evaluation and saving)
    mfu                on a GPU whose peak is known: the share of it that the model's own operations were, forward and back
                       (what is recomputed does not count)

Held-out lines have in addition `standard_error` (of bits_per_byte, by document), `documents`, `kl_by_position`,
`kl_bits_per_site`, `live_bits`, `dimensions`, `information_bits_per_site` and, where something is wrong, `warning`. Evaluation
lines have `likelihood` (bits per byte of whole documents, its errors, and whether it has converged) and `tasks` (the metrics of
each, by name). Values that a split does not have are null.
"""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field

from latentlm.config.reading import read_bytes
from latentlm.config.writing import open_to_append, write_text
from latentlm.errors import CheckpointError
from latentlm.training.trainer import StepFacts

KEYS = (
    "split", "step", "tokens", "cross_entropy", "kl", "kl_bits_per_token", "bound", "bits_per_byte", "penalty", "auxiliary",
    "loss", "schedule", "learning_rate", "grad_norm", "tokens_per_second", "elapsed",
)  # fmt: skip
"""Of every line."""


MOST = 2**62
"""Of whatever is counted."""
Count = Annotated[int, Field(ge=0, le=MOST)]


@dataclass
class Tally:
    """Facts of the steps since the last line; it is part of a checkpoint, so a resumed run writes the same line."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    steps: Count = 0
    targets: Count = 0
    cross_entropy: float = 0.0
    kl: float = 0.0
    kl_of: dict[str, float] = field(default_factory=dict)
    normalised: bool = True
    penalty: float = 0.0
    auxiliary: float = 0.0
    gradient_norm: float = 0.0
    seconds: Annotated[float, Field(ge=0)] = 0.0
    learning_rate: float = 0.0
    schedule: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, state: dict[str, Any]) -> Self:
        """From `state_dict`."""
        return cls(**state)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return asdict(self)

    def add(self, facts: StepFacts) -> None:
        """One more step; whoever adds it counts its seconds."""
        self.steps += 1
        self.targets += facts.targets
        self.cross_entropy += facts.cross_entropy
        self.kl += facts.kl
        for name, nats in facts.kl_of.items():
            self.kl_of[name] = self.kl_of.get(name, 0.0) + nats
        self.normalised = self.normalised and facts.normalised
        self.penalty += facts.penalty
        self.auxiliary += facts.auxiliary
        self.gradient_norm += facts.gradient_norm
        self.learning_rate = facts.learning_rate
        for name, value in facts.schedule.items():
            self.schedule[name] = self.schedule.get(name, 0.0) + value

    def line(self, *, step: int, tokens: int, elapsed: float, bytes_per_target: float) -> dict[str, Any]:
        """The training line of these steps."""
        sums = (self.cross_entropy, self.kl, self.penalty, self.auxiliary)
        cross_entropy, kl, penalty, auxiliary = (value / self.targets for value in sums)
        return {
            "split": "train",
            "step": step,
            "tokens": tokens,
            **likelihood_keys(cross_entropy, kl, bytes_per_target=bytes_per_target, normalised=self.normalised),
            **({"latents": {name: kl_keys(nats / self.targets) for name, nats in self.kl_of.items()}} if self.kl_of else {}),
            "penalty": penalty,
            "auxiliary": auxiliary,
            "loss": cross_entropy + penalty + auxiliary,
            "schedule": {name: value / self.steps for name, value in self.schedule.items()},
            "learning_rate": self.learning_rate,
            "grad_norm": self.gradient_norm / self.steps,
            "tokens_per_second": self.targets / max(self.seconds, 1e-9),
            "elapsed": elapsed,
        }


def likelihood_keys(
    cross_entropy: float, kl: float, *, bytes_per_target: float, normalised: bool = True
) -> dict[str, float | str | None]:
    """The keys that say how well the model predicts, from nats per target token. Under a prior that is not normalised there is
    no bound: null, and `no_bound` says why."""
    if not normalised:
        why = "a prior is not normalised: its KL is known up to a constant, and no bound on the likelihood follows"
        return {"cross_entropy": cross_entropy, **kl_keys(kl), "bound": None, "bits_per_byte": None, "no_bound": why}
    bound = cross_entropy + kl
    return {
        "cross_entropy": cross_entropy,
        **kl_keys(kl),
        "bound": bound,
        "bits_per_byte": bound / (math.log(2) * bytes_per_target),
    }


def kl_keys(kl: float) -> dict[str, float]:
    """A KL in nats per target token, and in bits."""
    return {"kl": kl, "kl_bits_per_token": kl / math.log(2)}


class MetricsFile:
    """metrics.jsonl, opened for appending."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_to_append(path)

    def write(self, line: dict[str, Any]) -> None:
        """Append a line; it is in the file when this returns. Raises CheckpointError where the disk refuses."""
        try:
            self._file.write(json.dumps(_plain(line)) + "\n")
            self._file.flush()
        except OSError as error:
            raise CheckpointError(f"{self.path} could not be written: {error}. What was saved before is intact.") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


_NUMBERS = ("step", "tokens", "tokens_per_second", "elapsed")
"""In every line, of either split."""
_OR_NULL = ("cross_entropy", "kl_bits_per_token", "bound", "bits_per_byte")
"""In every line, and null where they were no finite numbers."""
_NULL_OR_ABSENT = ("standard_error", "live_bits", "loss", "learning_rate", "grad_norm")
_MOST_BYTES = 2**28
"""Of a metrics file; a line has about 500."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file, without what a crash cut short or something else damaged, such as a text for a number; empty
    where there is no file."""
    numbers = (*_NUMBERS, *_OR_NULL, *_NULL_OR_ABSENT)
    return [line for line in _lines(path) if all(line.get(key) is None or _is_number(line[key]) for key in numbers)]


def whole_lines(path: Path) -> list[dict[str, Any]]:
    """Those lines of a metrics file that have all the numbers that a summary of a run counts on."""
    return [
        line
        for line in read_metrics(path)
        if all(line.get(key) is not None for key in _NUMBERS) and all(key in line for key in _OR_NULL)
    ]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63  # NaN is none


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines that say of which step they are, whatever else is in them."""
    lines = []
    for text in read_bytes(path, most=_MOST_BYTES).splitlines() if path.is_file() else ():
        with suppress(ValueError, RecursionError):
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                lines.append(line)
    return lines


def last_line(lines: list[dict[str, Any]], split: str) -> dict[str, Any]:
    """The last line of a split; empty where there is none."""
    return next((line for line in reversed(lines) if line.get("split") == split), {})


def rewind(path: Path, *, step: int) -> list[dict[str, Any]]:
    """Drop the lines after `step`, which a resumed run writes again; returns those that stay."""
    kept = [line for line in _lines(path) if line["step"] <= step]
    text = "".join(json.dumps(line) + "\n" for line in kept)
    write_text(path, text)
    return kept


def _plain(value: Any) -> Any:
    """JSON has no NaN: null stands for it."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
