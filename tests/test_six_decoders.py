"""Six things that decoders of the literature do, each said by a small plugin of a third party (tests/distributions/
latentlm_sixmethods, really installed): trained, generated from token by token, scored, packed.

    topics         a document's vector above token bits, whose prior reads it
    energy         a prior known up to a constant: trained and drawn from, never scored
    codebook       a codebook that moves after each step, by what its micro-batches gathered
    lines          a latent per line and per paragraph, under a BPE whose tokens hold breaks inside
    experts        feed-forwards chosen by z in two blocks
    chunk_tokens   latent tokens of a chunk, seen from its first position on

Run: ``pytest tests/test_six_decoders.py``

Legend: B rows, T tokens, S sites, E event dimensions, K samples, V vocabulary.
"""

from __future__ import annotations

import copy
import itertools
import math
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from rich.console import Console
from rich.progress import Progress, TextColumn
from torch import Tensor, nn
from typer.testing import CliRunner

from installing import install
from latentlm import plugins, zoo
from latentlm.cli.score import app as score_app
from latentlm.composed import ComposedDecoder, build
from latentlm.config import EvaluateConfig, ModelConfig, Recipe, apply_overrides, parse
from latentlm.errors import UserError
from latentlm.interface import Batch, Bits, Distribution, Gaussian, Latent, Latents, Noise, Point
from latentlm.likelihood import elbo, score_continuations, score_texts
from latentlm.likelihood.diagnostics import diagnose
from latentlm.likelihood.results import Method
from latentlm.testing import CHECKS, QUICK, Case, cases
from latentlm.training.data.prepared import prepare
from latentlm.training.loop import train
from latentlm.training.record.metrics import read_metrics
from latentlm.training.setup import make_model, make_stream, resolve
from latentlm.training.trainer import Trainer
from latentlm_evals import jobs
from latentlm_evals.comparison import Settings, run
from latentlm_evals.measure import Precision
from samples import pack, small_config
from stumbling import stumbling

BACKBONE = small_config("vanilla").backbone.model_dump(exclude_none=True)
TEXTS = [[[3, 1, 4, 1, 5, 9, 2], [6, 5], [3, 5, 8, 9]], [[2, 7, 1, 8], [2, 8, 1, 8, 2, 8, 4, 5]]]
NAMES = ("sites", "topics", "energy", "codebook", "paragraphs", "experts", "chunk_tokens")

Settings_ = Mapping[str, Any]


def composed(encoder: str, prior: str, injection: str, *, dims: int, granularity: Any = "chunk:3") -> dict[str, Any]:
    sockets = {"encoder": encoder, "prior": prior, "injection": injection, "kl_schedule": "constant"}
    return {"decoder": "composed", "event_dims": dims, "granularity": granularity, **sockets}


