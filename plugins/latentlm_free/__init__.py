"""The Free Transformer (Fleuret 2025, arXiv 2510.17558) as a plugin: H bits per token, inferred by one non-causal block in the
middle of the stack and fed back as a table row added to the keys and values of the next one.

    decoder    free           ComposedDecoder with the parts below in its sockets
    encoder    free           learned query, one non-causal block on the trunk, a linear readout to bit logits
    prior      uniform_bits   every code equally likely
    injection  free           post-sampler table; kv slot of block L//2
"""

from __future__ import annotations

from typing import ClassVar

from latentlm.composed import ComposedDecoder
from latentlm.config import ModelConfig, PartSpec
from latentlm.errors import UserError
from latentlm.plugins import hookimpl
from latentlm_free.encoder import FreeEncoder
from latentlm_free.injection import TableInjection
from latentlm_free.prior import UniformBits

latentlm_contract = 2


class FreeTransformer(ComposedDecoder):
    """A decoder whose open sockets take the paper's parts: 16 bits per token, free bits of half a bit per token."""

    defaults: ClassVar[dict[str, PartSpec]] = {
        "encoder": PartSpec(name="free"),
        "prior": PartSpec(name="uniform_bits"),
        "injection": PartSpec(name="free"),
        "kl_schedule": PartSpec.model_validate({"name": "free_bits", "bits": 0.5}),
    }
    default_event_dims = 16  # paper, section 3.1

    @classmethod
    def complete(cls, config: ModelConfig) -> ModelConfig:
        """Fill the open sockets; refuse what has no place for a latent in the middle."""
        if config.backbone.blocks < 2:
            raise UserError("The Free Transformer needs at least 2 blocks: a trunk below and a block above the latent.")
        return super().complete(config)


@hookimpl
def latentlm_parts() -> dict[str, dict[str, type]]:
    """The parts of this plugin."""
    return {
        "decoder": {"free": FreeTransformer},
        "encoder": {"free": FreeEncoder},
        "prior": {"uniform_bits": UniformBits},
        "injection": {"free": TableInjection},
    }
