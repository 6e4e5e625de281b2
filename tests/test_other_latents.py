"""The rest of what a third party may bring (the distribution latentlm_testparts, really installed; see test_testparts.py): an
encoder without a network, priors that are learned and go site by site over packed documents, bounds that are bounds, and a
life from recipe to scores in a process that knows the distribution by its entry point alone.

    fitted       a Gaussian per chunk, fitted by gradient steps on the decoder's own objective
    document     a Gaussian per document, as a prefix of every block
    learned      bits per chunk under a prior that reads the trunk
    recurrent    ... and the codes before
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from installing import install
from latentlm import plugins
from latentlm.composed import ComposedDecoder, build
from latentlm.composed.objective import RowObjective
from latentlm.config import ModelConfig, PartSpec
from latentlm.errors import PluginError
from latentlm.interface import Batch, Context, Gaussian, Latent, Latents, Noise, Shape
from latentlm.likelihood import score_continuations, score_texts
from latentlm_free.prior import UniformBits
from samples import VOCABULARY, pack, small_config

BACKBONE = small_config("vanilla").backbone
CONFIGS = {
    "fitted": ModelConfig(
        decoder="composed",
        granularity="chunk:4",
        event_dims=6,
        encoder="fitted_gaussian",
        prior="unit_normal",
        injection="chunk_code",
        kl_schedule="constant",
        backbone=BACKBONE,
    ),
    "document": ModelConfig(decoder="document_prefix", backbone=BACKBONE),
    "learned": ModelConfig(decoder="chunk_code", backbone=BACKBONE),
    "recurrent": ModelConfig(decoder="chunk_code", prior="recurrent_bits", granularity="chunk:3", backbone=BACKBONE),
}
TEXTS = [[[3, 1, 4, 1, 5, 9, 2], [6, 5], [3, 5, 8, 9]], [[2, 7, 1, 8], [2, 8, 1, 8, 2, 8, 4, 5]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the distribution is installed."""
    return install(tmp_path_factory.mktemp("other-latents"), "latentlm_testparts")


@pytest.fixture(scope="module", autouse=True)
def installed(folder: Path) -> Iterator[None]:
    """This process finds it, and forgets it afterwards."""
    sys.path.insert(0, str(folder))
    plugins.reset()
    yield
    sys.path.remove(str(folder))
    for name in [name for name in sys.modules if name.startswith("latentlm_testparts")]:
        del sys.modules[name]
    plugins.reset()


def made(name: str) -> ComposedDecoder:
    model = build(CONFIGS[name], seed=3).eval()
    assert isinstance(model, ComposedDecoder)
    return model


def noise(rows: int, samples: int = 1) -> Noise:
    return Noise.keyed(0, range(rows), samples=samples)


def start(context: Context, events: int = 6) -> Gaussian:
    zeros = torch.zeros(context.rows, context.sites, events)
    return Gaussian(zeros, zeros)


# --------------------------------------------------------------------------------------- an encoder without a network


def test_the_objective_is_the_cross_entropy_plus_the_kl_of_each_row() -> None:
    model, batch = made("fitted"), pack(TEXTS)
    # The loss counts a document's last position, whose target is end-of-text; the objective knows the inputs only.
    last = batch.documents != torch.nn.functional.pad(batch.documents[:, 1:], (0, 1), value=-1)
    batch = replace(batch, target_mask=batch.target_mask & ~last)
    context = model.context(batch)
    q = Gaussian(torch.full((2, context.sites, 6), 0.3), torch.full((2, context.sites, 6), -0.5))
    # The numbers of a latent are those of its place in its document, wherever the document stands in the row.
    place = torch.zeros(2, context.sites, dtype=torch.long)
    for row in range(2):
        owners = {int(s): int(d) for s, d in zip(context.site_of[row], batch.documents[row], strict=True) if d >= 0}
        for site, document in owners.items():
            place[row, site] = sum(owners[other] == document for other in range(site))
    epsilon = Noise.keyed(0, [0, 0]).normal(context.sites, 6).gather(1, place[..., None].expand(-1, -1, 6))
    latent = Latent(q.mean + q.log_std.exp() * epsilon)
    nats = model._cross_entropy(model.hidden(context, latent), batch).sum(-1)
    kl = 0.5 * (torch.tensor(-1.0).exp() + 0.3**2 - 1) + 0.5  # of one dimension
    expected = nats + 6 * kl * context.site_mask.sum(-1)
    torch.testing.assert_close(RowObjective(model, context, "z", Latents({}))(q), expected, atol=1e-3, rtol=1e-5)


def test_the_objective_leaves_the_decoder_alone() -> None:
    model = made("fitted").train()
    context = model.context(pack(TEXTS))
    mean = torch.zeros(2, context.sites, 6, requires_grad=True)
    RowObjective(model, context, "z", Latents({}))(Gaussian(mean, torch.zeros_like(mean))).sum().backward()
    assert mean.grad is not None
    assert mean.grad.any()
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_rows_do_not_share_an_objective() -> None:
    model = made("fitted")
    context = model.context(Batch.of([[1, 2, 3, 4, 5], [6, 7, 8, 9]]))
    mean = torch.zeros(2, context.sites, 6, requires_grad=True)
    objective = RowObjective(model, context, "z", Latents({}))
    (slope,) = torch.autograd.grad(objective(Gaussian(mean, torch.zeros_like(mean)))[0], mean)
    assert slope[0].any()
    assert not slope[1].any()


