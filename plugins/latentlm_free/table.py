"""The post-sampler tables: from the bits of a latent to the vector R that the decoder is conditioned on.

The paper's table is a free row for each of the 2^H codes. Rows drawn independently starve the encoder: near p = 1/2 the
gradient of a bit's logit is a quarter of the difference between two averages over 2^(H-1) unrelated scores, of standard
deviation |g| std / 2^(H/2 + 1), where rows built from one vector per bit give |g| std / (2 sqrt(H)): sqrt(2^H / H) times
more, 64 at H=16. Hence four kinds behind one interface, all with entries of standard deviation `std` after `init_weights`:

    full            R = W[d], rows independent, as an embedding              2^H D parameters    (the paper)
    full-additive   R = W[d], rows initialised as sum_h (2 b_h - 1) v_h      2^H D
    grouped         R = sum_k W_k[d_k], d_k the code of the k-th g bits      about H/g 2^g D
    additive        R = sum_h (2 b_h - 1) v_h                                H D

Plus and minus, not v_h and zero: R then has mean zero under the uniform prior and needs no bias, and a row's variance does
not depend on how many of its bits are set.

Every kind has the paper's gradient, that of the expectation of R over the product distribution of the bits. For `grouped`
that is the mapper's, group by group (the bits of other groups are independent, so they drop out of the covariance); for
`additive` it is in closed form, dR/dlogit_h = 2 p_h (1 - p_h) v_h. Other estimators of that gradient: `estimators.py`.

Letters: R rows, S latent sites, H bits, D width, g bits in a group. Run: ``pytest tests/test_tables.py``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from latentlm.backbone.init import normal_
from latentlm.errors import UserError
from latentlm.interface import Noise
from latentlm_free.estimators import Estimator
from latentlm_free.mapper import MAX_BITS, bits_of

Kind = Literal["full", "full-additive", "grouped", "additive"]
EXACT = Estimator()


class Table(nn.Module, ABC):
    """One post-sampler. Parameters are left unset until `init_weights`, so that it can be built on the meta device."""

    compiles = gathered_alone = True

    def __init__(self, bits: int, width: int, estimator: Estimator = EXACT) -> None:
        super().__init__()
        self.bits, self.width, self.estimator = bits, width, estimator

    def compile(self, *, backend: str = "inductor") -> None:  # type: ignore[override]  # one of torch's many settings
        """Compile what takes a table's time, the exact gradient of the bit logits."""
        self.estimator = replace(self.estimator, backend=backend)

    @abstractmethod
    def forward(self, bits: Tensor, logits: Tensor | None, noise: Noise | None = None) -> Tensor:
        """Bits (R, S, H) of zeros and ones, and the logits (R, S, H) that they were drawn from -> (R, S, D).

        Any number of leading dimensions will do where the estimator draws nothing; `noise` (R rows, as in `Latent.noise`) is
        for one that does. Without logits (None) only the table gets a gradient. The result has the table's dtype, and does not
        depend on the estimator. Raises ValueError where the shapes do not fit or noise is missing.
        """

    @property
    def scored_rows(self) -> int:
        """Rows whose scores the gradient of a token's logits takes: the count of its operations."""
        return self.estimator.scored_rows(self.bits)

    @abstractmethod
    def init_weights(self, *, std: float, generator: torch.Generator | None = None) -> None:
        """Fill every parameter so that the entries of R have standard deviation `std` over uniform codes."""


class FullTable(Table):
    """A free row for each code; `additive` rows start as sums of plus or minus one vector per bit."""

    def __init__(self, bits: int, width: int, *, additive: bool = False, estimator: Estimator = EXACT) -> None:
        super().__init__(bits, width, estimator)
        self.additive = additive
        self.weight = nn.Parameter(torch.empty(2**bits, width))  # (2^H, D)

    def forward(self, bits: Tensor, logits: Tensor | None, noise: Noise | None = None) -> Tensor:
        return self.estimator.lookup(logits, bits, self.weight, self.estimator.uniform(logits, noise))

    @torch.no_grad()
    def init_weights(self, *, std: float, generator: torch.Generator | None = None) -> None:
        if not self.additive:
            normal_(self.weight, std=std, generator=generator)
            return
        vectors = self.weight.new_empty(self.bits, self.width)  # (H, D)
        normal_(vectors, std=std / math.sqrt(self.bits), generator=generator)
        for codes in torch.arange(2**self.bits, device=vectors.device).split(4096):  # no second table while it is filled
            self.weight[codes] = (2 * bits_of(codes, self.bits) - 1).to(vectors.dtype) @ vectors


