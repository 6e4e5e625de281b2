"""The models that are compared: ours, and transformers' Llama of the same shape."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from latentlm.composed import build
from latentlm.config import BackboneConfig, ModelConfig
from latentlm.interface import Batch, LatentDecoder
from latentlm.interop import load_llama


@dataclass(frozen=True)
class Size:
    """Shape of the models and of the work."""

    width: int
    blocks: int
    heads: int
    rows: int
    tokens: int
    """Of a training batch's row."""
    bits: tuple[int, ...]
    """H of the free models."""
    prompt: int
    new: int
    """Tokens generated after the prompt."""
    rounds: int

    @property
    def backbone(self) -> BackboneConfig:
        """The backbone that all contenders share."""
        longest = max(self.tokens, self.prompt + self.new)
        return BackboneConfig(vocabulary=257, width=self.width, blocks=self.blocks, heads=self.heads, context=longest)

    def __str__(self) -> str:
        return f"width {self.width}, {self.blocks} blocks, {self.rows} x {self.tokens} tokens"


FULL = Size(width=256, blocks=8, heads=4, rows=8, tokens=256, bits=(8, 16), prompt=32, new=128, rounds=9)
LARGER = Size(width=768, blocks=12, heads=12, rows=1, tokens=64, bits=(16,), prompt=32, new=48, rounds=5)
QUICK = Size(width=32, blocks=2, heads=2, rows=2, tokens=32, bits=(4, 6), prompt=4, new=8, rounds=2)


def free(size: Size, bits: int, *, table: str = "full") -> LatentDecoder:
    """The Free Transformer with the paper's parts."""
    injection = {"name": "free", "table": table}
    return build(ModelConfig(decoder="free", event_dims=bits, backbone=size.backbone, injection=injection))  # type: ignore[arg-type]


def vanilla(size: Size) -> LatentDecoder:
    """Our decoder without latents."""
    return build(ModelConfig(decoder="vanilla", backbone=size.backbone))


def llama(size: Size) -> Any:
    """transformers' LlamaForCausalLM of the same shape."""
    import transformers  # slow to import

    transformers.logging.set_verbosity_error()
    shape = size.backbone
    assert shape.feed_forward is not None
    config = transformers.LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.blocks,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.context,
        rms_norm_eps=shape.norm_eps,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        attn_implementation="sdpa",  # type: ignore[call-arg]
    )
    return transformers.LlamaForCausalLM(config).float()


@torch.no_grad()
def check_same_work(size: Size) -> None:
    """Raise AssertionError unless our decoder with the Llama's weights has its parameters and gives its logits."""
    theirs, batch = llama(size), causal_batch(size)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = load_llama(folder)
    gap = (ours.logits(ours.hidden(ours.context(batch), None)) - theirs(batch.inputs).logits).abs().max()
    assert gap < 1e-4, f"the two decoders differ by {gap:.1e}"
    assert parameters(ours) == parameters(theirs)


def parameters(model: nn.Module) -> int:
    """Number of parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def causal_batch(size: Size) -> Batch:
    """Random tokens, one document per row."""
    tokens = torch.randint(0, 256, (size.rows, size.tokens + 1), generator=torch.Generator().manual_seed(0)).tolist()
    return Batch.of([row[:-1] for row in tokens], [row[1:] for row in tokens])


def packed_batch(size: Size, *, documents: int = 4) -> Batch:
    """The same tokens as several documents per row."""
    plain = causal_batch(size)
    length = -(-size.tokens // documents)
    index = torch.arange(size.tokens).expand(size.rows, -1)
    return Batch(plain.inputs, plain.targets, index // length, index % length, plain.target_mask)
