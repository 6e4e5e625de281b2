"""Configuration, building, initialisation, shapes, saving.

Legend: B rows, T tokens, D width, S sites, E event dimensions, K samples, V vocabulary.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import BaseModel
from safetensors.torch import save_file
from torch import Tensor, nn

from latentlm import plugins
from latentlm.composed import build, complete
from latentlm.config import SOCKETS, LatentConfig, ModelConfig, PartSpec, as_yaml, parse
from latentlm.errors import UserError
from latentlm.interface import Batch, Latent, Noise
from latentlm.testing.comparing import TEXTS, called, detached, pack, posteriors, priors
from latentlm.testing.registry import check, need
from latentlm.testing.subject import Subject, drawn, noise
from latentlm.zoo.weights import load_into, weights_of

_MARK = 77


@check("structure")
def config_round_trip(subject: Subject) -> None:
    """The completed configuration is the same after YAML and JSON, and completing it again changes nothing."""
    full = subject.complete
    data = full.model_dump(mode="json")
    for name, again in {"YAML": yaml.safe_load(as_yaml(full)), "JSON": json.loads(json.dumps(data))}.items():
        read = parse(ModelConfig, again, source=name)
        assert read == full, f"read back from {name}, the configuration is another: {read} instead of {full}"
        assert list(read.latents) == list(full.latents), f"read back from {name}, the latents are in another order"
        assert complete(read) == full, f"completing what was read from {name} changes it: `complete` must keep what is set"
    named = {name: tuple(tensor.shape) for name, tensor in build(full, device="meta").state_dict().items()}
    here = {name: tuple(tensor.shape) for name, tensor in subject.model.state_dict().items()}
    assert named == here, "the completed configuration builds another model than the one that left its sockets open"


@check("structure")
def unknown_settings_refused(subject: Subject) -> None:
    """Every part's Config refuses a setting that it does not have, by name."""
    checked = 0
    for name, latent in subject.complete.by_latent.items():
        for socket, spec in _specs(latent).items():
            part = plugins.get(socket, str(spec.name))
            said = _refusal(part.Config, {**spec.settings, "no_such_setting": 1})
            what = f'{part.Config.__name__} of {socket} "{spec.name}" of {name}'
            assert said is not None, f"{what} takes unknown settings: derive it from latentlm.config.Strict"
            assert "no_such_setting" in said, f"{what}: the error about an unknown setting does not name it: {said}"
            checked += 1
    need(checked, "it has no parts")


def _specs(latent: LatentConfig) -> dict[str, PartSpec]:
    """The parts of one latent by socket; its granularity where that is a part with settings."""
    specs = {socket: getattr(latent, socket) for socket in (*SOCKETS, "granularity")}
    return {socket: spec for socket, spec in specs.items() if isinstance(spec, PartSpec) and spec.name is not None}


def _refusal(config: type[BaseModel], settings: dict[str, Any]) -> str | None:
    """What is said against the settings; None where they are taken."""
    try:
        parse(config, settings, source="settings")
    except UserError as error:
        return str(error)
    return None


@check("structure")
def meta_build_equals_real(subject: Subject) -> None:
    """A build without memory has the names, shapes and dtypes of a real one."""
    found, real = build(subject.config, device="meta"), subject.model
    meta, here = _facts(found), _facts(real)
    differ = sorted({name for name in {*meta, *here} if meta.get(name) != here.get(name)})
    assert not differ, f"on the meta device these are others: {', '.join(f'{n}: {meta.get(n)}, {here.get(n)}' for n in differ)}"
    real_now = sorted(name for name, tensor in _tensors(found) if not tensor.is_meta)
    assert not real_now, f"{', '.join(real_now)} took memory in a build on the meta device: create them without a device"
    half = _facts(build(subject.config, device="meta", dtype=torch.bfloat16))
    assert half.keys() == here.keys(), "in bfloat16 the model has other tensors"


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _facts(model: nn.Module) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in _tensors(model)}


@check("structure")
def initialisation_complete(subject: Subject) -> None:
    """`init_weights` sets every parameter and buffer, from the seed alone."""
    model = build(subject.config, init=False)
    with torch.no_grad():
        for _, tensor in _tensors(model):
            tensor.fill_(float("nan") if tensor.is_floating_point() else _MARK)
    model.init_weights(torch.Generator().manual_seed(0))
    unset = [name for name, tensor in _tensors(model) if bool(_untouched(tensor).any())]
    assert not unset, f"init_weights leaves {', '.join(unset)} unset: set there what your part makes itself"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        before = torch.get_rng_state()
        one = dict(_tensors(build(subject.config, seed=5)))
        assert torch.equal(before, torch.get_rng_state()), "building moves torch's global random state: use the generator given"
        torch.manual_seed(2)
        two = dict(_tensors(build(subject.config, seed=5)))
    other = [name for name in one if not torch.equal(one[name], two[name])]
    assert not other, f"{', '.join(other)} differ between two builds with one seed: draw them from the generator given"
    seeded = dict(_tensors(build(subject.config, seed=6)))
    assert any(not torch.equal(one[name], seeded[name]) for name in one), "another seed makes the same weights"


def _untouched(tensor: Tensor) -> Tensor:
    """Elements that still hold what was there before; a bool holds nothing that would tell."""
    if tensor.is_floating_point():
        return tensor.isnan()
    return tensor == _MARK if tensor.dtype != torch.bool else torch.zeros_like(tensor)