class GroupedTable(Table):
    """A sum of tables of `group` bits each; the last group is smaller where `group` does not divide the bits."""

    def __init__(self, bits: int, width: int, *, group: int, estimator: Estimator = EXACT) -> None:
        super().__init__(bits, width, estimator)
        self.sizes = [min(group, bits - start) for start in range(0, bits, group)]
        self.weights = nn.ParameterList(torch.empty(2**size, width) for size in self.sizes)  # (2^g, D) each

    def forward(self, bits: Tensor, logits: Tensor | None, noise: Noise | None = None) -> Tensor:
        _check_bits(bits, self.bits)
        uniform = self.estimator.uniform(logits, noise)
        groups = zip(self._split(logits), self._split(bits), self.weights, self._split(uniform), strict=True)
        parts = [self.estimator.lookup(*group) for group in groups]
        return sum(parts[1:], start=parts[0])

    @property
    def scored_rows(self) -> int:
        return sum(self.estimator.scored_rows(size) for size in self.sizes)

    def _split(self, tensor: Tensor | None) -> Sequence[Any]:
        """(..., H) by groups; None for each where there is nothing to split."""
        return [None] * len(self.sizes) if tensor is None else tensor.split(self.sizes, dim=-1)

    @torch.no_grad()
    def init_weights(self, *, std: float, generator: torch.Generator | None = None) -> None:
        for weight in self.weights:
            normal_(weight, std=std / math.sqrt(len(self.sizes)), generator=generator)


class AdditiveTable(Table):
    """One vector per bit, added or subtracted: linear in the bits, and no larger than a readout."""

    def __init__(self, bits: int, width: int, *, estimator: Estimator = EXACT) -> None:
        super().__init__(bits, width, estimator)
        self.weight = nn.Parameter(torch.empty(bits, width))  # (H, D)

    @property
    def scored_rows(self) -> int:
        return self.bits

    def forward(self, bits: Tensor, logits: Tensor | None, noise: Noise | None = None) -> Tensor:
        _check_bits(bits, self.bits)
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        with torch.autocast(self.weight.device.type, enabled=False):
            signs = torch.where(bits > 0.5, 1.0, -1.0).to(dtype)  # (R, S, H)
            if logits is not None and self.estimator.name == "exact":
                mean = torch.tanh(logits.to(dtype) / 2)  # 2 p - 1
                signs = signs + (mean - mean.detach())  # in this bracket order the value is a sign still
            elif logits is not None and logits.requires_grad and torch.is_grad_enabled():
                slope = self.estimator.slope(logits.to(dtype), bits, self.estimator.uniform(logits, noise))
                signs = _WithSlope.apply(logits.to(dtype), signs, 2 * slope)
            return (signs @ self.weight.to(dtype)).to(self.weight.dtype)

    @torch.no_grad()
    def init_weights(self, *, std: float, generator: torch.Generator | None = None) -> None:
        normal_(self.weight, std=std / math.sqrt(self.bits), generator=generator)


class _WithSlope(torch.autograd.Function):
    """A value whose derivative in x is given: (x, value, slope) of one shape -> value. Infinite x are allowed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return gradient * slope, None, None


def make_table(kind: Kind, bits: int, width: int, *, group: int = 4, estimator: Estimator = EXACT) -> Table:
    """The table of this kind for `bits` latent bits and vectors of `width` (`group`: bits in a group of "grouped").

    Raises UserError for an unknown kind, for bits or group below one, and for a table of more than 2^24 rows.
    """
    if kind not in get_args(Kind):
        raise UserError(f"Unknown table {kind!r}: choose one of {', '.join(get_args(Kind))}.")
    if bits < 1 or group < 1:
        raise UserError(f"A table needs at least one bit, and groups of at least one: not {bits} and {group}.")
    exponent = {"grouped": min(group, bits), "additive": 0}.get(kind, bits)
    if exponent > MAX_BITS:
        raise UserError(
            f"A {kind} table of {exponent} bits has 2^{exponent} rows; the limit is 2^{MAX_BITS}. "
            "Use fewer bits, smaller groups, or the additive table."
        )
    if kind == "grouped":
        return GroupedTable(bits, width, group=group, estimator=estimator)
    if kind == "additive":
        return AdditiveTable(bits, width, estimator=estimator)
    return FullTable(bits, width, additive=kind == "full-additive", estimator=estimator)


def _check_bits(bits: Tensor, count: int) -> None:
    if bits.shape[-1] != count:
        raise UserError(f"The table has {count} bits, the latent {bits.shape[-1]}: build both from one setting.")
