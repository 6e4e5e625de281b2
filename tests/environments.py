"""A virtual environment on top of the one that runs the tests: what it installs leaves no trace."""

from __future__ import annotations

import os
import sysconfig
import venv
from pathlib import Path

_SCRIPTS = {"latentlm": "latentlm.cli", "pip": "pip", "lm_eval": "lm_eval", "pytest": "pytest"}


def fresh_environment(folder: Path, home: Path) -> dict[str, str]:
    """Make it in `folder`; returns the variables under which its commands come first on the PATH. pip installs without a
    network: no dependencies, no build isolation."""
    venv.create(folder, with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    # A site folder of its own, so that the outer environment's .pth files (an editable install's) are read too.
    (site / "outer.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n", encoding="utf-8")
    scripts = folder / "bin"
    for name, module in _SCRIPTS.items():
        (scripts / name).write_text(f'#!/bin/sh\nexec "{scripts}/python" -m {module} "$@"\n', encoding="utf-8")
        (scripts / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads this as its flag's value: no isolation
        "COLUMNS": "120",
    }
