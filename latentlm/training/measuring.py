"""What `train.evaluate` asks for, measured on the model that is being trained: tasks, and honest likelihoods of held-out
documents. Where the held-out bound (evaluation.py) is quick and rough, these are what a finished model would be judged by.

Tasks belong to an evaluator, which an entry point of the group `latentlm.evaluators` names: see `Evaluator`. latentlm_evals has
the one for lm-eval.

Of several processes, whose weights are spread, each answers everything, in step with the others: they need each other for every
pass. Random numbers are keyed, so that the answers are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import Any, Protocol

import torch

from latentlm.config import TrainConfig
from latentlm.errors import UserError
from latentlm.interface import LatentDecoder
from latentlm.interface.ranks import alone
from latentlm.likelihood import bits_per_byte, score_texts
from latentlm.tokenizer import Tokenizer
from latentlm.training.data.prepared import HeldOut

Answers = Mapping[str, Mapping[str, float | int | None]]
"""By task: its metrics by name, `NAME_standard_error` of each (null where there is none), and `items`."""


class Evaluator(Protocol):
    """Tasks that were found and loaded. What makes it is a function of their names and of the most items of each (None: all),
    which raises UserError for tasks that are not there."""

    def check(self, model: LatentDecoder) -> None:
        """Raise UserError where a model like this one, with its tokenizer, cannot answer them. No long work."""

    def answer(self, model: LatentDecoder) -> Answers:
        """What a model with a tokenizer does on them."""


_GROUP = "latentlm.evaluators"


def tasks_of(config: TrainConfig) -> Evaluator | None:
    """The tasks that a run is to answer, None where there are none. Raises UserError where they cannot be loaded."""
    if config.evaluate is None or not config.evaluate.tasks:
        return None
    found = sorted(entry_points(group=_GROUP), key=lambda entry: entry.name)
    if not found:
        raise UserError("train.evaluate.tasks: nothing installed here answers tasks. Install latentlm anew, or leave it out.")
    make: Callable[[Sequence[str], int | None], Evaluator] = found[0].load()
    with alone():
        return make(config.evaluate.tasks, config.evaluate.limit)


class Measuring:
    """Measures a model every so many steps; without a recipe's word, never."""

    def __init__(
        self, config: TrainConfig, tasks: Evaluator | None, held_out: Sequence[HeldOut], tokenizer: Tokenizer
    ) -> None:
        self._config, self._seed, self._steps, self._tokenizer = config.evaluate, config.seed, config.steps, tokenizer
        self._tasks = tasks
        self._documents = held_out[: 0 if config.evaluate is None else config.evaluate.documents]

    def due(self, step: int) -> bool:
        """Whether to measure after so many steps."""
        return self._config is not None and (step % self._config.every == 0 or step == self._steps)

    def check(self, model: LatentDecoder) -> None:
        """Raise UserError where tasks do not fit this model, or no likelihood of it can be estimated."""
        with self._reading(model):
            if self._documents:
                end = self._documents[0].end_of_text
                score_texts(model, [[end, end]], samples=1)
            if self._tasks is not None:
                self._tasks.check(model)

    def measure(self, model: LatentDecoder) -> dict[str, Any]:
        """The keys of an `evaluation` line (record/metrics.py) that are its own."""
        found: dict[str, Any] = {}
        with self._reading(model):
            if self._documents:
                found["likelihood"] = self._likelihood(model)
            if self._tasks is not None:
                found["tasks"] = {task: dict(metrics) for task, metrics in self._tasks.answer(model).items()}
        return found

    @contextmanager
    def _reading(self, model: LatentDecoder) -> Iterator[None]:
        """Within the block the model reads and writes text, and does not learn."""
        before, model.tokenizer = model.tokenizer, self._tokenizer
        model.eval()
        try:
            with alone(), torch.no_grad():
                yield
        finally:
            model.tokenizer = before
            model.train()

    def _likelihood(self, model: LatentDecoder) -> dict[str, Any]:
        config, documents = self._config, self._documents
        assert config is not None, "there are documents"
        data = [each.data[: config.document_bytes] for each in documents]
        texts = []
        for each, begun in zip(documents, data, strict=True):
            end = [each.end_of_text]
            texts.append([*end, *self._tokenizer.encode(begun), *(end if len(begun) == each.bytes else [])])
        how: dict[str, Any] = {"tolerance": config.tolerance, "max_samples": config.max_samples, "seed": self._seed}
        scores = score_texts(model, texts, **how, keys=[each.id for each in documents])
        honest = bits_per_byte(scores, [len(begun) for begun in data])
        return {
            "bits_per_byte": honest.value,
            "standard_error": honest.standard_error,
            "estimator_error": honest.estimator_error,
            "converged": honest.converged(config.tolerance),
            "documents": len(documents),
            "samples": max(score.samples for score in scores),
        }
