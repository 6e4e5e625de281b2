"""Every benchmark runs in its quick form, and the page says what the results say."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks import ceiling, generation, large, report, scoring, steps, timing
from benchmarks.contenders import QUICK
from benchmarks.losses.trees import ROOT, RevisionError, Tree
from benchmarks.outputs import writable
from benchmarks.pace import __main__ as pace
from benchmarks.timing import Row, quartiles, summary


@pytest.fixture
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is not measured: each contender would start Python and torch again."""
    monkeypatch.setattr(steps, "call", lambda *arguments: 1.0)


@pytest.fixture(scope="module")
def invented() -> report.Results:
    """Results as they might be, with a goal met and one missed."""
    size = {"bits": 16, "width": 8, "tokens": 4, "error": 1e-8, "cosine": 1.0, "note": "not installed"}
    ours = {**size, "path": "ours", "seconds": 1.0, "extra_mib": 2.0, "time_ratio": 1.0, "memory_ratio": 1.0}
    dense = {**size, "path": "dense autograd", "seconds": 5.0, "extra_mib": 30.0, "time_ratio": 5.0, "memory_ratio": 15.0}
    missing = {**size, "path": "x-transformers", "seconds": None}
    step = summary({"vanilla": [1.0], "free H=16": [1.3]}, reference="vanilla", suite="steps", case="c")
    step[1] |= {"theory": 1.125, "extra_mib": 10.0, "tokens_per_second": 100.0}
    limit = summary({"vanilla": [2.0], "a large product": [1.0]}, reference="vanilla", suite="ceiling", case="c")
    product = {"operator": "aten::mm", "calls": 3.0, "share": 0.75, "gigaflops": 60.0}
    for row in limit:
        row |= {"gigaflop": 80.0, "peak": 80.0, "operators": []}
    limit[0]["operators"] = [product, {"operator": "aten::mul", "calls": 2.0, "share": 0.25, "gigaflops": None}]
    times = {"vanilla": [1.0], "free H=16": [1.02], "transformers Llama": [1.1], "vanilla, compiled": [0.7]}
    times["free H=16, compiled"] = [0.77]
    made = summary(times, reference="vanilla", suite="generation", case="width 256, batch 1")
    for row in made:
        row |= {"tokens_per_second": 50.0, "extra_ms_per_step": 0.25}
    times = {"vanilla": [1.0], "hf": [1.25], "free K=16": [9.0]}
    asked = summary(times, reference="vanilla", suite="scoring", case="one token")
    asked[2]["theory"] = 8.5
    unable = {"suite": "large", "case": "free-8b", "contender": "free-8b", "note": "skipped: too little"}
    facts = {"date": "2026-01-01", "processor": "a processor", "torch": "2", "python": "3"}
    rows = {"mapper": [ours, dense, missing], "steps": step, "ceiling": limit, "generation": made, "scoring": asked}
    return {"machine": facts, "command": "make bench", **rows, "large": [unable]}


def by_name(rows: list[Row]) -> dict[str, Row]:
    return {row["contender"]: row for row in rows}


@pytest.mark.conformance
def test_steps_compare_every_contender_with_the_vanilla_step(no_processes: None) -> None:
    rows = by_name(steps.run(quick=True))
    assert {*steps.names(QUICK)} < {*rows}
    assert rows["vanilla"]["ratio"] == 1.0
    assert rows["transformers Llama"]["parameters"] == rows["vanilla"]["parameters"]
    assert rows["free H=4"]["theory"] == 1.5  # one block in two
    assert all(row["seconds"] > 0 for row in rows.values())


@pytest.mark.conformance
def test_a_step_is_set_against_the_fastest_large_product() -> None:
    rows = by_name(ceiling.run(quick=True))
    products = {name: row for name, row in rows.items() if name.startswith("a large product")}
    assert max(row["gigaflop"] / row["seconds"] for row in products.values()) == rows["vanilla"]["peak"]
    for name in ceiling.names(QUICK):
        assert sum(part["share"] for part in rows[name]["operators"]) == pytest.approx(1)
    counted = {part["operator"]: part["gigaflops"] for part in rows["transformers Llama"]["operators"]}
    assert counted["aten::mm"] > 0
    assert counted["aten::mul"] is None
    assert rows["vanilla"]["gigaflop"] == rows["transformers Llama"]["gigaflop"] < rows["free H=4"]["gigaflop"]


def test_memory_of_a_step_is_the_growth_of_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = iter([100.0, 130.0])
    monkeypatch.setattr(steps, "peak_mib", lambda: next(peaks))
    assert steps.memory("vanilla", QUICK) == 30.0


@pytest.mark.conformance
def test_generation_compares_batches_and_temperatures() -> None:
    rows = generation.run(quick=True)
    assert {(row["batch"], row["temperature"]) for row in rows} == {*product((1, 8, 64), (0.0, 1.0))}
    assert {row["contender"] for row in rows} == {"vanilla", "transformers Llama", "free H=6"}
    assert all(row["tokens_per_second"] > 0 for row in rows)


@pytest.mark.conformance
def test_scoring_compares_with_hf_and_counts_what_samples_take() -> None:
    rows = scoring.run(quick=True)
    assert {row["case"] for row in rows} == {case.name for case in scoring.cases(quick=True)}
    others = {"vanilla", "hf", "chunk K=16", "gaussian K=16"}
    assert {row["contender"] for row in rows} == {*others, *(f"free K={samples}" for samples in scoring.SAMPLES)}
    assert all(row["theory"] > 1 for row in rows if row["contender"].startswith("free"))
    few, many = (scoring.theory(scoring.FULL, scoring.cases(quick=False)[0], samples=samples) for samples in (1, 17))
    assert many - few == pytest.approx(16 / 2, abs=0.1)  # half of the blocks lie above the latent