def test_a_padded_site_costs_nothing_whatever_its_posterior() -> None:
    model = made("fitted")
    context = model.context(Batch.of([list(range(1, 11)), [6, 7]]))
    assert context.site_mask.tolist() == [[True, True, True], [True, False, False]]
    mean = torch.zeros(2, 3, 6)
    mean[1, 1:] = float("inf")
    assert RowObjective(model, context, "z", Latents({}))(Gaussian(mean, torch.zeros_like(mean))).isfinite().all()


@pytest.mark.parametrize("grad", [True, False])
def test_fitting_lowers_the_objective_with_and_without_gradients_around(grad: bool) -> None:
    model = made("fitted")
    with torch.set_grad_enabled(grad):
        context = model.context(Batch.of([[3, 1, 4, 1, 5, 9], [2, 7, 1, 8, 2, 8]]))
        q = model.posterior(context)
    assert isinstance(q, Gaussian)
    assert not q.mean.requires_grad
    objective = RowObjective(model, context, "z", Latents({}))
    assert (objective(q) < objective(start(context)) - 1e-3).all()
    assert (q.mean[:, 0] - q.mean[:, 1]).abs().max() > 1e-3


def test_a_fitted_posterior_depends_on_neither_batch_nor_padding() -> None:
    model = made("fitted")
    short, long = [5, 3, 2, 9, 4, 4], list(range(1, 11))
    alone = model.posterior(model.context(Batch.of([short])))
    beside = model.posterior(model.context(Batch.of([long, short])))
    hidden = model.posterior(model.context(Batch.of([long, [*short, 8, 7]])).before(torch.tensor([10, 6])))
    torch.testing.assert_close(beside.mean[1, :2], alone.mean[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(hidden.mean[1, :2], alone.mean[0], atol=1e-5, rtol=1e-4)


def test_documents_of_a_row_are_fitted_apart() -> None:
    model = made("fitted")
    first, second, other = [3, 1, 4, 1, 5], [2, 7, 1, 8], [9, 9, 9, 2]
    q, moved = (model.posterior(model.context(pack([[[*first], [*text]]]))).mean for text in (second, other))
    torch.testing.assert_close(q[0, :2], moved[0, :2], atol=1e-5, rtol=1e-4)
    assert (q[0, 2] - moved[0, 2]).abs().max() > 1e-3


def test_cached_equals_uncached_with_a_fitted_posterior() -> None:
    model = made("fitted")
    prompts, lengths = torch.tensor([[3, 1, 4, 1, 5], [2, 7, 0, 0, 0]]), torch.tensor([5, 2])
    state = model.prefill(prompts, lengths, noise=noise(2))
    texts, cached = [prompts[row, : lengths[row]].tolist() for row in range(2)], [state.logits]
    for token in (6, 11, 2, 9, 8):
        state = model.step(state, torch.tensor([token, token + 1]), noise=noise(2))
        cached.append(state.logits)
        for row in range(2):
            texts[row].append(token + row)
    for row in range(2):
        context = model.context(Batch.of([texts[row]]))
        latent = Latent(state.latents[row : row + 1, : context.sites])
        full = model.logits(model.hidden(context, latent))[0, int(lengths[row]) - 1 :]
        torch.testing.assert_close(torch.stack([step[row] for step in cached]), full, atol=1e-4, rtol=1e-4)


# -------------------------------------------------------------------------------------------------- learning, bounds


@pytest.mark.parametrize("name", CONFIGS)
def test_thirty_steps_lower_the_loss(name: str) -> None:
    model = made(name).train()
    batch = pack(TEXTS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    totals = []
    for step in range(30):
        loss = model.loss(batch, step=step, noise=Noise.keyed(step, range(2)))
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        totals.append(loss.reconstruction.sum().item())
    assert model.injection is not None
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.injection.parameters())
    assert sum(totals[-5:]) / 5 < 0.7 * totals[0]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_bound_is_below_the_importance_weighted_one(name: str) -> None:
    model = made(name)
    texts = [[1, *torch.randint(1, VOCABULARY, (7,), generator=torch.Generator().manual_seed(i)).tolist()] for i in range(6)]
    bound, weighted = (score_texts(model, texts, method=method, samples=16) for method in ("elbo", "iwae"))
    assert all(-60 < score.value < 0 for score in (*bound, *weighted))
    assert sum(score.value for score in bound) <= sum(score.value for score in weighted) + 0.02 * len(texts)


@pytest.mark.parametrize("method", ["operational", "iwae", "elbo", "prior", "joint"])
def test_a_fitted_posterior_scores_the_same_in_a_batch_and_alone(method: str) -> None:
    model = made("fitted")
    requests = [([3, 1, 4, 1, 5], [9, 2, 6]), ([2, 7], [1, 8, 2, 8])]
    together = score_continuations(model, requests, method=method, samples=8)  # type: ignore[arg-type]
    for request, score in zip(requests, together, strict=True):
        (alone,) = score_continuations(model, [request], method=method, samples=8)  # type: ignore[arg-type]
        assert score.value == pytest.approx(alone.value, abs=1e-3)


# --------------------------------------------------------------------------------- priors that go on from their latents


def test_prior_draws_of_packed_documents_are_those_of_separate_documents() -> None:
    model, batch = made("recurrent"), pack(TEXTS)
    context, keyed = model.context(batch), noise(2)
    drawn = model.sample_prior(context, keyed).value
    for row, documents in enumerate(TEXTS):
        for number, text in enumerate(documents):
            sites = context.site_of[row][batch.documents[row] == number].unique()
            own = keyed.select([row]).at([int(sites[0])])  # the same numbers that the row draws there
            alone = model.sample_prior(model.context(Batch.of([text])), own).value
            assert torch.equal(alone[0], drawn[row, sites])


def test_a_cold_prior_is_cold_in_prompt_and_continuation() -> None:
    model = made("recurrent")
    prompts, lengths = torch.tensor([[3, 1, 4, 1, 5, 9, 2]]), torch.tensor([7])

    def latents(seed: int) -> Tensor:
        keyed = Noise.keyed(seed, ["row"])
        state = model.prefill(prompts, lengths, latents="prior", noise=keyed, prior_temperature=1e-4)
        for token in (4, 5, 6):
            state = model.step(state, torch.tensor([token]), noise=keyed, prior_temperature=1e-4)
        assert state.latents is not None
        return state.latents

    assert latents(0).shape[1] == 4
    assert torch.equal(latents(0), latents(1))


# -------------------------------------------------------------------------------------------------- what a part forgot


class Forgetful(UniformBits):
    """Makes a parameter and a buffer, and sets them in its constructor only."""

    def __init__(self, config: Any, shape: Shape) -> None:
        super().__init__(config, shape)
        self.bias = nn.Parameter(torch.zeros(shape.latent.dims))
        self.register_buffer("powers", 2.0 ** torch.arange(shape.latent.dims), persistent=False)


class Mindful(Forgetful):
    """Sets them where the frame asks for it."""

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        self.bias.zero_()
        self.powers.copy_(2.0 ** torch.arange(self.shape.latent.dims))


def test_a_part_that_leaves_a_tensor_unset_is_refused_by_name() -> None:
    plugins.register("prior", "forgetful", Forgetful)
    plugins.register("prior", "mindful", Mindful)
    config = small_config("free")
    with pytest.raises(PluginError, match=r"Forgetful.init_weights leaves bias, powers unset"):
        build(config.model_copy(update={"prior": PartSpec(name="forgetful")}))
    model = build(config.model_copy(update={"prior": PartSpec(name="mindful")}))
    assert model.prior_part.powers.tolist() == [1.0, 2.0, 4.0, 8.0]


# ------------------------------------------------------------------------------------------- through the entry point

LIFE = """
import json, sys
from pathlib import Path
from typer.testing import CliRunner
from latentlm.cli.train import app

recipe, out = sys.argv[1:]
done = CliRunner().invoke(app, [recipe, "--out", out, "--quiet", "--json"], catch_exceptions=False)
assert done.exit_code == 0, done.output
from latentlm import zoo
from latentlm.likelihood import score_texts
model = zoo.load(out)
(said,) = model.generate("some text ", max_tokens=12, seed=1)
(score,) = score_texts(model, [[256, *b"some text here"]], samples=4)
print(json.dumps({
    "trained": json.loads(done.stdout)["steps"],
    "card": [model.card.status, model.card.plugins],
    "decoder": type(model).__module__,
    "tokens": len(said.tokens),
    "score": score.value,
}))
"""


@pytest.mark.parametrize("decoder", ["document_prefix", "chunk_code"])
def test_a_recipe_trains_loads_generates_and_scores_a_third_partys_decoder(
    folder: Path, tmp_path: Path, decoder: str
) -> None:
    text = tmp_path / "text"
    text.mkdir()
    for number in range(12):
        (text / f"{number}.txt").write_text(f"some text here, number {number}, and again some text there\n" * 3)
    recipe = tmp_path / "recipe.yaml"
    shape = "{width: 16, blocks: 2, heads: 2, context: 64}"
    recipe.write_text(
        f"name: other\nmodel: {{decoder: {decoder}, backbone: {shape}}}\ndata: {{path: {text}, held_out: 0.2}}\n"
        "train: {steps: 4, batch: 2, eval_every: 4, save_every: 4, log_every: 2}\n"
    )
    variables = {name: value for name, value in os.environ.items() if not name.startswith("LATENTLM_")}
    done = subprocess.run(
        [sys.executable, "-c", LIFE, str(recipe), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=300,
        env={**variables, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "XDG_DATA_HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["trained"] == 4
    assert found["card"] == ["trained", ["schedules", "testparts"]]
    assert found["decoder"] == "latentlm_testparts.decoders"
    assert 0 < found["tokens"] <= 12
    assert -120 < found["score"] < 0
