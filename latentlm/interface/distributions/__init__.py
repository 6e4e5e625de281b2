"""Latents and their distributions: the contract and the families that come with it.

    base          Latent, Distribution (what a family's author writes), the one-sample KL
    discrete      Bits, Categorical, Codes
    continuous    Gaussian
    point         Point: one value, for certain (quantisers)
    product       Product: different families side by side in one site

Legend of the package: B rows, S sites, E event dimensions, N values that a site can take. All numbers are nats, computed in
float32 or wider.
"""

from latentlm.interface.distributions.base import Distribution, Latent, sampled_kl
from latentlm.interface.distributions.continuous import Gaussian
from latentlm.interface.distributions.discrete import Bits, Categorical, Codes, code_bits
from latentlm.interface.distributions.point import Point
from latentlm.interface.distributions.product import Product

__all__ = [
    "Bits", "Categorical", "Codes", "Distribution", "Gaussian", "Latent", "Point", "Product", "code_bits", "sampled_kl",
]  # fmt: skip
