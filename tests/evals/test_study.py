"""Controlled studies: what a file says, what is run, what is kept, and what the table says of it."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from latentlm import zoo
from latentlm.composed import build
from latentlm.config import BackboneConfig, ModelConfig, Recipe
from latentlm.errors import UserError
from latentlm.tokenizer import ByteTokenizer
from latentlm.training.data.synthetic import Letter
from latentlm.training.setup import resolve
from latentlm_evals.study.plan import Measures, read_study, runs_of
from latentlm_evals.study.results import add_line, check_lines, estimate, finished, read_lines, tabulated
from latentlm_evals.study.running import _training, likelihood_of
from latentlm_evals.study.table import LATENTS, SCORES, latents, notes, scores, tables
from latentlm_evals.study_cli import app
from zoo_models import edit_card, make_run

STUDIES = Path(__file__).parents[2] / "studies"
SMALL = {
    "train.steps": 2, "train.batch": 4, "data.max_documents": 200, "model.backbone.width": 16, "train.eval_documents": 2,
}  # fmt: skip
STUDY: dict[str, Any] = {
    "name": "tiny",
    "seeds": 2,
    "set": SMALL,
    "arms": {
        "plain": {"recipe": "vanilla-synthetic"},
        "free": {"recipe": "free-synthetic", "set": {"model.kl_schedule.bits": 0.5}, "seeds": 1},
    },
    "measure": {"texts": 3, "max_samples": 32},
}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False), encoding="utf-8")
    return path


def call(path: Path, *options: str) -> Any:
    out = ["--out", str(path.parent / "runs"), *options]
    found = CliRunner().invoke(app, [str(path), *out, "--json"], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


def test_a_study_runs_keeps_its_lines_and_runs_nothing_twice(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert call(path, "--dry-run")["waiting"] == ["plain-0", "free-0", "plain-1"]
    said = call(path)
    plain, free = said["arms"]
    assert (said["runs"], said["waiting"], said["one_seed"]) == (3, [], ["free"])
    lines = read_lines(tmp_path / "tiny.jsonl")
    assert free["means"]["peak_memory_mib"] > 50, "torch alone takes that"
    by_run = {(line["arm"], line["seed"]): line for line in lines}
    assert by_run.keys() == {("plain", 0), ("free", 0), ("plain", 1)}
    assert by_run["free", 0]["bits_per_byte"] == pytest.approx(free["bits_per_byte"])
    assert by_run["plain", 0]["converged"], "a plain decoder's score is exact"
    assert by_run["plain", 0]["scores"] != by_run["plain", 1]["scores"], "seeds differ"
    assert (plain["runs"], free["runs"]) == (2, 1)
    assert plain["difference"] is None
    assert free["difference"]["value"] == pytest.approx(free["bits_per_byte"] - plain["bits_per_byte"], abs=1e-9)
    assert set(free["means"]) >= {"ce_posterior", "ce_prior", "kl_bits", "tokens_per_second"}
    exact = Letter().nats(Letter().texts(3, seed=1_000_000))
    assert by_run["plain", 0]["exact"] == pytest.approx((-exact).tolist())
    assert plain["excess_nats"] > 0
    assert plain["groups"] == {"valid": 0.0}
    assert set(free["groups"]) == {"near", "across", "masks", "valid"}
    call(path)
    assert len(read_lines(tmp_path / "tiny.jsonl")) == 3

    arms = {**STUDY["arms"], "free": {"recipe": "free-synthetic", "set": {"model.kl_schedule.bits": 1.0}, "seeds": 1}}
    changed = written(tmp_path, arms=arms)
    assert call(changed, "--dry-run")["waiting"] == ["free-0"], "an arm that changed is run anew"
    shown = call(changed, "--table")
    assert [one["arm"] for one in shown["arms"]] == ["plain"]
    assert shown["waiting"] == ["free-0"]
    found = CliRunner().invoke(app, [str(changed), "--table"], catch_exceptions=False)
    assert "1 run has no result yet: free-0." in found.output
    assert "What z carries" not in found.output, "only the plain arm is there"


def test_a_dry_run_says_what_each_arm_is_before_anything_is_trained(tmp_path: Path) -> None:
    path = written(tmp_path)
    found = {one["arm"]: one for one in call(path, "--dry-run")["arms"]}
    assert {arm: (one["waiting"], one["runs"]) for arm, one in found.items()} == {"plain": (2, 2), "free": (1, 1)}
    assert found["plain"]["tokens"] == 2 * 4 * 67
    for run in runs_of(read_study(path), tmp_path):
        model = build(resolve(run.resolved, tokenizer=ByteTokenizer()).model, device="meta")
        assert found[run.arm]["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert found["free"]["operations"] > found["plain"]["operations"]


def test_the_tables_show_every_control_and_leave_out_what_nothing_has(tmp_path: Path) -> None:
    study = read_study(written(tmp_path))
    entropy = {"posterior": 0.5, "shuffled": 0.9, "prior": 0.8, "constant": 0.7}
    training = {"tokens_per_second": 10.0, "parameters": 1234, "peak_memory_mib": 512.0}
    found = tabulated(study, {
        "plain-0": line("plain", 0, [-10.0], training=training),
        "free-0": line("free", 0, [-10.5], cross_entropy=entropy, training=training),
    })  # fmt: skip
    console = Console(record=True, width=200, file=io.StringIO())
    console.print(*tables(study, found), sep="\n")
    said = console.export_text()
    for cell in ("1,234", "512", "0.5000", "0.9000", "0.8000", "0.7000", "0.40", "persistence", "recovery"):
        assert cell in said, cell
    assert "above exact" not in said
    assert "valid" not in said
    plain = tables(study, tabulated(study, {"plain-0": line("plain", 0, [-10.0], training=training)}))
    assert len(plain) == 1, "nothing has a latent"


def line(arm: str, seed: int, scores: list[float], **more: Any) -> dict[str, Any]:
    """A line of texts of ten bytes each."""
    latent = arm != "plain"
    entropy = {"posterior": 0.5, "shuffled": 0.9, "prior": 0.8, "constant": 0.9} if latent else {"exact": 0.7}
    return {
        "arm": arm, "seed": seed, "facts": f"{arm}{seed}", "scores": scores, "standard_errors": [0.0] * len(scores),
        "quarters": scores, "sixteenths": scores, "freedoms": [None] * len(scores), "bytes": [10] * len(scores),
        "targets": [11] * len(scores), "samples": 0, "method": "exact", "kl_bits": 0.4 if latent else 0.0,
        "information_bits": 0.1, "live_bits": 1, "persistence": [0.2, 0.4], "cross_entropy": entropy,
        "training": {"tokens_per_second": 10.0, "parameters": 5}, **more,
    }  # fmt: skip


def test_an_arm_is_compared_with_the_baseline_text_by_text(tmp_path: Path) -> None:
    study = read_study(written(tmp_path))
    lines = {
        "plain-0": line("plain", 0, [-10.0, -20.0, -30.0]),
        "plain-1": line("plain", 1, [-11.0, -21.0, -31.0]),
        "free-0": line("free", 0, [-10.5, -20.5, -30.5], exact=[-9.5, -19.5, -29.5]),
    }
    plain, free = tabulated(study, lines)
    assert plain.bits_per_byte == pytest.approx(61.5 / 30 / math.log(2))
    assert plain.spread == pytest.approx(math.sqrt(2) / 2 * 3 / 30 / math.log(2))
    assert free.difference is not None
    assert free.difference.value == pytest.approx(0.0, abs=1e-12)
    assert free.difference.low < 0 < free.difference.high, "two seeds of the baseline differ"
    assert free.excess_nats == pytest.approx(3 / 33)
    assert free.recovery == pytest.approx(0.2 / (0.4 * math.log(2)))
    assert free.means["persistence"] == 0.4


def test_where_no_kl_was_spent_no_recovery_is_said(tmp_path: Path) -> None:
    """A dead latent's KL is not exactly zero, and dividing by it says thousands of per cent."""
    lines = {"plain-0": line("plain", 0, [-10.0]), "free-0": line("free", 0, [-10.0], kl_bits=1e-6)}
    _, free = tabulated(read_study(written(tmp_path)), lines)
    assert free.recovery is None


