"""From features to a distribution over the bits of a site, in float32.

    independent   hidden -> E logits:     p(z) = prod_h Bernoulli(z_h; sigmoid(l_h))
    joint         hidden -> 2^E logits:   p(z) = softmax(l)[code of z], so that bits may depend on one another within a site

Legend: B rows, S sites, E bits, N outputs, F features.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentlm.backbone import wide_linear
from latentlm.errors import UserError
from latentlm.interface import Bits, Codes

Within = Literal["independent", "joint"]
MOST_JOINT_BITS = 12


class Readout(nn.Module):
    """One hidden layer (none if `hidden` is 0) and a linear map to the logits of a site's bits."""

    def __init__(self, features: int, bits: int, *, hidden: int, within: Within) -> None:
        super().__init__()
        if within == "joint" and bits > MOST_JOINT_BITS:
            raise UserError(
                f'{bits} bits have {2**bits} codes, too many for a prior with within "joint" (at most {MOST_JOINT_BITS} bits): '
                'use fewer dimensions, or within: "independent".'
            )
        self.within = within
        self.hidden = nn.Linear(features, hidden) if hidden else None
        self.output = nn.Linear(hidden or features, bits if within == "independent" else 2**bits)

    @torch.no_grad()
    def start_uniform(self) -> None:
        """Logits zero, whatever the features: the Free Transformer's prior."""
        self.output.weight.zero_()

    def forward(self, features: Tensor) -> Bits | Codes:
        """(B, S, F) -> the distribution of B x S sites."""
        if self.hidden is not None:
            features = F.silu(wide_linear(features, self.hidden))
        logits = wide_linear(features, self.output)  # (B, S, N)
        return Bits(logits) if self.within == "independent" else Codes(logits)


def detached(distribution: Bits | Codes) -> Bits | Codes:
    """The same distribution, out of the graph."""
    if isinstance(distribution, Bits):
        return Bits(distribution.logits.detach())
    return Codes(distribution.log_probs.detach())
