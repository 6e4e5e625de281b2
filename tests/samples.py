"""Small configurations and hand-made batches that tests share (tests/ is on the import path)."""

from __future__ import annotations

import torch

from latentlm.config import BackboneConfig, ModelConfig
from latentlm.interface import Batch

VOCABULARY = 17


def small_config(decoder: str = "free", *, bits: int = 4, granularity: str = "token", **backbone: object) -> ModelConfig:
    """Width 32, 4 blocks, 2 key/value heads under 4 heads."""
    sizes = {"vocabulary": VOCABULARY, "width": 32, "blocks": 4, "heads": 4, "kv_heads": 2, "context": 64}
    return ModelConfig(
        decoder=decoder,
        granularity=granularity,
        event_dims=bits if decoder == "free" else 0,
        backbone=BackboneConfig.model_validate({**sizes, "init_std": 0.1, **backbone}),
    )


def pack(rows: list[list[list[int]]]) -> Batch:
    """Documents packed into rows by hand; targets are the next token, end-of-text (0) at a document's end."""
    length = max(sum(map(len, row)) for row in rows)
    columns: dict[str, list[list[int]]] = {"inputs": [], "targets": [], "documents": [], "positions": []}
    for row in rows:
        hole = length - sum(map(len, row))
        columns["inputs"].append([token for text in row for token in text] + [0] * hole)
        columns["targets"].append([token for text in row for token in [*text[1:], 0]] + [0] * hole)
        columns["documents"].append([number for number, text in enumerate(row) for _ in text] + [-1] * hole)
        columns["positions"].append([place for text in row for place in range(len(text))] + [0] * hole)
    tensors = {name: torch.tensor(values) for name, values in columns.items()}
    return Batch(**tensors, target_mask=tensors["documents"] >= 0)