TOPICAL = {"name": "topical_bits", "above": ["topic"]}
MODELS: dict[str, Settings_] = {
    "topics": {
        "decoder": "composed",
        "latents": {
            "topic": {"like": "gaussian", "dims": 3, "kl_schedule": "constant"},
            "bits": {"like": "free", "dims": 4, "prior": TOPICAL, "kl_schedule": "constant"},
        },
    },
    "energy": {"decoder": "gaussian", "event_dims": 3, "prior": "energy", "kl_schedule": "constant"},
    "codebook": composed("moving_codebook", "code_frequencies", "site_vector", dims=3),
    "lines": {"decoder": "paragraphs", "event_dims": 3, "granularity": {"name": "line", "breaks": [1, 8]}},
    "paragraphs": {
        "decoder": "paragraphs",
        "event_dims": 3,
        "granularity": {"name": "paragraph", "both": [9], "opens": [1, 9], "closes": [1, 8, 9]},
    },
    "experts": composed("router", "even_choice", "experts", dims=4),
    "chunk_tokens": composed("site_normal", "standard_normal", "chunk_tokens", dims=3),
}


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The distribution, installed where this process finds it."""
    folder = install(tmp_path_factory.mktemp("site"), "latentlm_sixmethods")
    sys.path.insert(0, str(folder))
    plugins.reset()
    yield
    sys.path.remove(str(folder))
    plugins.reset()


def made(name: str, **backbone: object) -> ComposedDecoder:
    """A small decoder whose latents matter (weights of standard deviation 0.1)."""
    config = parse(ModelConfig, {**MODELS[name], "backbone": {**BACKBONE, **backbone}}, source=name)
    model = build(config, seed=3).eval()
    assert isinstance(model, ComposedDecoder)
    return model


def noise(rows: int, *, seed: int = 0) -> Noise:
    return Noise.keyed(seed, range(rows))


def close(one: Tensor, other: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(one, other, atol=tolerance, rtol=1e-4)


# ------------------------------------------------------------------------------------------------------- all of them


def test_every_plugin_is_found_by_its_entry_point() -> None:
    rows = {plugin.name: plugin for plugin in plugins.listing()}
    for name in NAMES:
        row = rows[f"six_{name}"]
        assert (row.distribution, row.status, row.error) == ("latentlm-sixmethods", "ok", None)
    assert "distributions" not in str(sys.modules["latentlm_sixmethods"].__file__)


@pytest.mark.parametrize("name", MODELS)
def test_training_reaches_every_part_and_lowers_the_loss(name: str) -> None:
    model, batch = made(name).train(), pack(TEXTS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    nats = []
    for step in range(12):
        loss = model.loss(batch, step=step, noise=noise(2, seed=step))
        optimizer.zero_grad()
        loss.total.backward()
        if step == 1:
            silent = {key for key, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()}
            # Where experts stand in its place, the backbone's own feed-forward is idle.
            idle = {f"backbone.blocks.{block}.feed_forward" for block in (1, 2)} if name == "experts" else set()
            assert {key.rpartition(".feed_forward.")[0] + ".feed_forward" for key in silent} == idle
        optimizer.step()
        model.advance(step)
        nats.append(loss.reconstruction.sum().item())
    assert nats[-1] < 0.7 * nats[0]


@pytest.mark.parametrize("name", MODELS)
def test_generation_in_a_batch_equals_generation_alone(name: str) -> None:
    model = made(name)
    prompts = [[3, 1, 4, 1, 5], [2, 7]]
    together = model.generate(prompts, max_tokens=8, seed=1)
    for prompt, one in zip(prompts, together, strict=True):
        (alone,) = model.generate([prompt], max_tokens=8, seed=1)
        assert alone.tokens == one.tokens
        assert alone.latents is not None
        assert one.latents is not None
        for latent in model.latents:
            close(alone.latents[latent].value, one.latents[latent].value)


@pytest.mark.parametrize("name", MODELS)
def test_token_by_token_equals_the_whole_text_for_unequal_prompts(name: str) -> None:
    """Logits of every step, the draws of every prior, and the sites that begin, are those of one pass over the whole text."""
    model = made(name)
    prompts, lengths = torch.tensor([[3, 1, 4, 2, 8], [2, 7, 0, 0, 0]]), torch.tensor([5, 2])
    state = model.prefill(prompts, lengths, latents="prior", noise=noise(2))
    texts, cached = [prompts[row, : lengths[row]].tolist() for row in range(2)], [state.logits]
    for token in (1, 8, 0, 8, 3, 7, 8, 1):  # the first prompt ends with one half of a paragraph's end, and this is the other
        state = model.step(state, torch.tensor([token, token + 1]), noise=noise(2))
        cached.append(state.logits)
        for row in range(2):
            texts[row].append(token + row)
    for row in range(2):
        context = model.context(Batch.of([texts[row]], given=[int(lengths[row])]))
        sites = {latent: context.sites_of(latent).mask.shape[1] for latent in model.latents}
        assert sites == {latent: int(met.counts[row]) for latent, met in state.met.items()}
        values = Latents({key: Latent(met.value[row : row + 1, : sites[key]]) for key, met in state.met.items()})
        full = model.logits(model.hidden(context, values))[0, int(lengths[row]) - 1 :]
        close(torch.stack([step[row] for step in cached]), full)
        again = model.sample_prior(context, noise(2).select([row]))
        for latent in model.latents:
            close(again[latent].value, values[latent].value, 1e-5)


SCORES = "scores_exact_own_encoder"
EXACT: dict[str, Settings_] = {
    "topics": {"latents": {"topic": {"dims": 1}}},
    "energy": {"event_dims": 1},
    "codebook": {"granularity": "chunk:2"},
    "experts": {"granularity": "chunk:2"},
    "chunk_tokens": {"granularity": "chunk:2", "event_dims": 1},
    "lines": {"granularity": {"name": "line", "breaks": [2]}, "event_dims": 1},
}


def conforming() -> Iterator[Any]:
    """The quick half of the conformance kit, and scores against sums over all latents."""
    for name, exact in EXACT.items():
        settings = {key: value for key, value in MODELS[name].items() if key != "decoder"}
        wanted = [check.name for check in CHECKS.values() if check.group in QUICK] + [SCORES]
        yield from cases(MODELS[name]["decoder"], model=settings, exact=exact, checks=wanted, label=name)


@pytest.mark.parametrize("case", list(conforming()))
def test_conformance(case: Case) -> None:
    case()


# ----------------------------------------------------------------------------------------- a document above its tokens


def latents_of(model: ComposedDecoder, batch: Batch) -> tuple[Any, Latents]:
    context = model.context(batch)
    return context, model.infer(context, noise(context.rows))


def numbers(distribution: Distribution) -> Tensor:
    """What it is made of, (B, S, ...)."""
    if isinstance(distribution, Gaussian):
        return torch.cat((distribution.mean, distribution.log_std), dim=-1)
    assert isinstance(distribution, Bits)
    return distribution.logits


def test_the_prior_of_the_bits_reads_the_topic_of_its_own_document() -> None:
    model = made("topics")
    batch = pack(TEXTS)
    context, latents = latents_of(model, batch)
    before = numbers(model.prior(context, "bits", latents))
    value = latents["topic"].value.clone()
    value[0, 1] += 1.0  # the second document of the first row
    moved = (numbers(model.prior(context, "bits", latents.plus("topic", Latent(value)))) - before).abs().amax(-1)
    inside = torch.zeros_like(batch.documents, dtype=torch.bool)
    inside[0] = batch.documents[0] == 1
    assert moved[inside].min() > 1e-3
    assert moved[~inside].max() == 0
    assert (numbers(model.prior(context, "topic", latents.plus("topic", Latent(value)))) == 0).all(), "nothing is above it"


def test_the_bits_cost_teaches_their_prior_and_through_it_the_topic() -> None:
    model = made("topics").train()
    context, latents = latents_of(model, pack(TEXTS))
    topic = latents["topic"].value.requires_grad_()
    q = model.posterior(context, "bits", latents.plus("topic", Latent(topic.detach())))
    p = model.prior(context, "bits", latents.plus("topic", Latent(topic)))
    kl = q.kl(p, latents["bits"]).masked_fill(~context.sites_of("bits").mask[..., None], 0.0).sum()
    slope, *slopes = torch.autograd.grad(kl, [topic, *model.latents["bits"].prior.parameters()])
    assert slope[context.sites_of("topic").mask].abs().amin() > 1e-4
    assert all(gradient.any() for gradient in slopes)


def test_packed_documents_with_topics_equal_separate_ones() -> None:
    model = made("topics")
    batch = pack(TEXTS)
    context, latents = latents_of(model, batch)
    hidden = model.hidden(context, latents)
    q = {name: numbers(model.posterior(context, name, latents)) for name in model.latents}
    p = {name: numbers(model.prior(context, name, latents)) for name in model.latents}
    for row, documents in enumerate(TEXTS):
        for number, text in enumerate(documents):
            inside = batch.documents[row] == number
            sites = {name: context.sites_of(name).site_of[row][inside].unique() for name in model.latents}
            alone = model.context(Batch.of([text]))
            own = Latents({name: Latent(latents[name].value[row, sites[name]][None]) for name in model.latents})
            close(model.hidden(alone, own)[0], hidden[row, inside])
            for name in model.latents:
                close(numbers(model.posterior(alone, name, own))[0], q[name][row, sites[name]])
                close(numbers(model.prior(alone, name, own))[0], p[name][row, sites[name]])


@pytest.fixture(scope="module")
def countable(installed: None) -> ComposedDecoder:
    """One real dimension for the document, one bit for each token, three symbols."""
    latents = {
        "topic": {"like": "gaussian", "dims": 1},
        "bits": {"like": "free", "dims": 1, "prior": TOPICAL},
    }
    sizes = {"vocabulary": 3, "width": 16, "blocks": 2, "heads": 2, "context": 16, "init_std": 0.3}
    settings = {"decoder": "composed", "latents": latents, "backbone": sizes}
    model = build(parse(ModelConfig, settings, source="countable"), seed=5)
    assert isinstance(model, ComposedDecoder)
    with torch.no_grad():  # the topic tells its tokens' bits, so that a prior that did not hear of it would be found out
        for parameter in model.latents["bits"].prior.parameters():
            parameter.mul_(6.0)
    return model.eval()


@torch.no_grad()
def log_sum(model: ComposedDecoder, given: list[int], after: list[int]) -> float:
    """log p(after | given), latents from the prior: a grid over the topic times every code of the bits."""
    inputs = [*given, *after][:-1]
    context = model.context(Batch.of([inputs], given=[len(given)]))
    topics = torch.linspace(-6.0, 6.0, 121)
    codes = torch.tensor(list(itertools.product((0.0, 1.0), repeat=len(inputs))))  # (2^T, T)
    topic = topics.repeat_interleave(len(codes))[:, None, None]  # (K, 1, 1)
    latents = Latents({"topic": Latent(topic), "bits": Latent(codes.repeat(len(topics), 1)[..., None])})
    log_prior = model.prior(context, "topic").log_prob(latents["topic"])[:, 0]
    log_prior = log_prior + model.prior(context, "bits", latents).log_prob(latents["bits"]).sum(-1)
    log_probs = model.logits(model.hidden(context, latents)).log_softmax(-1)  # (K, T, V)
    places = range(len(given) - 1, len(inputs))
    likelihood = torch.stack([log_probs[:, t, token] for t, token in zip(places, after, strict=True)]).sum(0)
    total = (log_prior + likelihood).double().logsumexp(0)
    return float(total) + math.log(float(topics[1] - topics[0]))


@pytest.mark.parametrize("method", ["iwae", "prior"])
def test_scores_with_topics_equal_the_sum_over_all_latents(countable: ComposedDecoder, method: Method) -> None:
    requests = [([0, 1], [2, 2, 1]), ([2], [1, 0, 0, 2])]
    scores = score_continuations(countable, requests, method=method, samples=2048)
    for (given, after), score in zip(requests, scores, strict=True):
        exact = log_sum(countable, given, after)
        assert abs(score.value - exact) < 4 * score.standard_error + 1e-4
        assert score.standard_error < 0.1


def test_next_tokens_with_topics_have_probabilities_that_sum_to_one(countable: ComposedDecoder) -> None:
    scores = score_continuations(countable, [([0, 1, 2, 1], [token]) for token in range(3)], samples=8)
    assert sum(math.exp(score.value) for score in scores) == pytest.approx(1.0, abs=1e-5)


def test_topics_are_given_shared_and_edited_by_name() -> None:
    model = made("topics")
    shared = model.generate([[3, 1, 4], [2]], max_tokens=6, latents={"topic": "shared"}, prefill="prior", seed=2)
    one, other = (each.latents for each in shared)
    assert one is not None
    assert other is not None
    close(one["topic"].value, other["topic"].value)
    (again,) = model.generate([[3, 1, 4]], max_tokens=6, latents=one, seed=9, temperature=0)
    assert again.latents is not None
    close(again.latents["topic"].value, one["topic"].value)
    assert torch.equal(again.latents["bits"].value[:, :3], one["bits"].value[:, :3])


# ------------------------------------------------------------------------------------ a prior known up to a constant


def sixmethods(module: str) -> Any:
    """A module of the installed distribution."""
    return import_module(f"latentlm_sixmethods.{module}")


def test_langevin_draws_follow_the_tilted_density() -> None:
    """A linear tilt moves a standard normal: exp(a z) N(z; 0, 1) = N(z; a, 1) up to a constant."""
    zeros, shift = torch.zeros(4, 600, 2), torch.tensor([1.5, -0.5])
    tilted = sixmethods("energy").Tilted(Gaussian(zeros, zeros), lambda z: z @ shift, steps=60, size=0.4)
    drawn = tilted.sample(noise(4)).value
    close(drawn.mean((0, 1)), shift, 0.1)
    close(drawn.std((0, 1)), torch.ones(2), 0.1)
    cold = tilted.tempered(0.5).sample(noise(4)).value
    close(cold.mean((0, 1)), shift, 0.1)
    close(cold.std((0, 1)), torch.full((2,), 0.5), 0.1)
    one = tilted.narrow(7, 1).sample(noise(4).at([7])).value
    assert torch.equal(one, drawn[:, 7:8]), "a site's chain is its own"


def test_the_energy_learns_where_the_encoder_s_draws_lie() -> None:
    model = made("energy").train()
    prior, batch = model.latents["z"].prior, Batch.of([[1, 2, 3]] * 64)
    context = model.context(batch)
    optimizer = torch.optim.Adam(prior.parameters(), lr=0.05)
    where = torch.tensor([1.2, -0.8, 0.0])
    for step in range(40):
        keys = noise(64, seed=step)
        value = where + 0.6 * keys.normal(1, 3)
        extra = prior.auxiliary(Latent(value, prior(context), keys), context, batch)
        assert extra is not None
        optimizer.zero_grad()
        extra[0].backward()
        optimizer.step()
    close(prior(context).sample(noise(64, seed=-1)).value.mean((0, 1)), where, 0.35)


def small_recipe(path: Path, model: Settings_, *overrides: str) -> Recipe:
    """A few steps of a decoder with two blocks on the texts of a folder."""
    data: dict[str, Any] = {
        "name": "six",
        "model": {"backbone": {"width": 16, "blocks": 2, "heads": 2, "context": 32}, **model},
        "data": {"path": str(path), "held_out": 0.25},
        "train": {
            "steps": 4, "batch": 4, "warmup": 1, "learning_rate": 0.01, "log_every": 2, "eval_every": 2, "save_every": 2,
            "eval_documents": 4, "device": "cpu",
        },
    }  # fmt: skip
    return parse(Recipe, apply_overrides(data, list(overrides)), source="six")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 16 documents of indented lines in paragraphs."""
    folder = tmp_path_factory.mktemp("texts")
    draw = random.Random(0)
    for number in range(16):
        paragraphs = [
            "".join(f"{name}:\n    go {draw.choice(['up', 'down'])}\n" for name in draw.choices("abc", k=draw.randint(1, 3)))
            for _ in range(4)
        ]
        (folder / f"{number:02d}.txt").write_text("\n".join(paragraphs), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def energy_run(installed: None, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained decoder with an energy for a prior."""
    recipe = small_recipe(texts, {**MODELS["energy"], "event_dims": 2})
    return train(recipe, out=tmp_path_factory.mktemp("runs") / "energy", progress=False).out


def test_training_with_an_energy_logs_no_bound_and_why(energy_run: Path) -> None:
    lines = read_metrics(energy_run / "metrics.jsonl")
    assert {line["split"] for line in lines} == {"train", "held_out"}
    for line in lines:
        assert (line["bound"], line["bits_per_byte"]) == (None, None)
        assert "not normalised" in line["no_bound"]
        assert line["cross_entropy"] > 0
    card = zoo.load(str(energy_run)).card
    assert card is not None
    (measured,) = card.scores.values()
    assert list(card.scores) == ["held_out"], "not held_out_bound"
    assert {"cross_entropy", "no_bound"} <= measured.keys()
    assert not {"bound", "standard_error", "kl_bits_per_token", "method"} & measured.keys()


def test_the_likelihood_under_an_energy_is_no_part_of_training(installed: None, texts: Path, tmp_path: Path) -> None:
    recipe = small_recipe(texts, {**MODELS["energy"], "event_dims": 2})
    asked = recipe.train.model_copy(update={"evaluate": EvaluateConfig(documents=1)})
    with pytest.raises(UserError, match="not normalised"):
        train(recipe.model_copy(update={"train": asked}), out=tmp_path / "run", progress=False)
    assert not read_metrics(tmp_path / "run" / "metrics.jsonl")


@pytest.mark.parametrize("method", get_args(Method))
def test_an_energy_has_no_likelihood_by_any_method(energy_run: Path, method: Method) -> None:
    model = zoo.load(str(energy_run))
    for score in (
        lambda: score_texts(model, [[256, 97, 98]], method=method, samples=2),
        lambda: score_continuations(model, [([256, 97], [98])], method=method, samples=2),
    ):
        with pytest.raises(UserError, match=r"prior of z \(Tilted\) is not normalised.*no likelihood"):
            score()


def test_an_energy_has_no_bound_either(energy_run: Path) -> None:
    model = zoo.load(str(energy_run))
    with pytest.raises(UserError, match="not normalised"):
        elbo(model, Batch.of([[256, 97, 98]]), noise(1))


def test_the_commands_refuse_to_score_an_energy(energy_run: Path, texts: Path, tmp_path: Path) -> None:
    refused = CliRunner().invoke(score_app, [str(energy_run), str(next(texts.iterdir())), "--samples", "2", "--json"])
    assert isinstance(refused.exception, UserError)
    assert "not normalised" in str(refused.exception)
    assert refused.stdout == ""
    quick = Settings(precision=Precision(samples=2), task_samples=2, documents=2, document_bytes=40, tasks="none", jobs=1)
    with pytest.raises(UserError, match="not normalised"):
        run([str(energy_run)], [], tmp_path / "compared", settings=quick, console=Console(quiet=True))


def test_an_energy_generates_and_its_posterior_cross_entropy_is_told(energy_run: Path) -> None:
    model = zoo.load(str(energy_run))
    (made_,) = model.generate(["a:\n"], max_tokens=5, prefill="prior")
    assert made_.latents is not None
    assert made_.latents.value.shape == (1, 1, 2)
    assert model.generate(["a:\n"], max_tokens=5, prior_temperature=0.5)
    found = diagnose(model, [[256, *b"a:\n    go up\n"]])
    assert 0 < found.cross_entropy["posterior"] < 12
    assert math.isnan(found.kl_bits_per_token)


def test_the_bar_of_a_comparison_shows_a_run_without_a_bound(energy_run: Path) -> None:
    with Progress(TextColumn("{task.fields[numbers]}"), console=Console(quiet=True)) as progress:
        bar = progress.add_task("energy", numbers="")
        said: list[str] = []
        job = jobs.Job("energy", "recipe.yaml", energy_run, 4, [])
        jobs._show(progress, bar, job, lambda name, text: said.append(f"{name}: {text}"))  # type: ignore[arg-type]
        assert progress.tasks[0].fields["numbers"].startswith("no bound, ")
        assert said[0].startswith("energy: step 4 of 4, no bound, ")


# ------------------------------------------------------------------------------------------- a codebook that moves


def moving(path: Path, *overrides: str) -> Recipe:
    model = composed("moving_codebook", "code_frequencies", "site_vector", dims=3, granularity="chunk:4")
    return small_recipe(path, model, "model.encoder.decay=0.7", "model.encoder.codes=6", "train.clip=1e9", *overrides)


def trainer(recipe: Recipe) -> Trainer:
    prepared = prepare(recipe.data)
    resolved = resolve(recipe, tokenizer=prepared.tokenizer)
    return Trainer(make_model(resolved, "cpu"), resolved.train, make_stream(resolved, prepared))


def codebook_of(model: Any) -> Any:
    return model.latents["z"].encoder


def test_micro_batches_move_the_codebook_as_one_batch_does(texts: Path) -> None:
    one, two = trainer(moving(texts, "train.batch=8")), trainer(moving(texts, "train.batch=4", "train.accumulate=2"))
    before = codebook_of(one.model).codebook.clone()
    for _ in range(3):
        one.advance()
        two.advance()
    whole, split = codebook_of(one.model), codebook_of(two.model)
    for name in ("codebook", "seen", "total"):
        close(getattr(split, name), getattr(whole, name), 1e-5)
    assert (whole.codebook - before).abs().max() > 1e-2
    assert int((whole.seen > 1.0).sum()) > 1, "several codes are in use, so that there is something to tell apart"


def test_a_step_moves_each_code_towards_what_was_coded_with_it() -> None:
    model = made("codebook").train()
    encoder = codebook_of(model)
    old = {name: getattr(encoder, name).clone() for name in ("codebook", "seen", "total")}
    loss = model.loss(pack(TEXTS), step=0, noise=noise(2))
    q = loss.posterior
    assert isinstance(q, Point)
    assert q.through is not None
    assert loss.site_mask is not None
    model.advance(0)
    count, total = torch.zeros(16), torch.zeros(16, 3)
    for v in q.through.detach()[loss.site_mask]:
        nearest = int((old["codebook"] - v).norm(dim=-1).argmin())
        count[nearest] += 1
        total[nearest] += v
    seen, summed = 0.99 * old["seen"] + 0.01 * count, 0.99 * old["total"] + 0.01 * total
    close(encoder.codebook, summed / seen[:, None], 1e-6)
    assert int(count.sum()) == int(loss.site_mask.sum()) == 11


def test_a_pass_moves_nothing_that_is_saved_and_a_step_forgets_what_was_gathered() -> None:
    model = made("codebook").train()
    encoder, before = codebook_of(model), copy.deepcopy(model.state_dict())
    assert not {"new_seen", "new_total"} & {name.rpartition(".")[2] for name in before}
    for _ in range(2):
        model.loss(pack(TEXTS), step=0, noise=noise(2))
    assert encoder.new_seen.sum() == 22, "both micro-batches, and no padding"
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    model.advance(0)
    assert not encoder.new_seen.any()
    assert not encoder.new_total.any()
    model.eval()
    model.loss(pack(TEXTS), step=0, noise=noise(2))
    model.generate([[3, 1, 4]], max_tokens=4)
    assert not encoder.new_seen.any(), "only training gathers"


def test_a_codebook_that_nobody_chooses_stays() -> None:
    encoder = codebook_of(made("codebook"))
    before = encoder.codebook.clone()
    for step in range(4000):
        encoder.advance(step)
    close(encoder.codebook, before, 1e-4)


def test_a_stopped_run_goes_on_with_the_same_codebook(texts: Path, tmp_path: Path) -> None:
    recipe = moving(texts, "train.batch=2", "train.accumulate=2", "train.save_every=3", "train.steps=5")
    whole = train(recipe, out=tmp_path / "whole", progress=False).out
    with pytest.raises(RuntimeError, match="power"), stumbling(at=4, error=RuntimeError("the power went")):
        train(recipe, out=tmp_path / "stopped", progress=False)
    resumed = train(recipe, out=tmp_path / "stopped", resume=True, progress=False).out
    one, other = zoo.load(str(whole)), zoo.load(str(resumed))
    assert "encoder.codebook" in one.state_dict()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert not codebook_of(one).new_seen.any(), "also what is not saved is set when a model is loaded"


# --------------------------------------------------------------------------------------- a latent per line, per paragraph


@pytest.fixture(scope="module", params=["line", "paragraph"])
def lined(
    request: pytest.FixtureRequest, installed: None, texts: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, ComposedDecoder]:
    """A decoder trained from a recipe that names the granularity only; a BPE is trained on the text."""
    model = {"decoder": "paragraphs", "event_dims": 2, "granularity": request.param}
    recipe = small_recipe(texts, model, "data.tokenizer=bpe:290", "train.steps=40", "train.eval_every=40", "train.batch=8")
    out = train(recipe, out=tmp_path_factory.mktemp("runs") / request.param, progress=False).out
    loaded = zoo.load(str(out))
    assert isinstance(loaded, ComposedDecoder)
    return request.param, loaded


def sites_of_text(scale: str, text: bytes, ends: list[int]) -> list[int]:
    """Numbers of the tokens that complete a break (or the second of two), from the bytes alone; `ends` are the tokens' ends."""
    marks = [i + 1 for i in range(len(text)) if (text[: i + 1].endswith(b"\n" if scale == "line" else b"\n\n"))]
    return sorted({0, *(next(number for number, end in enumerate(ends) if end >= mark) for mark in marks)})


def test_a_run_fills_the_ids_in_and_sites_begin_where_the_text_says(
    lined: tuple[str, ComposedDecoder], texts: Path
) -> None:
    scale, model = lined
    assert model.tokenizer is not None
    assert model.card is not None
    assert model.latents["z"].granularity_text == scale
    pieces = model.tokenizer.pieces()
    assert [text for text in pieces if b"\n" in text.strip(b" ") and text.strip(b"\n")], "some tokens hold a break inside"
    raw = next(iter(sorted(texts.iterdir()))).read_bytes()[:100]
    tokens = [model.tokenizer.end_of_text, *model.tokenizer.encode(raw)]
    ends = list(itertools.accumulate(len(pieces[token]) if number else 0 for number, token in enumerate(tokens)))
    tokens, ends = tokens[:32], ends[:32]
    site_of = model.context(Batch.of([tokens])).site_of[0]
    begins = [0, *((site_of[1:] != site_of[:-1]).nonzero()[:, 0] + 1).tolist()]
    assert begins == sites_of_text(scale, raw[: ends[-1]], ends)
    assert len(begins) > 2


def test_generation_begins_a_site_when_the_break_is_consumed(lined: tuple[str, ComposedDecoder]) -> None:
    """The new site is there for the logits of the position that feeds the break, so that it conditions the next letter."""
    scale, model = lined
    assert model.tokenizer is not None
    encode = model.tokenizer.encode
    first = [model.tokenizer.end_of_text, *encode("b")]
    breaks = {"line": [encode("\n")], "paragraph": [encode("\n")] * 2}[scale]
    assert all(len(each) == 1 for each in breaks)
    state = model.prefill(torch.tensor([first]), torch.tensor([len(first)]), noise=noise(1))
    assert state.site_counts.tolist() == [1]
    for (token,) in breaks[:-1]:
        state = model.step(state, torch.tensor([token]), noise=noise(1))
        assert state.site_counts.tolist() == [1]
    last = torch.tensor(breaks[-1])
    ended = []
    for value in (0.0, 3.0):
        forked = model.select(state, torch.tensor([0]))
        ended.append(model.step(forked, last, latents=torch.full((1, 2), value), noise=noise(1)))
    assert [each.site_counts.tolist() for each in ended] == [[2], [2]]
    assert (ended[0].logits - ended[1].logits).abs().max() > 1e-4
    after = model.step(ended[1], torch.tensor(encode("c")), latents=torch.zeros(1, 2), noise=noise(1))
    assert after.latents is not None
    assert after.site_counts.tolist() == [2], "a site that goes on takes no other latent"
    assert (after.latents[0, 1] == 3.0).all()


def test_latents_are_given_line_by_line(lined: tuple[str, ComposedDecoder]) -> None:
    scale, model = lined
    prompt = "a:\n    go up\n" + ("\n" if scale == "paragraph" else "")
    given = Latent(torch.tensor([[[2.0, -2.0], [-2.0, 2.0], [1.0, 1.0], [0.5, 0.25]]]))
    met = [one.latents.value for one in model.generate([prompt], max_tokens=18, samples=6, latents=given) if one.latents]
    assert len(met) == 6
    assert max(value.shape[1] for value in met) > (3 if scale == "line" else 2), "some go on to another line"
    for value in met:
        known = min(value.shape[1], 4)
        close(value[:, :known], given.value[:, :known])
    (own,) = model.generate([prompt], max_tokens=1, continuation_latents=given)
    assert own.latents is not None
    assert not torch.equal(own.latents.value[:, 0], given.value[:, 0]), "the prompt's own are its encoder's"


# ----------------------------------------------------------------------------------------------- experts chosen by z


class Alone(nn.Module):
    """One expert of a bank, as a feed-forward."""

    def __init__(self, bank: Any, number: int) -> None:
        super().__init__()
        self.up, self.down = bank.up[number], bank.down[number]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = nn.functional.gelu(x @ self.up) @ self.down
        return out


@pytest.mark.parametrize("number", range(4))
def test_z_puts_one_expert_in_the_place_of_two_feed_forwards(number: int) -> None:
    model = made("experts")
    plain = build(small_config("vanilla"), seed=3).eval()
    plain.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if name.startswith("backbone.")})
    assert isinstance(plain, ComposedDecoder)
    injection: Any = model.latents["z"].injection
    assert injection.blocks == (1, 2)
    for block, bank in zip(injection.blocks, injection.banks, strict=True):
        plain.backbone.blocks[block].feed_forward = Alone(bank, number)  # type: ignore[union-attr]
    batch = pack(TEXTS)
    context = model.context(batch)
    choice = torch.eye(4)[number].expand(2, context.sites, -1)
    close(model.hidden(context, Latent(choice)), plain.hidden(plain.context(batch), None), 1e-5)


