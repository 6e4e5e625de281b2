"""The two plainest parts of a latent with any sites, which the other plugins share.

    encoder     site_normal   q(z_s | x) = N(mean, diag std^2), read off the mean of the trunk over the site's positions
    injection   site_vector   W z_s, added to the residual stream of one block at the site's positions

Legend: B rows, R latent rows, T tokens, S sites, E dimensions, D width (of anything).
"""

from __future__ import annotations

from pydantic import Field
from torch import nn

from latentlm.config import Strict
from latentlm.interface import BlockCondition, Condition, Context, Encoder, Gaussian, Injection, Latent, Objective, Shape
from latentlm.plugins import hookimpl

latentlm_contract = 2


class SiteNormal(Encoder):
    """Two linear maps of the mean over a site, whose first positions predict its later tokens: sees_future."""

    Config = Strict
    family = "real"
    sees_future = True

    def __init__(self, config: Strict, shape: Shape) -> None:
        super().__init__(config, shape)
        self.taps = (shape.blocks // 2,)
        self.mean = nn.Linear(shape.width, shape.latent.dims)
        self.log_std = nn.Linear(shape.width, shape.latent.dims)

    def forward(self, context: Context, objective: Objective | None = None) -> Gaussian:
        """(B, S, E)."""
        pooled = context.site_means(context.taps[self.taps[0]])
        return Gaussian(self.mean(pooled), self.log_std(pooled))


class SiteVectorConfig(Strict):
    """Where the vector enters."""

    block: int | None = Field(None, ge=0, description="injected block; default: L//2")


class SiteVector(Injection):
    """A linear map; gradients reach the encoder through the value."""

    Config = SiteVectorConfig
    family = "real"
    slots = ("residual",)

    def __init__(self, config: SiteVectorConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        self.blocks = (shape.blocks // 2 if config.block is None else config.block,)
        self.map = nn.Linear(shape.latent.dims, shape.width, bias=False)

    def forward(self, latent: Latent, context: Context) -> Condition:
        """(R, T, D)."""
        rows = context.at_positions(self.map(latent.value.to(self.map.weight)))
        return Condition({self.blocks[0]: BlockCondition(residual=rows)})


@hookimpl
def latentlm_parts() -> dict[str, dict[str, type]]:
    """The parts of this plugin."""
    return {"encoder": {"site_normal": SiteNormal}, "injection": {"site_vector": SiteVector}}
