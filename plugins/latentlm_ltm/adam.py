"""Adam (Kingma & Ba 2015, algorithm 1), for one tensor and a few steps: moments that live as long as the fit does.

    m <- b1 m + (1 - b1) g        v <- b2 v + (1 - b2) g^2        direction = (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
"""

from __future__ import annotations

import math

from torch import Tensor


class Adam:
    """Moments of the gradients seen so far."""

    def __init__(self, beta1: float, beta2: float, epsilon: float) -> None:
        self.beta1, self.beta2, self.epsilon = beta1, beta2, epsilon
        self.steps = 0
        self.first: Tensor | float = 0.0
        self.second: Tensor | float = 0.0

    def direction(self, gradient: Tensor) -> Tensor:
        """What to subtract, times the rate; about one unit long in each coordinate."""
        self.steps += 1
        self.first = self.beta1 * self.first + (1 - self.beta1) * gradient
        self.second = self.beta2 * self.second + (1 - self.beta2) * gradient.square()
        mean = self.first / (1 - self.beta1**self.steps)
        square = self.second / (1 - self.beta2**self.steps)
        return mean / (square.sqrt() + self.epsilon)


def cosine(step: int, steps: int, *, end: float) -> float:
    """From 1 at the first of `steps` steps down to `end` at the last; 1 where there is but one."""
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * step / max(steps - 1, 1)))
