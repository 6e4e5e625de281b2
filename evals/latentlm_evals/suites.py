"""The shipped tasks: their folder, their names, and the suite that runs them all.

    lm_eval --model latentlm --model_args model=free-tiny --tasks latentlm_short --include_path "$(latentlm eval --task-path)"
"""

from __future__ import annotations

from pathlib import Path

DEFAULT_SUITE = "latentlm_short"
"""The lm-eval group of all shipped tasks."""
SUITE_TASKS = ("latentlm_next_line", "latentlm_heldout", "latentlm_copy", "latentlm_brackets")
"""Multiple choice, rolling likelihood, and two of generation."""


def task_path() -> Path:
    """The folder of the shipped task files, for lm-eval's `--include_path`."""
    return Path(__file__).parent / "tasks"
