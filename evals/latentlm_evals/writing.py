"""Continuations of lm-eval's prompts: generated together where they share their settings, and the text that counts.

    Writer(model, thinking=..., seed=0, last_latent="posterior", batch_size=8).write(prompts, settings, keys)
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

from latentlm.generation import Generation, generate
from latentlm.interface import LatentDecoder
from latentlm_evals.chat import Thinking
from latentlm_evals.generation_settings import GenerationSettings

_TOGETHER = 32  # prompts in a batch where nothing else is asked for


@dataclass(frozen=True, kw_only=True)
class Writer:
    """What all continuations of an adapter have in common."""

    model: LatentDecoder
    thinking: Thinking
    seed: int
    last_latent: Literal["posterior", "prior"]
    batch_size: int | None

    @property
    def together(self) -> int:
        """Prompts in a batch."""
        return self.batch_size or _TOGETHER

    def draws(self, settings: GenerationSettings) -> bool:
        """Whether another repeat of a request would have another text: latents are drawn anew for each."""
        return self.model.has_latents or settings.temperature > 0

    def write(self, prompts: list[list[int]], settings: GenerationSettings, keys: Sequence[Hashable]) -> list[str]:
        """The texts after prompts that share their settings; `keys` name the prompts' random numbers."""
        found = generate(
            self.model,
            prompts,
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            stop=settings.stop,
            seed=self.seed,
            last_latent=self.last_latent,
            keys=keys,
            batch_size=self.together,
        )
        return [self._text(one, settings.stop) for one in found]

    def _text(self, one: Generation, stop: Sequence[str]) -> str:
        """What was written: no special token, no thoughts, nothing from a stop string on."""
        tokenizer = self.model.tokenizer
        assert tokenizer is not None, "load_model refuses models without one"
        kept = [token for token in self.thinking.after(one.tokens) if token not in tokenizer.special]
        # Not the generation's own text, which ends at the first stop string: that one may be in the thoughts, or in their end.
        written = tokenizer.decode_after(one.prompt, kept).decode("utf-8", errors="replace")
        return self.thinking.answer(written, stop)
