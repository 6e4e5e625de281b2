"""A chain of Gaussians over layers: z_1 first, then each z_l given those below (paper, section 4.1).

    h_1 = 0,  h_l = tanh(W_hh^l h_{l-1} + W_ih^l z_{l-1} + b^l)              equation 7; h_l stands for z_<l
    (mu_l, log sigma_l^2) = o_l + W^l h_l                                    equation 8
    log q(z) = sum_l log N(z_l; mu_l, sigma_l^2)                             teacher-forced on z
    KL(q || p) = sum_l E_{q(z_<l)} KL(q(z_l | z_<l) || p(z_l | z_<l))        equation 6

o_l is what the layer has beside z_<l: W_x^l x^l for the posterior, a constant for the prior. `kl` takes each term of the last
line in closed form at the z_<l it is given, dimension by dimension: where z ~ q, an unbiased, never negative estimate of the
whole KL with less variance than log q(z) - log p(z) (Rao-Blackwell).

Legend: B rows, S sites, L latents (layers that have one), p dimensions of each, E = L p, M paths.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentlm.interface import Distribution, Gaussian, Latent, Noise, sampled_kl

_PATHS = 16  # over which `expected` averages, in antithetic pairs


def wide_linear(x: Tensor, linear: nn.Module) -> Tensor:
    """An nn.Linear in float32 (float64 where x is), outside any autocast."""
    assert isinstance(linear, nn.Linear)
    wide = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        bias = None if linear.bias is None else linear.bias.to(wide)
        return F.linear(x.to(wide), linear.weight.to(wide), bias)


class Recursion(nn.Module):
    """h_l from h_{l-1} and z_{l-1}, and W^l h_l, of the layers above the first; no two layers share weights (section 4.1).

    W_hh begins at the third layer: h_1 is zero, so the second's would never be used."""

    def __init__(self, layers: int, size: int, *, bias: bool) -> None:
        """`bias`: W^l has a constant beside it."""
        super().__init__()
        self.layers, self.size = layers, size
        self.carry = nn.ModuleList(nn.Linear(size, size, bias=False) for _ in range(layers - 2))
        self.take = nn.ModuleList(nn.Linear(size, size) for _ in range(layers - 1))
        self.readout = nn.ModuleList(nn.Linear(size, 2 * size, bias=bias) for _ in range(layers - 1))

    def forward(self, layer: int, memory: Tensor | None, below: Tensor) -> tuple[Tensor, Tensor]:
        """h_l and W^l h_l (..., 2p) of layer l = `layer` >= 1 (counted from 0), from h_{l-1} (None at layer 1) and z_{l-1}."""
        entering = wide_linear(below, self.take[layer - 1])
        if memory is not None:
            entering = entering + wide_linear(memory, self.carry[layer - 2])
        h = torch.tanh(entering)
        return h, wide_linear(h, self.readout[layer - 1])