@check("structure")
@torch.no_grad()
def shapes_and_dtypes(subject: Subject) -> None:
    """Posterior, prior, KL, hidden states, logits and loss have the contract's shapes and types, and are finite."""
    model, batch = subject.model, pack(TEXTS, vocabulary=subject.config.backbone.vocabulary)
    context = model.context(batch)
    rows, length = batch.inputs.shape
    samples, width = 3, model.config.backbone.width
    latents = drawn(model, context)
    if latents is not None:
        _latent_shapes(subject)
        latents = latents.select(torch.arange(rows).repeat_interleave(samples))
    wide = rows if latents is None else rows * samples
    hidden = model.hidden(context, latents)
    _has_shape(hidden, (wide, length, width), "hidden")
    logits = model.logits(hidden)
    _has_shape(logits, (wide, length, model.config.backbone.vocabulary), "logits")
    assert logits.dtype == torch.float32, f"logits are {logits.dtype}, not float32"
    loss = model.loss(batch, step=0, noise=noise(rows))
    _has_shape(loss.total, (), "loss.total")
    _has_shape(loss.reconstruction, (rows, length), "loss.reconstruction")
    assert not bool(loss.reconstruction[~batch.target_mask].any()), "loss.reconstruction is not zero outside the target mask"
    assert torch.equal(loss.target_mask, batch.target_mask), "loss.target_mask is not the batch's"


@torch.no_grad()
def _latent_shapes(subject: Subject) -> None:
    """Everything about the latents."""
    model, batch = subject.model, pack(TEXTS, vocabulary=subject.config.backbone.vocabulary)
    context = model.context(batch)
    rows, loss = context.rows, model.loss(batch, step=0, noise=noise(context.rows))
    assert list(loss.latents) == list(model.latents), f"the loss speaks of {list(loss.latents)}, not of {list(model.latents)}"
    latents = detached(model.sample_prior(context, noise(rows)))
    assert list(latents) == list(model.latents), f"sample_prior draws {list(latents)}, in another order than the latents"
    repeated = latents.select(torch.arange(rows).repeat_interleave(2))
    known = posteriors(model, context, latents)
    for name, p in priors(model, context, latents).items():
        sites, events = context.sites_of(name).mask.shape[1], model.latents[name].dims
        mask = context.sites_of(name).mask
        _has_shape(latents[name].value, (rows, sites, events), f"{name} of sample_prior")
        q = known.get(name, p)
        for socket, distribution in {"encoder": q, "prior": p}.items():
            what = called(model, socket, name)
            assert tuple(distribution.shape) == (rows, sites, events), f"{what} has shape {tuple(distribution.shape)}"
            value = distribution.sample(noise(rows)).value
            _has_shape(value, (rows, sites, events), f"a sample of {what}")
            if not distribution.deterministic:
                density = distribution.log_prob(Latent(value))
                _has_shape(density, (rows, sites), f"log_prob of {what}", finite=mask)
                assert density.dtype in (torch.float32, torch.float64), f"log_prob of {what} is {density.dtype}"
        allowed = [(rows, sites, events), (rows, sites, 1)]
        kl = q.kl(p, latents[name] if q.deterministic else Latent(q.sample(noise(rows)).value))
        for found, what in ((kl, f"the KL of {name}"), (loss.latents[name].kl, f"the KL of {name} in the loss")):
            assert tuple(found.shape) in allowed, (
                f"{what} has shape {tuple(found.shape)}, not {allowed[0]} or {allowed[1]}: never sum it, the KL schedule "
                "chooses the level"
            )
        wide = model.prior(context, name, repeated)
        # A prior that reads neither text nor latents may give one row for each text: the frame repeats what it needs.
        assert wide.shape[0] in (rows, 2 * rows), (
            f"{called(model, 'prior', name)} has {wide.shape[0]} rows for {2 * rows} latent rows"
        )
        if model.latents[name].autoregressive:
            assert wide.shape[0] == 2 * rows, "an autoregressive prior has one row for each latent row"


def _has_shape(tensor: Tensor, shape: tuple[int, ...], what: str, *, finite: Tensor | None = None) -> None:
    assert tuple(tensor.shape) == shape, f"{what} has shape {tuple(tensor.shape)}, not {shape}"
    values = tensor if finite is None else tensor[finite]
    assert bool(values.isfinite().all()), f"{what} is not finite"


@check("structure")
@torch.no_grad()
def state_round_trip(subject: Subject) -> None:
    """Weights saved as safetensors and loaded into a fresh build are the same, bit for bit, and so is what it computes."""
    fresh = build(subject.config, init=False).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in weights_of(subject.model).items()}, path)
        load_into(fresh, path)
    one, two = subject.model.state_dict(), fresh.state_dict()
    assert one.keys() == two.keys(), "the fresh build has other tensors"
    other = [name for name in one if not torch.equal(one[name], two[name])]
    assert not other, f"{', '.join(other)} did not come back as saved"
    batch = Batch.of(subject.tokens(2))
    losses = [model.loss(batch, step=0, noise=Noise.keyed(0, [0, 1])) for model in (subject.model, fresh)]
    assert torch.equal(losses[0].reconstruction, losses[1].reconstruction), (
        "the loaded model computes something else: state outside parameters and persistent buffers is lost"
    )
