"""What `train.evaluate` asks for, measured on the model that is being trained: tasks, and honest likelihoods of held-out
documents. Where the held-out bound (evaluation.py) is quick and rough, these are what a finished model would be judged by.

Tasks belong to an evaluator, which an entry point of the group `latentlm.evaluators` names: see `Evaluator`. latentlm_evals has
the one for lm-eval.

Of several processes, whose weights are spread, each answers everything, in step with the others: they need each other for every
pass. Random numbers are keyed, so that the answers are the same, and with them the number of passes. On devices whose sums may
round differently from process to process that has not been tried: a likelihood takes samples until it is good enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib.metadata import entry_points
from typing import Any, Protocol

import torch

from latentlm.config import TrainConfig
from latentlm.errors import UserError, short
from latentlm.interface import LatentDecoder
from latentlm.interface.ranks import alone
from latentlm.likelihood import bits_per_byte, score_texts
from latentlm.likelihood.scoring import texts_to_score
from latentlm.tokenizer import Tokenizer
from latentlm.training.data.prepared import HeldOut
from latentlm.training.parallel import is_lost
from latentlm.training.trainer import autocast

Answers = Mapping[str, Mapping[str, Any]]
"""By task: `items`, and `metrics` by name, each with `value` and `standard_error` (null where there is none)."""


class Evaluator(Protocol):
    """Tasks that were found. What makes it is a function of their names and of the most items of each (None: all), which raises
    UserError for tasks that are not there, or cannot be loaded."""

    def check(self, model: LatentDecoder) -> None:
        """Raise UserError where a model like this one, with its tokenizer, cannot answer them. No long work."""

    def answer(self, model: LatentDecoder) -> Answers:
        """What a model with a tokenizer does on them."""


_GROUP, _NAME = "latentlm.evaluators", "lm_eval"


def tasks_of(config: TrainConfig) -> Evaluator | None:
    """The tasks that a run is to answer, None where there are none. Raises UserError where they cannot be loaded."""
    if config.evaluate is None or not config.evaluate.tasks:
        return None
    found = sorted(entry_points(group=_GROUP, name=_NAME), key=lambda entry: entry.value)
    if len(found) != 1:
        there = "nothing" if not found else " and ".join(entry.value for entry in found)
        raise UserError(f"train.evaluate.tasks: of what is installed here {there} answers tasks. Install latentlm alone anew.")
    with alone(), _blamed(f"{found[0].value} cannot make them"):
        make: Callable[[Sequence[str], int | None], Evaluator] = found[0].load()
        return make(config.evaluate.tasks, config.evaluate.limit)


@contextmanager
def _blamed(what: str) -> Iterator[None]:
    """Errors of tasks, which bring code of their own, as a UserError."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        if is_lost(error):  # another process is gone: no fault of a task
            raise
        said = short(f"{type(error).__name__}: {error}".splitlines()[0])
        raise UserError(f"train.evaluate.tasks: {what} ({said}). Mend the task, or leave it out.") from error


def _plain(answer: Mapping[str, Any]) -> dict[str, Any]:
    """A task's answer as what can be written. Raises an error for what is no such answer."""
    metrics = {
        str(name): {key: None if own[key] is None else float(own[key]) for key in ("value", "standard_error")}
        for name, own in answer["metrics"].items()
    }
    return {"items": int(answer["items"]), "metrics": metrics}


class Measuring:
    """Measures a model every so many steps; without a recipe's word, never."""

    def __init__(
        self,
        config: TrainConfig,
        tasks: Evaluator | None,
        held_out: Sequence[HeldOut],
        tokenizer: Tokenizer,
        *,
        spread: bool = False,
    ) -> None:
        """`spread`: over several processes, which gather blocks in the precision in which they train."""
        self._config, self._seed, self._steps, self._tokenizer = config.evaluate, config.seed, config.steps, tokenizer
        self._tasks, self._train = tasks, config if spread else None
        self._documents = held_out[: 0 if config.evaluate is None else config.evaluate.documents]

    def due(self, step: int) -> bool:
        """Whether to measure after so many steps."""
        return self._config is not None and step > 0 and (step % self._config.every == 0 or step == self._steps)

    def check(self, model: LatentDecoder) -> None:
        """Raise UserError where tasks do not fit this model, or no likelihood of it can be estimated."""
        with self._reading(model):
            if self._documents:
                end = self._documents[0].end_of_text
                score_texts(model, [[end, end]], samples=1)
                texts_to_score(model, self._texts(), **self._how())  # refuses what no memory holds
            if self._tasks is not None:
                with _blamed("a request cannot be made"):
                    self._tasks.check(model)

    def measure(self, model: LatentDecoder) -> dict[str, Any]:
        """The keys of an `evaluation` line (record/metrics.py) that are its own."""
        found: dict[str, Any] = {}
        with self._reading(model):
            if self._documents:
                found["likelihood"] = self._likelihood(model)
            if self._tasks is not None:
                with _blamed("an answer cannot be judged"):
                    found["tasks"] = {str(task): _plain(own) for task, own in self._tasks.answer(model).items()}
        return found

    @contextmanager
    def _reading(self, model: LatentDecoder) -> Iterator[None]:
        """Within the block the model reads and writes text, and does not learn."""
        before, model.tokenizer = model.tokenizer, self._tokenizer
        model.eval()
        try:
            with alone(), torch.no_grad(), nullcontext() if self._train is None else autocast(model, self._train):
                yield
        finally:
            model.tokenizer = before
            model.train()

    def _texts(self) -> list[list[int]]:
        """The documents as in training: after end-of-text, and up to it where they are whole."""
        texts = []
        for document, begun in zip(self._documents, self._data(), strict=True):
            end = [document.end_of_text]
            texts.append([*end, *self._tokenizer.encode(begun), *(end if len(begun) == document.bytes else [])])
        return texts

    def _data(self) -> list[bytes]:
        most = None if self._config is None else self._config.document_bytes
        return [document.data[:most] for document in self._documents]

    def _how(self) -> dict[str, Any]:
        assert self._config is not None, "there are documents"
        keys = [document.id for document in self._documents]
        return {"tolerance": self._config.tolerance, "max_samples": self._config.max_samples, "seed": self._seed, "keys": keys}

    def _likelihood(self, model: LatentDecoder) -> dict[str, Any]:
        how = self._how()
        scores = score_texts(model, self._texts(), **how)
        honest = bits_per_byte(scores, [len(begun) for begun in self._data()])
        return {
            "bits_per_byte": honest.value,
            "standard_error": honest.standard_error,
            "estimator_error": honest.estimator_error,
            "converged": honest.converged(how["tolerance"]),
            "documents": len(self._documents),
            "samples": max(score.samples for score in scores),
        }
