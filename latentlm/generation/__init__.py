"""Text from a latent decoder, and latents from a text.

    generate(model, ["def "], max_tokens=32)          what `model.generate` calls
    encode(model, "def add(a, b):")                   latents of a text
    save_latents(path, latents), load_latents(path)   and other things to do with latents in hand
"""

from latentlm.generation.generating import encode, generate
from latentlm.generation.latents import codes, cut, edited, from_codes, joined, load_latents, save_latents
from latentlm.interface import Generation, Given, OnToken

__all__ = [
    "Generation", "Given", "OnToken", "codes", "cut", "edited", "encode", "from_codes", "generate", "joined", "load_latents",
    "save_latents",
]  # fmt: skip
