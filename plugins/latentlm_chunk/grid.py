"""The grid of finite scalar quantisation (FSQ; Mentzer et al. 2023, "Finite Scalar Quantization: VQ-VAE Made Simple", arXiv
2309.15505), with the details of the authors' published code:

    bound      b_e = tanh(r_e + shift_e) half_e - offset_e        half_e = (L_e - 1) (1 - eps) / 2,  eps = 1e-3
               offset_e = 0 for odd L_e, 1/2 for even;  shift_e = tan(offset_e / half_e), so that r = 0 is near b = 0
    round      i_e = round(b_e), in -floor(L_e/2) .. ceil(L_e/2) - 1: exactly L_e values, since eps keeps b off the ends
    value      z_e = i_e / floor(L_e/2), within [-1, 1]; for even L_e the largest is 1 - 2/L_e

A code's index in a dimension counts from 0: i_e + floor(L_e/2). Codes are numbered with the first dimension fastest.

Legend: E dimensions, L_e levels of dimension e, N = prod_e L_e codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from latentlm.errors import UserError

LevelCounts = Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(min_length=1)]
"""Type of a `levels` setting."""

RECOMMENDED = {3: (8, 6, 5), 4: (8, 5, 5, 5), 5: (7, 5, 5, 5, 5), 6: (8, 8, 8, 5, 5, 5)}
"""The paper's choices for about 2^8, 2^10, 2^12 and 2^16 codes, by number of dimensions (for 2^14 it has (8, 8, 8, 6, 5)), none
below 5 levels."""

_EPSILON = 1e-3
MOST_CODES = 2**16


@dataclass(frozen=True)
class Grid:
    """L_1 x .. x L_E values."""

    levels: tuple[int, ...]

    @property
    def dims(self) -> int:
        """E."""
        return len(self.levels)

    @property
    def size(self) -> int:
        """N."""
        return math.prod(self.levels)

    def bound(self, raw: Tensor) -> Tensor:
        """Raw (..., E), any real numbers, to the numbers b (..., E) that are rounded."""
        half = (self._counts(raw) - 1) * (1 - _EPSILON) / 2
        offset = torch.where(self._counts(raw) % 2 == 1, 0.0, 0.5).to(raw.dtype)
        return torch.tanh(raw + torch.tan(offset / half)) * half - offset

    def values(self, index: Tensor) -> Tensor:
        """Index (..., E) long to values (..., E) float32."""
        middle = self.half_widths(index)
        return (index - middle).float() / middle

    def index(self, value: Tensor) -> Tensor:
        """Values (..., E) to the nearest index (..., E) long."""
        middle = self.half_widths(value)
        steps = (value * middle).round().long() + middle.long()
        return steps.clamp(min=0).minimum(self._counts(steps) - 1)

    def below(self, bounded: Tensor) -> Tensor:
        """Index (..., E) long of the lower of the two neighbours of b, which always has one above it."""
        lower = bounded.floor().long() + self.half_widths(bounded).long()
        return lower.clamp(min=0).minimum(self._counts(lower) - 2)

    def code(self, index: Tensor) -> Tensor:
        """Number (...) long of the code with this index (..., E) in each dimension."""
        strides = [math.prod(self.levels[:e]) for e in range(self.dims)]
        return (index * torch.tensor(strides, device=index.device)).sum(-1)

    def every_index(self, device: torch.device | str | None = None) -> Tensor:
        """(N, E) long: the index of each code, in the order of their numbers. Raises UserError for too many codes."""
        self.check_size("A list of all codes", "take fewer levels")
        axes = [torch.arange(count, device=device) for count in reversed(self.levels)]
        return torch.cartesian_prod(*axes).view(self.size, self.dims).flip(-1)

    def check_size(self, what: str, remedy: str) -> None:
        """Raises UserError, in the name of `what` writes down all codes, where they are more than 2^16."""
        if self.size > MOST_CODES:
            raise UserError(
                f"{what} writes down all codes, at most {MOST_CODES}; levels {list(self.levels)} make {self.size}: {remedy}."
            )

    def every_value(self, device: torch.device | str | None = None) -> Tensor:
        """(N, E) float32."""
        return self.values(self.every_index(device))

    def _counts(self, like: Tensor) -> Tensor:
        """L (E,) in the dtype of `like`."""
        return torch.tensor(self.levels, dtype=like.dtype, device=like.device)

    def half_widths(self, like: Tensor) -> Tensor:
        """floor(L/2) (E,): levels on the longer side of 0, and the index of the value 0."""
        return torch.tensor([count // 2 for count in self.levels], dtype=like.dtype, device=like.device)


def grid_of(levels: Sequence[int] | None, event_dims: int, part: str) -> Grid:
    """The grid of a `levels` setting; where it is open, the recommended one of `event_dims` dimensions, or 5 levels each where
    the paper has none. Raises UserError where the two do not fit, in the name of `part`."""
    grid = Grid(tuple(levels) if levels is not None else RECOMMENDED.get(event_dims, (5,) * event_dims))
    if grid.dims != event_dims:
        raise UserError(
            f"{part} has {grid.dims} dimensions, of levels {list(grid.levels)}, but event_dims is {event_dims}: "
            f"set event_dims to {grid.dims}, or leave it out."
        )
    return grid
