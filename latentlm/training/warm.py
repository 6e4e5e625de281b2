"""Warm start: weights that a run begins with, taken from another model where they fit (`train.init`).

    latentlm train free-tiny train.init=vanilla-tiny          # a card
    latentlm train my.yaml train.init=runs/before             # a run, or a folder with a Hugging Face Llama

A tensor fits where name and shape are the model's own. What fits is copied; what does not keeps its fresh value, and both the
run and its manifest name it. Where all of it fits and the settings are the same, the model begins as the source's
function, to the bit; settings that differ are named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from latentlm import zoo
from latentlm.errors import UserError
from latentlm.interface import LatentDecoder
from latentlm.tokenizer import Tokenizer
from latentlm.training.record.folder import flat_settings
from latentlm.training.record.reporting import Reporter
from latentlm.zoo.loading import is_llama
from latentlm.zoo.shelves import find
from latentlm.zoo.weights import fill, weights_of

_EMBEDDING, _READOUT = "backbone.embedding.weight", "backbone.readout.weight"
_NOT_OF_THE_FUNCTION = {
    "decoder", "backbone.context", "backbone.attention", "backbone.vocabulary", "backbone.blocks", "backbone.tie_embeddings",
    "backbone.init_std",
}  # fmt: skip
"""Settings that may differ: what they change shows in the names and shapes of tensors, or in no number."""


@dataclass(frozen=True)
class WarmStart:
    """What a run took from another model. Tensors by name."""

    source: str
    sha256: str | None
    """Of the source's weights; None where its folder records no hash."""
    taken: int
    fresh: tuple[str, ...]
    """Of the model, and not in the source."""
    other_shape: tuple[str, ...]
    """Of both, but not of one shape."""
    left: tuple[str, ...]
    """Of the source alone."""
    differing: tuple[str, ...]
    """Settings that both models have and that may make another function of the same weights, with both values."""
    other_tokenizer: bool

    def facts(self) -> dict[str, Any]:
        """As plain data."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def note(self) -> str:
        """What was taken, in a line."""
        count = self.taken + len(self.fresh) + len(self.other_shape)
        said = [f"{self.taken} of {count} tensors are those of {self.source}"]
        for what, names in (("fresh", self.fresh), ("fresh, for of another shape", self.other_shape), ("not taken", self.left)):
            if names:
                said.append(f"{what}: {_listed(names)}")
        return "; ".join(said)

    def warnings(self) -> list[str]:
        """What makes the weights mean something else here."""
        found = []
        if self.differing:
            found.append(
                f"{self.source} has other settings ({', '.join(self.differing)}): its weights may make another function here."
            )
        if self.other_tokenizer:
            found.append(
                f"{self.source} has another tokenizer, and its embedding was taken: rows stand for other tokens here. Use its "
                "tokenizer (data.tokenizer), or expect to train the embedding anew."
            )
        return found


def check_source(source: str) -> None:
    """Raise UserError where `train.init` names no model with weights. Nothing is loaded."""
    if is_llama(source):
        return  # what it is shows when it is read
    if find(source).card.weights is None:
        raise UserError(f'train.init is "{source}", an architecture without trained weights. Give a model that has some.')


@torch.no_grad()
def begin_with(model: LatentDecoder, source: str, tokenizer: Tokenizer, reporter: Reporter) -> WarmStart:
    """Copy what fits of a model by name or path, and say what that was. Raises UserError where nothing does, or the source
    cannot be loaded."""
    other = zoo.load(source, dtype="float32", weights="required")
    wanted, there = weights_of(model), weights_of(other)
    if other.config.backbone.tie_embeddings:  # one tensor in two places
        there[_READOUT] = there[_EMBEDDING]
    shared = [name for name in wanted if name in there]
    fitting = [name for name in shared if there[name].shape == wanted[name].shape]
    if not fitting:
        raise UserError(
            f"no tensor of train.init, {source}, fits this model. Give the recipe a backbone of its sizes (`latentlm zoo "
            f"describe {source}`), or leave train.init out."
        )
    for name in fitting:
        fill(wanted[name], there[name])
    theirs = None if other.tokenizer is None else other.tokenizer.fingerprint
    begun = WarmStart(
        source=source,
        sha256=None if other.card is None or other.card.weights is None else other.card.weights.sha256,
        taken=len(fitting),
        fresh=tuple(name for name in wanted if name not in there),
        other_shape=tuple(name for name in shared if name not in fitting),
        left=tuple(name for name in weights_of(other) if name not in wanted),
        differing=tuple(_differing(other, model)),
        other_tokenizer=_EMBEDDING in fitting and theirs not in (None, tokenizer.fingerprint),
    )
    reporter.note(begun.note())
    for warning in begun.warnings():
        reporter.warn(warning)
    return begun


def _differing(other: LatentDecoder, model: LatentDecoder) -> Sequence[str]:
    before, now = (flat_settings(each.config.model_dump(mode="json")) for each in (other, model))
    both = (key for key in now if key in before and "kl_schedule." not in key and not key.endswith("init_std"))
    return [f"{key} {before[key]} there, {now[key]} here" for key in both
            if key not in _NOT_OF_THE_FUNCTION and before[key] != now[key]]  # fmt: skip


def _listed(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
