"""Which small decoders the conformance tests run on: every registered one, with the settings that its parts need, the decoders
of `tests/distributions/latentlm_testparts`, and a few combinations of parts that no decoder has as its default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Setting:
    """What `latentlm.testing.cases` is told about a decoder."""

    decoder: str
    model: Settings = field(default_factory=dict)
    exact: Settings = field(default_factory=dict)
    expected_failures: Mapping[str, str] = field(default_factory=dict)


NO_LATENTS: Settings = {"event_dims": 0}

OVERRIDES: dict[str, Setting] = {
    "vanilla": Setting("vanilla", NO_LATENTS),
    "composed": Setting("composed", NO_LATENTS),
    "ngram": Setting("ngram", NO_LATENTS),
    "prefix": Setting("prefix", NO_LATENTS),
    "chunk": Setting("chunk", {"granularity": "chunk:3"}, {"granularity": "chunk:2"}),
    # A slot in each block: vectors of width 1. Few steps, since every pass of the encoder takes them: they start at the prior,
    # for from the paper's start (log variance -5) four steps do not lead anywhere near it.
    "ltm": Setting(
        "ltm",
        {
            "injection": {"name": "thoughts", "slots": 1},
            "encoder": {
                "name": "fitted_thoughts", "steps": 4, "rate": 0.2, "initial_log_variance": 0.0, "epsilon": 1.0,
            },
        },
    ),
}
"""Settings of a registered decoder by its name; one that is not here takes the kit's."""

MORE: dict[str, Setting] = {
    "noise_control": Setting("composed", {"prior": "uniform_bits", "injection": "free"}),
    "fsq": Setting(
        "chunk",
        {"granularity": "chunk:3", "encoder": {"name": "fsq", "levels": [3, 3, 2, 2]}},
        {"granularity": "chunk:2", "encoder": {"name": "fsq", "levels": [3, 2]}},
    ),
    "fsq_document": Setting(  # nothing is left to chance: scores without an error
        "chunk",
        {"granularity": "chunk:12", "encoder": {"name": "fsq", "levels": [3, 3, 2, 2]}},
        {"granularity": "chunk:12", "encoder": {"name": "fsq", "levels": [3, 2]}},
    ),
    "free_lines": Setting("free", {"granularity": {"name": "line", "breaks": [2]}}),
    "free_chunks": Setting("free", {"granularity": "chunk:3"}, {"granularity": "chunk:2"}),
}
"""Combinations that no registered decoder has as its default."""

_INTENT: Settings = {"like": "gaussian", "encoder": {"blocks": 1, "pooling": "mean", "pooler": False, "bias": True}}
SEVERAL: dict[str, Setting] = {
    "two_levels": Setting("composed", {"latents": {"intent": _INTENT, "bits": {"like": "free"}}}),
    "causal": Setting(
        "composed",
        {"latents": {"intent": _INTENT, "bits": {"like": "free", "prior": {"name": "causal_bits", "above": ["intent"]}}}},
    ),
    "three_levels": Setting(
        "composed",
        {
            "latents": {
                "intent": _INTENT,
                "plan": {
                    "like": "chunk", "granularity": "chunk:2", "encoder": {"tap": 1}, "prior": {"tap": 1},
                    "injection": {"blocks": [1]},
                },
                "bits": {"like": "free"},
            }
        },
    ),
}  # fmt: skip
"""Decoders of several latents: published methods in one decoder."""

TESTPARTS: dict[str, Setting] = {
    "document_prefix": Setting("document_prefix"),
    "chunk_code": Setting("chunk_code", exact={"granularity": "chunk:2"}),
    "recurrent_code": Setting(
        "chunk_code", {"granularity": "chunk:3", "prior": "recurrent_bits"}, {"granularity": "chunk:2"}
    ),
    "fitted_prefix": Setting("document_prefix", {"encoder": "fitted_gaussian"}),
}
"""A third party's decoders, installed by the tests."""


def settings_of(names: list[str]) -> dict[str, Setting]:
    """By label, for these registered decoders."""
    return {name: OVERRIDES.get(name, Setting(name)) for name in names}
