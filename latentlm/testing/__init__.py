"""The conformance kit: checks that a plugin author runs on a decoder, each raising AssertionError with what went wrong.

    planted = plant(model)                  a copy whose posterior reads the future and whose decoder uses it
    check_normalisation(planted, ...)       and the other checks of `latentlm.testing.likelihood`
"""

from latentlm.testing.likelihood import (
    Sum,
    check_coverage,
    check_exactness,
    check_keyed_randomness,
    check_no_latents_no_noise,
    check_normalisation,
    check_sampler_agreement,
    check_shrinking_error,
    leak_sum,
    probability_sum,
)
from latentlm.testing.planted import PlantedEncoder, plant

__all__ = [
    "PlantedEncoder",
    "Sum",
    "check_coverage",
    "check_exactness",
    "check_keyed_randomness",
    "check_no_latents_no_noise",
    "check_normalisation",
    "check_sampler_agreement",
    "check_shrinking_error",
    "leak_sum",
    "plant",
    "probability_sum",
]
