"""Plain decoders: the backbone alone, the baseline of every comparison. Their likelihood is exact.

    vanilla   every token sees those before it
    prefix    the tokens of a prompt see one another both ways (the prefix LM of Raffel et al. 2020, section 3.2.1)

`prefix` is a control: what an encoder that reads a prompt both ways can give without a latent. Without a prompt, and before one
has been fed whole, it is `vanilla`; it learns from prompts in training (`train.prompts`).
"""

from __future__ import annotations

from latentlm.composed import ComposedDecoder
from latentlm.config import ModelConfig
from latentlm.errors import UserError
from latentlm.interface import Batch, Context, Stems
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
                f'The decoder "{config.decoder_name}" has no {", ".join(filled)}. Use decoder "composed" to combine parts '
                "freely."
            )
        if config.event_dims or config.latents:
            raise UserError(
                f'The decoder "{config.decoder_name}" has no latents: set event_dims to 0, or choose another decoder.'
            )
        return config


class PrefixDecoder(VanillaDecoder):
    """A plain decoder whose prompt is seen both ways."""

    prompt_both_ways = True

    def shared_context(self, batch: Batch, stems: Stems) -> Context:
        """Every row by itself: what stands later in a prompt changes how it begins."""
        return self.context(batch)


@hookimpl
def latentlm_parts() -> dict[str, dict[str, type]]:
    """The decoders of this plugin."""
    return {"decoder": {"vanilla": VanillaDecoder, "prefix": PrefixDecoder}}
