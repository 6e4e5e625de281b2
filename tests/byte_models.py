"""Small decoders over bytes, with weights large enough to have opinions."""

from __future__ import annotations

from latentlm.composed import build
from latentlm.config import BackboneConfig, ModelConfig
from latentlm.interface import LatentDecoder
from latentlm.tokenizer import ByteTokenizer


def byte_decoder(kind: str, *, context: int = 128) -> LatentDecoder:
    """A "free" one, whose latents matter, a "gaussian" one, of which a document has one, or a "vanilla" one."""
    sizes = {"vocabulary": 257, "width": 32, "blocks": 4, "heads": 2, "context": context, "init_std": 0.2}
    dims = 0 if kind == "vanilla" else 4
    config = ModelConfig(decoder=kind, event_dims=dims, backbone=BackboneConfig.model_validate(sizes))
    model = build(config, seed=1).eval()
    model.tokenizer = ByteTokenizer()
    return model
