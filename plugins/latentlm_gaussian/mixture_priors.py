"""Priors that are mixtures of K Gaussians (Tomczak & Welling 2018, "VAE with a VampPrior", arXiv 1705.07120).

    vamp   p(z) = (1/K) sum_k q(z | u_k)                    section 2.2, equation 9: posteriors of learned pseudo-inputs u_k
    mog    p(z) = (1/K) sum_k N(z; mean_k, diag std_k^2)    their comparison: the components themselves are learned

K = 500 is the paper's. A pseudo-input is there an image of real numbers. Text is not, so here it is a sequence of embeddings,
which goes through the encoder's tower in the place of embedded tokens; its length is a setting of ours (16). Whatever the
encoder learns the prior learns too. Every training step runs the tower on K pseudo-inputs: at K = 500 and length 16 that is
8,000 more positions, whatever the batch.

The KL against a mixture is estimated at one sample and does not factorise over dimensions: (B, S, 1). A budget per dimension
then means a budget per document.

Legend: B rows, R latent rows, S sites, K components, N length of a pseudo-input, D width, E dimensions.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor, nn

from latentlm.backbone.init import normal_
from latentlm.config import Strict
from latentlm.errors import UserError
from latentlm.interface import Context, Distribution, Gaussian, Latent, Parts, Prior, Shape
from latentlm_gaussian.mixture import GaussianMixture
from latentlm_gaussian.standard import standard_normal


class _Mixture(Prior):
    """The same mixture at every site."""

    family = "real"

    @abstractmethod
    def components(self) -> tuple[Tensor, Tensor]:
        """Means and log standard deviations, (K, E) each."""

    def forward(self, context: Context, latent: Latent | None = None) -> GaussianMixture:
        """(R, S, E)."""
        return GaussianMixture(*self.components(), rows=context.rows, sites=context.sites)

    def step(
        self, state: Any, taps: Mapping[int, Tensor], previous: Tensor | None, starts: Tensor, above: Mapping[str, Tensor]
    ) -> tuple[Distribution, Any]:
        """(B, 1, E). Where no site begins, which is at all tokens but a document's first, anything will do."""
        if not bool(starts.any()):
            return standard_normal(len(starts), 1, self.shape.latent.dims, starts.device), state
        return GaussianMixture(*self.components(), rows=len(starts), sites=1), state


class MixtureConfig(Strict):
    """Size."""

    components: int = Field(500, ge=1, description="K; 500 in the paper")


class MixturePrior(_Mixture):
    """Learned means and standard deviations."""

    Config = MixtureConfig

    def __init__(self, config: MixtureConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        self.mean = nn.Parameter(torch.empty(config.components, shape.latent.dims))
        self.log_std = nn.Parameter(torch.empty(config.components, shape.latent.dims))

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Means drawn from the standard normal, standard deviations 1 (ours)."""
        normal_(self.mean, std=1.0, generator=generator)
        self.log_std.zero_()

    def components(self) -> tuple[Tensor, Tensor]:
        """(K, E) each."""
        return self.mean, self.log_std


class VampConfig(Strict):
    """Pseudo-inputs."""

    components: int = Field(500, ge=1, description="K, the number of pseudo-inputs; 500 in the paper")
    length: int = Field(16, ge=1, description="N, embeddings in a pseudo-input")


@runtime_checkable
class ReadsEmbeddings(Protocol):
    """An encoder that takes embeddings in the place of a text's own."""

    def read(self, stream: Tensor, context: Context) -> Gaussian:
        """Posterior (B, S, E) of the embeddings `stream` (B, T, D)."""


class VampPrior(_Mixture):
    """The posteriors of learned pseudo-inputs, by the decoder's own encoder."""

    Config = VampConfig

    def __init__(self, config: VampConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        if config.length > shape.backbone.context:
            raise UserError(
                f"Pseudo-inputs of {config.length} embeddings are longer than the model's context of {shape.backbone.context}: "
                "lower the prior's length."
            )
        self.pseudo_inputs = nn.Parameter(torch.empty(config.components, config.length, shape.width))
        self._bound: tuple[ReadsEmbeddings, ...] = ()  # in a tuple, so that it is no module of this one

    def bind(self, parts: Parts) -> None:
        """Keep the encoder. Raises UserError where it cannot read pseudo-inputs."""
        encoder = parts.encoder
        if not isinstance(encoder, ReadsEmbeddings):
            found = "none" if encoder is None else type(encoder).__name__
            raise UserError(
                "The vamp prior is made of posteriors of embeddings, which the encoder must be able to read; this one is "
                f"{found}. "
                'Take encoder "gaussian_tower", or prior "mog".'
            )
        self._bound = (encoder,)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Like embeddings (ours; the paper draws pixels)."""
        normal_(self.pseudo_inputs, std=self.shape.backbone.init_std, generator=generator)

    def components(self) -> tuple[Tensor, Tensor]:
        """(K, E) each: the encoder on the pseudo-inputs, each a document of its own."""
        (encoder,) = self._bound
        posterior = encoder.read(self.pseudo_inputs, self._context())
        return posterior.mean[:, 0], posterior.log_std[:, 0]

    def _context(self) -> Context:
        """K rows of N positions without tokens."""
        count, length = self.config.components, self.config.length
        zeros = torch.zeros(count, length, dtype=torch.long, device=self.pseudo_inputs.device)
        return Context(
            tokens=zeros,
            taps={},
            positions=torch.arange(length, device=zeros.device).expand(count, -1),
            documents=zeros,
            site_of=zeros,
            site_mask=torch.ones(count, 1, dtype=torch.bool, device=zeros.device),
            given=zeros[:, 0],
        )
