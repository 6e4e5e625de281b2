"""The tables of docs/lm-eval.md are what running every option through both adapters gives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "build_lm_eval_options.py"


@pytest.mark.conformance  # a minute: every option is run
@pytest.mark.slow
def test_the_tables_are_current() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--check"], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
