"""What a training forward pass says.

Legend: that of `latentlm.interface`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from latentlm.interface.distributions import Distribution
from latentlm.interface.latents import only


@dataclass(frozen=True)
class LatentLoss:
    """What one latent adds to a training forward pass."""

    kl: Tensor
    """(B, S, E) or (B, S, 1) nats."""
    site_mask: Tensor
    """(B, S) bool."""
    posterior: Distribution
    normalised: bool = True
    """False: the prior's density is known up to a constant only, and so is the KL."""


@dataclass(frozen=True)
class Loss:
    """One training forward pass. With a single latent, `kl`, `site_mask` and `posterior` are that one's; without, None."""

    total: Tensor
    """Scalar, nats per target token, with gradient: mean cross-entropy + penalties + auxiliary."""
    reconstruction: Tensor
    """(B, T) cross-entropy under the posterior's z in nats, zero outside `target_mask`. Not a language-model loss."""
    target_mask: Tensor
    """(B, T) bool."""
    latents: Mapping[str, LatentLoss] = field(default_factory=dict)
    """By latent, in the decoder's order."""
    logs: Mapping[str, Tensor] = field(default_factory=dict)
    """What the schedules did, and what the parts say of losses of their own; "name/key" in a decoder of several latents."""
    auxiliary: Tensor | None = None
    """Scalar, nats per target token: the parts' own losses, in training; None where there are none."""

    @property
    def kl(self) -> Tensor | None:
        """(B, S, E) or (B, S, 1) nats."""
        return only(self.latents, 'loss.latents["{}"].kl').kl if self.latents else None

    @property
    def site_mask(self) -> Tensor | None:
        """(B, S) bool."""
        return only(self.latents, 'loss.latents["{}"].site_mask').site_mask if self.latents else None

    @property
    def posterior(self) -> Distribution | None:
        """q(z | x)."""
        return only(self.latents, 'loss.latents["{}"].posterior').posterior if self.latents else None
