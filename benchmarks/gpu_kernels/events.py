"""Times and memory of work on a device, and rows that survive one that fails.

A result row is a dictionary: suite, case, contender, and where it was measured milliseconds (median), low and high (quartiles),
runs and extra_gib, the growth of the peak of allocated memory; where it failed, error, one line.
"""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import Row, quartiles

Step = Callable[[], object]


@dataclass
class Bench:
    """One part's rows as they come. `quick` is for a test of the benchmark itself: small sizes, a CPU will do."""

    suite: str
    device: torch.device
    quick: bool = False

    def row(self, case: str, contender: str, make: Callable[[], dict[str, Any]], **facts: Any) -> Row:
        """Emit a row with these facts and what `make` returns, or the error that it raised; the row."""
        row: Row = {"suite": self.suite, "case": case, "contender": contender, **facts}
        try:
            row |= make()
        except Exception as error:  # whatever it is, the other contenders are still worth measuring
            said = (str(error).strip().splitlines() or [""])[0]
            row["error"] = f"{type(error).__name__}: {said[:300]}"
        print(json.dumps(row), flush=True)
        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
        return row

    def time(self, step: Step, *, seconds: float = 0.25, most: int = 50) -> dict[str, Any]:
        """Milliseconds of `step`, after two warm-ups (which compile), and the growth of peak memory in GiB."""
        started = time.perf_counter()
        step()
        self._wait()
        warm_up = time.perf_counter() - started
        extra = self._extra(step)
        once = self._once(step)
        runs = 1 if self.quick else max(3, min(most, int(1e3 * seconds / once)))
        times = [once] if self.quick else [self._once(step) for _ in range(runs)]
        low, _, high = quartiles(times)
        found = {"milliseconds": statistics.median(times), "low": low, "high": high, "runs": runs, "first_seconds": warm_up}
        return found if extra is None else found | {"extra_gib": extra}

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`torch.compile` for fixed shapes; in the quick form the graph is captured and run as it is."""
        backend = "eager" if self.quick else "inductor"
        return torch.compile(function, dynamic=False, fullgraph=True, backend=backend)

    def random(self, *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
        """Standard normal numbers times `scale`."""
        return (scale * torch.randn(shape, device=self.device)).to(dtype)

    def _once(self, step: Step) -> float:
        if self.device.type != "cuda":
            start = time.perf_counter()
            step()
            return 1e3 * (time.perf_counter() - start)
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record()
        step()
        after.record()
        after.synchronize()
        return before.elapsed_time(after)

    def _extra(self, step: Step) -> float | None:
        if self.device.type != "cuda":
            step()
            return None
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = step()
        self._wait()
        del result
        return (torch.cuda.max_memory_allocated() - before) / 2**30

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def relative(found: Tensor, exact: Tensor) -> float:
    """||found - exact|| / ||exact||, taken in the precision of `exact`; not a number is infinitely far."""
    distance = ((found.to(exact.dtype) - exact).norm() / exact.norm()).item()
    return distance if distance == distance else float("inf")
