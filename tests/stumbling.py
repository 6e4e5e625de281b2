"""Runs that are cut short in their midst."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from latentlm.training.trainer import Trainer


@contextmanager
def stumbling(*, at: int, error: BaseException | None = None, do: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Within the block, each run that has taken step `at` does something, or raises, before it logs or saves any of it."""
    take = Trainer.take

    def taken(self: Trainer) -> None:
        take(self)
        if self.step == at:
            do()
            if error is not None:
                raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "take", taken)
        yield
