"""KL schedules: what the latents cost. Each says its formula, its source and the publication's defaults.

Budgets, capacities and set points are bits per site, GECO's target is bits per target token; penalties are nats per target
token.

    free_bits              KL below the budget is free, at a level and in a form of your choice
    constant               a weight on the KL (1 is the ELBO, less is beta-VAE's relaxation)
    linear                 the weight rises from 0 to its end over a number of steps
    sigmoid                the weight follows a logistic curve
    cyclical               the weight rises again and again; linear, sigmoid or cosine
    optimus                zero, rising, held; free bits per dimension while the weight is above zero
    capacity               the distance of the KL from a capacity that rises with the step
    minimum_desired_rate   KL >= r, by a multiplier learned by ascent        (a state)
    control_vae            a PI controller keeps the KL at a set point       (a state)
    geco                   the least KL that reconstructs well enough        (a state)
"""

from __future__ import annotations

from latentlm.plugins import hookimpl
from latentlm_schedules.capacity import Capacity
from latentlm_schedules.control_vae import ControlVAE
from latentlm_schedules.free_bits import FreeBits
from latentlm_schedules.geco import GECO
from latentlm_schedules.optimus import Optimus
from latentlm_schedules.rate import MinimumDesiredRate
from latentlm_schedules.weights import ConstantWeight, CyclicalWeight, LinearWarmup, SigmoidAnnealing

latentlm_contract = 2


@hookimpl
def latentlm_parts() -> dict[str, dict[str, type]]:
    """The schedules of this plugin."""
    return {
        "kl_schedule": {
            "free_bits": FreeBits,
            "constant": ConstantWeight,
            "linear": LinearWarmup,
            "sigmoid": SigmoidAnnealing,
            "cyclical": CyclicalWeight,
            "optimus": Optimus,
            "capacity": Capacity,
            "minimum_desired_rate": MinimumDesiredRate,
            "control_vae": ControlVAE,
            "geco": GECO,
        }
    }
