"""The synthetic experiment: what groups agree in, what is expected of a model, and the command."""

from __future__ import annotations

import html
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from latentlm import zoo
from latentlm.errors import UserError
from latentlm.generation import generate
from latentlm.interface import Generation
from latentlm.training.data.synthetic import Letter
from latentlm_evals.figure4 import experiment, table
from latentlm_evals.figure4.arms import BUDGETS, KINDS, Seen, budget_of, kind_of, outcomes
from latentlm_evals.figure4.figure import pictures
from latentlm_evals.figures import svg
from latentlm_evals.letter import groups
from latentlm_evals.letter.groups import Agreement, Group, agreement
from latentlm_evals.letter.measure import Generated
from latentlm_evals.letter.resampling import intervals, resampled
from latentlm_evals.reproduce_cli import app
from latentlm_evals.study.plan import Study, runs_of

LIKE_DATA = Agreement(
    near_within=0.12, near_across=0.12, spread_within=16.0, spread_across=16.0, masks=0.03, valid=0.9, noise=0.0625
)


def shown(drawn: dict[groups.Prefill, dict[str, list[Group]]]) -> experiment.Shown:
    return experiment.Shown(
        name="free-synthetic-additive-1", label="additive 1", budget=1.0, generated=Generated({}, {}), likelihoods=[],
        outcome=[], intervals={}, judged=[], seeds=1, pictures=drawn,
    )  # fmt: skip


def text(start: int, noise: tuple[int, ...] = (), letter: str = "K") -> str:
    clean = "_" * start + letter * 8 + "_" * (56 - start)
    return "".join("!" if place in noise else character for place, character in enumerate(clean))


def test_groups_that_share_a_place_and_groups_that_share_the_noise() -> None:
    found = agreement([
        Group("K", [text(10, (1, 2)), text(12, (1, 2)), text(13, (1, 3))]),
        Group("Q", [text(40, (), "Q"), text(40, (5,), "Q"), text(44, (5, 6), "Q")]),
    ])  # fmt: skip
    assert found.near_within == pytest.approx(4 / 6)  # of the second group, 40 and 44 are four places apart, twice
    assert found.near_across == 0.0
    assert found.spread_within == pytest.approx(((7 / 3 + 16 / 3) / 2) ** 0.5)
    assert found.masks == pytest.approx((1 + 1 / 3 + 1 / 3 + 0 + 0 + 1 / 2) / 6)
    assert found.valid == 1.0
    assert found.noise == pytest.approx(9 / (6 * 64))


def test_the_datas_own_texts_agree_by_chance_alone() -> None:
    texts = [draw[2:].decode().replace(chr(draw[0]), "K") for draw in Letter().texts(500, seed=5)]
    found = agreement([Group("K", texts[number : number + 5]) for number in range(0, 500, 5)])
    assert found.valid == 1.0
    assert found.near_within == pytest.approx(found.near_across, abs=0.04)
    assert found.near_across == pytest.approx(387 / 57**2, abs=0.02)  # pairs of 57 starts within three places
    assert found.masks == pytest.approx(0.034, abs=0.01)


def test_a_strange_character_cannot_reach_a_terminal_or_a_picture() -> None:
    assert Group("K", ["\x1b[31m\n<&é" + "_" * 80]).printable == ["·[31m·<&·" + "_" * 55]


@pytest.mark.parametrize(
    ("budget", "changes", "met"),
    [
        ("1-64", {}, [True, True, True]),
        ("1-64", {"near_within": 0.3, "masks": 0.3, "valid": 0.5}, [False, False, False]),
        ("1-8", {"near_within": 0.7}, [True, True, True]),
        ("1-8", {"near_within": 0.5, "near_across": 0.3, "masks": 0.2}, [False, False, False]),
        ("1", {"near_within": 0.9, "masks": 0.6}, [True, True, True]),
        ("1", {"near_within": 0.9, "masks": 0.4}, [True, True, False]),
    ],
)
def test_outcomes_are_the_papers(budget: str, changes: dict[str, float], met: list[bool]) -> None:
    seen = Seen(independent=LIKE_DATA, shared=replace(LIKE_DATA, **changes), vanilla=LIKE_DATA)
    assert [one["met"] for one in outcomes(budget, seen)] == met