def test_no_recovery_is_said_where_no_run_uses_z(tmp_path: Path) -> None:
    deaf = {"posterior": 0.5, "shuffled": 0.5, "prior": 0.9}
    lines = {"plain-0": line("plain", 0, [-10.0]), "free-0": line("free", 0, [-10.0], cross_entropy=deaf)}
    _, free = tabulated(read_study(written(tmp_path)), lines)
    assert (free.awake, free.recovery) == (0, None)


def test_below_the_tables_stands_what_is_missing_and_what_has_one_seed(tmp_path: Path) -> None:
    study = read_study(written(tmp_path))
    (free,) = tabulated(study, {"free-0": line("free", 0, [-10.0])})
    missing, baseline, alone = notes(study, ["plain-0", "plain-1"], [free])
    assert missing == "2 runs have no result yet: plain-0, plain-1."
    assert "plain, is not there yet" in baseline
    assert alone == "One seed, so no ranking: free."
    plain = tabulated(study, {f"plain-{seed}": line("plain", seed, [-10.0]) for seed in (0, 1)})
    assert notes(study, [], plain) == []


@pytest.mark.parametrize("name", ["controls", "controls.jsonl", "contrls.yaml"])
def test_a_study_that_is_misspelt_or_its_results_is_told(name: str) -> None:
    with pytest.raises(UserError, match=r'Did you mean "\S*controls\.yaml"'):
        CliRunner().invoke(app, [str(STUDIES / name), "--table"], catch_exceptions=False)


