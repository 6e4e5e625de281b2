"""The zoo: cards of models, found on shelves, described without memory, loaded with care.

    from latentlm import zoo
    zoo.load("free-tiny"), zoo.list("free-*"), zoo.describe("free-8b")
"""

from latentlm.zoo.description import Description
from latentlm.zoo.loading import RandomWeightsWarning, describe, list, load
from latentlm.zoo.shelves import find

__all__ = ["Description", "RandomWeightsWarning", "describe", "find", "list", "load"]
