"""Gradient estimators for the bits of a table: one value, R = table[z], and five gradients of the bit logits.

A token's code D was drawn from G, the product distribution of its H bits; the loss then sent g = dLoss/dR back. With
u_h(d) the bit h of code d, p_h = P(bit h), s_d = <g, W_d> and D^h the code D with bit h flipped, dLoss/dlogit_h is

    exact              Cov_{d~G}(u_h(d), s_d), over all 2^H codes: the straight-through of the product distribution
    sampled            (1/m) sum_k (u_h(d_k) - p_h) (s_{d_k} - c_k),  d_1 .. d_m ~ G,  c_k = (s_D + sum_{j != k} s_{d_j}) / m
    reinmax            1/2 [Cov_{d~G}(u_h(d), s_d) + (u_h(D) - p_h) (s_D - E_{d~G} s_d)]
    straight_through   p_h (1 - p_h)  (s_{D with bit h = 1} - s_{D with bit h = 0})
    concrete           b_h (1 - b_h) / temperature  (the same difference),  b_h = sigmoid((logit_h - logit(u_h)) / temperature)

`exact` is Fleuret 2025 ("The Free Transformer", Binary Mapper). It is a *biased* gradient of E_{z~q} loss(z): it takes the loss
for linear in R. So are all of these; what differs is where they linearise, what they cost, and how they scatter
(docs/estimators.md has the measurements).

`sampled` is unbiased for `exact`, not for the true gradient. E[(u_h - p_h) s_d] is the covariance, since E u_h = p_h is known;
c_k is independent of d_k (given D, on which g may depend) and E(u_h - p_h) = 0, so it changes the variance only. It is the mean
of the m other scores at hand, s_D = <g, R> among them, so one draw has a baseline too.

`reinmax` is Liu et al. 2023 ("Bridging discrete and backpropagation: straight-through and beyond", NeurIPS), at temperature 1:
twice the straight-through at (G + onehot(D)) / 2, minus half of the one at G. A mixture of G and a point at D with equal
weights has Cov = Cov_G / 2 + (p_h - u_h(D)) (E_G s - s_D) / 4, from which the line above follows: no more than `exact` costs.
It is second-order accurate, and exact where the loss is quadratic in a token's R. With `samples`, the covariance is that of
`sampled` and E_G s the mean of the draws' scores: unbiased for `reinmax`.

`straight_through` (Bengio et al. 2013, with the sigmoid's derivative) and `concrete` (binary Concrete of Maddison et al. 2017,
Gumbel-softmax straight-through of Jang et al. 2017: hard bits forward, the relaxed bit's derivative backward) go bit by bit
through the table's multilinear extension, sum_d prod_h b_h^{u_h(d)} (1 - b_h)^{1 - u_h(d)} W_d, at the corner D. That is
defined for any table and reads H + 1 rows of it (our reading: the papers have no table). The relaxed bit uses the very uniform
number that drew the bit, so it rounds to it.

A table that is a sum over groups of bits has one code, and one G, for each group: the covariance with the other groups'
scores is zero. Groups of one bit, and `additive`, make `straight_through` equal to `exact`.

Legend: R latent rows, S sites, N tokens (R S), C tokens of a chunk, H bits, D width, m draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from latentlm.errors import UserError
from latentlm.interface import Noise
from latentlm_free import mapper
from latentlm_free.mapper import bits_of, codes

EstimatorName = Literal["exact", "sampled", "reinmax", "straight_through", "concrete"]

SAMPLES = 8
TEMPERATURE = 1.0  # neither paper of the relaxation fixes one
# Gathered numbers at a time, rows of the table for a chunk of tokens: what fits a cache, what fills a GPU.
CPU_GATHER, ACCELERATOR_GATHER = 2**20, 2**26


@dataclass(frozen=True)
class Estimator:
    """How the gradient of the bit logits is estimated; the value never depends on it."""

    name: EstimatorName = "exact"
    samples: int | None = None
    """m, codes drawn for each token: of `sampled` (None: 8), and of `reinmax` (None: all codes are summed, none drawn)."""
    temperature: float = TEMPERATURE
    """Of the relaxed bits; `concrete` only."""
    half: bool = False
    """Scores of the table in bfloat16; `exact` only."""
    backend: str | None = None
    """Of torch.compile, for `exact`; None: not compiled."""

    @property
    def draws(self) -> int:
        """Codes drawn for each token beside the sampled one."""
        if self.name == "sampled":
            return SAMPLES if self.samples is None else self.samples
        return self.samples or 0 if self.name == "reinmax" else 0

    def scored_rows(self, bits: int) -> int:
        """Rows of a table of this many bits whose scores the gradient of a token's logits takes."""
        if self.draws:
            return self.draws + 1
        return bits + 1 if self.name in ("straight_through", "concrete") else 2**bits

    def uniform(self, logits: Tensor | None, noise: Noise | None) -> Tensor | None:
        """The uniform numbers beside the bits that a backward pass will need: (R, S, m, H), m = 1 for `concrete`, whose numbers
        are those that drew the bits. None where there is nothing to draw, or no gradient to come.

        logits (R, S, H); `noise` as in `Latent.noise`, R rows. Raises UserError where it is missing.
        """
        wanted = logits is not None and logits.requires_grad and torch.is_grad_enabled()
        if not (wanted and (self.draws or self.name == "concrete")):
            return None
        assert logits is not None
        if noise is None:
            raise UserError(
                f'The estimator "{self.name}" needs the noise that the latent was drawn with, and this latent carries none: '
                'draw it with sample(noise, differentiable=True), or set estimator to "exact".'
            )
        rows, sites, bits = logits.shape
        assert len(noise) == rows, f"{len(noise)} rows of noise for {rows} rows"
        if self.name == "concrete":
            return noise.uniform(sites, bits, device=logits.device).view(rows, sites, 1, bits)
        drawn = noise.stream("estimator").uniform(sites, self.draws * bits, device=logits.device)
        return drawn.view(rows, sites, self.draws, bits)

    def lookup(self, logits: Tensor | None, bits: Tensor, table: Tensor, uniform: Tensor | None) -> Tensor:
        """`mapper.lookup` with this gradient: (..., H), (..., H), (2^H, D), (..., m, H) of `uniform` -> (..., D)."""
        if self.name == "exact" or logits is None:
            return mapper.lookup(logits, bits, table, half=self.half, backend=self.backend)
        if self.name == "reinmax" and not self.draws:
            return mapper.lookup(logits, bits, table, estimate=_reinmax)
        draws = None if uniform is None else self._kept(logits.detach(), uniform)
        estimate = {"sampled": _sampled, "reinmax": _sampled_reinmax}.get(self.name, _bitwise)
        return mapper.lookup(logits, bits, table, estimate=estimate, draws=draws, token_chunk=self._chunk(bits, table))

    def slope(self, logits: Tensor, bits: Tensor, uniform: Tensor | None) -> Tensor:
        """The estimate for tables of one bit with rows 0 and 1, at g = 1: (..., H) logits and bits -> (..., H), detached."""
        logits, ones = logits.detach(), bits > 0.5
        variance = torch.sigmoid(logits) * torch.sigmoid(-logits)
        if self.name == "concrete":
            assert uniform is not None
            return self._relaxed_slope(logits, uniform.squeeze(-2))
        surplus = _deviation(ones, logits)  # of the sampled bit
        if self.draws:
            assert uniform is not None
            drawn, sampled = uniform < torch.sigmoid(logits).unsqueeze(-2), ones.unsqueeze(-2)  # (..., m, H), (..., 1, H)
            centred = _off_baseline(drawn.to(logits.dtype), sampled.to(logits.dtype), dim=-2)
            variance = (_deviation(drawn, logits.unsqueeze(-2)) * centred).mean(-2)
            if self.name == "sampled":
                return variance
            return 0.5 * (variance + surplus * (ones.to(logits.dtype) - drawn.to(logits.dtype).mean(-2)))
        return 0.5 * (variance + surplus.square()) if self.name == "reinmax" else variance

    def _kept(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """What the backward pass needs of the uniform numbers: codes (..., m), or slopes of relaxed bits (..., H)."""
        if self.name == "concrete":
            return self._relaxed_slope(logits, uniform.squeeze(-2))
        return codes((uniform < torch.sigmoid(logits).unsqueeze(-2)).byte())

    def _relaxed_slope(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """db/dlogit of the relaxed bit b: (..., H), (..., H) -> (..., H)."""
        x = (logits - torch.logit(uniform.to(logits.dtype))) / self.temperature
        return torch.sigmoid(x) * torch.sigmoid(-x) / self.temperature

    def _chunk(self, bits: Tensor, table: Tensor) -> int:
        """Tokens whose rows are gathered at a time."""
        gathered = 1 + (self.draws or bits.shape[-1])
        limit = CPU_GATHER if table.device.type == "cpu" else ACCELERATOR_GATHER
        return max(1, limit // (gathered * table.shape[1]))


def _sampled(g: Tensor, logits: Tensor, index: Tensor, table: Tensor, draws: Tensor | None) -> Tensor:
    """From the codes (C, m) drawn beside the sampled one: -> (C, H)."""
    assert draws is not None
    return _drawn_moments(g, logits, index, table, draws)[0]


def _sampled_reinmax(g: Tensor, logits: Tensor, index: Tensor, table: Tensor, draws: Tensor | None) -> Tensor:
    """`_reinmax` with the drawn codes' moments: -> (C, H)."""
    assert draws is not None
    covariance, surplus = _drawn_moments(g, logits, index, table, draws)
    return 0.5 * (covariance + _deviation(bits_of(index, logits.shape[1]).bool(), logits) * surplus[:, None])


def _drawn_moments(g: Tensor, logits: Tensor, index: Tensor, table: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Covariance (C, H), and the sampled code's score less the mean of the drawn ones' (C,)."""
    scores = _row_scores(g, table, torch.cat([index[:, None], draws], dim=1))  # (C, 1 + m)
    centred = _off_baseline(scores[:, 1:], scores[:, :1], dim=1)
    ones = bits_of(draws, logits.shape[1]).to(g.dtype)  # (C, m, H)
    if_one = torch.bmm(centred[:, None], ones)[:, 0]
    if_zero = torch.bmm(centred[:, None], 1 - ones)[:, 0]
    covariance = (torch.sigmoid(-logits) * if_one - torch.sigmoid(logits) * if_zero) / draws.shape[1]
    return covariance, scores[:, 0] - scores[:, 1:].mean(1)


def _reinmax(g: Tensor, logits: Tensor, index: Tensor, table: Tensor, draws: Tensor | None) -> Tensor:
    """Half the covariance under G, half that of the sampled code: -> (C, H)."""
    covariance, mean = mapper.moments(g, logits, table)
    surplus = _row_scores(g, table, index[:, None])[:, 0] - mean  # (C,)
    return 0.5 * (covariance + _deviation(bits_of(index, logits.shape[1]).bool(), logits) * surplus[:, None])


def _bitwise(g: Tensor, logits: Tensor, index: Tensor, table: Tensor, slopes: Tensor | None) -> Tensor:
    """Slope of each bit times what flipping it is worth; without slopes (C, H), the sigmoid's: -> (C, H)."""
    flips = index[:, None] ^ (1 << torch.arange(logits.shape[1], device=index.device))  # (C, H)
    scores = _row_scores(g, table, torch.cat([index[:, None], flips], dim=1))  # (C, 1 + H)
    gain = scores[:, :1] - scores[:, 1:]
    gain = torch.where(bits_of(index, logits.shape[1]).bool(), gain, -gain)  # one minus zero, whichever was drawn
    return gain * (torch.sigmoid(logits) * torch.sigmoid(-logits) if slopes is None else slopes)


def _off_baseline(scores: Tensor, sampled: Tensor, *, dim: int) -> Tensor:
    """Each of m scores less the mean of the m others: of the other draws and the sampled code's (size 1 along `dim`)."""
    count = scores.shape[dim]
    total = scores.sum(dim, keepdim=True) + sampled
    return scores - (total - scores) / count


def _deviation(ones: Tensor, logits: Tensor) -> Tensor:
    """u - p for bits u, exact for p near 0 and near 1."""
    return torch.where(ones, torch.sigmoid(-logits), -torch.sigmoid(logits))


def _row_scores(g: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """<g, W_d> for a few codes of each token: (C, D), (2^H, D), (C, k) -> (C, k)."""
    rows = F.embedding(index, table).to(g.dtype)  # (C, k, D)
    return torch.bmm(g[:, None], rows.transpose(1, 2))[:, 0]  # twice as fast on a CPU as rows times g
