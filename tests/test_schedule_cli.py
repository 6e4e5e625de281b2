"""`latentlm schedules`: the list, the plot, the revival, and what they refuse before any training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from latentlm import plugins
from latentlm.config import Strict
from latentlm.errors import UserError
from latentlm.interface import KLSchedule
from latentlm_evals import schedule_bench, schedule_runs
from latentlm_evals.schedules_cli import app

NAMES = sorted(plugins.names("kl_schedule"))


def invoke(*arguments: str) -> str:
    """Standard output; errors are raised as they are, which `latentlm` turns into one line."""
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("it trains")

    monkeypatch.setattr(schedule_runs, "run", refuse)


class Silent(KLSchedule):
    """Charges nothing."""

    Config = Strict

    def penalty(self, kl: Any, *masks: Any, step: int) -> Any:
        return kl.new_zeros(()), {}


@pytest.fixture
def silent() -> Iterator[None]:
    plugins.register("kl_schedule", "silent", Silent)
    yield
    plugins.unregister("kl_schedule", "silent")


def test_the_list_has_every_schedule_with_formula_and_source() -> None:
    listed = {entry["name"]: entry for entry in json.loads(invoke("list", "--json"))}
    assert sorted(listed) == NAMES
    assert all(entry["summary"] and entry["formula"] and entry["source"] for entry in listed.values())
    assert listed["geco"]["has_state"]
    assert not listed["free_bits"]["has_state"]
    assert listed["cyclical"]["settings"]["cycles"] == 4
    table = invoke("list")
    assert all(name in table for name in NAMES)


@pytest.mark.usefixtures("silent")
def test_a_schedule_from_elsewhere_is_listed_and_run_with_its_defaults() -> None:
    (entry,) = [entry for entry in json.loads(invoke("list", "--json")) if entry["name"] == "silent"]
    assert (entry["summary"], entry["formula"], entry["source"]) == ("Charges nothing.", "", "")
    assert "Charges nothing." in invoke("list")
    assert schedule_bench.settings_for("silent", steps=10, bits=1.0, event_dims=4, target_bits=None) == {}


@pytest.mark.parametrize("name", NAMES)
def test_the_bench_has_settings_for_every_schedule(name: str, tmp_path: Path) -> None:
    base = schedule_bench.base_recipe(None, folder=tmp_path, steps=10, seed=0)
    settings = schedule_bench.settings_for(name, steps=10, bits=1.0, event_dims=6, target_bits=2.0)
    recipe = schedule_bench.with_schedule(base, name, settings, [])
    assert recipe.model.kl_schedule is not None
    assert recipe.model.kl_schedule.name == name


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_plot_writes_curves_and_a_figure(tmp_path: Path, jobs: str) -> None:
    command = ("plot", "--schedules", "capacity,free_bits", "--steps", "6", "--set", "capacity.gamma=7", "--jobs", jobs)
    printed = json.loads(invoke(*command, "--out", str(tmp_path), "--json"))
    assert printed == json.loads((tmp_path / "schedules.json").read_text())
    runs = {run["schedule"]: run for run in printed["runs"]}
    assert list(runs) == ["capacity", "free_bits"]
    assert runs["capacity"]["settings"]["gamma"] == 7.0
    assert runs["capacity"]["settings"]["bits"] == runs["free_bits"]["settings"]["bits"] == 3.0
    assert [point["step"] for point in runs["free_bits"]["points"]] == list(range(7))
    starts = [run["points"][0] for run in runs.values()]
    assert starts[0] == starts[1], "the same weights, data and noise"
    assert runs["capacity"]["points"][-1] != runs["free_bits"]["points"][-1]
    svg = (tmp_path / "schedules.svg").read_text()
    assert svg.startswith("<?xml")
    assert svg.count("<!-- capacity -->") == svg.count("<!-- free_bits -->") == 1


@pytest.mark.slow
def test_revive_continues_from_the_collapsed_weights(tmp_path: Path) -> None:
    command = ("revive", "--schedules", "free_bits,capacity", "--steps", "5", "--collapse-steps", "8", "--seeds", "2")
    printed = json.loads(invoke(*command, "--out", str(tmp_path), "--jobs", "1", "--json"))
    assert printed == json.loads((tmp_path / "revive.json").read_text())
    collapsed = {run["seed"]: run["points"][-1] for run in printed["collapsed"]}
    assert sorted(collapsed) == [0, 1]
    assert [(run["schedule"], run["seed"]) for run in printed["runs"]] == [
        ("free_bits", 0), ("capacity", 0), ("free_bits", 1), ("capacity", 1),
    ]  # fmt: skip
    for run in printed["runs"]:
        first = run["points"][0]
        for key in ("kl", "information", "cross_entropy"):
            assert first[key] == collapsed[run["seed"]][key], "it starts where the collapsed run ended"
    table = invoke(*command[:-1], "1", "--out", str(tmp_path), "--jobs", "1")
    assert "alive" in table
    assert "of 1" in table


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("plot", "--schedules", "free_bit"), 'Unknown KL schedule "free_bit". Did you mean "free_bits"'),
        (("revive", "--schedules", "cyclic"), 'Did you mean "cyclical"'),
        (("plot", "--schedules", ","), "names none"),
        (("plot", "--image", "curves.jpeg"), "should end in .svg or .png"),
        (("plot", "--recipe", "vanilla-tiny"), "no latents"),
        (("plot", "--recipe", "free-tin"), 'Did you mean "free-tiny"'),
        (("plot", "--recipe", "free-tiny", "--schedules", "geco"), "set --target"),
        (("plot", "--set", "capacity.gama=3"), 'Did you mean "gamma"'),
        (("plot", "--set", "capcity.gamma=3"), 'Did you mean "capacity"'),
        (("plot", "--set", "gamma=3"), "NAME.key=value"),
    ],
)
def test_what_is_wrong_is_refused_before_training(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        invoke(*arguments, "--out", str(tmp_path))
    assert words in str(caught.value)


@pytest.mark.usefixtures("no_training")
def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another folder with --out"):
        invoke("plot", "--out", str(tmp_path / "file" / "below"))


@pytest.mark.parametrize("command", ["plot", "revive", "list"])
def test_help_has_examples(command: str) -> None:
    assert f"latentlm schedules {command}" in " ".join(invoke(command, "--help").split())


def test_a_run_does_not_touch_the_global_random_state(tmp_path: Path) -> None:
    base = schedule_bench.base_recipe(None, folder=tmp_path, steps=1, seed=0)
    recipe = schedule_bench.with_schedule(base, "constant", {}, [])
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    schedule_runs.run(schedule_runs.Task("constant", recipe, every=1))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_built_in_text_is_the_same_everywhere(tmp_path: Path) -> None:
    lines = schedule_bench.write_topics(tmp_path).read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    assert len(texts) == 1600
    assert {len(text) for text in texts} == {15}
    assert max(len(set(text)) for text in texts) <= 4
    assert texts[0] == "kcnckkkooocokck"
