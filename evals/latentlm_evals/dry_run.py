"""What an evaluation will take: its requests are collected, and of each kind some of the longest are timed."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, fields, replace
from functools import cached_property, reduce

from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook

from latentlm.likelihood import Score
from latentlm.likelihood.planning import Plan, plan, seconds_text
from latentlm.likelihood.requests import How, Request
from latentlm_evals.adapter import LatentLM
from latentlm_evals.answers import recall, repeat_numbers, seal
from latentlm_evals.following import Evaluation
from latentlm_evals.generation_settings import GenerationSettings
from latentlm_evals.scored import Scored

_STEPS = 4  # tokens whose writing is timed

_NOTHING = Plan(requests=0, tokens=0, samples=(0, 0), seconds=(0.0, 0.0), memory=0)


@dataclass(frozen=True)
class TaskPlan(Plan):
    """Of an evaluation: its likelihoods, and the texts that are to be written."""

    texts: int
    written: int
    """Tokens of the texts, at most: stop strings end them earlier."""
    writing: float
    """Seconds that they take, at most."""

    def lines(self) -> dict[str, str]:
        """Quantities and their values; of what is not asked for, none."""
        found = super().lines() if self.requests or not self.texts else {}
        if self.texts:
            found["texts"] = f"{self.texts:,}: {self.written:,} tokens, {seconds_text(self.writing)} at most"
        return found


class DryLM(LatentLM):
    """Makes of every request what `LatentLM` makes of it, remembers that instead of scoring it, and leaves no trace."""

    @cached_property
    def _to_score(self) -> dict[How, list[Request]]:
        """What there was to score: continuations are scored one way, whole texts another."""
        return {}

    @cached_property
    def _to_write(self) -> dict[GenerationSettings, list[list[int]]]:
        """The prompts that there were to continue."""
        return {}

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Take lm-eval's cache, as ever, but keep nothing in it."""
        super().set_cache_hook(cache_hook)
        seal(cache_hook.dbdict)

    def plan(self) -> TaskPlan:
        """Of all that was asked for; nothing where a `--use_cache` database has every answer."""
        scoring = reduce(_both, [plan(self.model, requests, how) for how, requests in self._to_score.items()] or [_NOTHING])
        return TaskPlan(
            **{field.name: getattr(scoring, field.name) for field in fields(Plan)},
            texts=sum(map(len, self._to_write.values())),
            written=sum(wanted.max_tokens * len(prompts) for wanted, prompts in self._to_write.items()),
            writing=sum(self._writing_seconds(wanted, prompts) for wanted, prompts in self._to_write.items()),
        )

    def _writing_seconds(self, wanted: GenerationSettings, prompts: list[list[int]]) -> float:
        """Of the texts to their last token, by what a few tokens take a batch of the longest prompts."""
        batch = sorted(prompts, key=len, reverse=True)[: self.writer.together]

        def seconds(tokens: int) -> float:
            asked = replace(wanted, max_tokens=tokens, stop=())
            start = time.perf_counter()
            self.writer.write([prompt[-(self.max_length - wanted.max_tokens) :] for prompt in batch], asked, range(len(batch)))
            return time.perf_counter() - start

        few, more = min(1, wanted.max_tokens), min(1 + _STEPS, wanted.max_tokens)
        ends, self.model.end_tokens = self.model.end_tokens, frozenset()  # no text ends early
        try:
            seconds(few)  # the first run of anything is slower
            first, later = seconds(few), seconds(more)
        finally:
            self.model.end_tokens = ends
        # A token that is written takes no less than one that is read, whatever else the machine did meanwhile.
        step = max((later - first) / max(1, more - few), later / (len(batch[0]) + more))
        return math.ceil(len(prompts) / self.writer.together) * (first + step * (wanted.max_tokens - few))

    def everybodys(self) -> TaskPlan | None:
        """The plans of all processes that share the evaluation as one, for the first of them; None for the others."""
        plans = self._ranks.gather(self.plan())
        return None if plans is None else reduce(_side_by_side, plans)

    def _estimated(self, requests: list[Request], how: How) -> list[Score]:
        """Nothing of each."""
        if requests:
            self._to_score.setdefault(how, []).extend(requests)
        return [
            Score(-math.log(2), 0.0, 1.0, 0, len(request.tokens) - request.given, how.method, greedy=False)
            for request in requests
        ]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Nothing of each."""
        self._evaluation.hear(requests, self._check)
        for request, repeat in zip(requests, repeat_numbers(requests), strict=True):
            wanted = GenerationSettings.of(request.args[1], self.max_length)
            if self.writer.draws(wanted) and recall(self.cache_hook, request.args, repeat) is not None:
                continue
            self._to_write.setdefault(wanted, []).append(self.reader.prompt(str(request.args[0])))
        return [""] * len(requests)

    def _quiet(self, disable_tqdm: bool) -> bool:
        """No work is done of which progress could be shown."""
        return True

    def _finished(self) -> Scored:
        """No counts: what is answered are no likelihoods."""
        self.begin_evaluation(Evaluation())
        return self._scored


def _both(one: Plan, other: Plan) -> Plan:
    """One after the other."""
    return Plan(
        requests=one.requests + other.requests,
        tokens=one.tokens + other.tokens,
        samples=(min(one.samples[0], other.samples[0]), max(one.samples[1], other.samples[1])),
        seconds=(one.seconds[0] + other.seconds[0], one.seconds[1] + other.seconds[1]),
        memory=max(one.memory, other.memory),
    )


def _side_by_side(one: TaskPlan, other: TaskPlan) -> TaskPlan:
    """At the same time, on machines of their own."""
    both = _both(one, other)
    return TaskPlan(
        requests=both.requests,
        tokens=both.tokens,
        samples=max(one.samples, other.samples),
        seconds=(max(one.seconds[0], other.seconds[0]), max(one.seconds[1], other.seconds[1])),
        memory=both.memory,
        texts=one.texts + other.texts,
        written=one.written + other.written,
        writing=max(one.writing, other.writing),
    )
