"""DELLA's injection: z_l into the values of block l (paper, section 4.2), and the bag of words as an auxiliary loss.

The values of every position of a document are fused with the document's z_l: those of new tokens in generation too, so that the
cache holds fused values. Ways to fuse, see `fusion`:

    product (default)   equation 9
    tensor              the low-rank product that multiplies before it sums (ours)
    gate                v * (1 + W_z z): nothing but a gate on the values (ours)

Starts. `identity` (ours): maps of the values at the identity (of `tensor`: random), W_z ~ normal(0, init_std), so that the
decoder begins near the one without z and the encoder hears from it at once. `zero` (ours): W_z zero too: exactly the decoder
without z, whose first gradient does not reach the encoder. `random`: all weights and constants of equation 9 ~ normal(0,
init_std), the authors' code.

Bag of words (Zhao et al. 2017, arXiv 1703.10960; table 5 of the paper): weight * (1/N) sum over the N target tokens x of
-log softmax(f(z_L))_x, z_L the last layer's latent of the token's own site, f = W_2 tanh(W_1 z_L). Off by default, as in the
paper's main results; the code's weight is 0.2. There f is linear and ends in the decoder's readout, which a part cannot see.

Legend: R latent rows, T tokens, S sites, V vocabulary, L latents, p dimensions of each, N = Hkv*dh.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from latentlm.backbone.init import normal_
from latentlm.interface import Batch, BlockCondition, Condition, Context, Injection, Latent, Shape, ValueMap
from latentlm_della.fusion import Fusion, ProductOfSums, SumOfProducts, linears
from latentlm_della.layers import LayersConfig, layout

RANK = 4
"""r of equation 9 in the authors' code; their count of parameters confirms it (docs/della.md)."""


class DellaInjectionConfig(LayersConfig):
    """How a latent meets the values."""

    form: Literal["product", "tensor", "gate"] = Field("product", description="product (equation 9), tensor, gate")
    rank: int | None = Field(None, ge=1, description=f"r; product and tensor only (default {RANK})")
    start: Literal["identity", "zero", "random"] = Field(
        "identity", description="identity: near the decoder without z; zero: exactly it; random (product only): as the authors"
    )
    bag_of_words: float = Field(0.0, ge=0, allow_inf_nan=False, description="weight of the auxiliary loss; the code's is 0.2")

    @model_validator(mode="after")
    def _only_where_it_does_something(self) -> Self:
        if self.form == "gate" and self.rank is not None:
            raise ValueError('rank belongs to form "product" or "tensor", but form is "gate": drop it.')
        if self.form != "product" and self.start == "random":
            raise ValueError(f'start "random" belongs to form "product", but form is "{self.form}": use identity or zero.')
        return self


class DellaInjection(Injection):
    """One fusion per layer that has a latent."""

    Config = DellaInjectionConfig
    slots = ("value_gate",)
    family = "real"

    def __init__(self, config: DellaInjectionConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        self.blocks, size = layout(config, shape)
        assert shape.backbone.kv_heads is not None
        assert shape.backbone.head_dim is not None
        width = shape.backbone.kv_heads * shape.backbone.head_dim
        if config.form == "gate":
            self.fusions = nn.ModuleList(nn.Linear(size, width) for _ in self.blocks)
        else:
            kind = ProductOfSums if config.form == "product" else SumOfProducts
            self.fusions = nn.ModuleList(kind(size, width, config.rank or RANK) for _ in self.blocks)
        self.words = BagOfWords(size, shape.width, shape.backbone.vocabulary) if config.bag_of_words else None

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Where the fusions start; see the module's docstring. The frame has set every weight to normal(0, init_std)."""
        for fusion in self.fusions:
            if isinstance(fusion, Fusion):
                self._start(fusion, generator)
            elif self.config.start == "zero":
                assert isinstance(fusion, nn.Linear)
                fusion.weight.zero_()

    def _start(self, fusion: Fusion, generator: torch.Generator | None) -> None:
        of_values, of_latent = linears(fusion.of_values), linears(fusion.of_latent)
        if self.config.start == "random":
            for linear in (*of_values, *of_latent):
                normal_(linear.bias, std=self.shape.backbone.init_std, generator=generator)
            of_values[0].weight.diagonal().sub_(1.0)  # less the identity and the one around which they are written
            of_latent[0].bias.sub_(1.0)
        elif self.config.form == "product":
            for linear in of_values:
                linear.weight.zero_()
        if self.config.start == "zero":
            for linear in of_latent:
                linear.weight.zero_()

    def forward(self, latent: Latent, context: Context) -> Condition:
        """The values of block l, fused with z_l."""
        weights = next(self.fusions.parameters())
        parts = latent.value.to(weights).unflatten(-1, (len(self.blocks), -1)).unbind(-2)  # (R, S, p) each
        blocks = {}
        for block, fusion, z in zip(self.blocks, self.fusions, parts, strict=True):
            if isinstance(fusion, Fusion):
                gate: Tensor | ValueMap = ValueMap(fusion, self._placed(fusion.factor(z), context))
            else:
                gate = self._placed(fusion(z), context)
            blocks[block] = BlockCondition(value_gate=gate)
        return Condition(blocks)

    def _placed(self, factor: Tensor, context: Context) -> Tensor:
        """What each site's latent gives to its own positions: (R, S, ...) -> (R, T, ...), or (R, 1, ...) for a single site."""
        if self.shape.latent.granularity == "token" or factor.shape[1] == 1:
            return factor
        index = context.site_of.view(*context.site_of.shape, *[1] * (factor.dim() - 2))
        return factor.gather(1, index.expand(-1, -1, *factor.shape[2:]))

    def auxiliary(self, latent: Latent, context: Context, batch: Batch) -> tuple[Tensor, dict[str, Tensor]] | None:
        """weight * bag of words, nats per target token; logs `bag_of_words`, the nats without the weight."""
        if self.words is None:
            return None
        last = latent.value.unflatten(-1, (len(self.blocks), -1))[..., -1, :]
        nats = self.words(last, context.site_of, batch.targets, batch.target_mask)
        return self.config.bag_of_words * nats, {"bag_of_words": nats.detach()}


class BagOfWords(nn.Module):
    """-log softmax(W_2 tanh(W_1 z))[target], averaged over the target tokens."""

    def __init__(self, latent_size: int, width: int, vocabulary: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(latent_size, width)
        self.readout = nn.Linear(width, vocabulary)

    def forward(self, z: Tensor, site_of: Tensor, targets: Tensor, target_mask: Tensor) -> Tensor:
        """z (B, S, p), the rest (B, T); nats per target token."""
        logits = self.readout(torch.tanh(self.hidden(z.to(self.hidden.weight.dtype))))
        log_probs = logits.float().log_softmax(-1)  # (B, S, V)
        rows = torch.arange(len(site_of), device=site_of.device)[:, None]
        known = log_probs[rows, site_of, targets.masked_fill(~target_mask, 0)]  # (B, T)
        return -(known * target_mask).sum() / target_mask.sum().clamp(min=1)
