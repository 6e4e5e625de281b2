"""Distributions over the grid of finite scalar quantisation; values are those of `grid.py`, within [-1, 1].

    PointLevels   the posterior of FSQ: one code for certain. KL(q || p) = -log p(code), which is log N whatever the text under
                  a uniform prior: then the latents cost nothing that training could save, as in a VQ-VAE
    Levels        one categorical per dimension, independent (priors, and the planted posteriors of the conformance kit)
    JointLevels   one categorical over all N codes

The gradient of PointLevels (the paper's): value = round(b), dvalue/db = 1 (straight-through). Of its KL (ours, since the paper
trains the prior after the codes): -log p between neighbouring levels is taken to be linear,

    d KL / d b_e = log p(lower neighbour in e) - log p(upper neighbour in e)        the other dimensions at their own code

so an encoder under a learned prior moves towards what that prior expects. With `pays` false it has no gradient.

Legend: B rows, S sites, E dimensions, L levels (M the most of any dimension), N codes. All in nats, float32 or wider.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from latentlm.interface import Categorical, Distribution, Latent, Noise, sampled_kl
from latentlm_chunk.grid import MOST_CODES, Grid


class OnGrid(Distribution):
    """A distribution over the codes of a grid."""

    exact_kl = True
    grid: Grid

    def support(self) -> Tensor | None:
        """(N, E): every code's values; None for more than 2^16 codes."""
        return self.grid.every_value(self._device) if self.grid.size <= MOST_CODES else None

    def leaning(self, signs: Tensor, strength: float) -> Levels:
        """Logits strength * sign * value: towards the high levels of a dimension or its low ones."""
        index = [torch.arange(count, device=signs.device) for count in self.grid.levels]
        logits = [
            strength * signs[..., e : e + 1] * (places - places.float().mean()) / (len(places) // 2)
            for e, places in enumerate(index)
        ]
        return Levels(torch.cat(logits, dim=-1), self.grid)

    @property
    @abstractmethod
    def _device(self) -> torch.device: ...


class CategoricalOnGrid(OnGrid):
    """... that has a probability for each code: what a prior is."""

    @abstractmethod
    def log_probs_at(self, index: Tensor) -> Tensor:
        """(B, S, E) or (B, S, 1) nats, whose sum is log p of the code with this index (B, S, E) in each dimension."""

    @abstractmethod
    def slopes(self, index: Tensor, below: Tensor) -> Tensor:
        """(B, S, E): rise of log p from `below` to the level above it in dimension e, the others being at `index`."""

    def log_prob(self, latent: Latent) -> Tensor:
        """(B, S) nats."""
        return self.log_probs_at(self.grid.index(latent.value)).sum(-1)


class Levels(CategoricalOnGrid):
    """Independent dimensions."""

    parameters = ("log_probs",)

    def __init__(self, logits: Tensor, grid: Grid) -> None:
        """logits (B, S, sum_e L_e): those of the first dimension, then of the second, ..."""
        wide = logits if logits.dtype == torch.float64 else logits.float()
        most = max(grid.levels)
        padded = [
            torch.nn.functional.pad(part.log_softmax(-1), (0, most - part.shape[-1]), value=float("-inf"))
            for part in wide.split(list(grid.levels), dim=-1)
        ]
        self.log_probs = torch.stack(padded, dim=-2)  # (B, S, E, M)
        self.grid = grid

    @classmethod
    def of_log_probs(cls, log_probs: Tensor, grid: Grid) -> Levels:
        """From log-probabilities (B, S, E, M) in the layout of the attribute, up to a constant for each dimension."""
        return cls(torch.cat([log_probs[..., e, :count] for e, count in enumerate(grid.levels)], dim=-1), grid)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, S, E)."""
        return self.log_probs.shape[0], self.log_probs.shape[1], self.grid.dims

    def sample(self, noise: Noise, *, differentiable: bool = False) -> Latent:
        """Values (B, S, E), by the inverse of each cumulative distribution. No gradient through the value."""
        rows, sites, events = self.shape
        assert len(noise) == rows, f"{len(noise)} rows of noise for {rows} rows"
        uniform = noise.uniform(sites, events, device=self._device)
        index = (self._cumulative() <= uniform[..., None]).sum(-1)
        index = index.minimum(torch.tensor(self.grid.levels, device=self._device) - 1)
        value = self.grid.values(index)
        return Latent(value, self, noise) if differentiable else Latent(value)

    def log_probs_at(self, index: Tensor) -> Tensor:
        """(B, S, E)."""
        return self.log_probs.gather(-1, index[..., None])[..., 0]

    def slopes(self, index: Tensor, below: Tensor) -> Tensor:
        """(B, S, E); the other dimensions do not matter."""
        return self.log_probs_at(below + 1) - self.log_probs_at(below)

    def kl(self, prior: Distribution, latent: Latent) -> Tensor:
        """(B, S, E) nats, exact; (B, S, 1) against codes, exact too; else the one-sample estimate."""
        if isinstance(prior, JointLevels):
            return JointLevels.of(self).kl(prior, latent)
        if not isinstance(prior, Levels):
            return sampled_kl(self, prior, latent)
        return _kl(self.log_probs, prior.log_probs)

    def select(self, rows: Tensor) -> Levels:
        """The given rows, normalised anew (as `Categorical.select` does)."""
        return Levels.of_log_probs(self.log_probs.index_select(0, rows), self.grid)

    def narrow(self, start: int, length: int) -> Levels:
        """The given sites, likewise."""
        return Levels.of_log_probs(self.log_probs.narrow(1, start, length), self.grid)

    def tempered(self, temperature: float) -> Levels:
        """Logits divided by the temperature."""
        return Levels.of_log_probs(self.log_probs / temperature, self.grid)

    def expected(self) -> Tensor:
        """Mean value of each dimension, (B, S, E)."""
        places = torch.arange(self.log_probs.shape[-1], device=self._device)
        values = self.grid.values(places[:, None].expand(-1, self.grid.dims)).T  # (E, M)
        return (self.log_probs.exp() * values).sum(-1)

    def near_ties(self, noise: Noise, rounding: float) -> Tensor:
        """Dimensions whose uniform number lies within `rounding` of a boundary between two levels; none where the dimension is
        uniform, which is a constant."""
        uniform = noise.uniform(self.shape[1], self.shape[2], device=self._device)[..., None]
        cumulative = self._cumulative()
        inside = (cumulative < 1 - rounding) & ((cumulative - uniform).abs() < rounding)
        real = torch.where(self.log_probs.isinf(), self.log_probs[..., :1], self.log_probs)
        constant = real.amax(-1) == real.amin(-1)
        return (inside.any(-1) & ~constant).sum(-1)

    def _cumulative(self) -> Tensor:
        """(B, S, E, M)."""
        return self.log_probs.detach().exp().cumsum(-1)

    @property
    def _device(self) -> torch.device:
        return self.log_probs.device


class JointLevels(CategoricalOnGrid, Categorical):
    """Any distribution over the codes."""

    def __init__(self, logits: Tensor, grid: Grid) -> None:
        """logits (B, S, N), up to a constant."""
        assert logits.shape[-1] == grid.size, "one logit for each code"
        super().__init__(logits)
        self.grid = grid

    @classmethod
    def of(cls, levels: Levels) -> JointLevels:
        """Independent dimensions as a distribution over codes."""
        index = levels.grid.every_index(levels.log_probs.device)  # (N, E)
        parts = [levels.log_probs[:, :, e, index[:, e]] for e in range(levels.grid.dims)]
        return cls(torch.stack(parts).sum(0), levels.grid)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, S, E)."""
        return self.log_probs.shape[0], self.log_probs.shape[1], self.grid.dims

    def values(self) -> Tensor:
        """(N, E): those of every code."""
        return self.grid.every_value(self._device)

    def support(self) -> Tensor:
        """(N, E): those of every code."""
        return self.values()

    def index(self, value: Tensor) -> Tensor:
        """The code (B, S) long of values (B, S, E)."""
        return self.grid.code(self.grid.index(value))

    def log_probs_at(self, index: Tensor) -> Tensor:
        """(B, S, 1)."""
        return self.log_probs.gather(-1, self.grid.code(index)[..., None])

    def slopes(self, index: Tensor, below: Tensor) -> Tensor:
        """(B, S, E)."""
        rises = []
        for e in range(self.grid.dims):
            low, high = index.clone(), index.clone()
            low[..., e], high[..., e] = below[..., e], below[..., e] + 1
            rises.append(self.log_probs_at(high) - self.log_probs_at(low))
        return torch.cat(rises, dim=-1)

    def matching(self, prior: Distribution) -> Categorical | None:
        """Codes of the grid; independent dimensions as codes."""
        return JointLevels.of(prior) if isinstance(prior, Levels) else super().matching(prior)

    @property
    def _device(self) -> torch.device:
        return self.log_probs.device


def _kl(q: Tensor, p: Tensor) -> Tensor:
    """Sum over the last dimension of q log(q / p) from log-probabilities, never negative; zero where q is."""
    gain = (q - p).masked_fill(q == float("-inf"), 0.0)
    kl = (q.exp() * gain).sum(-1)
    return kl - kl.detach().clamp(max=0.0)  # not a clamp of kl itself, which would cut its gradient
