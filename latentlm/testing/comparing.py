"""Comparing what decoders compute, whatever its kind.

A distribution of any family is compared by its log-probabilities at values that the prior draws (a point mass, which has none,
by its value), so that a family that the kit has never heard of is compared like any other.

Legend: B rows, S sites, E event dimensions, P probes, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from latentlm.interface import PADDING, Batch, Context, Distribution, Latent, LatentDecoder, Noise

UNMOVED = 1e-5
"""Differences up to this are rounding."""
MOVED = 1e-7
"""Differences beyond this, between passes of one shape, are an effect."""
TOLERANCE = 1e-4
"""Passes of different shapes agree to this."""
PROBES = 6

TEXTS = [[[3, 1, 4, 1, 5, 9, 2], [6, 5], [3, 5, 8, 9]], [[2, 7, 1, 8], [2, 8, 1, 8, 2, 8, 4, 5]]]
"""Two rows of three and two documents."""


def assert_close(found: Tensor, expected: Tensor, what: str, *, tolerance: float = TOLERANCE) -> None:
    """Both are equal up to `tolerance` (absolute, and relative to large values)."""
    assert found.shape == expected.shape, f"{what}: shapes {tuple(found.shape)} and {tuple(expected.shape)} differ"
    assert bool(found.isfinite().all()), f"{what}: not finite"
    excess = (found - expected).abs() - tolerance * expected.abs()
    worst = float(excess.max()) if excess.numel() else 0.0
    assert worst <= tolerance, f"{what}: differs by {float((found - expected).abs().max()):.2e}, allowed {tolerance:.0e}"


def probes(model: LatentDecoder, context: Context, *, seed: int = 11, count: int = PROBES) -> Tensor:
    """(P, B, S, E): values that the prior draws."""
    keys = [Noise.keyed(seed, [("probe", number, row) for row in range(context.rows)]) for number in range(count)]
    with torch.no_grad():
        return torch.stack([model.sample_prior(context, key).value for key in keys])


def fingerprint(distribution: Distribution, values: Tensor) -> Tensor:
    """(B, S, P) log-probabilities at the probes (P, B, S, E); (B, S, E), its value, of a point mass."""
    with torch.no_grad():
        if distribution.deterministic:
            return distribution.sample(Noise.keyed(0, range(distribution.shape[0]))).value
        return torch.stack([distribution.log_prob(Latent(value)) for value in values], dim=-1)


def moved(one: Tensor, other: Tensor) -> Tensor:
    """(B, N): the largest difference in the last dimension of two (B, N, ...)."""
    return (one - other).abs().flatten(2).amax(-1)


def pack(rows: list[list[list[int]]], *, vocabulary: int | None = None) -> Batch:
    """Documents packed into rows; targets are the next token, token 0 at a document's end. Tokens wrap at `vocabulary`."""
    length = max(sum(map(len, row)) for row in rows)
    columns: dict[str, list[list[int]]] = {"inputs": [], "targets": [], "documents": [], "positions": []}
    for row in rows:
        hole = length - sum(map(len, row))
        columns["inputs"].append([token for text in row for token in text] + [0] * hole)
        columns["targets"].append([token for text in row for token in [*text[1:], 0]] + [0] * hole)
        columns["documents"].append([number for number, text in enumerate(row) for _ in text] + [PADDING] * hole)
        columns["positions"].append([place for text in row for place in range(len(text))] + [0] * hole)
    tensors = {name: torch.tensor(values) for name, values in columns.items()}
    if vocabulary is not None:
        tensors["inputs"], tensors["targets"] = tensors["inputs"] % vocabulary, tensors["targets"] % vocabulary
    return Batch(**tensors, target_mask=tensors["documents"] >= 0)
