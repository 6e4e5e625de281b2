"""A planted posterior: one that certainly knows the future, in a decoder that certainly uses it.

At initialisation a decoder hardly uses its latents, so that dishonest scores sum to about 1 and a test of honesty has no
power. `plant` gives any ComposedDecoder an encoder without parameters that reads the next token off the text, and trains it for
a moment to make use of it. Whoever scores with these latents unweighted is then found out.

    bits        logit_h = +-strength by bit h of the next token
    Gaussian    mean_e = +-1 likewise, standard deviation 0.6
    others      their prior's `Distribution.leaning` says

Where the text ends the next token is not known: there the current one stands in, at a third of the strength, so that the
posterior of a context's last token is neither certain nor the prior. Chunks and documents take the mean over their positions.

Legend: B rows, T tokens, S sites, E event dimensions.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from latentlm.composed import ComposedDecoder
from latentlm.errors import UserError
from latentlm.interface import Batch, Bits, Context, Distribution, Encoder, Latent, Latents, Noise, Objective, Shape


class PlantedEncoder(Encoder):
    """Reads the next token of each position off the text."""

    Config = BaseModel
    taps = ()
    sees_future = True

    def __init__(self, config: Any, shape: Shape, *, like: Distribution | None = None, strength: float = 4.0) -> None:
        """`like`: a distribution of the decoder's prior, for its kind; None for bits."""
        super().__init__(config, shape)
        self.like, self.strength = like, strength

    def forward(self, context: Context, objective: Objective | None = None) -> Distribution:
        """Posterior (B, S, E)."""
        signs = self._site_means(self._signs(context), context)
        return Bits(self.strength * signs) if self.like is None else self.like.leaning(signs, self.strength)

    def _signs(self, context: Context) -> Tensor:
        """+-1 by the bits of the token to be known, (B, T, E), a third where it is only guessed; zero at padding."""
        real = context.documents >= 0
        follows = torch.zeros_like(real)
        follows[:, :-1] = real[:, :-1] & (context.documents[:, 1:] == context.documents[:, :-1])
        known = torch.where(follows, context.tokens.roll(-1, dims=1), context.tokens)
        bits = known[..., None] >> torch.arange(self.shape.latent.dims, device=known.device)
        trust = torch.where(follows, 1.0, 1.0 / 3.0) * real
        return (2.0 * (bits & 1) - 1.0) * trust[..., None]

    def _site_means(self, signs: Tensor, context: Context) -> Tensor:
        """Mean over each site's real positions, (B, T, E) -> (B, S, E)."""
        index = context.site_of[..., None]
        zeros = signs.new_zeros(signs.shape[0], context.sites, signs.shape[-1])
        sums = zeros.scatter_add(1, index.expand_as(signs), signs)
        real = (context.documents >= 0).to(signs.dtype)[..., None]
        counts = sums.new_zeros(*sums.shape[:2], 1).scatter_add(1, index, real)
        return sums / counts.clamp(min=1)


def plant(decoder: ComposedDecoder, *, strength: float = 4.0, steps: int = 150, seed: int = 0) -> ComposedDecoder:
    """A copy of `decoder` with the planted encoder, trained for `steps` steps on a noisy counting language, which takes about a
    second at width 32. Raises UserError for a decoder without latents."""
    if not decoder.has_latents:
        raise UserError("A decoder without latents has no posterior to plant.")
    model = copy.deepcopy(decoder)
    likes = _priors_of(model)
    for name, latent in model.latents.items():
        shape = Shape(backbone=model.config.backbone, latent=latent.shape)
        latent.plant(PlantedEncoder(None, shape, like=likes[name], strength=strength))
        latent.kl_schedule = None
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(parameters, lr=5e-3)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for step in range(steps):
        tokens = _language(32, 7, model.config.backbone.vocabulary, generator)
        batch = Batch.of(tokens[:, :-1].tolist(), tokens[:, 1:].tolist(), device=model.device)
        loss = model.loss(batch, step=step, noise=Noise.keyed(seed, [("plant", step, row) for row in range(32)]))
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
    return model.eval()


def _priors_of(model: ComposedDecoder) -> dict[str, Distribution]:
    """A distribution of the prior of each latent, without gradient."""
    with torch.no_grad():
        context = model.context(Batch.of([[0, 0]], device=model.device))
        latents, found = Latents({}), {}
        for name, latent in model.latents.items():
            zeros = torch.zeros(1, context.sites_of(name).mask.shape[1], latent.dims, device=model.device)
            latents = latents.plus(name, Latent(zeros))
            found[name] = model.prior(context, name, latents)
        return found


def _language(rows: int, length: int, vocabulary: int, generator: torch.Generator) -> Tensor:
    """Counting up by one, restarted at random half of the time: (rows, length) long."""
    tokens = torch.randint(vocabulary, (rows, length), generator=generator)
    restarts = torch.rand(rows, length, generator=generator) < 0.5
    for t in range(1, length):
        tokens[:, t] = torch.where(restarts[:, t], tokens[:, t], (tokens[:, t - 1] + 1) % vocabulary)
    return tokens
