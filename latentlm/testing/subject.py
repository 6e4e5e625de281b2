"""What the checks look at: one decoder in two small sizes, built once per process and never changed.

    structural   vocabulary 17, width 32, 4 blocks, 4 heads over 2 key/value heads, context 64, 4 event dimensions
    enumerable   vocabulary 3, width 16, 2 blocks, 2 heads, context 16, 2 event dimensions (1 for each of several latents):
                 every latent can be summed over

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
from latentlm.interface import Batch, Context, LatentDecoder, Latents, Noise
from latentlm.testing.comparing import detached
from latentlm.testing.planted import plant

STRUCTURAL: dict[str, Any] = {
    "vocabulary": 17, "width": 32, "blocks": 4, "heads": 4, "kv_heads": 2, "context": 64, "init_std": 0.1,
}  # fmt: skip
ENUMERABLE: dict[str, Any] = {"vocabulary": 3, "width": 16, "blocks": 2, "heads": 2, "context": 16, "init_std": 0.1}


class Subject:
    """A decoder under test. `model` and `exact` are settings as in a recipe's `model:`; they override the kit's sizes, and the
    enumerable decoder has the parts of the structural one where `exact` does not name others.

    Several latents are given as in a recipe, `model={"latents": {"intent": {"like": "gaussian"}, "bits": {"like": "free"}}}`,
    and `exact={"latents": {"intent": {"dims": 1}}}` changes settings of one of them for the enumerable decoder."""

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
        settings = {**parts, **self._exact}
        if "latents" in parts:
            changed = self._exact.get("latents", {})
            settings["latents"] = {
                name: {key: value for key, value in latent.items() if key != "dims"} | dict(changed.get(name, {}))
                for name, latent in parts["latents"].items()
            }
        dims = 1 if "latents" in settings else 2
        return self._config(settings, ENUMERABLE, dims if self._model.get("event_dims") != 0 else 0)

    def _config(self, settings: Mapping[str, Any], sizes: Mapping[str, Any], event_dims: int) -> ModelConfig:
        """The kit's sizes where the settings leave them open."""
        data = {"decoder": self.decoder, **settings, "backbone": {**sizes, **settings.get("backbone", {})}}
        if "latents" in data:
            data["latents"] = {name: {"dims": event_dims, **latent} for name, latent in data["latents"].items()}
        else:
            data.setdefault("event_dims", event_dims)
        return parse(ModelConfig, data, source=f'conformance of "{self.decoder}"')

    @cached_property
    def complete(self) -> ModelConfig:
        """`config` with every open socket filled."""
        return complete(self.config)

    @cached_property
    def model(self) -> LatentDecoder:
        """The structural decoder, in evaluation mode. Not to be changed."""
        return stirred(build(self.config, seed=3))

    @cached_property
    def lively(self) -> LatentDecoder:
        """The same with weights of three times the size: its posterior is further from its prior."""
        backbone = self.config.backbone.model_copy(update={"init_std": 0.3})
        return stirred(build(self.config.model_copy(update={"backbone": backbone}), seed=4))

    @cached_property
    def exact(self) -> LatentDecoder:
        """The enumerable decoder with its own encoder, as initialised."""
        return stirred(build(self.exact_config, seed=3))

    @cached_property
    def planted(self) -> ComposedDecoder:
        """The enumerable decoder with posteriors that know the future, trained for a moment to use them."""
        assert isinstance(self.exact, ComposedDecoder)
        return plant(self.exact, steps=120)

    def copied(self) -> LatentDecoder:
        """A copy of the structural decoder that a check may change."""
        return copy.deepcopy(self.model)

    @property
    def composed(self) -> ComposedDecoder | None:
        """The structural decoder where it is made of a backbone and parts."""
        return self.model if isinstance(self.model, ComposedDecoder) else None

    @cached_property
    def normalised(self) -> bool:
        """Every prior has a density of which the constant is known."""
        model = self.exact
        with torch.no_grad():
            context = model.context(Batch.of([[1, 2]]))
            latents = drawn(model, context)
            return latents is None or all(model.prior(context, name, latents).normalised for name in model.latents)

    def tokens(self, rows: int = 1, length: int = 12, *, seed: int = 0) -> list[list[int]]:
        """Random texts without token 0."""
        generator = torch.Generator().manual_seed(seed)
        found: list[list[int]] = torch.randint(
            1, self.config.backbone.vocabulary, (rows, length), generator=generator
        ).tolist()
        return found


@torch.no_grad()
def stirred(model: LatentDecoder) -> LatentDecoder:
    """The model in evaluation mode, parameters that are zero throughout drawn with standard deviation 0.1."""
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        if not bool(parameter.any()):
            parameter.normal_(0.0, 0.1, generator=generator)
    return model.eval()


def noise(rows: int, samples: int = 1, *, seed: int = 0) -> Noise:
    """Keyed noise for `samples` rows each of `rows` texts."""
    return Noise.keyed(seed, range(rows), samples=samples)


class MovedNoise(Noise):
    """Noise of which each latent begins at a site of its own: what a document packed behind others draws."""

    def __init__(self, noise: Noise, first: Mapping[str, int]) -> None:
        """`first`: {name: site}. In a decoder of one latent the noise itself is moved."""
        only = next(iter(first.values())) if len(first) == 1 else 0
        super().__init__(noise.keys, offsets=[offset + only for offset in noise.offsets])
        self.first = first

    def latent(self, name: str) -> Noise:
        """The stream of one latent of several."""
        return super().latent(name).at([self.first.get(name, 0)])


def drawn(model: LatentDecoder, context: Context, *, seed: int = 0) -> Latents | None:
    """Latents of a context, each from its posterior where there is one, else from its prior; None without latents."""
    if not model.has_latents:
        return None
    with torch.no_grad():
        return detached(model.infer(context, noise(context.rows, seed=seed)))
