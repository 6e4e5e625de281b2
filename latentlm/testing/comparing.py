"""Comparing what decoders compute, whatever their kind and however many latents they have.

A distribution of any family is compared by its log-probabilities at values that the prior draws (a point mass, which has none,
by its value), so that a family that the kit has never heard of is compared like any other. What is about one latent is a
mapping by name.

Legend: B rows, S sites, E event dimensions, P probes, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from latentlm.interface import PADDING, Batch, Context, Distribution, Latent, LatentDecoder, Latents, Noise, assign_sites

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


def moved(one: Tensor, other: Tensor) -> Tensor:
    """(B, N): the largest difference in the last dimension of two (B, N, ...)."""
    return (one - other).abs().flatten(2).amax(-1)


# ------------------------------------------------------------------------------------------------------ latent by latent


def called(model: LatentDecoder, socket: str, name: str) -> str:
    """A part as messages name it: "the prior of bits (CausalBits)"."""
    part = getattr(model.latents[name], socket, None)
    return f"the {socket} of {name}" + ("" if part is None else f" ({type(part).__name__})")


def before(model: LatentDecoder, latents: Latents, name: str) -> Latents:
    """Those that come before one, in the decoder's order."""
    names = list(model.latents)
    return Latents({other: latents[other] for other in names[: names.index(name)]})


def posteriors(model: LatentDecoder, context: Context, latents: Latents) -> dict[str, Distribution]:
    """q of each latent that has an encoder, given the latents before it."""
    return {
        name: model.posterior(context, name, before(model, latents, name))
        for name, latent in model.latents.items()
        if latent.has_encoder
    }


def priors(model: LatentDecoder, context: Context, latents: Latents) -> dict[str, Distribution]:
    """p of each latent, given all of them."""
    return {name: model.prior(context, name, latents) for name in model.latents}


def both(model: LatentDecoder, context: Context, latents: Latents) -> dict[tuple[str, str], Distribution]:
    """{(name, what it is called): distribution} of prior and posterior of every latent."""
    found = {(name, called(model, "prior", name)): p for name, p in priors(model, context, latents).items()}
    return found | {(name, called(model, "encoder", name)): q for name, q in posteriors(model, context, latents).items()}


def probes(model: LatentDecoder, context: Context, *, seed: int = 11, count: int = PROBES) -> dict[str, Tensor]:
    """{name: (P, B, S, E)}: values that the priors draw."""
    keys = [Noise.keyed(seed, [("probe", number, row) for row in range(context.rows)]) for number in range(count)]
    with torch.no_grad():
        draws = [model.sample_prior(context, key) for key in keys]
    return {name: torch.stack([draw[name].value for draw in draws]) for name in model.latents}


def fingerprint(distribution: Distribution, values: Tensor) -> Tensor:
    """(B, S, P) log-probabilities at the probes (P, B, S, E); (B, S, E), its value, of a point mass."""
    with torch.no_grad():
        if distribution.deterministic:
            return distribution.sample(Noise.keyed(0, range(distribution.shape[0]))).value
        return torch.stack([distribution.log_prob(Latent(value)) for value in values], dim=-1)


def fingerprints(distributions: Mapping[str, Distribution], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """{name: (B, S, P)}, see `fingerprint`."""
    return {name: fingerprint(distribution, values[name]) for name, distribution in distributions.items()}


def detached(latents: Latents) -> Latents:
    """The values alone: no distribution, no graph."""
    return Latents({name: Latent(latent.value.detach()) for name, latent in latents.items()})


# ------------------------------------------------------------------------------------------------------------------ texts


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
    tensors: dict[str, Any] = {name: torch.tensor(values) for name, values in columns.items()}
    if vocabulary is not None:
        tensors["inputs"], tensors["targets"] = tensors["inputs"] % vocabulary, tensors["targets"] % vocabulary
    return Batch(**tensors, target_mask=tensors["documents"] >= 0)


def other_tokens(model: LatentDecoder, batch: Batch, places: Tensor, *, by: int = 1) -> Batch:
    """The batch with another token at each of `places` (B, T) bool, sites where they were: a granularity may read the tokens,
    and latents that are held fixed must keep their place. A token that has no other of its kind stays. Padding stays padding
    with other tokens in it; no token becomes 0, which ends a text."""
    size = model.config.backbone.vocabulary - 1
    shifted = torch.where(places, (batch.inputs - 1 + by) % size + 1, batch.inputs)
    changed = replace(batch, inputs=shifted)
    if _same_sites(model, batch, changed):
        return changed
    inputs = batch.inputs.clone()
    for row, place in places.nonzero().tolist():  # one by one, the first token that moves no site
        kept = int(inputs[row, place])
        for step in range(size):
            inputs[row, place] = (kept - 1 + by + step) % size + 1
            if int(inputs[row, place]) != kept and _same_sites(model, batch, replace(batch, inputs=inputs)):
                break
        else:
            inputs[row, place] = kept
    return replace(batch, inputs=inputs)


def other_text(model: LatentDecoder, text: list[int], place: int, *, by: int = 1, given: int = 0) -> Batch:
    """One text with another token at `place`, sites where they were."""
    batch = Batch.of([text], given=[given])
    index = torch.zeros_like(batch.inputs, dtype=torch.bool)
    index[0, place] = True
    return other_tokens(model, batch, index, by=by)


def _same_sites(model: LatentDecoder, one: Batch, other: Batch) -> bool:
    """Every latent has its sites where it had them."""

    def sites(batch: Batch, name: str) -> Tensor:
        granularity = model.latents[name].granularity
        return assign_sites(granularity, batch.inputs, batch.documents, batch.positions)[0]

    return all(torch.equal(sites(one, name), sites(other, name)) for name in model.latents)
