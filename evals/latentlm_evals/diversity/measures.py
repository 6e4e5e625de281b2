"""What is measured of the answers to a prompt, and intervals over prompts.

    pass@k      chance that one of k samples is right, without bias from n of which c are: 1 - C(n-c, k) / C(n, k)
                (Chen et al. 2021, arXiv 2107.03374, section 2.1)
    distinct    different answers among the n samples
    valid       different right answers among them
    coverage    `valid` over the number of right answers
    entropy     bits, of the right answers among the samples, as often as each comes up: at most log2 of their number. A prompt
                without a right answer has none

Intervals are percentiles of a bootstrap over prompts, those of a difference over its values prompt by prompt: they are paired.

Legend: P prompts, n samples of a prompt.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from latentlm_evals.diversity.task import Prompt
from latentlm_evals.intervals import Interval, bootstrapped

Values = NDArray[np.float64]
"""(P,), not a number where a prompt has none."""
Answers = Sequence[Sequence[str]]
"""Of each prompt its n samples."""
COUNTED = ("distinct", "valid", "coverage", "entropy")


def at(k: int) -> str:
    """The name of a measure."""
    return f"pass@{k}"


def counts_of(samples: int) -> list[int]:
    """1, 2, 4, ... up to the number of samples: the k of pass@k."""
    return [2**power for power in range(samples.bit_length())]


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Chen et al. 2021. `k` is at most `samples`."""
    assert 0 <= correct <= samples
    assert 1 <= k <= samples
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def measured(prompts: Sequence[Prompt], answers: Answers) -> dict[str, Values]:
    """Every measure by name, pass@1 first."""
    rows = [_of_prompt(prompt, own) for prompt, own in zip(prompts, answers, strict=True)]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _of_prompt(prompt: Prompt, answers: Sequence[str]) -> dict[str, float]:
    right = Counter(answer for answer in answers if answer in prompt.answers)
    correct = right.total()
    return {
        **{at(k): pass_at_k(len(answers), correct, k) for k in counts_of(len(answers))},
        "distinct": len(set(answers)),
        "valid": len(right),
        "coverage": len(right) / len(prompt.answers),
        "entropy": sum(-count / correct * math.log2(count / correct) for count in right.values()) if right else math.nan,
    }


def estimate(values: Values, *, seed: int) -> Interval:
    """Mean and interval of the prompts that have a value; of none, not a number."""
    return bootstrapped(values[np.isfinite(values)], seed=seed)
