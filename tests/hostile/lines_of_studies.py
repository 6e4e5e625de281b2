"""The lines of a study's finished runs, damaged in every place: read for its tables before anything is run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hostile.harness import Case
from hostile.json_files import TYPES

_STUDY = (
    "name: s\narms: {a: {recipe: my.yaml}, b: {recipe: my.yaml, set: {train.steps: 1}}}\nseeds: 2\n"
    "measure: {texts: 2, bytes: 8, max_samples: 32}\n"
)
_LINE: dict[str, Any] = {
    "training": {"tokens_per_second": 1.5, "parameters": 5}, "machine": {"device": "cpu"}, "method": "iwae", "samples": 32,
    "scores": [-5.0, -6.0], "standard_errors": [0.1, 0.1], "quarters": [-5.1, None], "sixteenths": [None, None],
    "freedoms": [None, 3.0], "settled": [1.0, 1.0], "islands": [[0.0, 0.0], [None, None]], "bytes": [8, 8], "targets": [9, 9],
    "kl_bits": 0.1, "information_bits": 0.1, "live_bits": 1, "persistence": [0.1],
    "cross_entropy": {"posterior": 1.0, "prior": 1.1, "shuffled": 1.2, "constant": 1.0},
}  # fmt: skip
_ODD: dict[str, dict[str, Any]] = {
    "islands of one": {"islands": [[0.0], [0.0]]},
    "bytes of nought": {"bytes": [0, 0]},
    "bytes without end": {"bytes": [10**400, 8]},
    "targets of nought": {"targets": [0, 0], "exact": [-1.0, -2.0]},
    "freedoms of nought": {"freedoms": [0.0, 0.0]},
    "scores without end": {"scores": [1e308, 1e308]},
    "one text": {**{key: value[:1] for key, value in _LINE.items() if isinstance(value, list) and len(value) == 2}},
    "other texts": {"bytes": [8, 9]},
    "exact scores": {"exact": [-1.0, -2.0]},
    "cross-entropies of one": {"cross_entropy": {"posterior": 1.0}},
    "another arm": {"arm": "b"},
    "another seed": {"seed": 9},
}


def _lines(number: int, changes: dict[str, Any]) -> Callable[[Path], None]:
    """A line of each of the four runs, one of them changed."""

    def make(folder: Path) -> None:
        from latentlm_evals.study.plan import read_study, runs_of

        (folder / "s.yaml").write_text(_STUDY)
        here = os.getcwd()
        os.chdir(folder)  # where recipes say that their texts are
        try:
            runs = runs_of(read_study(Path("s.yaml")), Path())
        finally:
            os.chdir(here)
        lines = [{"study": "s", "arm": run.arm, "seed": run.seed, "facts": run.facts, **_LINE} for run in runs]
        lines[number] |= changes
        (folder / "s.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    return make


def cases() -> Iterator[Case]:
    """Of one line of the first arm, or of its second seed."""
    command = ("study", "s.yaml", "--table")
    yield Case("lines of a study: as they should be", command, prepare=_lines(0, {}), good=True)
    for what, changes in _ODD.items():
        for number in (0, 2):
            says = f"line.* of a-{number // 2}.*[Rr]emove|lines of a-0 and a-1"
            yield Case(f"lines of a study: {what}, {number}", command, prepare=_lines(number, changes), says=says)
    for number, key in enumerate(_LINE):
        for what, value in list(TYPES.items())[number % 2 :: 2]:
            if (key, what) in _RIGHT:
                continue
            yield Case(f"lines of a study: {key} is {what}", command, prepare=_lines(0, {key: value}), says="of a-0")


_RIGHT = {
    ("machine", "null"), ("settled", "null"), ("islands", "null"), ("method", "a text"),
    *((key, what) for key in ("kl_bits", "information_bits", "live_bits")
      for what in ("a fraction", "minus one", "a huge number")),
    *((key, what) for key in ("persistence",) for what in ("a list",)),
}  # fmt: skip
