"""What the checks look at: one decoder in two small sizes, built once per process and never changed.

    structural   vocabulary 17, width 32, 4 blocks, 4 heads over 2 key/value heads, context 64, 4 event dimensions
    enumerable   vocabulary 3, width 16, 2 blocks, 2 heads, context 16, 2 event dimensions: every latent can be summed over

Weights have standard deviation 0.1, so that latents matter at initialisation. Parameters that begin at zero are stirred: they
would hide what lies behind them.

Legend: B rows, T tokens, S sites, E event dimensions, K samples.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch

from latentlm.composed import ComposedDecoder, build, complete
from latentlm.config import ModelConfig, parse
from latentlm.interface import Context, Latent, LatentDecoder, Noise
from latentlm.testing.planted import plant

STRUCTURAL: dict[str, Any] = {
    "vocabulary": 17, "width": 32, "blocks": 4, "heads": 4, "kv_heads": 2, "context": 64, "init_std": 0.1,
}  # fmt: skip
ENUMERABLE: dict[str, Any] = {"vocabulary": 3, "width": 16, "blocks": 2, "heads": 2, "context": 16, "init_std": 0.1}


class Subject:
    """A decoder under test. `model` and `exact` are settings as in a recipe's `model:`; they override the kit's sizes, and the
    enumerable decoder has the parts of the structural one where `exact` does not name others."""

    def __init__(
        self, decoder: str, *, model: Mapping[str, Any] | None = None, exact: Mapping[str, Any] | None = None
    ) -> None:
        """`decoder` is a registered name. A decoder without latents says so by `model={"event_dims": 0}`."""
        self.decoder = decoder
        self._model = dict(model or {})
        self._exact = dict(exact or {})

    @cached_property
    def config(self) -> ModelConfig:
        """Of the structural decoder, as a user would write it. Raises UserError for settings that are none."""
        return self._config(self._model, STRUCTURAL, 4)

    @cached_property
    def exact_config(self) -> ModelConfig:
        """Of the enumerable decoder."""
        parts = {key: value for key, value in self._model.items() if key not in ("backbone", "event_dims")}
        return self._config({**parts, **self._exact}, ENUMERABLE, 2 if self._model.get("event_dims") != 0 else 0)

    def _config(self, settings: Mapping[str, Any], sizes: Mapping[str, Any], event_dims: int) -> ModelConfig:
        backbone = {**sizes, **settings.get("backbone", {})}
        data = {"decoder": self.decoder, "event_dims": event_dims, **settings, "backbone": backbone}
        return parse(ModelConfig, data, source=f'conformance of "{self.decoder}"')

    @cached_property
    def complete(self) -> ModelConfig:
        """`config` with every open socket filled."""
        return complete(self.config)

    @cached_property
    def model(self) -> LatentDecoder:
        """The structural decoder, in evaluation mode. Not to be changed."""
        return _stirred(build(self.config, seed=3))

    @cached_property
    def lively(self) -> LatentDecoder:
        """The same with weights of three times the size: its posterior is further from its prior."""
        backbone = self.config.backbone.model_copy(update={"init_std": 0.3})
        return _stirred(build(self.config.model_copy(update={"backbone": backbone}), seed=4))

    @cached_property
    def exact(self) -> LatentDecoder:
        """The enumerable decoder with its own encoder, as initialised."""
        return _stirred(build(self.exact_config, seed=3))

    @cached_property
    def planted(self) -> ComposedDecoder:
        """The enumerable decoder with a posterior that knows the future, trained for a moment to use it."""
        assert isinstance(self.exact, ComposedDecoder)
        return plant(self.exact, steps=120)

    def copied(self) -> LatentDecoder:
        """A copy of the structural decoder that a check may change."""
        return copy.deepcopy(self.model)

    @property
    def composed(self) -> ComposedDecoder | None:
        """The structural decoder where it is made of a backbone and parts."""
        return self.model if isinstance(self.model, ComposedDecoder) else None

    @property
    def autoregressive(self) -> bool:
        """A site's prior depends on earlier latents. A decoder that does not say is taken to."""
        part = getattr(self.model, "prior_part", None)
        return bool(getattr(part, "autoregressive", self.model.has_latents))

    def tokens(self, rows: int = 1, length: int = 12, *, seed: int = 0) -> list[list[int]]:
        """Random texts without token 0."""
        generator = torch.Generator().manual_seed(seed)
        found: list[list[int]] = torch.randint(
            1, self.config.backbone.vocabulary, (rows, length), generator=generator
        ).tolist()
        return found

    def changed(self, text: list[int], place: int, *, by: int = 1) -> list[int]:
        """The text with another token at `place`, never token 0."""
        other = (text[place] - 1 + by) % (self.config.backbone.vocabulary - 1) + 1
        return [*text[:place], other, *text[place + 1 :]]


@torch.no_grad()
def _stirred(model: LatentDecoder) -> LatentDecoder:
    """The model in evaluation mode, parameters that are zero throughout drawn with standard deviation 0.1."""
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        if not bool(parameter.any()):
            parameter.normal_(0.0, 0.1, generator=generator)
    return model.eval()


def noise(rows: int, samples: int = 1, *, seed: int = 0) -> Noise:
    """Keyed noise for `samples` rows each of `rows` texts."""
    return Noise.keyed(seed, range(rows), samples=samples)


def drawn(model: LatentDecoder, context: Context, *, seed: int = 0) -> Latent | None:
    """Latents of a context, from the posterior where there is one, else from the prior; None without latents."""
    if not model.has_latents:
        return None
    if not model.has_encoder:
        return Latent(model.sample_prior(context, noise(context.rows, seed=seed)).value)
    with torch.no_grad():
        return Latent(model.posterior(context).sample(noise(context.rows, seed=seed)).value)