@pytest.mark.parametrize("width", [60, 80])
def test_at_a_terminals_width_no_word_and_no_number_is_broken(width: int) -> None:
    study = read_study(STUDIES / "plans.yaml")
    lines = finished(runs_of(study, STUDIES), read_lines(STUDIES / "plans.jsonl"))
    found = tabulated(study, lines)
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(*tables(study, found), sep="\n")
    shown = console.export_text()
    for cells in (scores(found), latents(found)):
        for cell in (cell for row in cells for cell in row):
            assert cell in shown
    assert {word for head in (SCORES, LATENTS[:11]) for text in head for word in text.split() if word != "above"} <= {
        *shown.split(), "exact,", "nats", "a", "target"
    }  # fmt: skip


def test_an_arm_says_how_many_of_its_runs_use_z(tmp_path: Path) -> None:
    """By another text's z alone: one that differs from the prior's only is the same for every text."""
    deaf = {"posterior": 0.5, "shuffled": 0.5 + 0.009 * math.log(2), "prior": 0.9, "constant": 0.9}
    lines = {
        "plain-0": line("plain", 0, [-10.0]),
        "free-0": line("free", 0, [-10.0]),
        "free-1": line("free", 1, [-10.0], cross_entropy=deaf),
    }
    plain, free = tabulated(read_study(written(tmp_path)), lines)
    assert (plain.awake, free.awake, free.runs) == (None, 1, 2)


