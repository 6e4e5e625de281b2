"""What a child process runs: training steps and generations of shipped models in one revision, each when it is asked for.

    python -P benchmarks/pace/driver.py JOB.json        (benchmarks/losses/trees.py sets the import path)

The same file drives every revision. A request is a line on standard input, {"card", "what", "turn"}; the answer a line on
standard output, {"seconds"} of CPU time.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROWS, TOKENS, NEW = 4, 64, 24
"""Rows of a batch; tokens of a row in a training step; tokens that a generation makes in each row."""


def main() -> None:
    """Answer until the input ends."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever else is printed is no reply
    warnings.simplefilter("ignore")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # all revisions on one core
    import torch

    import latentlm
    from latentlm import zoo

    file = Path(latentlm.__file__).resolve()
    if not file.is_relative_to(Path(job["root"]).resolve()):
        sys.exit(f"latentlm was imported from {file}, which is not in {job['root']}")
    torch.set_num_threads(1)
    jobs = {name: _jobs(zoo.load(path)) for name, path in job["cards"].items()}
    replies.write(json.dumps({"ready": True}) + "\n")
    replies.flush()
    for line in sys.stdin:
        asked = json.loads(line)
        act = jobs[asked["card"]][asked["what"]]
        start = time.process_time()
        act(asked["turn"])
        replies.write(json.dumps({"seconds": time.process_time() - start}) + "\n")
        replies.flush()


def _jobs(model: Any) -> dict[str, Callable[[int], object]]:
    """What can be asked of a model."""
    import torch

    from latentlm.interface import Batch

    try:
        from latentlm.interface import Noise
    except ImportError:  # its place before the contracts' version 2
        from latentlm.noise import Noise  # type: ignore[import-not-found, no-redef]

    tokens = torch.randint(0, 256, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0)).tolist()
    batch = Batch.of(tokens)

    def step(turn: int) -> None:
        model.train()
        model.loss(batch, step=turn, noise=Noise.keyed(turn, range(ROWS))).total.backward()
        model.zero_grad(set_to_none=True)

    def generation(turn: int) -> None:
        model.eval()
        model.generate([row[:4] for row in tokens], max_tokens=NEW, seed=turn)

    return {"training step": step, "generation": generation}


if __name__ == "__main__":
    main()
