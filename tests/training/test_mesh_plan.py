"""`--dry-run --processes N`: what many GPUs would need, counted on paper."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.timing import call
from latentlm.backbone.block import Block
from latentlm.cli import main
from latentlm.config import Recipe
from latentlm.errors import UserError
from latentlm.training import load_recipe
from latentlm.training.mesh_plan import GPUS, REACHED, MeshPlan, make_mesh_plan
from latentlm.training.setup import make_model, resolve
from latentlm.zoo.accounting import count
from latentlm.zoo.shelves import zoo_recipes
from latentlm_free.encoder import FreeEncoder
from latentlm_free.injection import TableInjection
from latentlm_free.table import FullTable

Make = Callable[..., Recipe]
LARGE = {
    "free-8b": 200e9, "free-1.5b": 47e9, "vanilla-1.5b": 47e9, "free-124m": 9e9, "vanilla-124m": 9e9, "free-51m": 1e9,
    "vanilla-51m": 1e9,
}  # fmt: skip


def plan(recipe: Recipe, processes: int) -> MeshPlan:
    return make_mesh_plan(recipe, processes=processes, gpu="H100")


@pytest.mark.parametrize("tied", [True, False])
def test_the_count_is_that_of_the_formulas(recipe: Make, tied: bool) -> None:
    mine = recipe("train.batch=8", "train.accumulate=2", "train.parallel.replicate=2", f"model.backbone.tie_embeddings={tied}")
    found = plan(mine, 8)
    model = make_model(resolve(mine), "meta")
    every = sum(parameter.numel() for parameter in model.parameters())
    blocks = [sum(p.numel() for p in module.parameters()) for module in model.modules() if isinstance(module, Block)]
    (table,) = (module.weight.numel() for module in model.modules() if isinstance(module, FullTable))
    embedding = 0 if tied else model.backbone.embedding.weight.numel()
    outside = every - sum(blocks) - table - embedding
    assert len(blocks) == 3  # two, and the encoder's
    assert found.kept == 16 * every / 4
    assert found.whole == 8 * outside
    assert found.passing == 2 * 4 * max(blocks) + max(4 * max(blocks), 8 * table) > 8 * embedding
    gathered = 8 * (sum(blocks) + table + embedding) + 4 * outside
    assert found.received == 2 * 3 / 4 * (gathered + 4 * every) + 8 * every / 4 / 2
    assert found.tokens_per_step == 8 * 2 * 32


def test_the_count_is_near_what_torch_tracks() -> None:
    """Of a step that computes nothing. A recomputed block keeps what enters it in float32, whatever it computes in: here that
    is half of the memory."""
    size = ("blocks=24", "width=512", "heads=8", "vocabulary=8192")
    settings = [*(f"model.backbone.{each}" for each in size), "train.batch=512", "train.recompute=true"]
    found = call("benchmarks.mesh_memory", "vanilla-124m", *settings, "--processes", "8", "--json")
    assert 0.9 < found["counted"] / found["tracked"] < 1.5


def test_what_is_gathered_within_another_is_counted_once(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder holds a block, an injection the table."""
    mine = recipe("train.batch=4")
    before, model = plan(mine, 4), make_model(resolve(mine), "meta")
    own = count(model.encoder) - count(model.encoder.block) + count(model.injection) - count(model.injection.table)
    for part in (FreeEncoder, TableInjection):
        monkeypatch.setattr(part, "gathered_alone", True, raising=False)
    assert before.whole - plan(mine, 4).whole == 8 * own > 0
    assert plan(mine, 4).passing == before.passing


def test_the_shares_of_the_peak_are_those_that_were_measured() -> None:
    """Compiled, a document a row, with the table's product in float32 as training has it."""
    rows = json.loads((Path(__file__).parents[2] / "docs" / "gpu" / "training.json").read_text())["rows"]
    found = {(row["size"], row["contender"]): row["mfu"] for row in rows if row["compiled"] and not row["packed"]}
    for size, shares in zip(("51M", "124M", "1.5B", "8B"), REACHED.values(), strict=True):
        assert shares == tuple(round(found[size, name], 3) for name in ("vanilla", "free"))


