"""`latentlm compare` of folders that lm-eval logged: the table, the page, JSON, and what is refused."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from guessing import evaluated, logged
from latentlm.errors import UserError
from latentlm.tokenizer import BPETokenizer
from latentlm_evals.compare_cli import app
from latentlm_evals.logged import write_evaluation
from latentlm_evals.logged_comparison import are_logged, compare_folders
from latentlm_evals.model_runs import shared_name, split_runs
from latentlm_evals.paired_tables import show_tasks
from latentlm_evals.suites import task_path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    made = tmp_path_factory.mktemp("out")
    names = ("plain", "hidden-0", "hidden-1")
    return [str(logged(made / name, evaluated(seed, ["latentlm_short"]))) for seed, name in enumerate(names)]


def test_json_has_every_difference_and_nothing_else_is_printed(folders: list[str], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [*folders[:2], "--json", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    assert data["models"] == {"plain": ["plain"], "hidden-0": ["hidden-0"]}
    assert {(one["name"], one["metric"]) for one in data["differences"]} == {
        ("latentlm_brackets", "exact_match"),
        ("latentlm_copy", "exact_match"),
        ("latentlm_heldout", "bits_per_byte"),
        ("latentlm_next_line", "acc"),
        ("latentlm_next_line", "acc_norm"),
        ("latentlm_short", "exact_match"),
    }
    assert json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8")) == data


def test_the_page_has_the_numbers_and_a_figure(folders: list[str], tmp_path: Path) -> None:
    found = compare_folders(folders[:2], ["latentlm_heldout"], tmp_path / "out", command="latentlm compare a <b>")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    (one,) = found.differences
    for number in (f"{one.first_value:.3f}", f"{one.difference:+.3f}", f"{one.low:+.3f} {one.high:+.3f}"):
        assert number in page, number
    assert page.count("<svg") == 1
    assert "latentlm compare a &lt;b&gt;" in page
    assert re.findall(r"(?:src|href)=\"(?!#)[^\"]+\"", page) == []


def test_the_table_says_how_many_seeds_and_fits_eighty_columns(folders: list[str], tmp_path: Path) -> None:
    runs = ",".join(folders[1:])
    found = compare_folders([folders[0], runs], [], tmp_path / "out", command="")
    out = io.StringIO()
    show_tasks(found, console=Console(file=out, width=80))
    text = out.getvalue()
    assert "hidden minus plain" in text
    assert re.search(r"latentlm_heldout +│ +\d\.\d{3} │ +[+-]\d\.\d{3} │ +– │ +10 │ +1, 2 │", text)
    assert "the choice of items and the seeds" in " ".join(text.split())
    assert "Of plain one run is given" in text
    assert max(map(len, text.splitlines())) <= 80


def test_many_intervals_come_with_a_word_on_chance(folders: list[str], tmp_path: Path) -> None:
    found = compare_folders([folders[0], *folders[1:]], [], tmp_path / "out", command="")
    out = io.StringIO()
    show_tasks(found, console=Console(file=out, width=200))
    assert "Of 12 intervals at 95%, 0.6 leave out zero by chance alone" in " ".join(out.getvalue().split())


def test_other_windows_of_whole_texts_are_told(tmp_path: Path) -> None:
    results = evaluated(3, ["latentlm_heldout", "latentlm_copy"])
    folders = {}
    for windows in ("overlapping", "disjoint"):
        told = {**results, "config": {**results["config"], "latentlm": {"windows": windows}}}
        folders[windows] = str(write_evaluation(told, tmp_path / windows) or tmp_path / windows)
    theirs = str(logged(tmp_path / "theirs", results))  # lm-eval's own windows
    first, *others = folders["overlapping"], theirs, folders["disjoint"]
    found = compare_folders([first, *others], [], tmp_path / "out", command="")
    (note,) = found.notes
    assert note.startswith("disjoint read whole texts in disjoint windows, overlapping in overlapping ones")
    assert "latentlm_heldout. Evaluate" in note, "and not the task that writes"
    assert compare_folders([first, *others], ["latentlm_copy"], tmp_path / "out", command="").notes == []


def test_options_of_measuring_are_refused_for_what_is_logged(folders: list[str]) -> None:
    for more in (["--limit", "3"], ["--document-bytes", "9"], ["train.steps=3"]):
        done = CliRunner().invoke(app, [*folders[:2], *more])
        assert isinstance(done.exception, UserError)
        assert str(done.exception).startswith(more[0])


def test_a_model_beside_a_folder_of_samples_is_refused(folders: list[str]) -> None:
    assert not are_logged(["vanilla-tiny", "free-tiny"])
    with pytest.raises(UserError, match="is a folder of lm-eval's samples and free-tiny is not"):
        are_logged([folders[0], "free-tiny"])


def test_one_folder_and_one_named_twice_are_refused(folders: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least two"):
        compare_folders(folders[:1], [], tmp_path, command="")
    with pytest.raises(UserError, match="named twice"):
        compare_folders([folders[0], f"{folders[1]},{folders[0]}"], [], tmp_path, command="")


def test_folders_of_one_name_are_told_apart_by_their_paths(folders: list[str], tmp_path: Path) -> None:
    for number, parent in enumerate(("one", "two")):
        write_evaluation(evaluated(number, ["latentlm_copy"]), tmp_path / parent / "free")
    paths = [str(tmp_path / parent / "free") for parent in ("one", "two")]
    assert list(compare_folders(paths, [], tmp_path / "out", command="").models) == paths


def test_commas_part_runs_but_not_a_path_that_exists(tmp_path: Path) -> None:
    (tmp_path / "a,b").mkdir()
    assert split_runs(str(tmp_path / "a,b")) == [str(tmp_path / "a,b")]
    assert split_runs("a-0, a-1") == ["a-0", "a-1"]


def test_runs_share_the_beginning_of_their_names() -> None:
    assert shared_name([["plain-0", "plain-1"], ["free-seed0", "free-seed1"], ["x"]]) == ["plain", "free", "x"]
    assert shared_name([["a", "b"]]) == ["a+b"]
    assert shared_name([["a-0", "a-1"], ["a-2", "a-3"]]) == ["a-0+a-1", "a-2+a-3"]


@pytest.fixture
def llama_folder(tmp_path: Path) -> Path:
    """A small random Llama with a byte-level tokenizer, as transformers saves it."""
    (folder := tmp_path / "llama").mkdir()
    tokenizer = BPETokenizer.train(["def area(width, height):\n    return width * height\n"], vocabulary=280)
    tokenizer.save(folder)
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind), encoding="utf-8")
    config = LlamaConfig(
        vocab_size=tokenizer.vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=1024, eos_token_id=tokenizer.end_of_text, bos_token_id=None, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.conformance
def test_what_the_lm_eval_command_logged_of_hf_is_compared_with_ours_on_the_same_weights(
    tmp_path: Path, llama_folder: Path
) -> None:
    """The same weights through lm-eval's `hf` adapter and through ours: the difference is nil on every item."""
    tasks = ["--tasks", "latentlm_next_line,latentlm_copy", "--include_path", str(task_path()), "--limit", "6"]
    log = ["--log_samples", "--device", "cpu", "--batch_size", "1"]
    for name, model in (("hf", f"pretrained={llama_folder},dtype=float32"), ("latentlm", f"model={llama_folder}")):
        command = [sys.executable, "-m", "lm_eval", "--model", name, "--model_args", model, *tasks, *log]
        done = subprocess.run(
            [*command, "--output_path", str(tmp_path / name)], capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
    found = compare_folders([str(tmp_path / "hf"), str(tmp_path / "latentlm")], [], tmp_path / "out", command="")
    assert {(one.name, one.metric) for one in found.differences} == {
        ("latentlm_next_line", "acc"), ("latentlm_next_line", "acc_norm"), ("latentlm_copy", "exact_match")
    }  # fmt: skip
    assert [one.difference for one in found.differences] == [0.0] * 3
    assert found.notes == []
