"""The shipped tasks and suites: their folder and their names.

    lm_eval --model latentlm --model_args model=free-tiny --tasks latentlm_short --include_path "$(latentlm eval --task-path)"
    lm_eval --model latentlm --model_args model=runs/mine --tasks headline --include_path "$(latentlm eval --task-path)"

A suite is an lm-eval group in that folder. Those of `SUITES` name tasks of lm-eval's own, whose data come from the network or
from folders of yours (docs/lm-eval.md).
"""

from __future__ import annotations

from pathlib import Path

DEFAULT_SUITE = "latentlm_short"
"""The lm-eval group of all shipped tasks."""
SUITE_TASKS = ("latentlm_next_line", "latentlm_heldout", "latentlm_copy", "latentlm_brackets")
"""Multiple choice, rolling likelihood, and two of generation."""
SUITES = {
    DEFAULT_SUITE: "the shipped tasks, which need no network",
    "headline": "HumanEval+, MBPP, GSM8K, MMLU and CommonsenseQA",
    "free-transformer": "the 16 benchmarks of the Free Transformer's paper",
}
"""Suite -> what is in it."""


def task_path() -> Path:
    """The folder of the shipped task files, for lm-eval's `--include_path`."""
    return Path(__file__).parent / "tasks"
