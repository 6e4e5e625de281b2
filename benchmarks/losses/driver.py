"""What a child process runs: every case of a job, in one revision, by the command line alone.

    python -P benchmarks/losses/driver.py JOB.json        (benchmarks/losses/trees.py sets the import path)

The same file drives every revision, so it may use only what stays: the command's entry point, its options, the files of a run
folder. One JSON object per case goes to standard output: {"case", "numbers": {name: text}, "error", "seconds"}. A number's text
is exact: `float.hex` of a float, JSON of anything else.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

TIMES = ("tokens_per_second", "elapsed")  # of the clock, not of the model
CONTEXT = 64
SCORED = ("text-00.txt", "text-04.txt", "text-06.txt")
METHODS = {"iwae": [], "prior": [], "elbo": [], "operational": ["--given", "    return self\n"]}
"""How texts are scored. Without a given text `operational` would be `iwae` by another name."""
PROMPTS = ("def ", "the old river")
GENERATIONS = {"greedy": ["--temperature", "0"], "sampled": ["--temperature", "0.9", "--samples", "2", "--seed", "3"]}


def main() -> None:
    """Run the job named on the command line."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever else is printed, by libraries in C too, is no reply
    check_tree(Path(job["root"]), job["entry_points"])
    (entry,) = (entry for entry in entry_points(group="console_scripts", name="latentlm"))
    command = entry.load()
    import torch

    torch.set_num_threads(1)
    for case in job["cases"]:
        replies.write(json.dumps(_run(case, job, command)) + "\n")
        replies.flush()
    check_modules(Path(job["root"]), job["entry_points"])
    replies.write(json.dumps({"case": None}) + "\n")
    replies.flush()


# ------------------------------------------------------------------------------------------------------ the right tree


def check_tree(root: Path, expected: dict[str, dict[str, str]]) -> None:
    """End the process unless latentlm and its entry points are those of the tree: an editable install of another checkout lies
    on the same import path."""
    for group, named in expected.items():
        found = {e.name: e.value for e in entry_points(group=group) if e.dist is not None and e.dist.name == "latentlm"}
        if found != named:
            sys.exit(f"entry points [{group}] of {root}: {found} are found in place of {named}")
    check_modules(root, {"": {"": "latentlm"}})


def check_modules(root: Path, expected: dict[str, dict[str, str]]) -> None:
    """End the process unless the packages behind the entry points, so far as they are imported, lie in the tree."""
    import latentlm  # noqa: F401

    packages = {value.partition(":")[0].partition(".")[0] for named in expected.values() for value in named.values()}
    for package in sorted(packages & sys.modules.keys()):
        file = Path(sys.modules[package].__file__ or "")
        if not file.resolve().is_relative_to(root.resolve()):
            sys.exit(f"{package} was imported from {file}, which is not in {root}")


# ------------------------------------------------------------------------------------------------------------- cases


def _run(case: dict[str, str], job: dict[str, Any], command: Callable[[], object]) -> dict[str, Any]:
    """One case and its reply; a failure is a reply too."""
    started = time.perf_counter()
    numbers: dict[str, str] = {}
    error = None
    try:
        pairs = _train(case, job, command) if case["kind"] == "recipe" else _use(case, command)
        numbers.update((name, exact(value)) for name, value in pairs)
    except Exception as problem:  # of any revision's making
        error = "".join(traceback.format_exception_only(problem)).strip().splitlines()[-1]
        traceback.print_exc()
    return {"case": case["id"], "numbers": numbers, "error": error, "seconds": time.perf_counter() - started}


def _train(case: dict[str, str], job: dict[str, Any], command: Callable[[], object]) -> Iterator[tuple[str, Any]]:
    """The metrics of a few steps, and the hash of the weights after them."""
    import yaml

    steps, out = job["steps"], Path(job["out"]) / case["name"]
    backbone = yaml.safe_load(Path(case["path"]).read_text(encoding="utf-8")).get("model", {}).get("backbone", {})
    settings = {
        "data.path": job["texts"], "data.held_out": 0.25, "train.steps": steps, "train.warmup": 1, "train.batch": 2,
        "train.context": min(CONTEXT, backbone.get("context", CONTEXT)), "train.log_every": 1, "train.eval_every": steps,
        "train.eval_documents": 4, "train.save_every": steps, "train.device": "cpu", "train.threads": 1,
    }  # fmt: skip
    overrides = [f"{key}={value}" for key, value in settings.items()]
    call(command, "train", case["path"], *overrides, "--out", str(out), "--quiet")
    for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for name, value in numbers_of({key: value for key, value in row.items() if key not in TIMES}):
            yield f"step {row['step']}, {row['split']}: {name}", value
    for file in sorted(out.glob("*.safetensors")):
        yield f"sha256 of {file.name}", hashlib.sha256(file.read_bytes()).hexdigest()


def _use(case: dict[str, str], command: Callable[[], object]) -> Iterator[tuple[str, Any]]:
    """Scores by each method, and tokens: greedy, and drawn with a fixed seed."""
    for method, options in METHODS.items():
        asked = ["score", case["path"], *SCORED, "--method", method, "--samples", "4", "--seed", "0", "--json", *options]
        for row in json.loads(call(command, *asked))["files"]:
            yield from ((f"{method}, {row['file']}: {name}", value) for name, value in numbers_of(row))
    for how, options in GENERATIONS.items():
        asked = ["generate", case["path"], *PROMPTS, "--max-tokens", "24", "--json", *options]
        for row in json.loads(call(command, *asked)):
            yield f"{how}, {row['prompt']!r}, sample {row['sample']}: tokens", row["tokens"]


def call(command: Callable[[], object], *arguments: str) -> str:
    """What the command prints. Raises RuntimeError with its last complaint where it ends in an error."""
    out, complaints = io.StringIO(), io.StringIO()
    sys.argv = ["latentlm", *arguments]
    status: object = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(complaints):
        try:
            command()
        except SystemExit as end:
            status = end.code
    if status not in (0, None):
        lines = complaints.getvalue().strip().splitlines() or [f"exit status {status}"]
        raise RuntimeError(f"latentlm {arguments[0]}: {lines[-1].strip()}")
    return out.getvalue()


def numbers_of(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, number) of everything in nested data but texts, whose wording may change."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers_of(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from numbers_of(inner, f"{name}.{place}")
    elif not isinstance(value, str):
        yield name, value


def exact(value: Any) -> str:
    """A text that is equal for equal bits only."""
    return value.hex() if isinstance(value, float) else json.dumps(value)


if __name__ == "__main__":
    main()
