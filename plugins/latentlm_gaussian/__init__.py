"""One Gaussian vector per document: the language VAE of Bowman et al. 2016 (arXiv 1511.06349) in the form that Optimus gave it
(Li et al. 2020, arXiv 2004.04092), a transformer encoder and a transformer decoder joined by a vector z of 32 numbers.

    decoder    gaussian          ComposedDecoder with the parts below in its sockets, granularity document, event_dims 32
    encoder    gaussian_tower    a tower of blocks, pooled, read out as mean and log-variance
    injection  gaussian_memory   z as a key/value slot of every block ("memory"), added to every embedding, or both (Optimus)
    prior      standard_normal   N(0, I) (Bowman, Optimus)
    prior      mog               a learned mixture of Gaussians (Tomczak & Welling 2018, their comparison)
    prior      vamp              VampPrior: the mixture of the posteriors of learned pseudo-inputs (Tomczak & Welling 2018)
    prior      prompt_normal     mean and standard deviation learned from the prompt (ours, after Sohn et al. 2015)

Each file says which parts are a paper's and which are ours.
"""

from __future__ import annotations

from typing import ClassVar

from latentlm.composed import ComposedDecoder
from latentlm.config import PartSpec
from latentlm.plugins import hookimpl
from latentlm_gaussian.encoder import GaussianTower
from latentlm_gaussian.injection import GaussianMemory
from latentlm_gaussian.mixture_priors import MixturePrior, VampPrior
from latentlm_gaussian.prompt import PromptNormal
from latentlm_gaussian.standard import StandardNormal

latentlm_contract = 2


class GaussianDecoder(ComposedDecoder):
    """A decoder whose open sockets take Optimus's parts and its schedule: one vector of 32 numbers per document."""

    defaults: ClassVar[dict[str, PartSpec]] = {
        "encoder": PartSpec(name="gaussian_tower"),
        "prior": PartSpec(name="standard_normal"),
        "injection": PartSpec(name="gaussian_memory"),
        "kl_schedule": PartSpec(name="optimus"),
    }
    default_event_dims = 32  # Optimus, language modelling
    default_granularity = "document"


@hookimpl
def latentlm_parts() -> dict[str, dict[str, type]]:
    """The parts of this plugin."""
    return {
        "decoder": {"gaussian": GaussianDecoder},
        "encoder": {"gaussian_tower": GaussianTower},
        "prior": {
            "standard_normal": StandardNormal,
            "mog": MixturePrior,
            "vamp": VampPrior,
            "prompt_normal": PromptNormal,
        },
        "injection": {"gaussian_memory": GaussianMemory},
    }
