"""The golden losses are what they were, faults move them, and the comparison of two revisions says what differs.

After a change of numerics that was meant: ``python -m benchmarks.losses --write-golden``, and say why in the commit.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from rich.console import Console

from benchmarks.losses import comparing, driver, golden
from benchmarks.losses.__main__ import GOLDEN, compare
from benchmarks.losses.comparing import Verdict, judge
from benchmarks.losses.running import Case, Reply, note_death
from benchmarks.losses.texts import make_texts
from benchmarks.losses.trees import RECIPES, ROOT, RevisionError, Tree, checked_out
from latentlm.interface import Latent, LatentDecoder, Noise

SHIPPED = Tree("working tree", ROOT).recipes("*")
QUANTISED = {"chunk-fsq-tiny"}
"""Draws nothing in training, so another noise shows in its scores alone."""
WITH_LATENTS = [name for name in SHIPPED if not any(plain in name for plain in ("vanilla", "ngram"))]
CASE = Case("recipe", "some")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    make_texts(folder)
    return folder


@pytest.fixture(scope="module")
def kept() -> dict[str, dict[str, float]]:
    return golden.read(GOLDEN)


# ------------------------------------------------------------------------------------------------------ golden losses


def test_every_shipped_recipe_has_golden_losses(kept: dict[str, dict[str, float]]) -> None:
    assert kept.keys() == SHIPPED.keys(), "write them with: python -m benchmarks.losses --write-golden"


@pytest.mark.parametrize("name", SHIPPED)
def test_losses_are_the_golden_ones(name: str, kept: dict[str, dict[str, float]], texts: Path) -> None:
    assert golden.differing(kept[name], golden.numbers(SHIPPED[name], texts=texts)) == []


def _another_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise of the next seed."""
    as_ever = Noise.keyed
    monkeypatch.setattr(Noise, "keyed", lambda seed, requests, **options: as_ever(seed + 1, requests, **options))


def _site_off_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every position reads the latents of the sites before its own."""
    as_ever = golden.make_model

    def shifted(part: torch.nn.Module, given: tuple[Latent, Any]) -> tuple[Latent, Any]:
        latent, context = given
        return replace(latent, value=latent.value.roll(1, dims=1)), context

    def make_model(*arguments: Any) -> LatentDecoder:
        model = as_ever(*arguments)
        for latent in model.latents.values():
            latent.injection.register_forward_pre_hook(shifted)
        return model

    monkeypatch.setattr(golden, "make_model", make_model)


def _mask_off_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every query sees what the next one may see: a causal mask shows one key of the future."""
    as_ever = F.scaled_dot_product_attention

    def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> torch.Tensor:
        if options.pop("is_causal", False):
            options["attn_mask"] = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril(1)
        elif options.get("attn_mask") is not None:
            mask = options["attn_mask"]
            options["attn_mask"] = torch.cat((mask[..., 1:, :], mask[..., -1:, :]), dim=-2)
        return as_ever(query, key, value, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        *((_another_noise, name) for name in WITH_LATENTS),
        *((_site_off_by_one, name) for name in WITH_LATENTS),
        *((_mask_off_by_one, name) for name in SHIPPED),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__.removeprefix("_"),
)
def test_a_fault_moves_single_targets_by_ten_times_the_tolerance(
    fault: Callable[[pytest.MonkeyPatch], None],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    kept: dict[str, dict[str, float]],
    texts: Path,
) -> None:
    fault(monkeypatch)
    found = golden.differing(kept[name], golden.numbers(SHIPPED[name], texts=texts), tolerance=10 * golden.TOLERANCE)
    shown_by = "iwae" if fault is _another_noise and name in QUANTISED else "target"
    assert [line for line in found if line.startswith(shown_by)], found


def test_noise_is_no_part_of_a_decoder_without_latents(
    monkeypatch: pytest.MonkeyPatch, kept: dict[str, dict[str, float]], texts: Path
) -> None:
    _another_noise(monkeypatch)
    assert golden.differing(kept["vanilla-tiny"], golden.numbers(SHIPPED["vanilla-tiny"], texts=texts)) == []


def test_golden_comparison_names_what_moved_lacks_or_is_new() -> None:
    found = golden.differing({"a": 1.0, "b": 1.0, "c": 0.0}, {"a": 1.00009, "b": 1.0002, "d": 1.0})
    assert found == ["b: 1 is now 1.0002 (2.0e-04 of its size)", "c: lacking", "d: not in the golden file"]
    assert golden.differing({"a": 1.0, "b": 0.0}, {"a": float("nan"), "b": 0.0}) == ["a: 1 is now nan (nan of its size)"]


def test_golden_file_survives_writing(tmp_path: Path, kept: dict[str, dict[str, float]]) -> None:
    golden.write(tmp_path / "again.json", kept)
    assert (tmp_path / "again.json").read_text() == GOLDEN.read_text()


