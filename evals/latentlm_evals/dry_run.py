"""What an evaluation's likelihoods will take: its requests are collected, and one of the longest of each kind is timed."""

from __future__ import annotations

import math
from functools import cached_property, reduce

from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook

from latentlm.errors import UserError
from latentlm.likelihood import Score
from latentlm.likelihood.estimating import How, Request
from latentlm.likelihood.planning import Plan, plan
from latentlm_evals.adapter import LatentLM
from latentlm_evals.answers import seal
from latentlm_evals.following import Evaluation
from latentlm_evals.scored import Scored


class DryLM(LatentLM):
    """Makes of every request what `LatentLM` makes of it, remembers that instead of scoring it, and leaves no trace."""

    @cached_property
    def _to_score(self) -> dict[How, list[Request]]:
        """What there was to score: continuations are scored one way, whole texts another."""
        return {}

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Take lm-eval's cache, as ever, but keep nothing in it."""
        super().set_cache_hook(cache_hook)
        seal(cache_hook.dbdict)

    @property
    def asked(self) -> bool:
        """Whether there was anything to score."""
        return bool(self._to_score)

    def plan(self) -> Plan:
        """Of all likelihoods asked for. Raises UserError where there were none."""
        if not self.asked:
            raise UserError(
                "These tasks ask for no likelihood, or for none that the --use-cache database has not: what is left is what "
                "generating their answers takes."
            )
        return reduce(_both, [plan(self.model, requests, how) for how, requests in self._to_score.items()])

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
        self._evaluation.look_ahead(self._check)
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
