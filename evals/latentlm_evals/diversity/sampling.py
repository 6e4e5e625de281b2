"""Answers of a model in the four cells: greedy or temperature x latents shared by the samples of a prompt or fresh for each.

    greedy, shared         one answer a prompt, under a z of its own
    greedy, fresh          latent-only diversity: all that differs between samples is z
    temperature, shared    the z of the first cell, tokens drawn for each sample
    temperature, fresh     both

A model without latents has the two cells of its decoding. The z of a prompt is drawn apart from those of the fresh samples, and
other prompts have others, so that a cell's mean over prompts is one over z too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from latentlm.generation import generate
from latentlm.interface import Generation, LatentDecoder, Latents
from latentlm.training.data.synthetic.source import uniform
from latentlm_evals.diversity.task import Prompt

Sharing = Literal["shared", "fresh"]
Source = Literal["posterior", "prior"]


@dataclass(frozen=True)
class Sampler:
    """Draws answers of one model, the same for the same seed whatever the batch size."""

    model: LatentDecoder
    length: int
    """Characters of an answer: what a model writes beyond them is not looked at."""
    samples: int
    prefill: Source = "posterior"
    """Who draws the latents of the prompt."""
    seed: int = 0
    batch_size: int = 512
    """Rows that are generated at a time."""

    def rows(self, temperature: float, sharing: Sharing) -> int:
        """Continuations of a prompt that a cell takes."""
        return 1 if self._is_one(temperature, sharing) else self.samples

    def answers(
        self, prompts: list[Prompt], temperature: float, sharing: Sharing, *, advance: Callable[[int], None] = lambda rows: None
    ) -> list[list[str]]:
        """`samples` answers to each prompt. Temperature 0 is greedy. `advance` is told of rows that are done. Without latents
        `sharing` changes nothing."""
        found: list[list[str]] = []
        count = self.rows(temperature, sharing)
        at_once = max(1, self.batch_size // count)
        for first in range(0, len(prompts), at_once):
            some = prompts[first : first + at_once]
            if self._is_one(temperature, sharing):
                made = self._one(some)
            elif sharing == "shared" and self.model.has_latents:
                same = [one.latents for one in self._one(some) if one.latents is not None]
                made = self._continued(some, temperature, samples=count, seed=self.seed, latents=same)
            else:
                made = self._continued(some, temperature, samples=count, seed=self.seed)
            texts = [(one.text or "")[: self.length] for one in made]
            repeats = self.samples // count  # one greedy answer stands for all samples of its prompt
            found += [texts[row : row + count] * repeats for row in range(0, len(texts), count)]
            advance(len(texts))
        return found

    def _is_one(self, temperature: float, sharing: Sharing) -> bool:
        """Whether all samples of a prompt are the same: nothing is drawn for each."""
        return temperature == 0 and (sharing == "shared" or not self.model.has_latents)

    def _one(self, prompts: list[Prompt]) -> list[Generation]:
        """The greedy answer under a z that is the prompt's own. (An answer that ends early has z for its own length; what goes
        on beyond it is wrong already, so it does not matter that z is fresh there.)"""
        return self._continued(prompts, 0.0, samples=1, seed=self.seed + 1)

    def _continued(
        self,
        prompts: list[Prompt],
        temperature: float,
        *,
        samples: int,
        seed: int,
        latents: Literal["fresh"] | list[Latents] = "fresh",
    ) -> list[Generation]:
        return generate(
            self.model,
            [prompt.text for prompt in prompts],
            max_tokens=self.length,
            temperature=temperature,
            samples=samples,
            latents=latents,
            prefill=self.prefill,
            seed=seed,
            batch_size=self.batch_size,
        )


def of_the_data(prompts: list[Prompt], samples: int, *, seed: int) -> list[list[str]]:
    """Answers as the data has them, every right one as likely: the most that a model of the data can show."""
    rows = np.concatenate(list(uniform(len(prompts), samples, seed=seed)))[: len(prompts)]
    every = [sorted(prompt.answers) for prompt in prompts]
    return [[own[int(value * len(own))] for value in row] for own, row in zip(every, rows, strict=True)]
