"""The decoder that most plugins use: a backbone and four parts, built from a configuration.

    model = build(ModelConfig(decoder="free", event_dims=8))
"""

from latentlm.composed.build import build, complete
from latentlm.composed.decoder import ComposedDecoder
from latentlm.composed.decoding import ComposedState

__all__ = ["ComposedDecoder", "ComposedState", "build", "complete"]
