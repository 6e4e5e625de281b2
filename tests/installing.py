"""Installing the small distributions of tests/distributions for real, without a network or build isolation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DISTRIBUTIONS = Path(__file__).parent / "distributions"


def install(target: Path, *names: str) -> Path:
    """Install the named distributions into a folder that only needs to be on the path, and return it."""
    sources = [str(DISTRIBUTIONS / name) for name in names]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    command += ["--disable-pip-version-check", "--no-compile", "--target", str(target), *sources]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return target
