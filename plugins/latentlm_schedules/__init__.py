"""KL schedules: what the latents cost.

    free_bits    a hinge: KL below the budget is free, at a level of your choice
    constant     a weight on the KL (1 is the ELBO, less is beta-VAE's relaxation)
    linear       the weight rises from 0 to its end over a number of steps
    cyclical     the weight rises again and again
"""

from __future__ import annotations

from latentlm.hookspecs import hookimpl
from latentlm_schedules.free_bits import FreeBits
from latentlm_schedules.weights import ConstantWeight, CyclicalWeight, LinearWarmup

latentlm_contract = 1


@hookimpl
def latentlm_parts() -> dict[str, dict[str, type]]:
    """The schedules of this plugin."""
    return {
        "kl_schedule": {
            "free_bits": FreeBits,
            "constant": ConstantWeight,
            "linear": LinearWarmup,
            "cyclical": CyclicalWeight,
        }
    }
