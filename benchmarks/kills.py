"""kill -9 of one process of a run, or of all, at random moments: does it end as one that was never killed?

    python -m benchmarks.kills                           30 kills of a run of two processes
    python -m benchmarks.kills --kills 5 --processes 3 --seed 1

A small model that saves after every step, so that most moments lie within a save. Each time, once it has saved something new,
a random moment later, either one of its processes is killed or all are, torchrun too; where it is one, the seconds are taken
until the others have ended, and what they say is counted. No checkpoint that was there may be lost. In the end it runs to its
end: weights, moments and metrics are compared, bit for bit, with those of a run that nobody killed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from latentlm.training.record import METRICS, WEIGHTS, checkpoints, latest_checkpoint, read_metrics

RECIPE = [
    "free-tiny", "data.path=synthetic:letter", "data.max_documents=200", "model.backbone.width=32", "model.backbone.context=32",
    "train.batch=6", "train.context=32", "train.warmup=1", "train.log_every=1", "train.save_every=1", "train.keep=3",
    "train.eval_documents=3", "train.device=cpu",
]  # fmt: skip
SAID = "another process of this run has ended"


@dataclass
class Kill:
    """What one kill did."""

    whom: str
    """A rank, or "all"."""
    before: int
    """Step of the newest checkpoint when it struck."""
    after: int
    """Of the newest whole one, when all had ended."""
    seconds: float
    """Until all had ended."""
    messages: int
    """How often a process that was left said that another has ended."""


def start(out: Path, *, processes: int, steps: int) -> subprocess.Popen[str]:
    """The run, from where it is."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]
    settings = [*RECIPE, f"train.steps={steps}", f"train.eval_every={steps}"]
    command = [*torchrun, "latentlm", "train", *settings, "--out", str(out), "--resume", "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)


def workers(process: subprocess.Popen[str]) -> dict[int, int]:
    """The processes of a run, by rank (Linux)."""
    found = {}
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        values = dict(each.split("=", 1) for each in Path(f"/proc/{child}/environ").read_text().split("\0") if "=" in each)
        if "RANK" in values:
            found[int(values["RANK"])] = int(child)
    return found


def killed(out: Path, *, processes: int, steps: int, whom: str, delay: float) -> Kill | None:
    """Start the run, and kill. None where it came to its end before."""
    process = start(out, processes=processes, steps=steps)
    was = newest(out)
    while newest(out) == was and process.poll() is None:
        time.sleep(0.002)
    time.sleep(delay)
    before = newest(out)
    if process.poll() is not None:
        said = process.communicate()[1]
        if process.returncode:
            raise RuntimeError(f"the run failed by itself: {said}")
        return None
    ranks = workers(process)
    doomed = [process.pid, *ranks.values()] if whom == "all" else [ranks[int(whom)]]
    began = time.monotonic()
    for pid in doomed:
        os.kill(pid, signal.SIGKILL)
    said = process.communicate(timeout=120)[1]
    seconds = time.monotonic() - began
    found = latest_checkpoint(out / "checkpoints", warn=_fail)
    after = -1 if found is None else found.step
    return Kill(whom, before, after, round(seconds, 2), said.count(SAID))


def newest(out: Path) -> int:
    """Step of the newest checkpoint that is there under its name; -1 without."""
    found = checkpoints(out / "checkpoints")
    return int(found[-1].name.removeprefix("step-")) if found else -1


def _fail(text: str) -> None:
    raise RuntimeError(f"a checkpoint was damaged: {text}")


def same_run(one: Path, other: Path) -> bool:
    """Whether weights, moments and metrics are the same, bit for bit, but for times."""
    last = checkpoints(one / "checkpoints")[-1].relative_to(one)
    names = [Path(WEIGHTS), *sorted(path.relative_to(one) for path in (one / last).glob("*.safetensors"))]
    pairs = [(load_file(one / name), load_file(other / name)) for name in names]
    same = all(first.keys() == second.keys() for first, second in pairs) and all(
        torch.equal(first[name], second[name]) for first, second in pairs for name in first
    )
    return same and measured(one) == measured(other)


def measured(out: Path) -> list[dict[str, Any]]:
    """The metrics, without times."""
    return [
        {key: value for key, value in line.items() if key not in ("elapsed", "tokens_per_second")}
        for line in read_metrics(out / METRICS)
    ]


def measure(folder: Path, *, kills: int, processes: int = 2, steps: int = 1500, seed: int = 0) -> dict[str, Any]:
    """Kill a run so often, and compare it with one that was not killed: the kills, and whether both ended alike."""
    draw, out, done = random.Random(seed), folder / "killed", []
    while len(done) < kills:
        whom = draw.choice(["all", str(draw.randrange(processes))])
        kill = killed(out, processes=processes, steps=steps, whom=whom, delay=draw.uniform(0.0, 0.5))
        if kill is None:
            raise RuntimeError(f"the run came to its end after {len(done)} kills: give it more steps")
        done.append(kill)
        print(json.dumps(asdict(kill)), file=sys.stderr, flush=True)
    for path in (out, folder / "whole"):
        said = (process := start(path, processes=processes, steps=steps)).communicate()[1]
        if process.returncode:
            raise RuntimeError(f"the run failed: {said}")
    single = [kill for kill in done if kill.whom != "all"]
    return {
        "kills": len(done),
        "of one process": len(single),
        "lost checkpoints": sum(kill.after < kill.before for kill in done),
        "seconds until all had ended, at most": max((kill.seconds for kill in single), default=0.0),
        "messages": sorted({kill.messages for kill in single}),
        "left behind": len(list(out.rglob(".*.latentlm"))),
        "same bits in the end": same_run(folder / "whole", out),
    }


def main() -> None:
    """The command line described above."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kills", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30, help="how many (default: 30)")
    parser.add_argument("--processes", type=int, default=2, help="of the run (default: 2)")
    parser.add_argument("--steps", type=int, default=1500, help="of the run: more than the kills leave it (default: 1500)")
    parser.add_argument("--seed", type=int, default=0, help="of whom to kill, and when (default: 0)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder), **vars(options)), indent=1))


if __name__ == "__main__":
    main()
