"""Two latents, the second below the first: a vector for the document, and token bits whose prior reads it.

    p(topic) = N(0, I)        p(z_t | x_t, topic) = prod_e Bernoulli(sigmoid(W embedding(x_t) + U topic)_e)

The document's vector is any published one (`like: gaussian`), the bits are the Free Transformer's; this plugin is the one part
that is new, the prior between them:

    latents:
      topic: {like: gaussian, dims: 8}
      bits:  {like: free, dims: 4, prior: {name: topical_bits, above: [topic]}}

Legend: B rows, R latent rows, T tokens, S sites, D width, E bits, A dimensions of all latents above.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from latentlm.config import Strict
from latentlm.errors import UserError
from latentlm.interface import Bits, Context, Latent, Prior, Shape
from latentlm.plugins import hookimpl

latentlm_contract = 2


class TopicalBits(Prior):
    """Linear in the token's embedding and the latents above that are open at it."""

    Config = Strict
    family = "bits"
    reads_above = True
    taps = (0,)

    def __init__(self, config: Strict, shape: Shape) -> None:
        super().__init__(config, shape)
        if not shape.latent.above:
            raise UserError("it reads a latent of the document: name one in `above`.")
        self.of_token = nn.Linear(shape.width, shape.latent.dims)
        self.of_topic = nn.Linear(sum(latent.dims for latent in shape.latent.above.values()), shape.latent.dims, bias=False)

    def forward(self, context: Context, latent: Latent | None = None) -> Bits:
        """(R, S, E)."""
        above = {name: context.at_first_positions(value) for name, value in context.above.items()}
        return self._bits(context.at_first_positions(context.taps[0]), above)

    def step(
        self, state: Any, taps: Mapping[int, Tensor], previous: Tensor | None, starts: Tensor, above: Mapping[str, Tensor]
    ) -> tuple[Bits, Any]:
        """(B, 1, E)."""
        return self._bits(taps[0][:, None], {name: value[:, None] for name, value in above.items()}), state

    def _bits(self, token: Tensor, above: Mapping[str, Tensor]) -> Bits:
        """Of sites whose first tokens' embeddings are (R, S, D), under latents (R, S, ...)."""
        topic = torch.cat([above[name] for name in self.shape.latent.above], dim=-1)  # (R, S, A)
        return Bits(self.of_token(token) + self.of_topic(topic.to(token)))


@hookimpl
def latentlm_parts() -> dict[str, dict[str, type]]:
    """The part of this plugin."""
    return {"prior": {"topical_bits": TopicalBits}}
