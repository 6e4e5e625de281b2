"""The Free Transformer's bits with a learned causal prior, p(z_t | x_<=t, z_<t), in the place of the uniform one.

    decoder    causal        ComposedDecoder with the parts below in its sockets
    encoder    free          from the plugin `free` (Fleuret 2025, arXiv 2510.17558)
    prior      trunk_bits    p(z_t | x_<=t), a small network on the trunk's stream
               causal_bits   p(z_t | x_<=t, z_<t), the same beside a gated linear memory of the latents before (default)
    injection  free          from the plugin `free`

The Free Transformer's prior is uniform (paper, section 3.2); the two priors are ours. With the uniform prior each bit that the
encoder moves off one half costs, whether or not it tells the decoder something that the text so far does not; with a learned
one only what x_<=t and z_<t do not predict does.
"""

from __future__ import annotations

from typing import ClassVar

from latentlm.composed import ComposedDecoder
from latentlm.config import ModelConfig, PartSpec
from latentlm.errors import UserError
from latentlm.plugins import hookimpl
from latentlm_causal.memory import CausalBits
from latentlm_causal.trunk import TrunkBits

latentlm_contract = 2


class CausalTransformer(ComposedDecoder):
    """A decoder whose open sockets take the Free Transformer's parts, but for its prior: 16 bits per token, free bits of half a
    bit per token as there."""

    defaults: ClassVar[dict[str, PartSpec]] = {
        "encoder": PartSpec(name="free"),
        "prior": PartSpec(name="causal_bits"),
        "injection": PartSpec(name="free"),
        "kl_schedule": PartSpec.model_validate({"name": "free_bits", "bits": 0.5}),
    }
    default_event_dims = 16

    @classmethod
    def complete(cls, config: ModelConfig) -> ModelConfig:
        """Fill the open sockets. A document has one site, with none before it: there the prior is `trunk_bits`."""
        if config.backbone.blocks < 2:
            raise UserError('The decoder "causal" needs at least 2 blocks: a trunk below and a block above the latent.')
        if config.granularity == "document":
            config = config.model_copy(update={"prior": (config.prior or PartSpec()).over(PartSpec(name="trunk_bits"))})
        return super().complete(config)


@hookimpl
def latentlm_parts() -> dict[str, dict[str, type]]:
    """The parts of this plugin."""
    return {"decoder": {"causal": CausalTransformer}, "prior": {"trunk_bits": TrunkBits, "causal_bits": CausalBits}}