def test_the_nearest_size_sets_the_pace_of_decoders_with_latents_and_without() -> None:
    shares = {name: plan(load_recipe(name), 1 if name.endswith("m") else 64).share_of_peak for name in LARGE}
    assert shares == {
        "free-8b": 0.306, "free-1.5b": 0.365, "vanilla-1.5b": 0.437, "free-124m": 0.188, "vanilla-124m": 0.358,
        "free-51m": 0.188, "vanilla-51m": 0.267,
    }  # fmt: skip


def test_people_read_no_zeros_and_no_advice_that_was_taken(recipe: Make) -> None:
    alone, four = plan(recipe(), 1).text(), plan(recipe("train.batch=4"), 4).text()
    assert "received" not in alone
    assert "received" in four
    for setting, advised in (("false", True), ("true", False)):
        found = replace(plan(recipe(f"train.recompute={setting}"), 1), available=1.0)
        assert ("train.recompute=true" in found.text()) == advised
    said = replace(plan(load_recipe("free-8b"), 64), computing_seconds=15.4321).text()
    assert "about 8.52 days" in said


def test_one_process_receives_nothing_and_more_keep_less(recipe: Make) -> None:
    mine = recipe("train.batch=16")
    one, two, sixteen = (plan(mine, count) for count in (1, 2, 16))
    assert one.received == one.whole == one.passing == 0
    assert one.kept == 2 * two.kept == 16 * sixteen.kept
    assert one.activations == 16 * sixteen.activations
    assert sixteen.receiving_seconds == pytest.approx(sixteen.received / GPUS["H100"].far)
    assert two.receiving_seconds == pytest.approx(two.received / GPUS["H100"].near)


def test_what_does_not_fit_is_said(recipe: Make) -> None:
    found = plan(recipe(), 1)
    assert "fits" in found.text()
    assert "DOES NOT FIT" in replace(found, available=1.0).text()


@pytest.mark.parametrize("name", LARGE)
def test_the_large_recipes_see_their_tokens(name: str) -> None:
    found = plan(load_recipe(name), 1 if name.endswith("124m") else 64)
    assert LARGE[name] <= found.tokens_per_step * found.steps < 1.06 * LARGE[name]
    assert found.total < found.available
    assert name in zoo_recipes()


def test_what_cannot_be_planned_is_refused(recipe: Make) -> None:
    with pytest.raises(UserError, match="which 3 processes do not share evenly"):
        plan(recipe("train.batch=4"), 3)
    with pytest.raises(UserError, match="do not divide"):
        plan(recipe("train.batch=3", "train.parallel.replicate=2"), 3)
    with pytest.raises(UserError, match="H100"):
        make_mesh_plan(recipe(), processes=1, gpu="H10")


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["latentlm", "train", "free-8b", "--dry-run", "--processes", "64", "--json"])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert '"processes": 64' in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["latentlm", "train", "free-8b", "--processes", "64"])
    with pytest.raises(SystemExit, match="1"):
        main()
    assert "with --dry-run" in capsys.readouterr().err


def test_float32_takes_the_speed_of_float32(recipe: Make) -> None:
    half, full = (plan(recipe(f"train.dtype={name}"), 1).computing_seconds for name in ("bfloat16", "float32"))
    assert full == pytest.approx(half * GPUS["H100"].half / GPUS["H100"].full)


@pytest.mark.parametrize("words", [["--gpu", "A100"], ["--processes", "8", "--out", "x"], ["--processes", "8", "--resume"]])
def test_options_that_would_do_nothing_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["latentlm", "train", "free-8b", "--dry-run", *words])
    with pytest.raises(SystemExit, match="1"):
        main()
    assert capsys.readouterr().err.startswith("error: --")


def test_a_source_of_weights_that_is_none_is_refused(recipe: Make) -> None:
    with pytest.raises(UserError, match="nonesuch"):
        plan(recipe("train.init=nonesuch"), 1)
