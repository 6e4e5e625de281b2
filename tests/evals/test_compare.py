"""`latentlm compare` from recipes to the page, on a few steps of training and a few documents."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from latentlm.composed import build
from latentlm.config import ModelConfig
from latentlm.errors import UserError
from latentlm.tokenizer import load_tokenizer
from latentlm.training.data import Document
from latentlm_evals.comparison import Settings, dry, run
from latentlm_evals.logged_comparison import compare_folders
from latentlm_evals.measure import Precision, held_out_texts, tokenized

BACKBONE = {"vocabulary": 257, "width": 16, "blocks": 2, "heads": 2, "context": 32}
QUICK = Settings(precision=Precision(samples=2), task_samples=2, documents=3, document_bytes=60, tasks="none", jobs=2)


def recipe(folder: Path, name: str, decoder: str, *, path: str, **model: object) -> str:
    data = {
        "name": name,
        "model": {"decoder": decoder, "backbone": BACKBONE, **model},
        "data": {"path": path, "held_out": 0.3},
        "train": {"steps": 4, "batch": 2, "warmup": 1, "log_every": 1, "eval_every": 2, "save_every": 4, "eval_documents": 2},
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(data), encoding="utf-8")
    return str(file)


@pytest.fixture
def texts(tmp_path: Path) -> str:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number}.txt").write_text(f"document number {number} says {number * number}.\n" * 4, encoding="utf-8")
    return str(folder)


def test_a_dry_run_counts_what_the_tasks_take_too(tmp_path: Path, texts: str) -> None:
    names = [recipe(tmp_path, "hidden", "free", path=texts, event_dims=3, backbone={**BACKBONE, "context": 512})]

    precision = Precision(samples=2, max_samples=128)

    def planned(tasks: str) -> dict[str, Any]:
        settings = dataclasses.replace(QUICK, tasks=tasks, limit=2, task_samples="auto", precision=precision)
        return dry(names, [], tmp_path / "none", settings=settings, console=Console(quiet=True))

    assert planned("none")["hidden"].tasks is None
    found = planned("latentlm_copy")["hidden"]
    assert (found.tasks.requests, found.tasks.texts) == (0, 2)
    found = planned("latentlm_next_line,latentlm_copy")["hidden"]
    assert found.tasks.requests == 8, "two questions of four answers"
    assert found.tasks.texts == 2
    assert found.tasks.writing > 0
    assert found.tasks.samples == (32, 128)
    assert found.texts.samples == (2, 2)
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_recipes_are_trained_and_compared_and_the_runs_can_be_compared_again(tmp_path: Path, texts: str) -> None:
    names = [recipe(tmp_path, "plain", "vanilla", path=texts), recipe(tmp_path, "hidden", "free", path=texts, event_dims=3)]
    console = Console(quiet=True)
    first = run(names, ["train.seed=3"], tmp_path / "out", settings=QUICK, console=console)
    plain, hidden = first.models
    assert (plain.method, hidden.method) == ("exact", "iwae, 2 samples")
    assert plain.elbo_bits_per_byte == pytest.approx(plain.bits_per_byte.value, rel=1e-5)
    assert hidden.difference is not None
    assert hidden.difference.value == pytest.approx(hidden.bits_per_byte.value - plain.bits_per_byte.value, abs=1e-9)
    assert hidden.elbo_bits_per_byte == pytest.approx(
        hidden.posterior_bits_per_byte + hidden.kl_bits_per_token * _tokens(first.models) / sum(hidden.sizes), rel=1e-4
    )
    assert [len(points) for points in (plain.curves["bound"], hidden.curves["kl_by_site"])] == [2, 32]
    assert {sample.latents for sample in hidden.samples} == {"fresh", "shared"}
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert f"{hidden.bits_per_byte.value:.4f}" in page
    saved = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))
    assert saved["models"][0]["training"]["steps"] == 4
    runs = [str(tmp_path / "out" / name) for name in ("plain", "hidden")]
    tampered = tmp_path / "out" / "hidden" / "recipe.yaml"
    kept = tampered.read_text(encoding="utf-8")
    tampered.write_text(kept.replace("held_out: 0.3", "held_out: 0.4"), encoding="utf-8")
    with pytest.raises(UserError, match="different data"):
        run(runs, [], tmp_path / "again", settings=QUICK, console=console)
    tampered.write_text(kept, encoding="utf-8")
    again = run(runs, [], tmp_path / "again", settings=QUICK, console=console)
    assert [model.bits_per_byte for model in again.models] == [model.bits_per_byte for model in first.models]


@pytest.mark.conformance
def test_tasks_of_several_runs_are_paired_with_the_spread_over_seeds(tmp_path: Path, texts: str) -> None:
    plain, *hidden = (
        recipe(tmp_path, name, decoder, path=texts, **model)
        for name, decoder, model in (
            ("plain", "vanilla", {}),
            ("hidden-0", "free", {"event_dims": 3}),
            ("hidden-1", "free", {"event_dims": 2}),
        )
    )
    tasks = dataclasses.replace(QUICK, tasks="latentlm_held*,latentlm_copy", limit=5)
    console = Console(quiet=True)
    found = run([plain, ",".join(hidden)], [], tmp_path / "out", settings=tasks, console=console)
    assert [model.name for model in found.models] == ["plain", "hidden-0", "hidden-1"]
    assert found.paired_tasks is not None
    assert found.paired_tasks.models == {"plain": ["plain"], "hidden": ["hidden-0", "hidden-1"]}
    assert {one.name for one in found.paired_tasks.differences} == {"latentlm_heldout", "latentlm_copy"}
    assert {one.runs for one in found.paired_tasks.differences} == {(1, 2)}
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "hidden minus plain" in page
    said = [model.tasks_verdict for model in found.models]
    assert said[0] is None, "exact"
    assert said[1] is not None
    assert said[1].startswith("5 of 5 likelihoods are not good to 0.01 nats"), "two samples each"
    assert f"hidden-0: {said[1]}" in page
    assert page.count("<svg") == 2
    saved = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))
    assert len(saved["paired_tasks"]["differences"]) == 2
    logged = [str(tmp_path / "out" / "evaluations" / name) for name in ("plain", "hidden-0", "hidden-1")]
    again = compare_folders([logged[0], ",".join(logged[1:])], [], tmp_path / "again", command="")
    assert again == found.paired_tasks
    results = [json.loads(next(Path(each).glob("results_*.json")).read_text(encoding="utf-8")) for each in logged]
    assert {each["config"]["latentlm"]["windows"] for each in results} == {"disjoint"}, "of the plain decoder too"


def _tokens(models: list) -> int:  # type: ignore[type-arg]
    return sum(score.tokens for score in models[0].scores)


def test_bad_requests_are_refused_before_any_work(tmp_path: Path, texts: str) -> None:
    console = Console(quiet=True)
    with pytest.raises(UserError, match="Did you mean"):
        run(["demo-vanila"], [], tmp_path / "out", settings=QUICK, console=console)
    with pytest.raises(UserError, match="each once"):
        run(["demo-free", "demo-free"], [], tmp_path / "out", settings=QUICK, console=console)
    one, other = recipe(tmp_path, "a", "vanilla", path=texts), recipe(tmp_path, "b", "vanilla", path="stdlib")
    with pytest.raises(UserError, match="different data"):
        run([one, other], [], tmp_path / "out", settings=QUICK, console=console)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--out"):
        run([one], [], tmp_path / "file" / "out", settings=QUICK, console=console)
    with pytest.raises(UserError, match='Did you mean "latentlm_copy"'):
        run([one], [], tmp_path / "out", settings=dataclasses.replace(QUICK, tasks="latentlm_cpoy"), console=console)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ({"method": "iwea"}, 'Did you mean "iwae"'),
        ({"max_samples": 16}, "begins with 32"),
        ({"tolerance": math.nan}, "above 0, not nan"),
        ({"samples": 0}, "samples must be at least 1"),
    ],
)
def test_a_precision_that_means_nothing_is_refused_before_models_are_trained(setting: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        Precision(**setting)


def test_held_out_texts_are_cut_and_say_so() -> None:
    documents = [Document(str(number), b"x" * (number + 1) * 10) for number in range(6)]
    texts = held_out_texts(documents, count=4, limit=30, seed=0)
    assert len(texts) == 4
    model = build(ModelConfig())
    model.tokenizer = load_tokenizer("bytes")
    assert all((tokenized(model, text)[-1] == 256) == text.whole and tokenized(model, text)[0] == 256 for text in texts)
    assert all(text.whole == (len(documents[int(text.id)].data) <= 30) and len(text.data) <= 30 for text in texts)
    assert texts == held_out_texts(list(reversed(documents)), count=4, limit=30, seed=0)
