"""Memory until the first step: weights that are made where they are spread, beside weights that each process makes whole first.

    python -m benchmarks.spread                          blocks of free-124m, 48 of them, two processes
    python -m benchmarks.spread free-1.5b --processes 4

Each process builds the recipe's model for training on the CPU (no data, no optimiser) and says the most memory that it held
beyond what it held before, as the system counts it. The C library is told to give back what is freed at once (it may keep
pieces of up to 32 MiB for later otherwise, which the system counts as held).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

from latentlm.tokenizer import load_tokenizer
from latentlm.training import load_recipe

MIB = 2**20
DEFAULT = ["free-124m", "model.backbone.blocks=48", "model.backbone.vocabulary=8192", "model.event_dims=12"]


def one(recipe: list[str], *, whole: bool) -> None:
    """What one of the processes does: a line for the first."""
    import torch
    import torch.distributed.fsdp
    import torch.distributed.tensor

    from latentlm.interface.ranks import gathered
    from latentlm.training.parallel import joined, shard
    from latentlm.training.record.memory import peak_mib
    from latentlm.training.setup import make_model, resolve
    from latentlm.zoo.accounting import count

    cpu = torch.device("cpu")
    resolved = resolve(load_recipe(recipe[0], [*recipe[1:], "train.device=cpu"]), tokenizer=load_tokenizer("bytes"))
    with joined() as ranks:
        gathered(None)  # what they find each other with is no weight
        before = peak_mib(cpu)
        model = make_model(resolved, cpu if whole else "meta")
        shard(model, resolved.train, ranks, cpu)
        held = gathered(peak_mib(cpu) - before)
        if ranks.first:
            weights = 4 * count(make_model(resolved, "meta")) / MIB
            print(json.dumps({"weights_mib": round(weights), "held_mib": [round(each) for each in held]}))


def main() -> None:
    """Both ways, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="*", default=DEFAULT, help="a recipe and settings")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--one", choices=["whole", "spread"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one is not None:
        one(given.recipe, whole=given.one == "whole")
        return
    for how in ("whole", "spread"):
        start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(given.processes), "-m"]
        command = [sys.executable, *start, "benchmarks.spread", *given.recipe, "--one", how]
        freeing = dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(2**18))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **freeing}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print(f"{how:6}  weights {found['weights_mib']:,} MiB, held by each process at most {found['held_mib']} MiB")


if __name__ == "__main__":
    main()
