"""The Free Transformer written out again in plain torch, from a model's own weights: no code of its forward pass is used.

One row of tokens is one document. Sizes are those of `samples.small_config`.

Legend: B rows, T tokens, D width, H bits, h heads, dh head width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from latentlm.composed import ComposedDecoder

HEADS, SHARING, HEAD_DIM, ROPE_BASE, EPSILON = 4, 2, 8, 10_000.0, 1e-5


def normed(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    """RMSNorm."""
    return x / (x.square().mean(-1, keepdim=True) + EPSILON).sqrt() * norm.weight


def turned(x: Tensor) -> Tensor:
    """Rotary positions on (B, T, h, dh): dimensions i and i + dh/2 are a complex number that turns by t base^(-2i/dh)."""
    half = x.shape[-1] // 2
    angles = torch.outer(torch.arange(x.shape[1]).to(x), ROPE_BASE ** (-torch.arange(half).to(x) / half))
    spun = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.cat((spun.real, spun.imag), dim=-1)


def attention(layer: nn.Module, queries: Tensor, source: Tensor, *, causal: bool = True, rope: bool = True) -> Tensor:
    """softmax(q k / sqrt(dh)) v; queries and source (B, T, D) are normed already. Two query heads share a key/value head."""
    rows, length, _ = queries.shape
    query = (queries @ layer.query.weight.T).view(rows, length, HEADS, HEAD_DIM)
    key = (source @ layer.key.weight.T).view(rows, length, HEADS // SHARING, HEAD_DIM).repeat_interleave(SHARING, dim=2)
    value = (source @ layer.value.weight.T).view(rows, length, HEADS // SHARING, HEAD_DIM).repeat_interleave(SHARING, dim=2)
    if rope:
        query, key = turned(query), turned(key)
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(HEAD_DIM)
    if causal:
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value).flatten(2) @ layer.output.weight.T


def with_feed_forward(layer: nn.Module, x: Tensor) -> Tensor:
    """x + SwiGLU(norm(x))."""
    ff, y = layer.feed_forward, normed(x, layer.feed_forward_norm)
    gate = y @ ff.gate.weight.T
    return x + (gate * gate.sigmoid() * (y @ ff.up.weight.T)) @ ff.down.weight.T


def plain_block(layer: nn.Module, x: Tensor) -> Tensor:
    """A block without a latent."""
    y = normed(x, layer.attention_norm)
    return with_feed_forward(layer, x + attention(layer.attention, y, y))


def injected_block(layer: nn.Module, x: Tensor, r: Tensor, *, norm: str = "joint", residual: bool = False) -> Tensor:
    """Queries from norm(X); keys and values from norm(X + R), or norm(X) + R; stream X, or X + R."""
    queries = normed(x, layer.attention_norm)
    source = normed(x + r, layer.attention_norm) if norm == "joint" else queries + r
    stream = x + r if residual else x
    return with_feed_forward(layer, stream + attention(layer.attention, queries, source))


def trunk(model: ComposedDecoder, tokens: Tensor, blocks: int) -> Tensor:
    """The stream after the first `blocks` blocks, (B, T, D)."""
    x = model.backbone.embedding.weight[tokens]
    for layer in model.backbone.blocks[:blocks]:
        x = plain_block(layer, x)
    return x


def bit_logits(model: ComposedDecoder, x: Tensor, *, rope: bool = True, zeta_residual: bool = True) -> Tensor:
    """The encoder on the trunk's output x (B, T, D): (B, T, H)."""
    encoder = model.encoder
    block, zeta = encoder.block, encoder.zeta.expand_as(x)
    queries, source = normed(zeta, block.attention_norm), normed(x, block.attention_norm)
    mixed = attention(block.attention, queries, source, causal=False, rope=rope)
    y = with_feed_forward(block, zeta + mixed if zeta_residual else mixed)
    logits = normed(y, encoder.norm) @ encoder.readout.weight.T
    return logits if encoder.readout.bias is None else logits + encoder.readout.bias


def token_logits(
    model: ComposedDecoder, tokens: Tensor, r: Tensor, *, site: int, norm: str = "joint", residual: bool = False
) -> Tensor:
    """The decoder given R (B, T, D) at block `site`, every block once: (B, T, V); embeddings are tied."""
    x = injected_block(model.backbone.blocks[site], trunk(model, tokens, site), r, norm=norm, residual=residual)
    for layer in model.backbone.blocks[site + 1 :]:
        x = plain_block(layer, x)
    return normed(x, model.backbone.norm) @ model.backbone.embedding.weight.T


def rows_of(model: ComposedDecoder, bits: Tensor, kind: str, *, group: int) -> Tensor:
    """R of bits (B, T, H), lowest bit first: (B, T, D)."""
    table, count = model.injection.table, bits.shape[-1]
    if kind.startswith("full"):
        return table.weight[(bits.long() * 2 ** torch.arange(count)).sum(-1)]
    if kind == "additive":
        return (2 * bits - 1) @ table.weight
    pieces = [bits[..., start : start + group].long() for start in range(0, count, group)]
    codes = [(piece * 2 ** torch.arange(piece.shape[-1])).sum(-1) for piece in pieces]
    return sum((weight[code] for weight, code in zip(table.weights, codes, strict=True)), start=torch.zeros(()))
