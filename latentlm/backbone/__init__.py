"""The backbone: a pre-norm decoder with condition slots, and the pieces that parts may build with."""

from latentlm.backbone.attention import Mask, attend
from latentlm.backbone.block import Block
from latentlm.backbone.cache import KVCache
from latentlm.backbone.cross import CrossAttention
from latentlm.backbone.precision import wide_linear
from latentlm.backbone.rotary import Rotation, rotation
from latentlm.backbone.transformer import Transformer

__all__ = ["Block", "CrossAttention", "KVCache", "Mask", "Rotation", "Transformer", "attend", "rotation", "wide_linear"]
