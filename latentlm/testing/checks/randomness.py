"""Random numbers come from the noise that is handed in: keyed by row and site, never from a global state.

Legend: B rows, S sites, E event dimensions.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from latentlm.interface import Batch, Distribution, Latent, Latents, Noise
from latentlm.testing.comparing import TEXTS, UNMOVED, assert_close, both, fingerprint, pack, probes
from latentlm.testing.registry import check, need
from latentlm.testing.subject import Subject, drawn, noise


@check("randomness")
def random_state_untouched(subject: Subject) -> None:
    """Loss, prior draws, prefill and step neither read nor move a global random state (torch, numpy, Python)."""
    results = []
    for seed in (1, 2):
        with _seeded(seed):
            results.append(_everything(subject))
    for name in results[0]:
        assert_same = torch.equal(results[0][name], results[1][name])
        assert assert_same, f"{name} depends on a global random state: draw from the `noise` that is handed in"


def _everything(subject: Subject) -> dict[str, Tensor]:
    """What a decoder computes that has to do with chance; each is watched."""
    model, batch = subject.copied(), pack(TEXTS, vocabulary=subject.config.backbone.vocabulary)
    prompts, lengths = torch.tensor(subject.tokens(2, 6)), torch.tensor([6, 4])
    found: dict[str, Tensor] = {}

    def loss() -> Tensor:
        return model.loss(batch, step=0, noise=noise(2)).total.detach()

    def generated() -> Tensor:
        state = model.prefill(prompts, lengths, noise=noise(2))
        for token in (1, 2, 1, 2, 1):
            state = model.step(state, torch.tensor([token, token]), noise=noise(2))
        return state.logits

    found["the loss in training"] = _watched("the loss in training", lambda: (model.train(), loss())[1])
    found["the loss"] = _watched("the loss", lambda: (model.eval(), loss())[1])
    found["a generation"] = _watched("a generation", generated)
    if model.has_latents:
        context = model.context(batch)
        found["a draw from the prior"] = _watched(
            "a draw from the prior", lambda: _joined(model.sample_prior(context, noise(2)))
        )
        if model.has_encoder:
            found["a draw from the posterior"] = _watched(
                "a draw from the posterior", lambda: _joined(model.infer(context, noise(2)))
            )
    return found


def _joined(latents: Latents) -> Tensor:
    """Every number of every latent."""
    return torch.cat([latent.value.detach().flatten() for latent in latents.values()])


def _watched(what: str, run: Callable[[], Tensor]) -> Tensor:
    """The result of `run`, which must leave every global random state as it was."""
    before = _states()
    result = run()
    assert _states() == before, f"{what} moves a global random state: draw from the `noise` that is handed in"
    return result


def _states() -> tuple[bytes, str, str]:
    return bytes(torch.get_rng_state().numpy()), str(np.random.get_state()), str(random.getstate())


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Global random states from `seed`, and afterwards as they were."""
    kept = (np.random.get_state(), random.getstate())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(kept[0])
            random.setstate(kept[1])


@check("randomness")
@torch.no_grad()
def draws_keyed(subject: Subject) -> None:
    """Equal noise draws equal latents, row by row and site by site; other noise draws others."""
    model = subject.model
    need(model.has_latents, "it has no latents")
    batch = pack(TEXTS, vocabulary=subject.config.backbone.vocabulary)
    context = model.context(batch)
    latents = drawn(model, context)
    assert latents is not None
    for (_, name), distribution in both(model, context, latents).items():
        rows, sites, _ = distribution.shape
        first = distribution.sample(noise(rows)).value
        again = distribution.sample(noise(rows)).value
        assert torch.equal(first, again), f"{name} draws two latents from one noise"
        order = list(reversed(range(rows)))
        swapped = distribution.select(torch.tensor(order)).sample(noise(rows).select(order)).value
        assert_close(swapped, first[order], f"draws of {name} for rows in another order: noise is keyed by row")
        for site in range(sites):
            one = distribution.narrow(site, 1).sample(noise(rows).at([site])).value[:, 0]
            assert_close(one, first[:, site], f"the draw of {name} at site {site} alone: noise is keyed by site (Noise.at)")
        if not distribution.deterministic:
            others = [distribution.sample(noise(rows, seed=seed)).value for seed in range(1, 9)]
            assert any(not torch.equal(first, other) for other in others), f"{name} draws one latent from every noise"


@check("randomness")
@torch.no_grad()
def distributions_consistent(subject: Subject) -> None:
    """`select` and `narrow` pick rows and sites, and a temperature of 1 changes nothing."""
    model = subject.model
    need(model.has_latents, "it has no latents")
    context = model.context(Batch.of(subject.tokens(2)))
    latents = drawn(model, context)
    assert latents is not None
    values_of = probes(model, context)
    for (latent, name), distribution in both(model, context, latents).items():
        values = values_of[latent]
        whole = fingerprint(distribution, values)
        rows, sites, _ = distribution.shape
        picked = torch.tensor([1, 0, 1])
        selected = fingerprint(distribution.select(picked), values[:, picked])
        assert_close(selected, whole[picked], f"`select` of {name}", tolerance=UNMOVED)
        for start, length in ((0, 1), (sites - 1, 1), (0, sites)):
            narrow = fingerprint(distribution.narrow(start, length), values[:, :, start : start + length])
            assert_close(narrow, whole[:, start : start + length], f"`narrow` of {name}", tolerance=UNMOVED)
        assert_close(fingerprint(distribution.tempered(1.0), values), whole, f"temperature 1 of {name}", tolerance=UNMOVED)
        one = model.latents[latent].dims
        expected = distribution.expected()
        assert expected is None or tuple(expected.shape) == (rows, sites, one), f"`expected` of {name} has another shape"
        _support_fits(distribution, name)


def _support_fits(distribution: Distribution, name: str) -> None:
    """Every draw is one of the values of `support`."""
    support = distribution.support()
    if support is None or len(support) > 4096:
        return
    assert support.shape[1] == distribution.shape[2], f"`support` of {name} has shape {tuple(support.shape)}, not (N, E)"
    rows = distribution.shape[0]
    value = distribution.sample(Noise.keyed(5, range(rows))).value
    hits = (value[:, :, None] == support.to(value)).all(-1).sum(-1)  # (B, S)
    assert bool((hits == 1).all()), f"{name} draws values that are not in its `support`, or stand there twice"
    if distribution.normalised and not distribution.deterministic:
        sites = distribution.shape[1]
        mass = torch.stack(
            [distribution.log_prob(Latent(point.expand(rows, sites, -1).to(value))).double() for point in support], dim=-1
        ).logsumexp(-1)
        assert_close(mass.exp(), torch.ones_like(mass), f"the probabilities of {name} over its `support`")