class Chain(Distribution):
    """Gaussians, each given the values of those before it. The weights are its part's: gradients reach them."""

    parameters = ("offsets",)

    def __init__(self, recursion: Recursion, offsets: Tensor, log_scale: float = 0.0) -> None:
        """offsets (B, S, L, 2p): o_l, means first. `log_scale` is added to every log standard deviation."""
        self.recursion = recursion
        self.offsets = offsets if offsets.dtype == torch.float64 else offsets.float()
        self.log_scale = log_scale

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, S, E)."""
        rows, sites, layers, double = self.offsets.shape
        return rows, sites, layers * double // 2

    def sample(self, noise: Noise, *, differentiable: bool = False) -> Latent:
        """z_1 = mu_1 + sigma_1 epsilon_1, then z_2 from it, and so on: (B, S, E), reparameterised through the whole chain."""
        rows, sites, events = self.shape
        assert len(noise) == rows, f"{len(noise)} rows of noise for {rows} rows"
        epsilon = self._split(noise.normal(sites, events, device=self.offsets.device))
        if differentiable:
            return Latent(torch.cat(self._drawn(epsilon)[0], dim=-1), self, noise)
        with torch.no_grad():
            return Latent(torch.cat(self._drawn(epsilon)[0], dim=-1))

    def moments(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation (B, S, E) of each layer given the values (B, S, E) of those below."""
        below = self._split(value.to(self.offsets))
        _, means, log_stds = self._walk(lambda layer, mean, log_std: below[layer])
        return torch.cat(means, dim=-1), torch.cat(log_stds, dim=-1)

    def log_prob(self, latent: Latent) -> Tensor:
        """(B, S) nats."""
        return Gaussian(*self.moments(latent.value)).log_prob(latent)

    def kl(self, prior: Distribution, latent: Latent) -> Tensor:
        """(B, S, E) nats, never negative, unbiased where the latent was drawn from this distribution: closed forms, but at the
        z_<l that it is given,
        against a chain of as many layers or independent Gaussians. (B, S, 1), the one-sample estimate, against other priors."""
        if isinstance(prior, Chain) and prior.offsets.shape[2:] == self.offsets.shape[2:]:
            given = Gaussian(*prior.moments(latent.value))
        elif isinstance(prior, Gaussian):
            given = prior
        else:
            return sampled_kl(self, prior, latent)
        return Gaussian(*self.moments(latent.value)).kl(given, latent)

    def tempered(self, temperature: float) -> Chain:
        """Every layer's standard deviation times the temperature."""
        return Chain(self.recursion, self.offsets, self.log_scale + math.log(temperature))

    def expected(self) -> Tensor:
        """E[z] (B, S, E): the conditional means averaged over 16 paths whose noise is the same for every row and site. Exact at
        the first layer, an estimate above; sampled means along one path would add that path's noise to what varies over texts,
        and the means along the path of means are not the mean."""
        noise = Noise.keyed(0, range(_PATHS // 2)).normal(1, self.shape[2], device=self.offsets.device)
        epsilon = self._split(torch.cat((noise, -noise))[:, None])  # (M, 1, 1, p) each
        _, means, _ = self._walk(lambda layer, mean, log_std: mean + log_std.exp() * epsilon[layer])
        return torch.cat([mean.mean(0) if mean.dim() == 4 else mean for mean in means], dim=-1)

    def leaning(self, signs: Tensor, strength: float) -> Chain:
        """Means at `signs`, standard deviation 2.4 / strength, both moved by this chain's own recursion."""
        means = signs.unflatten(-1, (self.offsets.shape[2], -1))  # (B, S, L, p)
        return Chain(self.recursion, torch.cat((means, torch.full_like(means, 2 * math.log(2.4 / strength))), dim=-1))

    def _split(self, value: Tensor) -> tuple[Tensor, ...]:
        """(..., E) -> L times (..., p)."""
        return value.unflatten(-1, (self.offsets.shape[2], -1)).unbind(-2)

    def _drawn(self, epsilon: tuple[Tensor, ...]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        return self._walk(lambda layer, mean, log_std: mean + log_std.exp() * epsilon[layer])

    def _walk(
        self, choose: Callable[[int, Tensor, Tensor], Tensor]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Values, means and log standard deviations, L times (..., p), where `choose(layer, mean, log_std)` gives z_l."""
        values: list[Tensor] = []
        means: list[Tensor] = []
        log_stds: list[Tensor] = []
        memory: Tensor | None = None
        for layer, offset in enumerate(self.offsets.unbind(2)):
            parameters = offset
            if layer > 0:
                memory, added = self.recursion(layer, memory, values[-1])
                parameters = offset + added
            mean, log_variance = parameters.chunk(2, dim=-1)
            log_std = 0.5 * log_variance + self.log_scale
            values.append(choose(layer, mean, log_std))
            means.append(mean)
            log_stds.append(log_std)
        return values, means, log_stds
