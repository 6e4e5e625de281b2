"""The vanilla decoder: the backbone alone, the baseline of every comparison. Its likelihood is exact."""

from __future__ import annotations

from latentlm.composed import ComposedDecoder
from latentlm.config import ModelConfig
from latentlm.errors import UserError
from latentlm.plugins import hookimpl

latentlm_contract = 2


class VanillaDecoder(ComposedDecoder):
    """A decoder with nothing in its sockets."""

    @classmethod
    def complete(cls, config: ModelConfig) -> ModelConfig:
        """Refuse parts: they would make it another decoder."""
        sockets = ("encoder", "prior", "injection", "kl_schedule")
        if filled := [socket for socket in sockets if getattr(config, socket) is not None]:
            raise UserError(
                f'The vanilla decoder has no {", ".join(filled)}. Use decoder "composed" to combine parts freely.'
            )
        if config.event_dims or config.latents:
            raise UserError("The vanilla decoder has no latents: set event_dims to 0, or choose another decoder.")
        return config


@hookimpl
def latentlm_parts() -> dict[str, dict[str, type]]:
    """The decoder of this plugin."""
    return {"decoder": {"vanilla": VanillaDecoder}}
