"""DELLA (Hu, Yi, Li, Sun & Xie 2022, "Fuse It More Deeply! A Variational Transformer with Layer-Wise Latent Variable Inference
for Text Generation", NAACL 2022, arXiv 2207.06130) as a plugin: one latent per block, each conditioned on those below, fused
into the values of its block.

    decoder    della   ComposedDecoder with the parts below in its sockets; one site per document, E = layers x 32
    encoder    della   a non-causal tower, block l of which is pooled for q(z_l | z_<l, x)     section 4.1, equation 8
    prior      della   p(z_l | z_<l) by the recursion of the latents, p(z_1) = N(0, I)          section 4.1, equations 7 and 8
    injection  della   (sum_j W_v^j v) * (sum_j W_z^j z_l) in place of the values v of block l  section 4.2, equation 9

The KL is trained by the paper's cycles (appendix A.1): half a cycle at (almost) zero, a quarter rising, a quarter at one, which
is the schedule `optimus` without its threshold. Its period is two epochs; `steps` and `cycles` say it here.

Ours: the encoder's tower has weights of its own (the paper shares them with the decoder, which a part cannot), posterior and
prior have a recursion each (the authors' code shares one), and the fusion starts near the identity. See `encoder`, `injection`.
"""

from __future__ import annotations

from typing import ClassVar

from latentlm.composed import ComposedDecoder
from latentlm.config import ModelConfig, PartSpec
from latentlm.errors import UserError
from latentlm.plugins import hookimpl
from latentlm_della.encoder import DellaEncoder
from latentlm_della.injection import DellaInjection
from latentlm_della.layers import chosen_layers, latent_size
from latentlm_della.prior import DellaPrior

latentlm_contract = 2

LATENT_SIZE = 32
"""Dimensions of each layer's latent (paper, section 5.2)."""


class Della(ComposedDecoder):
    """A decoder whose open sockets take the paper's parts: 32 dimensions per layer, a site per document, cyclical annealing."""

    defaults: ClassVar[dict[str, PartSpec]] = {
        "encoder": PartSpec(name="della"),
        "prior": PartSpec(name="della"),
        "injection": PartSpec(name="della"),
        "kl_schedule": PartSpec.model_validate({"name": "optimus", "bits": 0.0, "cycles": 4}),
    }
    default_granularity = "document"

    @classmethod
    def complete(cls, config: ModelConfig) -> ModelConfig:
        """Fill the open sockets, and give the parts named `della` the same `layers`. Raises UserError where they were given
        different ones, or where event_dims does not divide into that many latents."""
        config = super().complete(config)
        filled: dict[str, PartSpec] = {socket: getattr(config, socket) for socket in cls.defaults}
        layers = _agreed_layers(filled)
        if layers is not None:
            for socket, spec in filled.items():
                if spec.name == "della":
                    filled[socket] = PartSpec.model_validate({**spec.model_dump(), "layers": layers})
        count = len(chosen_layers(layers, config.backbone.blocks))
        events = config.event_dims or LATENT_SIZE * count
        latent_size(events, count)
        return config.model_copy(update={**filled, "event_dims": events})


def _agreed_layers(specs: dict[str, PartSpec]) -> list[int] | None:
    """The `layers` that the parts of this plugin were given; None where none was."""
    given = {
        socket: list(spec.settings["layers"])
        for socket, spec in specs.items()
        if spec.name == "della" and spec.settings.get("layers") is not None
    }
    if len({tuple(layers) for layers in given.values()}) > 1:
        listed = ", ".join(f"{socket}: {layers}" for socket, layers in given.items())
        raise UserError(f"The parts disagree on the layers that have a latent ({listed}): set `layers` in one of them.")
    return next(iter(given.values()), None)


@hookimpl
def latentlm_parts() -> dict[str, dict[str, type]]:
    """The parts of this plugin."""
    return {
        "decoder": {"della": Della},
        "encoder": {"della": DellaEncoder},
        "prior": {"della": DellaPrior},
        "injection": {"della": DellaInjection},
    }
