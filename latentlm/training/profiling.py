"""A trace of some steps (`train.profile`), for Perfetto (https://ui.perfetto.dev) or chrome://tracing.

    latentlm train free-tiny train.profile.start=20 train.profile.steps=3      # runs/free-tiny/profile/steps-20-22.json
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from latentlm.config import ProfileConfig
from latentlm.config.writing import check_replaceable, write_atomically
from latentlm.errors import CheckpointError, UserError
from latentlm.training.record.folder import PROFILE

_KIND = "a trace of training"


def is_trace(path: Path) -> bool:
    """Whether a file is what torch's profiler writes."""
    with suppress(OSError), path.open("rb") as file:
        said = file.read(4096)
        return b'"schemaVersion"' in said and b'"deviceProperties"' in said
    return False


def trace_file(config: ProfileConfig, out: Path) -> Path:
    """Where the trace of a run goes."""
    return out / PROFILE / f"steps-{config.start}-{config.last}.json"


def check_trace(config: ProfileConfig | None, out: Path) -> None:
    """Before the work: raise UserError where the trace would take the place of something else."""
    if config is not None:
        try:
            check_replaceable(trace_file(config, out), is_trace, kind=_KIND)
        except CheckpointError as error:
            said = str(error).partition(" Choose another path")[0].rstrip(".,")
            raise UserError(f"train.profile: {said}. Remove it, or choose another train.profile.start.") from None


class StepProfiler:
    """Records the steps that the recipe names; without a recipe's word, nothing. Steps are counted from 0, as noise is."""

    def __init__(self, config: ProfileConfig | None, out: Path) -> None:
        self._config, self._out = config, out
        self._running: profile | None = None

    def before(self, step: int) -> None:
        """Step `step` is about to begin."""
        if self._config is not None and step == self._config.start:
            kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
            self._running = profile(activities=kinds, record_shapes=True, profile_memory=True)
            self._running.start()

    def after(self, step: int) -> Path | None:
        """Step `step` is done; the file, where it was the last to record. Raises CheckpointError where the disk refuses it."""
        if self._running is None or self._config is None or step < self._config.last:
            return None
        trace, self._running = self._running, None
        trace.stop()
        path = trace_file(self._config, self._out)
        write_atomically(path, lambda temporary: trace.export_chrome_trace(str(temporary)), ours=is_trace, kind=_KIND)
        return path

    def close(self) -> None:
        """Nothing more will come: what was not finished is not written."""
        if self._running is not None:
            self._running.stop()
            self._running = None
