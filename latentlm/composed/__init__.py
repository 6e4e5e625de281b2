"""The decoder that most plugins use: a backbone and four parts, built from a configuration.

    model = build(ModelConfig(decoder="free", event_dims=8))
"""

from latentlm.composed.build import build
from latentlm.composed.completing import complete, fill_granularities
from latentlm.composed.decoder import ComposedDecoder
from latentlm.composed.state import ComposedState

__all__ = ["ComposedDecoder", "ComposedState", "build", "complete", "fill_granularities"]
