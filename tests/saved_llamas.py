"""Small random Llamas of transformers, saved to folders and edited there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from latentlm.interface import Batch, LatentDecoder

SIZES: dict[str, Any] = {
    "vocab_size": 53,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "eos_token_id": None,
    "bos_token_id": None,
}
SCALED = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def saved(folder: Path, *, shard: str = "5GB", kind: str = "Llama", **settings: Any) -> Any:
    """A small random model of transformers, saved to the folder."""
    import transformers

    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **settings})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
        for name, parameter in model.named_parameters():
            if "norm" in name:  # ones would hide a norm in the wrong place
                parameter.data.uniform_(0.5, 1.5)
    model.save_pretrained(folder, max_shard_size=shard)
    return model


def our_logits(model: LatentDecoder, tokens: torch.Tensor) -> torch.Tensor:
    return model.logits(model.hidden(model.context(Batch.of(tokens.tolist())), None)).detach()


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def their_logits(folder: Path, tokens: torch.Tensor, *, kind: str = "Llama") -> torch.Tensor:
    """What transformers computes from the folder as it now is."""
    import transformers

    model = getattr(transformers, f"{kind}ForCausalLM").from_pretrained(folder).eval()
    with torch.no_grad():
        return model(tokens).logits