def test_every_expert_of_both_blocks_learns_from_the_sites_that_chose_it() -> None:
    model = made("experts").train()
    context = model.context(pack(TEXTS))
    choice = torch.zeros(2, context.sites, 4)
    choice[:, :, 0] = 1.0
    choice[0, 1] = torch.tensor([0.0, 0.0, 1.0, 0.0])
    injection: Any = model.latents["z"].injection
    gradients = torch.autograd.grad(model.hidden(context, Latent(choice)).square().sum(), list(injection.parameters()))
    for gradient in gradients:
        assert [bool(one.any()) for one in gradient] == [True, False, True, False]


def test_choices_are_given_and_generated_as_one_hot_vectors() -> None:
    model = made("experts")
    given = Latent(torch.eye(4)[None])
    (one,) = model.generate([[3, 1, 4, 1]], max_tokens=12, latents=given)
    assert one.latents is not None
    value = one.latents.value
    assert torch.equal(value[:, :4], given.value)
    assert value.shape[1] == 5
    assert value.sum(-1).eq(1.0).all()
    assert torch.isin(value, torch.tensor([0.0, 1.0])).all()


# ------------------------------------------------------------------------------------------- latent tokens of a chunk


def test_a_chunk_s_tokens_are_seen_from_its_first_position_on_and_by_later_chunks() -> None:
    model = made("chunk_tokens")
    context = model.context(pack([[[3, 1, 4, 1, 5, 9, 2, 6], [6, 5]]]))
    latent = Latent(torch.zeros(1, context.sites, 3))
    before = model.hidden(context, latent)
    for site in range(context.sites):
        value = latent.value.clone()
        value[:, site] = 2.0
        moved = (model.hidden(context, Latent(value)) - before)[0].abs().amax(-1)
        first = int((context.site_of[0] == site).nonzero()[0])
        own = context.documents[0] == context.documents[0, first]
        sees = own & (torch.arange(10) >= first)
        assert moved[sees].min() > 1e-5
        assert moved[~sees].max() == 0


