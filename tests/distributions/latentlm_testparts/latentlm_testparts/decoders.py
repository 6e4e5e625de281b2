"""The two decoders: a ComposedDecoder each, with parts of this plugin in the open sockets."""

from __future__ import annotations

from typing import ClassVar

from latentlm.composed import ComposedDecoder
from latentlm.config import ModelConfig, PartSpec


class _WithDefaults(ComposedDecoder):
    """Fills the open sockets from `defaults`."""

    defaults: ClassVar[dict[str, PartSpec]]
    events: ClassVar[int]
    granularity_: ClassVar[str]

    @classmethod
    def complete(cls, config: ModelConfig) -> ModelConfig:
        """Open sockets, granularity and event_dims take this decoder's values."""
        filled = {socket: getattr(config, socket) or spec for socket, spec in cls.defaults.items()}
        granularity = config.granularity if "granularity" in config.model_fields_set else cls.granularity_
        more = {"granularity": granularity, "event_dims": config.event_dims or cls.events}
        return config.model_copy(update=filled | more)


class DocumentPrefix(_WithDefaults):
    """One Gaussian vector per document, seen by every block as a few more keys and values."""

    events = 8
    granularity_ = "document"
    defaults: ClassVar[dict[str, PartSpec]] = {
        "encoder": PartSpec(name="pooled_gaussian"),
        "prior": PartSpec(name="unit_normal"),
        "injection": PartSpec(name="prefix"),
        "kl_schedule": PartSpec(name="linear"),
    }


class ChunkCode(_WithDefaults):
    """A code of bits per chunk of tokens, with a prior that reads the trunk."""

    events = 6
    granularity_ = "chunk:4"
    defaults: ClassVar[dict[str, PartSpec]] = {
        "encoder": PartSpec(name="chunk_bits"),
        "prior": PartSpec(name="first_token_bits"),
        "injection": PartSpec(name="chunk_code"),
        "kl_schedule": PartSpec(name="constant"),
    }
