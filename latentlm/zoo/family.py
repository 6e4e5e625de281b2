"""The family tree of the zoo: cards by how many latents a text has, then by decoder.

    vanilla, prefix, ngram       no latents
    free, causal                 one latent per token
    chunk                        one latent per chunk of tokens
    gaussian, ltm, della         one latent per document
    composed                     several latents
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from latentlm.composed import complete
from latentlm.config import Card, ModelConfig, PartSpec
from latentlm.errors import UserError

_BRANCHES = (
    "no latents", "one latent per token", "one latent per chunk of tokens", "one latent per document",
    "one latent per part of a text", "several latents",
)  # fmt: skip


@dataclass(frozen=True)
class Member:
    """Cards of one decoder on one branch."""

    decoder: str
    parts: str
    """The parts that they share, in words; the first card's where they differ."""
    cards: tuple[Card, ...]


def tree(cards: Iterable[Card]) -> dict[str, list[Member]]:
    """Branch -> its decoders with their cards; branches from few latents to many tokens per latent, without empty ones."""
    found: dict[str, dict[str, list[tuple[Card, ModelConfig]]]] = {branch: {} for branch in _BRANCHES}
    for card in cards:
        config = _completed(card)
        found[_branch(config)].setdefault(config.decoder_name, []).append((card, config))
    return {
        branch: [
            Member(decoder, _parts(group[0][1]), tuple(card for card, _ in group))
            for decoder, group in sorted(decoders.items())
        ]
        for branch, decoders in found.items()
        if decoders
    }


def _completed(card: Card) -> ModelConfig:
    """The configuration with its decoder's defaults; as it stands where the plugin that knows them is missing."""
    try:
        return complete(card.model, plugin_names=card.plugins or None)
    except UserError:
        return card.model


def _branch(config: ModelConfig) -> str:
    latents = config.by_latent
    if not latents and config.event_dims == 0:
        return _BRANCHES[0]
    if len(latents) > 1:
        return _BRANCHES[5]
    scales = ("token", "chunk", "document")
    scale = config.granularity
    name = scale.partition(":")[0] if isinstance(scale, str) else scale.name
    return _BRANCHES[1 + scales.index(name)] if name in scales else _BRANCHES[4]


def _parts(config: ModelConfig) -> str:
    """Encoder, prior and injection by name; of several latents, what each is like."""
    if config.latents:
        return ", ".join(f"{name} like {latent.like}" if latent.like else name for name, latent in config.latents.items())
    specs: list[tuple[str, PartSpec | None]] = [
        ("encoder", config.encoder), ("prior", config.prior), ("injection", config.injection)
    ]  # fmt: skip
    return ", ".join(f"{socket} {spec.name}" for socket, spec in specs if spec is not None)
