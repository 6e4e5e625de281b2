"""How the adapter scores: its settings, checked, and what they make of lm-eval's requests.

    settings = ScoringSettings.of(samples="auto", tolerance=0.1)
    requests, how = settings.continuations(model, [(context, continuation)], keys=[...])
    requests, owners, how = settings.texts(model, [tokens], context=512, overlapping=False)

An evaluation scores these requests (`LatentLM`), a dry run plans the same ones (`DryLM`). Whole texts in disjoint windows are
those of `score_texts`: the same windows, estimator, keys, tolerance and refinement, and so the same numbers. Nothing is
operational about a text without a context: for `operational` they take the estimator that `score_texts` takes by itself.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from latentlm.interface import LatentDecoder
from latentlm.likelihood import Method
from latentlm.likelihood.planning import samples_of
from latentlm.likelihood.requests import How, Request
from latentlm.likelihood.scoring import MAX_SAMPLES, TOLERANCE, continuations_to_score, how_to_score, texts_to_score
from latentlm_evals.fingerprint import Facts
from latentlm_evals.options import amount, count
from latentlm_evals.reading import overlapping_windows

LastLatent = Literal["posterior", "prior"]


@dataclass(frozen=True)
class ScoringSettings:
    """Made by `of`, which checks."""

    method: Method
    """`score` of --model_args."""
    samples: int | Literal["auto"]
    tolerance: float
    """Nats of a continuation, bits per byte of a whole text."""
    max_samples: int
    refine: int | None
    """Gradient steps on the proposal of a document's vector; None: of whole texts as many as `score_texts` takes by itself, of
    continuations none."""
    seed: int
    last_latent: LastLatent
    batch_size: int | None = None

    @classmethod
    def of(
        cls,
        *,
        score: Method = "operational",
        samples: int | Literal["auto"] = 16,
        tolerance: float = TOLERANCE,
        max_samples: int = MAX_SAMPLES,
        refine: int | None = None,
        seed: int = 0,
        last_latent: LastLatent = "posterior",
    ) -> ScoringSettings:
        """From what `--model_args` says. Raises UserError where a setting means nothing: to be asked before any long work."""
        settings = cls(
            method=score,
            samples=samples_of(str(samples)),
            tolerance=amount("tolerance", tolerance),
            max_samples=count("max_samples", max_samples, least=1),
            refine=None if refine is None else count("refine", refine, least=0),
            seed=count("seed", seed),
            last_latent=last_latent,
        )
        how_to_score(**settings._common(), last_latent=last_latent, refine=settings.refine or 0)
        return settings

    def continuations(
        self, model: LatentDecoder, asked: Sequence[tuple[list[int], list[int]]], *, keys: Sequence[Hashable]
    ) -> tuple[list[Request], How]:
        """What to score of (context, continuation) pairs of tokens, and how; `keys` of their random numbers."""
        return continuations_to_score(
            model, asked, **self._common(), last_latent=self.last_latent, refine=self._steps(model), greedy=True, keys=keys
        )

    def texts(
        self, model: LatentDecoder, texts: Sequence[list[int]], *, context: int, overlapping: bool
    ) -> tuple[list[Request], list[int], How]:
        """What to score of texts of tokens, each after its first token: windows of at most `context` inputs, the number of each
        one's text, and how. A text of one token has no window. `overlapping`: windows as lm-eval cuts them."""
        numbers = [number for number, text in enumerate(texts) if len(text) > 1]
        if not overlapping:
            whole = [texts[number] for number in numbers]
            requests, places, how = texts_to_score(model, whole, **self._of_texts(), context=context)
            return requests, [numbers[place] for place in places], how
        # The tokens that an overlapping window is given are a context, but its latents are a text's: from the prior.
        method = "iwae" if self.method in ("auto", "operational", "joint") else self.method
        owners = [(number, window) for number in numbers for window in overlapping_windows(texts[number], context)]
        windows = [window for _, window in owners]
        requests, how = continuations_to_score(
            model,
            windows,
            **self._common() | {"method": method, "tolerance": [self._nats(model, targets) for _, targets in windows]},
            refine=self._steps_of_texts(model),
            # The default key is the context, which first windows share: their errors would not be independent.
            keys=[("text", tuple(given), tuple(targets)) for given, targets in windows],
        )
        return requests, [number for number, _ in owners], how

    def facts(self, model: LatentDecoder) -> Facts:
        """What the scores depend on; without latents they are exact, whatever is said of samples."""
        latent = model.has_latents
        return {
            "score": self.method,
            "samples": self.samples if latent else 0,
            "tolerance": self.tolerance if latent else 0,
            "max_samples": self.max_samples if self.samples == "auto" and latent else 0,
            "refine": self._steps(model),
            "refine_texts": self._steps_of_texts(model),
            "seed": self.seed,
            "last_latent": self.last_latent,
        }

    def _common(self) -> dict[str, Any]:
        """What continuations and texts have in common."""
        return {
            "method": self.method,
            "samples": self.samples,
            "tolerance": self.tolerance,
            "max_samples": self.max_samples,
            "seed": self.seed,
            "batch_size": self.batch_size,
        }

    def _steps(self, model: LatentDecoder) -> int:
        """Of refinement, for a continuation. Without latents there are none: they would keep it from sharing its context."""
        return self.refine or 0 if model.has_latents else 0

    def _steps_of_texts(self, model: LatentDecoder) -> int:
        """The same for a whole text."""
        return texts_to_score(model, [], **self._of_texts())[2].refine if model.has_latents else 0

    def _of_texts(self) -> dict[str, Any]:
        """The settings of texts, those that are not said being `score_texts`'s own."""
        settings = self._common() | {"refine": self.refine}
        if self.method == "operational":
            del settings["method"]
        return settings

    def _nats(self, model: LatentDecoder, targets: list[int]) -> float:
        """The tolerance of a window in nats: bits per raw byte of its targets, of which there is at least one."""
        assert model.tokenizer is not None, "load_model refuses models without one"
        return self.tolerance * math.log(2) * max(1, len(model.tokenizer.decode_bytes(targets)))