def test_large_model_is_skipped_where_it_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large.memory, "available", lambda device: 2**30)
    (row,) = large.run()
    assert row["note"] == "skipped: 1.0 GiB of memory are free, 20 are needed"


def test_contenders_take_turns() -> None:
    order: list[str] = []
    timing.interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2)
    assert "".join(order) == "ab" + "ab" + "ba"  # warm-up, first round, second round


def test_ratios_are_taken_round_by_round() -> None:
    rows = by_name(summary({"a": [1.0, 2.0, 4.0], "b": [2.0, 4.0, 8.0]}, reference="a"))
    assert (rows["b"]["ratio"], rows["b"]["ratio_low"], rows["b"]["ratio_high"]) == (2.0, 2.0, 2.0)
    assert rows["b"]["seconds"] == 4.0


def test_quartiles_are_those_of_the_sorted_values() -> None:
    assert quartiles([5.0, 1.0, 2.0, 4.0, 3.0]) == (2.0, 3.0, 4.0)
    assert quartiles([7.0]) == (7.0, 7.0, 7.0)


def test_subprocess_failure_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"benchmarks\.nothing failed: .*No module named"):
        timing.call("benchmarks.nothing")


def test_goals_are_judged_by_the_numbers(invented: report.Results) -> None:
    met = {aim.split(":")[0]: met for aim, _, met in report.goals(invented)}
    assert met == {
        "exact gradient at H=16": True,
        "free H=16": False,
        "free H=16 generates at the speed of vanilla within 3% (width 256, batch 1)": True,
        "free H=16, compiled generates at the speed of vanilla, compiled within 3% (width 256, batch 1)": False,
        "vanilla, compiled, 1.5 times as fast as transformers (width 256, batch 1)": True,
        "vanilla scores at least as fast as lm-eval's hf (one token)": True,
        "16 samples at most 15% above the operations that they take (one token)": True,
    }


def test_page_holds_command_goals_and_tables(invented: report.Results) -> None:
    page = report.page(invented)
    assert "`make bench`: a processor, torch 2" in page
    assert "| at least 5.0 times faster, 15.0 times smaller | yes |" in page
    assert "| 1.30 (1.30-1.30) of the vanilla step, theory 1.12 | **no** |" in page
    assert "| free H=16 | 1.300 | 100 | 1.30 (1.30-1.30) | 1.12 | 10 |" in page
    assert "| H=16, D=8 | x-transformers | not installed |" in page
    assert "| vanilla | all of it |  | 100% | 40.0 | 50% |\n|  | products, MKL | 3 | 75.0% | 60.0 | 75% |\n|  | mul |" in page
    assert "| one token | free K=16 | 9.000 | 9.00 (9.00-9.00) | 8.50 |" in page
    assert "| free-8b | skipped: too little |" in page
    for block in page.split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.strip().splitlines()}) == 1


def test_results_survive_json(invented: report.Results) -> None:
    again: dict[str, Any] = json.loads(json.dumps(invented))
    assert report.page(again) == report.page(invented)


@pytest.mark.conformance
def test_pace_compares_what_both_trees_ship_and_has_a_control(tmp_path: Path) -> None:
    rows = pace.measured(Tree("before", ROOT), "vanilla-t*", rounds=2, folder=tmp_path, console=Console(quiet=True))
    assert [(row["what"], row["contender"]) for row in rows] == list(product(pace.KINDS, (pace.HERE, pace.CONTROL)))
    assert all(row["seconds"] > 0 and row["runs"] == 2 for row in rows)
    with (console := Console(width=110)).capture() as printed:
        console.print(pace.table(rows, against="before"))
    assert printed.get().count("vanilla-tiny") == len(pace.KINDS)


def test_pace_says_why_a_revision_cannot_be_timed(tmp_path: Path) -> None:
    for shelf in ("zoo/latentlm_zoo/cards/vanilla-tiny", "latentlm"):
        (tmp_path / "old" / shelf).mkdir(parents=True)
    (tmp_path / "old/zoo/latentlm_zoo/cards/vanilla-tiny/card.yaml").touch()
    (tmp_path / "old/pyproject.toml").write_text("[project]\nscripts = {}\nentry-points = {}\n")
    (tmp_path / "old/latentlm/__init__.py").write_text("raise RuntimeError('broken')\n")
    with pytest.raises(RevisionError, match="old failed: RuntimeError: broken"):
        pace.measured(Tree("old", tmp_path / "old"), "*", rounds=2, folder=tmp_path, console=Console(quiet=True))
    with pytest.raises(RevisionError, match="no card like 'nothing'"):
        pace.measured(Tree("old", tmp_path / "old"), "nothing", rounds=2, folder=tmp_path, console=Console(quiet=True))


@pytest.mark.parametrize("module", ["benchmarks.pace", "benchmarks.losses"])
def test_a_file_that_cannot_be_written_is_refused_before_the_work(module: str, tmp_path: Path) -> None:
    for file, said in ((tmp_path / "none" / "x.json", "does not exist"), (tmp_path, "is a folder")):
        command = [sys.executable, "-m", module, "--against", "HEAD", "--json", str(file)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 2
        assert said in " ".join(done.stderr.split())


def test_a_path_that_can_be_written_is_taken(tmp_path: Path) -> None:
    assert writable(str(tmp_path / "x.json")) == tmp_path / "x.json"
    assert list(tmp_path.iterdir()) == []


def test_pace_refuses_fewer_rounds_than_say_something(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pace", "--against", "HEAD", "--rounds", "9"])
    with pytest.raises(SystemExit):
        pace.main()
    assert "--rounds: at least 10" in capsys.readouterr().err
