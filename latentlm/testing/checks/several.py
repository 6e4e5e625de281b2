"""Latents beside one another: each has numbers, values and settings of its own, by name.

Legend: B rows, S sites, E event dimensions.
"""

from __future__ import annotations

import torch

from latentlm.composed import build
from latentlm.config import ModelConfig
from latentlm.generation import generate
from latentlm.interface import Batch, Generation, LatentDecoder, noise_of
from latentlm.testing.comparing import assert_close, before, called
from latentlm.testing.registry import check, need
from latentlm.testing.subject import Subject, noise, stirred


@check("several")
@torch.no_grad()
def latents_draw_apart(subject: Subject) -> None:
    """`infer` draws each latent from numbers of its own: `noise_of(noise, name, names)`."""
    model = subject.model
    need(model.has_latents, "it has no latents")
    context, names = model.context(Batch.of(subject.tokens(2))), list(model.latents)
    drawn = model.infer(context, noise(2))
    assert list(drawn) == names, f"infer draws {list(drawn)}, in another order than the latents"
    for name, latent in model.latents.items():
        own = noise_of(noise(2), name, names)
        socket = "encoder" if latent.has_encoder else "prior"
        if latent.has_encoder:
            expected = model.posterior(context, name, before(model, drawn, name)).sample(own).value
        else:  # teacher-forced where it goes site by site
            expected = model.prior(context, name, drawn).sample(own).value
        what = f"draws of {called(model, socket, name)}, against its own numbers (`noise_of`; latents may not share a key)"
        assert_close(drawn[name].value, expected.to(drawn[name].value), what)


@check("several")
@torch.no_grad()
def adding_a_latent_keeps_draws(subject: Subject) -> None:
    """Another latent behind the others does not change what these draw, from posterior or prior."""
    model, config = subject.model, subject.config
    need(len(config.latents) > 1, "it has no several latents: in a decoder of one, the numbers are those of the row")
    last, name = list(config.latents)[-1], "one_more"
    assert name not in config.latents
    more = config.model_copy(update={"latents": {**config.latents, name: config.latents[last]}})
    other = _with_weights_of(model, more)
    batch = Batch.of(subject.tokens(2))
    for what in ("infer", "sample_prior"):
        here, there = (getattr(one, what)(one.context(batch), noise(2)) for one in (model, other))
        for latent in model.latents:
            found, expected = there[latent].value, here[latent].value
            assert_close(found, expected, f"{latent} drawn by {what}, with one more latent behind {last}")


def _with_weights_of(model: LatentDecoder, config: ModelConfig) -> LatentDecoder:
    """A decoder with the weights of another where it has them."""
    other = stirred(build(config, seed=5))
    weights = model.state_dict()
    other.load_state_dict({key: weights.get(key, tensor) for key, tensor in other.state_dict().items()})
    return other


def _generated(subject: Subject, *, samples: int = 1, latents: object = "fresh") -> list[Generation]:
    """Continuations of one prompt, without an end of text."""
    prompt = subject.tokens(length=5)[0]
    return generate(subject.model, [prompt], max_tokens=6, seed=1, samples=samples, latents=latents)  # type: ignore[arg-type]


@check("several")
def latents_given_by_name(subject: Subject) -> None:
    """The values that a latent drew, given back by name, make the same text; the others draw what they drew."""
    model = subject.model
    need(model.has_latents, "it has no latents")
    (free,) = _generated(subject)
    assert free.latents is not None
    for name in model.latents:
        (again,) = _generated(subject, latents={name: free.latents[name]})
        assert again.latents is not None
        assert again.tokens == free.tokens, (
            f"with the values of {name} given back, the text is {again.tokens}, not {free.tokens}"
        )
        for other, latent in free.latents.items():
            what = f"{other} of a generation, the values of {name} given back"
            assert_close(again.latents[other].value, latent.value, what)


@check("several")
def latents_shared_by_name(subject: Subject) -> None:
    """Shared by name, a latent meets the same draws in every sample of a prompt, whatever the others do."""
    model = subject.model
    need(model.has_latents, "it has no latents")
    shared: dict[str, str] = {}
    sites = model.context(Batch.of([subject.tokens(length=5)[0]]))
    for name in model.latents:
        shared[name] = "shared"  # and those before it, on which it may depend
        rows = _generated(subject, samples=3, latents=dict(shared))
        count = sites.sites_of(name).mask.shape[1]  # those of the prompt: behind it the texts differ
        values = [row.latents[name].value[:, :count] for row in rows if row.latents is not None]
        for number, value in enumerate(values[1:], start=1):
            assert_close(value, values[0], f"{name} of sample {number}, shared, against sample 0")
