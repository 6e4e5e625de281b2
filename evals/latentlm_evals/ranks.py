"""Several processes that share one evaluation: `torchrun --nproc-per-node N -m lm_eval ...`, or `accelerate launch`.

lm-eval gives each process every N-th document and lets process 0 put the metrics together. Both launchers say the same in the
environment (RANK, LOCAL_RANK, WORLD_SIZE), so neither is needed to read it. What is exchanged are Python objects, over gloo.

The results are those of one process: prompts are the same, the examples that they begin with too, random numbers are keyed by
content, nobody answers a question twice, and what is gathered is put back into the order of the documents.
"""

from __future__ import annotations

import atexit
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import zip_longest
from typing import Any

import torch
from torch import distributed

from latentlm.errors import UserError
from latentlm.interface.ranks import place

_PATIENCE = timedelta(weeks=52)  # the fastest process waits for the slowest, however long that takes
_NOTHING = object()


@dataclass(frozen=True)
class Ranks:
    """This process among those of an evaluation."""

    rank: int = 0
    local_rank: int = 0
    count: int = 1
    group: Any = None

    @classmethod
    def join(cls) -> Ranks:
        """Meet the other processes that a launcher started; alone where there was none."""
        _, count, local = place()
        if count == 1:
            return cls()
        if not distributed.is_initialized():
            distributed.init_process_group("gloo", timeout=_PATIENCE)
            atexit.register(_leave)
        group = distributed.new_group(backend="gloo", timeout=_PATIENCE)
        return cls(rank=distributed.get_rank(), local_rank=local, count=count, group=group)

    def device(self, wanted: str | None) -> str | None:
        """The device of this process: with several and CUDA, each its own, unless another kind of device is asked for."""
        kind = (wanted or "cuda").partition(":")[0]
        if self.count == 1 or kind != "cuda" or not torch.cuda.is_available():
            return wanted
        return f"cuda:{self.local_rank % torch.cuda.device_count()}"

    def gather(self, thing: Any) -> list[Any] | None:
        """Everybody's `thing` by rank, for process 0; None for the others."""
        if self.count == 1:
            return [thing]
        found: list[Any] | None = [None] * self.count if self.rank == 0 else None
        distributed.gather_object(thing, found, dst=0, group=self.group)
        return found


def build_own_requests(task: Any, rank: int, count: int) -> None:
    """From now on the task builds the requests of process `rank` of `count` as one process would: all of them, of which those
    of this process's documents are kept.

    lm-eval draws the examples of a prompt from one generator, document by document: who builds every N-th prompt alone draws
    others. The building raises UserError for fewer documents than processes."""
    if count == 1:
        return
    build = type(task).build_all_requests

    @functools.wraps(build)
    def build_and_keep(**options: Any) -> None:
        name = f"{options.pop('tokenizer_name', '')}-{rank}of{count}"  # of the file, if requests are cached: each its own
        build(task, **options | {"rank": 0, "world_size": 1}, tokenizer_name=name)
        documents = {request.doc_id for request in task.instances}
        if len(documents) < count:
            raise UserError(
                f"task {task.config.task} has {len(documents)} documents to evaluate, which {count} processes cannot share: "
                f"start {len(documents)} at most."
            )
        task._instances = [request for request in task.instances if request.doc_id % count == rank]

    task.build_all_requests = build_and_keep


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def in_document_order(parts: Sequence[Any]) -> Any:
    """What one process would have gathered, from {task: samples} or {task: {metric: values}} of each rank.

    Document n of those asked for went to rank n % N, so values alternate, and samples filter by filter."""
    first = parts[0]
    if isinstance(first, dict):
        return {key: in_document_order([part.get(key, type(first[key])()) for part in parts]) for key in first}
    if first and isinstance(first[0], dict) and "doc_id" in first[0]:
        filters = dict.fromkeys(sample["filter"] for part in parts for sample in part)
        by_filter = ([[sample for sample in part if sample["filter"] == each] for part in parts] for each in filters)
        return [sample for own in by_filter for sample in _in_turns(own)]
    return _in_turns(parts)


def _in_turns(parts: Sequence[Any]) -> list[Any]:
    """The first of each, the second of each, ..."""
    turns = zip_longest(*parts, fillvalue=_NOTHING)
    return [value for turn in turns for value in turn if value is not _NOTHING]


def emptied(merged: Any) -> Any:
    """The same mapping with nothing in its lists, for lm-eval to add to the first."""
    return {key: emptied(value) for key, value in merged.items()} if isinstance(merged, dict) else []
