"""Runs of several processes, for tests: started by torchrun as a user does, small, and compared with others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SMALL = [
    "data.path=synthetic:letter", "data.max_documents=200", "model.backbone.width=32", "model.backbone.context=32",
    "train.batch=6", "train.context=32", "train.steps=4", "train.warmup=1", "train.log_every=1", "train.eval_every=4",
    "train.save_every=2", "train.keep=9", "train.eval_documents=7", "train.device=cpu",
]  # fmt: skip


def run(recipe: str, out: Path, *more: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*start, "latentlm", "train", recipe, *SMALL, *more, "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def assert_alike(first: Path, second: Path) -> None:
    for one, other in zip(lines(first), lines(second), strict=True):
        for key in ("cross_entropy", "kl", "loss", "grad_norm", "penalty"):
            assert one[key] == pytest.approx(other[key], rel=2e-5, abs=1e-5) if one[key] is not None else other[key] is None
        for key in ("bits_per_byte", "standard_error", "information_bits_per_site", "documents", "live_bits"):
            assert other.get(key) == pytest.approx(one[key], rel=1e-4, abs=1e-5) if one.get(key) is not None else True
        for key, value in (one["schedule"] or {}).items():
            assert other["schedule"][key] == pytest.approx(value, rel=2e-5, abs=1e-5)