# ------------------------------------------------------------------------------------------------------ two revisions


def judged(before: dict[str, Any], after: dict[str, Any]) -> Verdict:
    replies = [Reply({name: driver.exact(value) for name, value in side.items()}) for side in (before, after)]
    return judge(CASE, dict(zip(("REV", "working tree"), replies, strict=True)))


def test_one_bit_is_a_difference() -> None:
    verdict = judged({"loss": 0.1, "tokens": [1, 2]}, {"loss": 0.1 + 2**-56, "tokens": [1, 2]})
    assert (verdict.status, verdict.compared, [one.number for one in verdict.different]) == ("different", 2, ["loss"])
    assert comparing.exit_status([verdict]) == 1


def test_equal_numbers_are_the_same() -> None:
    verdict = judged({"loss": 0.1, "none": None}, {"loss": 0.1, "none": None})
    assert (verdict.status, comparing.exit_status([verdict])) == ("same", 0)


def test_a_number_that_is_gone_is_a_difference_and_a_new_one_is_not() -> None:
    assert judged({"loss": 0.1, "kl": 0.2}, {"loss": 0.1}).different[0].after is None
    verdict = judged({"loss": 0.1}, {"loss": 0.1, "kl": 0.2})
    assert (verdict.status, verdict.new) == ("same", ["kl"])


def test_a_failure_goes_before_a_difference() -> None:
    failed = judge(CASE, {"REV": Reply({}, "boom"), "working tree": Reply({})})
    assert failed.errors == {"REV": "boom"}
    assert comparing.exit_status([judged({"loss": 1.0}, {"loss": 2.0}), failed]) == 2


def test_times_and_texts_are_no_numbers() -> None:
    assert dict(driver.numbers_of({"a": {"b": 1.5, "c": "text"}, "d": [1, None]})) == {"a.b": 1.5, "d.0": 1, "d.1": None}


def test_unknown_revision_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RevisionError, match='"no-such-revision"'), checked_out("no-such-revision", tmp_path / "tree"):
        pass


def test_a_command_that_fails_tells_its_last_complaint() -> None:
    def command() -> None:
        print("first", file=sys.stderr)
        print("error: last", file=sys.stderr)
        raise SystemExit(1)

    with pytest.raises(RuntimeError, match="latentlm train: error: last"):
        driver.call(command, "train")


def test_a_process_that_dies_fails_what_it_left_open(tmp_path: Path) -> None:
    other = Case("card", "other")
    complaints = tmp_path / "stderr.txt"
    complaints.write_text("Traceback ...\nMemoryError\n", encoding="utf-8")
    replies = {CASE: Reply({"loss": "1"})}
    with subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"], text=True) as child:
        note_death(child, replies, [CASE, other], complaints)
    assert (replies[CASE].error, replies[other].error) == (None, "MemoryError")


@pytest.mark.conformance
def test_two_trees_are_told_apart(tmp_path: Path) -> None:
    other = _other_tree(tmp_path / "other")
    console = Console(file=io.StringIO())
    here = Tree("working tree", ROOT)
    found = compare((other, here), recipes="[!f]*-tiny", cards="vanilla*", steps=1, folder=tmp_path / "work", console=console)
    verdicts = {verdict.case.id: verdict for verdict in found}
    expected = {
        "recipe causal-tiny": "new",
        "recipe chunk-fsq-tiny": "same",
        "recipe chunk-tiny": "same",
        "recipe della-tiny": "failed",
        "recipe gaussian-tiny": "same",
        "recipe ltm-tiny": "failed",
        "recipe vanilla-tiny": "different",
        "card vanilla-tiny": "same",
    }
    assert {name: verdicts[name].status for name in expected} == expected
    assert 'unknown key "train.speed"' in verdicts["recipe della-tiny"].errors["other"]
    assert "ltm" in verdicts["recipe ltm-tiny"].errors["other"]  # a plugin of the installed distribution, and not of this tree
    assert {one.number for one in verdicts["recipe vanilla-tiny"].different} >= {"sha256 of model.safetensors"}


def _other_tree(root: Path) -> Tree:
    """The working tree, but: no plugin `ltm`, one recipe less, one with an unknown key, one with another learning rate."""
    unwanted = shutil.ignore_patterns("__pycache__", "latentlm_ltm")
    for shelf in ("latentlm", "plugins", "zoo", "evals"):
        shutil.copytree(ROOT / shelf, root / shelf, ignore=unwanted)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (root / "pyproject.toml").write_text(project.replace('ltm = "latentlm_ltm"\n', ""), encoding="utf-8")
    (root / RECIPES / "causal-tiny.yaml").unlink()
    for name, key, value in (("della-tiny", "speed", 1), ("vanilla-tiny", "learning_rate", 0.0031)):
        path = root / RECIPES / f"{name}.yaml"
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
        recipe["train"][key] = value
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return Tree("other", root)