@pytest.mark.parametrize(("valid", "met"), [(0.4, True), (0.5, False)])
def test_eight_bits_break_generation(valid: float, met: bool) -> None:
    seen = Seen(independent=replace(LIKE_DATA, valid=valid), shared=LIKE_DATA, vanilla=LIKE_DATA)
    assert [one["met"] for one in outcomes("8", seen)] == [met]


def test_the_study_has_every_budget_with_either_table_and_seeds_where_they_matter() -> None:
    study = experiment.the_study()
    runs = runs_of(study, experiment.HERE)
    assert len(study.arms) == 9
    assert {(kind_of(name), budget_of(name)) for name in study.arms} == {
        (None, None), *((kind, budget) for kind in KINDS for budget in BUDGETS)
    }  # fmt: skip
    assert len({run.resolved.model_copy(update={"name": ""}).model.model_dump_json() for run in runs}) == 9
    for run in runs:
        budget = budget_of(run.arm)
        if budget is not None:
            assert run.resolved.model.kl_schedule.settings["bits"] == BUDGETS[budget]  # type: ignore[union-attr]
    assert {arm: arm_spec.seeds for arm, arm_spec in study.arms.items() if arm_spec.seeds} == dict.fromkeys(
        (name for name in study.arms if budget_of(name) in ("1-8", "1", None)), 3
    )


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cards of a plain decoder and of one with latents, trained for two steps by the command itself."""
    folder = tmp_path_factory.mktemp("synthetic")
    only = ["--only", "vanilla-synthetic", "--only", "free-synthetic-full-1-64"]
    small = ["train.steps=2", "train.batch=4", "data.max_documents=200", "model.backbone.width=16", "train.eval_documents=2"]
    whole = experiment.the_study

    def one_seed(texts: int | None = None) -> Study:
        study = whole(texts)
        return study.model_copy(
            update={"arms": {name: arm.model_copy(update={"seeds": 1}) for name, arm in study.arms.items()}}
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "the_study", one_seed)
        found = CliRunner().invoke(
            app, ["synthetic", "--train", *only, "--runs", str(folder / "runs"), "--ship", str(folder / "shelf"),
                  "--texts", "3", *small], catch_exceptions=False,
        )  # fmt: skip
    assert found.exit_code == 0, found.output
    return folder / "shelf"


def test_what_was_trained_is_shown_drawn_and_counted(
    shelf: Path, tmp_path: Path
) -> None:
    only = ["--shelf", str(shelf), "--only", "free-synthetic-full-1-64", "--groups", "2"]
    found = CliRunner().invoke(app, ["synthetic", *only, "--out", str(tmp_path), "--json"], catch_exceptions=False)
    (one,) = json.loads((tmp_path / "synthetic.json").read_text(encoding="utf-8"))
    assert found.exit_code == 0
    assert one["label"] == "full 1/64"
    assert len(one["outcome"]) == 3
    assert {*one["generated"]["shared"]} == {"prior", "posterior"}
    (likelihood,) = one["likelihoods"]
    assert likelihood["excess_nats"] > 0
    assert likelihood["method"].endswith("3 texts")
    assert (tmp_path / "figure4-full.svg").read_text(encoding="utf-8").count("full 1/64") == 2
    assert (one["judged"], one["seeds"]) == ([0], 1)
    assert all(outcome["low"] <= outcome["value"] <= outcome["high"] for outcome in one["outcome"] if not outcome["decided"])
    low, high = one["intervals"]["shared"]["prior"]["near_within"]
    assert 0 <= low <= high <= 1
    assert found.stderr.count("Generating with") == 2, "by lines where no terminal is"


def test_a_likelihood_that_is_good_to_nobody_knows_what_is_shown_as_such(tmp_path: Path) -> None:
    only = ["--only", "free-synthetic-additive-1", "--groups", "2", "--out", str(tmp_path)]
    found = CliRunner().invoke(app, ["synthetic", *only], catch_exceptions=False)
    assert found.exit_code == 0
    assert found.output.count("unknown, no") == 3
    for words in ("prompt's z: prior", "prompt's z: encoder", "(seed 0, of 3)"):
        assert words in found.output, words


def test_both_sources_of_the_prompts_z_stand_side_by_side_where_there_is_room() -> None:
    drawn = {kind: [Group("K", [text(3)])] for kind in ("z drawn for each", "one z")}
    one = shown({"prior": drawn, "posterior": {kind: [Group("K", [text(9)])] for kind in drawn}})
    for width, beside in ((80, False), (140, True)):
        console = Console(record=True, width=width, file=io.StringIO())
        table.show([one], console=console)
        lines = console.export_text().splitlines()
        assert any("prompt's z: prior" in line and "prompt's z: encoder" in line for line in lines) is beside
        assert any(text(3) in line and text(9) in line for line in lines) is beside
        assert sum(line.count(text(3)) for line in lines) == sum(line.count(text(9)) for line in lines) == 2


def test_other_groups_say_how_far_a_verdict_can_be_trusted() -> None:
    own = [Group("K", [text(20)] * 5 if number % 2 else [text(place) for place in (0, 10, 20, 30, 40)]) for number in range(26)]
    others = resampled(own)
    point = agreement(own)
    found = intervals(others)
    assert found["near_within"][0] < point.near_within == 0.5 < found["near_within"][1]
    assert found["valid"] == (1.0, 1.0)
    assert found["near_across"][0] < point.near_across < found["near_across"][1]
    mean = sum(other.near_within for other in others) / len(others)
    assert mean == pytest.approx(0.5, abs=0.02)
    for near, decided in ((0.5, True), (0.59, False)):
        moved = [replace(LIKE_DATA, near_within=other.near_within + near - 0.5) for other in others]
        seen = [Seen(LIKE_DATA, one, LIKE_DATA) for one in (replace(LIKE_DATA, near_within=near - 0.2), *moved)]
        first = outcomes("1-8", seen[0], [replace(one, shared=replace(one.shared, near_within=one.shared.near_within - 0.2))
                                          if decided else one for one in seen[1:]])[0]  # fmt: skip
        assert (first["met"], first["decided"]) == (False, decided)


def test_a_shared_group_has_one_z_and_an_independent_one_has_not(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, made = zoo.load(shelf / "free-synthetic-full-1-64"), []

    def recorded(*arguments: Any, **settings: Any) -> list[Generation]:
        found = generate(*arguments, **settings)
        made.append(found)
        return found

    monkeypatch.setattr(groups, "generate", recorded)
    for kind, alike in ((groups.shared, True), (groups.independent, False)):
        (one, other) = kind(model, ["K", "Q"], prefill="prior", seed=0)
        assert (one.letter, other.letter, len(one.texts), len(other.texts)) == ("K", "Q", 5, 5)
        heads = [generation.latents.value[0, :3] for generation in made[-1]]  # end-of-text, the letter, ">"
        assert all(torch.equal(head, heads[0]) is alike for head in heads[1:5])
        assert all(torch.equal(head, heads[5]) is alike for head in heads[6:])
        assert not torch.equal(heads[0], heads[5]), "groups differ"
        assert len(set(one.texts)) > 1, "tokens are drawn for each"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--letter", "k"], "26 capitals"),
        (["train.steps=3"], "add --train"),
        (["--ship", "somewhere"], "add --train"),
        (["--only", "free-synthetic-ful-1"], "free-synthetic-full-1"),
        (["--jobs", "2"], "--jobs is about training"),
        (["--runs", "somewhere"], "add --train"),
        (["--train", "--score"], "--score is about what is shown"),
        (["--train", "--groups", "4"], "--groups is about"),
        (["--train", "--letter", "K"], "--letter is about"),
        (["--train", "--shelf", "somewhere"], "--shelf is about"),
        (["--train", "--out", "somewhere"], "--out is about"),
        (["--train", "--seed", "0"], "--seed is about"),
        (["--shelf", "nowhere"], "nowhere has no trained vanilla-synthetic"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CliRunner().invoke(app, ["synthetic", *arguments], catch_exceptions=False)


def test_pictures_are_the_same_for_the_same_groups() -> None:
    one = shown({"prior": {"one z": [Group("K", [text(3)])]}})
    assert svg(pictures([one])["additive"]) == svg(pictures([one])["additive"])
    assert set(pictures([one])) == {"additive"}


def test_a_picture_says_what_its_columns_are() -> None:
    made = svg(pictures([shown({"prior": {"one z": [Group("K", [text(3)])]}})])["additive"])
    assert "Left: the prompt's z is drawn from the prior" in html.unescape(made)
