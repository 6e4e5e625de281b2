"""Latent thought models (Kong et al. 2025, "Latent Thought Models with Variational Bayes Inference-Time Computation",
arXiv 2502.01567, ICML) as a plugin: a document's latent thought vectors are read by cross-attention in every block, and their
posterior is fitted to the document itself by a few steps of gradient, without an encoder network.

    decoder    ltm               ComposedDecoder with the parts below, one site per document
    encoder    fitted_thoughts   q(z | x) = N(mu, sigma^2), mu and sigma^2 by T_fast steps of Adam on the document's own -ELBO
    injection  thoughts          z = (z_1 .. z_L), M vectors for each block, keys and values of that block's cross-attention

The prior is z ~ N(0, I), `standard_normal` of the plugin `gaussian`.

The paper's: layered vectors of the width of the model and their cross-attention (section 2.1), the prior (2.1), the fast loop
inside the slow one (algorithm 1), its sizes (`thoughts` and `fitted_thoughts` say which). Ours: everything that the settings
leave open, fresh common random numbers for the fast steps, and scores that weigh z by p(z) / q(z | x) instead of reading off a
perplexity under the z that was fitted to the text.

Not here: the sliding attention window of 256 tokens with which the paper trains.
"""

from __future__ import annotations

from typing import ClassVar

from latentlm.composed import ComposedDecoder
from latentlm.config import ModelConfig, PartSpec, parse
from latentlm.plugins import hookimpl
from latentlm_ltm.encoder import FittedThoughts
from latentlm_ltm.injection import ThoughtInjection, ThoughtInjectionConfig

latentlm_contract = 2


class LatentThoughtModel(ComposedDecoder):
    """A decoder whose open sockets take the paper's parts.

    The KL has no gradient in the decoder's parameters (the posterior comes without one and the prior has none), so a KL
    schedule changes what is logged and nothing else; the KL's price acts within the fast steps."""

    defaults: ClassVar[dict[str, PartSpec]] = {
        "encoder": PartSpec(name="fitted_thoughts"),
        "prior": PartSpec(name="standard_normal"),
        "injection": PartSpec(name="thoughts"),
        "kl_schedule": PartSpec(name="constant"),
    }
    default_granularity = "document"

    @classmethod
    def complete(cls, config: ModelConfig) -> ModelConfig:
        """Fill the open sockets; one site per document; thought vectors of the model's width where event_dims is not set."""
        filled = super().complete(config)
        assert filled.injection is not None
        return filled.model_copy(update={"event_dims": filled.event_dims or cls._paper_dims(filled, filled.injection)})

    @staticmethod
    def _paper_dims(config: ModelConfig, injection: PartSpec) -> int:
        """All thought vectors, each as wide as the model (paper, appendix A.1)."""
        settings = ThoughtInjectionConfig()
        if injection.name == "thoughts":
            settings = parse(ThoughtInjectionConfig, injection.settings, source='settings of injection "thoughts"')
        return settings.vectors(config.backbone.blocks) * config.backbone.width


@hookimpl
def latentlm_parts() -> dict[str, dict[str, type]]:
    """The parts of this plugin."""
    return {
        "decoder": {"ltm": LatentThoughtModel},
        "encoder": {"fitted_thoughts": FittedThoughts},
        "injection": {"thoughts": ThoughtInjection},
    }
