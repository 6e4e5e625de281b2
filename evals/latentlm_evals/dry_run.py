"""What an evaluation's likelihoods will take: its requests are collected, and one of the longest is timed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook

from latentlm.errors import UserError
from latentlm.likelihood.estimating import How, Request
from latentlm.likelihood.planning import Plan, plan
from latentlm.likelihood.scoring import continuations_to_score
from latentlm_evals.adapter import LatentLM
from latentlm_evals.answers import seal
from latentlm_evals.reading import TokenRequest, fitted


class DryLM(LatentLM):
    """Answers every request with nothing, remembers what there was to score, and leaves no trace."""

    @cached_property
    def _pairs(self) -> list[tuple[list[int], list[int]]]:
        """What there was to score."""
        return []

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Take lm-eval's cache, as ever, but keep nothing in it."""
        super().set_cache_hook(cache_hook)
        seal(cache_hook.dbdict)

    @property
    def asked(self) -> bool:
        """Whether there was anything to score."""
        return bool(self._pairs)

    def plan(self) -> Plan:
        """Of all likelihoods asked for. Raises UserError where there were none."""
        if not self.asked:
            raise UserError(
                "These tasks ask for no likelihood, or for none that the --use-cache database has not: what is left is what "
                "generating their answers takes."
            )
        requests, how = self._to_score()
        return plan(self.model, requests, how)

    def _to_score(self) -> tuple[list[Request], How]:
        return continuations_to_score(
            self.model,
            self._pairs,
            method=self.score,
            samples=self.samples,
            tolerance=self.tolerance,
            max_samples=self.max_samples,
            seed=self.seed,
            batch_size=self.batch_size,
            last_latent=self.last_latent,
            greedy=True,
        )

    def _loglikelihood_tokens(
        self, requests: list[TokenRequest], disable_tqdm: bool = False, requested: Sequence[Instance] = (), **_: Any
    ) -> list[tuple[float, bool]]:
        """Nothing of each."""
        self._pairs.extend(fitted(request, self.max_length) for request in requests)
        return [(-math.log(2), False)] * len(requests)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Nothing of each."""
        self._evaluation.look_ahead(self._check)
        for request in requests:
            self._pairs.extend(self._windows(self.reader.plain(str(request.args[0]))))
        return [-math.log(2)] * len(requests)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Nothing of each."""
        self._evaluation.look_ahead(self._check)
        return [""] * len(requests)
