"""Memory of one of many processes: what a dry run counts on paper, beside the peak that torch's own tracker finds.

    python -m benchmarks.mesh_memory                     the large recipes on 8, 64 and 256 processes
    python -m benchmarks.mesh_memory free-8b train.batch=32 train.accumulate=16 --processes 8

The tracker (`FSDPMemTracker`) follows every tensor of a step of training, forward, back, clipping and AdamW, with weights
spread as `latentlm train` spreads them, over processes that are not there (a group of torch's own that sends nothing), and
tensors that have sizes and no values: nothing is computed, so any machine will do. It follows what the CPU's kernels would
allocate, not compiled; a GPU's have other temporary tensors, and its allocator keeps more than it gives out.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import Any
from unittest import mock

from rich.console import Console
from rich.table import Table

from benchmarks.timing import call
from latentlm.training import load_recipe

GIB = 2**30
MESHES = [
    ("free-124m", 8), ("vanilla-1.5b", 8), ("free-1.5b", 8), ("free-8b train.batch=32 train.accumulate=16", 8), ("free-8b", 64),
    ("free-8b train.parallel.replicate=8", 64), ("free-8b", 256), ("free-8b train.parallel.replicate=32", 256),
]  # fmt: skip


def one(recipe: list[str], processes: int) -> dict[str, Any]:
    """Bytes of process 0, counted and tracked."""
    import torch
    import torch.distributed as dist
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from latentlm.interface import Batch, Noise
    from latentlm.training import parallel
    from latentlm.training.mesh_plan import share_of
    from latentlm.training.optimizer import make_optimizer
    from latentlm.training.recomputing import chunk_head, recompute_blocks
    from latentlm.training.setup import make_model, resolve
    from latentlm.training.trainer import autocast

    cpu, resolved = torch.device("cpu"), resolve(load_recipe(recipe[0], [*recipe[1:], "train.device=cpu"]))
    train, ranks, model = resolved.train, parallel.Ranks(0, processes), make_model(resolved, "meta")
    assert train.context is not None, "the recipe is resolved"
    rows, context = len(ranks.rows(train.batch)), train.context
    dist.init_process_group("fake", rank=0, world_size=processes, store=FakeStore())
    mesh = parallel._mesh(cpu, train, ranks)  # it looks at values
    with FakeTensorMode(allow_non_fake_inputs=True), mock.patch.object(parallel, "_mesh", return_value=mesh):
        for module in model.modules():  # torch swaps no tensor for one without values
            for name, weight in module.named_parameters(recurse=False):
                setattr(module, name, torch.nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype)))
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))
        if train.recompute:
            recompute_blocks(model)
        if train.head_chunk is not None:
            chunk_head(model, train.head_chunk)
        sharded = parallel.shard(model, train, ranks, cpu)
        optimizer = make_optimizer(model, train)
        tokens, positions = torch.zeros(rows, context, dtype=torch.long), torch.arange(context).expand(rows, -1)
        batch = Batch(tokens, tokens, documents=tokens, positions=positions, target_mask=tokens == 0)
        batch = replace(batch, sites=dict.fromkeys(model.latents, context), single=True)
        noise = Noise.keyed(train.seed, [("train", row) for row in range(rows)])

        def step() -> None:
            with autocast(model, train):
                loss = sharded(lambda: model.loss(batch, step=0, noise=noise).total.clone())
            loss.backward()
            sharded.scatter()
            torch.nn.utils.clip_grad_norm_(model.parameters(), train.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        tracker = FSDPMemTracker(sharded, optimizer)
        for number in range(2):  # moments are there from the second on
            with tracker:
                step()
            if not number:
                tracker.reset_mod_stats()
        peak = tracker.get_tracker_snapshot("peak")[cpu]
    return {"counted": share_of(resolved, processes).total, "tracked": peak["Total"]}


def main() -> None:
    """A row for each mesh."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="*", help="a recipe and settings")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--json", action="store_true", help="bytes of this one, as JSON")
    given = parser.parse_args()
    if given.json:
        print(json.dumps(one(given.recipe, given.processes)))
        return
    table = Table("recipe", "processes", "counted, GiB", "tracked, GiB", "ratio")
    for recipe, processes in [(" ".join(given.recipe), given.processes)] if given.recipe else MESHES:
        found = call("benchmarks.mesh_memory", *recipe.split(), "--processes", str(processes), "--json")
        counted, tracked = found["counted"] / GIB, found["tracked"] / GIB
        table.add_row(recipe, str(processes), f"{counted:.1f}", f"{tracked:.1f}", f"{counted / tracked:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