def test_each_row_keeps_the_tokens_of_its_own_chunks() -> None:
    """Rows of unequal prompts begin their chunks at different steps; a fork goes on with its own."""
    model = made("chunk_tokens")
    prompts, lengths = torch.tensor([[3, 1, 4, 1, 5], [2, 7, 0, 0, 0]]), torch.tensor([5, 2])
    state = model.prefill(prompts, lengths, noise=noise(2))
    forked = model.select(state, torch.tensor([1, 1, 0]))
    for token in (6, 2, 8, 9):
        state = model.step(state, torch.tensor([token, token + 1]), noise=noise(2))
        forked = model.step(forked, torch.tensor([token + 1, token + 1, token]), noise=noise(2).select([1, 1, 0]))
        close(forked.logits, state.logits[[1, 1, 0]])
    held: Any = state.cache.prefixes[2]  # type: ignore[attr-defined]
    (prefix,) = held.values()
    assert (prefix.documents >= 0).sum(1).tolist() == [3, 2], "slots of 9 and of 6 tokens, none for steps that begin nothing"


def test_prefixes_that_do_not_say_since_when_need_a_document() -> None:
    config = parse(ModelConfig, {**MODELS["chunk_tokens"], "backbone": BACKBONE}, source="chunk_tokens")
    injection: Callable[..., Any] = sixmethods("chunk_tokens").ChunkTokens
    unsaid = type("Unsaid", (injection,), {"prefix_since": False})  # type: ignore[arg-type]
    plugins.register("injection", "unsaid", unsaid)
    with pytest.raises(UserError, match="prefix_since"):
        build(config.model_copy(update={"injection": parse(ModelConfig, {"injection": "unsaid"}, source="x").injection}))
    plugins.unregister("injection", "unsaid")