def test_what_follows_a_prompt_is_scored_given_it(tmp_path: Path) -> None:
    """Bits per byte of the rest alone; a plain decoder's scores of prompt and rest add up to that of the text."""
    for length in (5, 15, 20, 25, 40, 45):  # of the whole ones, the end counts as well
        (tmp_path / f"{length}.txt").write_text("abcde" * (length // 5), encoding="utf-8")
    recipe = Recipe.model_validate({"data": {"path": str(tmp_path), "held_out": 0.8}})
    model = build(ModelConfig(backbone=BackboneConfig(width=16, blocks=1, heads=1, context=64)), seed=1)
    model.tokenizer = ByteTokenizer()

    def found(size: int, given: int) -> dict[str, Any]:
        return likelihood_of(model.eval(), recipe, Measures(texts=4, bytes=size, given=given))

    rest, all_of_it, start = found(30, 4), found(30, 0), found(4, 0)
    assert [both - first for both, first in zip(all_of_it["scores"], start["scores"], strict=True)] == pytest.approx(
        rest["scores"], abs=1e-4
    )
    assert rest["bytes"] == [size - 4 for size in all_of_it["bytes"]]
    assert rest["targets"] == [number - 4 for number in all_of_it["targets"]]


def test_lines_from_before_there_were_prompts_stay_good(tmp_path: Path) -> None:
    assert "given" not in read_study(written(tmp_path)).measure.facts
    assert Measures(given=3).facts["given"] == 3


def test_a_score_that_has_not_converged_marks_its_arm(tmp_path: Path) -> None:
    study = read_study(written(tmp_path))
    bad = line("free", 0, [-10.0], quarters=[-12.0], sixteenths=[-14.0], standard_errors=[0.5], samples=64, method="iwae")
    assert estimate(bad).bias == pytest.approx(8 / 10 / math.log(2))
    (found,) = tabulated(study, {"free-0": bad})
    assert not found.converged


def test_a_line_that_a_crash_cut_short_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    keys = {"study": "tiny", "arm": "plain", "seed": 0}
    add_line(path, {**keys, "facts": "a"})
    for cut, facts in (('{"st', "b"), ('{"study": "tiny", "arm": "pl', "c")):
        path.write_text(path.read_text(encoding="utf-8") + cut, encoding="utf-8")
        add_line(path, {**keys, "facts": facts})
    assert [one["facts"] for one in read_lines(path)] == ["a", "b", "c"]


def test_a_line_that_stands_there_twice_counts_once(tmp_path: Path) -> None:
    for seed in (0, 1, 1):
        add_line(tmp_path / "lines.jsonl", {"study": "tiny", "arm": "plain", "seed": seed, "facts": "f"})
    assert [one["seed"] for one in read_lines(tmp_path / "lines.jsonl")] == [0, 1]


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.jsonl")), ids=lambda path: path.name)
def test_no_results_of_the_repository_hold_a_line_twice(path: Path) -> None:
    texts = path.read_text(encoding="utf-8").splitlines()
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("text", ["notes", "[]", "null", '{"text": "a"}', '{"study": 1, "arm": "a", "seed": 0, "facts": "f"}'])
def test_a_file_with_a_line_of_another_kind_is_no_file_of_results(tmp_path: Path, text: str) -> None:
    path = tmp_path / "lines.jsonl"
    add_line(path, {"study": "tiny", "arm": "plain", "seed": 0, "facts": "a"})
    path.write_text(f"{path.read_text(encoding='utf-8')}{text}\n", encoding="utf-8")
    with pytest.raises(UserError, match="line 2, is no line of a study"):
        check_lines(path)


def test_where_lines_go_is_looked_at_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder.*--results"):
        check_lines(tmp_path / "missing" / "lines.jsonl")
    (tmp_path / "link.jsonl").symlink_to("other.jsonl")
    with pytest.raises(UserError, match="link"):
        check_lines(tmp_path / "link.jsonl")
    (tmp_path / "mine.jsonl").touch()
    for name in ("new.jsonl", "mine.jsonl"):
        check_lines(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.jsonl", "mine.jsonl"]


def test_what_a_line_leaves_open_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    add_line(path, {"study": "tiny", "arm": "plain", "seed": 0, "facts": "f", "groups": None, "exact": None})
    assert not {"groups", "exact"} & set(read_lines(path)[0])


def test_the_newest_line_of_a_run_counts(tmp_path: Path) -> None:
    run = runs_of(read_study(written(tmp_path)), tmp_path)[0]
    old, new = (line("plain", 0, [score], facts=run.facts) for score in (-10.0, -9.0))
    assert finished([run], [old, new, {"facts": "other"}]) == {run.name: new}


_LETTERS = {"prior": {"valid": 1.0, "near_within": 0.5, "near_across": 0.1, "masks": 0.2}}


@pytest.mark.parametrize(
    "change",
    [
        {"scores": ["x"]},
        {"bytes": [10, 10]},
        {"training": 5},
        {"kl_bits": None},
        {"scores": []},
        {"islands": [[0.0]]},
        {"islands": [[]]},
        {"bytes": [0]},
        {"bytes": [10**400]},
        {"targets": [0]},
        {"freedoms": [0.0]},
        {"standard_errors": [-1.0]},
        {"scores": [1e300]},
        {"samples": -1},
        {"training": {"tokens_per_second": 1.0, "parameters": 10**400}},
        {"cross_entropy": {}},
        {"cross_entropy": {"posterior": 1.0}},
        {"arm": "free"},
        {"seed": 7},
        {"groups": 5},
        {"groups": {"independent": {}, "shared": {}}},
        {"groups": {"independent": _LETTERS, "shared": {"posterior": _LETTERS["prior"]}}},
        {"groups": {"independent": {"prior": {**_LETTERS["prior"], "masks": "x"}}, "shared": {}}},
    ],
)
def test_a_damaged_line_is_told_before_any_work(tmp_path: Path, change: dict[str, Any]) -> None:
    run = runs_of(read_study(written(tmp_path)), tmp_path)[0]
    with pytest.raises(UserError, match=r"line of plain-0 .* damaged.*Remove the line"):
        finished([run], [{**line("plain", 0, [-10.0], facts=run.facts), **change}])


@pytest.mark.parametrize(
    "change",
    [{"bytes": [11, 10]}, {"exact": [-9.0, -9.0]}, {"cross_entropy": {"exact": 0.7, "more": 0.8}}, "a text more"],
)
def test_lines_of_an_arm_that_are_not_alike_are_told(tmp_path: Path, change: Any) -> None:
    runs = [run for run in runs_of(read_study(written(tmp_path)), tmp_path) if run.arm == "plain"]
    lines = [line("plain", run.seed, [-10.0, -9.0], facts=run.facts) for run in runs]
    assert len(finished(runs, lines)) == 2
    lines[1] = line("plain", 1, [-1.0] * 3, facts=runs[1].facts) if isinstance(change, str) else {**lines[1], **change}
    with pytest.raises(UserError, match=r"lines of plain-0 and plain-1 .* not of the same texts.*Remove it"):
        finished(runs, lines)


def test_arms_of_other_texts_are_not_subtracted_from_each_other(tmp_path: Path) -> None:
    lines = {"plain-0": line("plain", 0, [-10.0, -20.0]), "free-0": line("free", 0, [-10.5, -20.5, -3.0])}
    plain, free = tabulated(read_study(written(tmp_path)), lines)
    assert [one.difference for one in (plain, free)] == [None, None]


@pytest.mark.parametrize("changes", [{"seeds": 10**12}, {"seeds": 600}, {"measure": {"texts": 10**12}}])
def test_a_study_has_no_more_runs_and_texts_than_can_be_planned(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"less than or equal to|at most"):
        read_study(written(tmp_path, arms={name: {"recipe": "x"} for name in "ab"}, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "plian"}, 'Did you mean "plain"'),
        ({"arms": {}}, "needs an arm"),
        ({"arms": {"a": {"recipe": "vanilla-synthetic", "set": {"train.stepz": 3}}}}, "stepz"),
        ({"arms": {"a": {"recipe": "vanila-synthetic"}}}, "vanilla-synthetic"),
        ({"arms": {"../a": {"recipe": "vanilla-synthetic"}}}, "no name for an arm"),
        ({"sedes": 3}, "sedes"),
        ({"set": {"train.seed": 3}}, "set: each run has a train.seed of its own"),
        ({"arms": {"a": {"recipe": "vanilla-synthetic", "set": {"name": "x"}}}}, "each run has a name of its own"),
        ({"measure": {"bytes": 64, "given": 64}}, "nothing is left to score"),
        ({"measure": {"given": 3}}, "density of synthetic:letter is that of whole texts"),
    ],
)
def test_a_faulty_study_is_refused_before_anything_is_trained(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        runs_of(read_study(written(tmp_path, **changes)), tmp_path)


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_study_of_the_repository_can_be_run(path: Path) -> None:
    study = read_study(path)
    runs = runs_of(study, path.parent)
    assert len({run.facts for run in runs}) == len(runs), "no two arms are the same"
    for run in runs:
        build(resolve(run.resolved, tokenizer=ByteTokenizer()).model, device="meta")


def test_an_arm_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='Did you mean "plain"'):
        CliRunner().invoke(app, [str(written(tmp_path)), "--only", "plian"], catch_exceptions=False)


def test_how_a_run_was_trained_is_its_cards_to_say_where_metrics_are_damaged(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").write_text('{"split": "train", "step": 3}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"say how it was trained \(tokens\): remove it to train it anew"):
        _training(zoo.load(tmp_path / "run"), tmp_path / "run")
    edit_card(tmp_path / "run", training={"steps": 3, "tokens": 600, "seconds": 2.0})
    assert _training(zoo.load(tmp_path / "run"), tmp_path / "run")["tokens_per_second"] == 300
