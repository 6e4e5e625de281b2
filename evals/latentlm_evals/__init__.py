"""The scales: the lm-eval adapter, the shipped tasks, and the comparison of models.

    from latentlm_evals import task_path
    lm_eval.tasks.TaskManager(include_path=str(task_path()))

Importing this package is cheap: nothing here loads torch or lm-eval.
"""

from __future__ import annotations

from latentlm_evals.suites import DEFAULT_SUITE, SUITE_TASKS, task_path

__all__ = ["DEFAULT_SUITE", "SUITE_TASKS", "task_path"]
