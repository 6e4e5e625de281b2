"""A metric like the Hub's `code_eval`, for tests without a network: the share of programs that end without an error."""

from __future__ import annotations

import subprocess
import sys

import datasets
import evaluate


class CodeEval(evaluate.Metric):
    """pass@1 of predictions (several programs for each reference), each followed by its reference, a test."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        features = datasets.Features({"predictions": datasets.Sequence(text), "references": text})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(
        self, predictions: list[list[str]], references: list[str], k: list[int]
    ) -> tuple[dict[str, float], dict[str, object]]:
        passed = [_runs(f"{each}\n{test}") for many, test in zip(predictions, references, strict=True) for each in many]
        assert k == [1]
        return {"pass@1": sum(passed) / len(passed)}, {}


def _runs(program: str) -> bool:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False).returncode == 0
