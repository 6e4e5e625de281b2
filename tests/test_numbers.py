"""The tables of measured numbers are what docs/numbers says, and are made of it alone."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import math
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest
import torch
from rich.console import Console

from benchmarks import convergence, coverage, gpu_page, published, texts
from benchmarks.pages import filled
from latentlm.errors import UserError
from latentlm.interface import LatentDecoder
from latentlm.likelihood import Score
from latentlm.likelihood.nats import LATENT_TOKENS, pass_tokens
from latentlm.likelihood.weights import Weights

SCRIPT = Path(__file__).resolve().parents[1] / "docs" / "build_numbers.py"


@pytest.fixture(scope="module")
def numbers() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_numbers", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["build_numbers"] = module
    spec.loader.exec_module(module)
    return module


def kept(value: float, *, converged: bool, latent: bool = True) -> dict[str, Any]:
    gained = 0.1 if converged else 2.5
    nats = -value * 100
    score = Score(nats, 0.0, 8, 32, 100, "iwae", quarter=nats - gained, sixteenth=nats - 3 * gained)
    return {
        "has_latents": latent, "bits_per_byte": {"value": value, "standard_error": 0.01}, "uncertainty": 0.0123,
        "converged": converged, "elbo_bits_per_byte": value + 0.1, "posterior_bits_per_byte": value - 0.1,
        "kl_bits_per_token": 0.2, "live_units": 3, "units": 8, "method": "iwae, 32 samples", "mutual_information_bits": None,
        "cross_entropy_bits": dict.fromkeys(("posterior", "shuffled", "prior", "constant"), value),
        "latents": {}, "scores": [asdict(score), asdict(replace(score, value=score.value - 1))], "sizes": [50, 50],
    }  # fmt: skip


def test_pages_hold_what_was_measured(numbers: ModuleType) -> None:
    for page in numbers.PAGES:
        text = page.read_text(encoding="utf-8")
        assert numbers.written(text) == text, f"{page.name}: run python docs/build_numbers.py"


def test_all_together_have_not_converged_where_too_few_are_settled(numbers: ModuleType) -> None:
    good = Score(-100.0, 0.0, 20, 32, 100, "iwae", quarter=-100.0, sixteenth=-100.0, tolerance=1.0)
    rows = {
        unsettled: {
            "scores": [asdict(good)] * (100 - unsettled) + [asdict(replace(good, settled=0.0))] * unsettled,
            "sizes": [1000] * 100,
        }
        for unsettled in (0, 5, 6)
    }
    assert [numbers._verdict_of(row) for row in rows.values()] == ["yes", "yes", "**no**: 94% settled"]
    assert numbers._estimate(rows[6]).good_to == "unknown"


def test_cards_hold_what_was_measured_of_their_weights(numbers: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, text in numbers.cards():
        assert path.read_text(encoding="utf-8") == text, f"{path}: run python docs/build_numbers.py"
    monkeypatch.setattr(numbers, "kept", lambda kind: {"chunk-tiny": kept(2.0, converged=False), "free-tiny": None})
    measured, not_measured = (text for _, text in numbers.cards())
    assert "converged: false" in measured
    assert "held_out_bound" in not_measured
    assert "  likelihood:" not in not_measured, "of other weights"


def test_tables_say_what_has_not_converged_and_pair_documents(
    numbers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "KEPT", tmp_path)
    monkeypatch.setattr(numbers, "_seen", lambda name: 8_200_000)
    for name, row in {"vanilla-tiny": kept(2.0, converged=True, latent=False), "free-tiny": kept(2.1, converged=False)}.items():
        facts = published.facts_of("likelihood", published.models()[name])
        (tmp_path / f"likelihood-{name}.json").write_text(json.dumps({"facts": facts, **row}))
    page = numbers.written("before\n<!-- numbers: likelihoods -->\nold\n<!-- end of numbers -->\nafter\n")
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    assert "old" not in page
    assert "| `vanilla-tiny` | 8.2 | 2.0000 ± 0.0100 | exact |" in page
    assert "| `free-tiny` | 8.2 | 2.1000 ± 0.0100 | 0.0721 | **no** | +0.2885 ± 0.0000 |" in page  # 5 and 20 nats
    assert "| `chunk-tiny` | not measured |" in page
    assert numbers.written(page) == page


@pytest.mark.parametrize(
    ("posterior", "shuffled", "prior", "role"),
    [
        (2.40, 2.62, 2.61, "**uses z**: another text's costs 0.22 bits"),
        (2.53, 2.5305, 4.32, "wants z in one place whatever the text: another's is as good, the prior's costs 1.79 bits"),
        (2.52, 2.5201, 2.5195, "ignores z"),
    ],
)
def test_the_role_of_a_latent_is_read_off_its_cross_entropies(
    numbers: ModuleType, monkeypatch: pytest.MonkeyPatch, posterior: float, shuffled: float, prior: float, role: str
) -> None:
    row = kept(2.1, converged=True)
    row["cross_entropy_bits"] = {"posterior": posterior, "shuffled": shuffled, "prior": prior, "constant": 2.5}
    monkeypatch.setattr(numbers, "kept", lambda kind: {"vanilla-tiny": None, "free-tiny": row})
    page = numbers.written("<!-- numbers: reading -->\n<!-- end of numbers -->")
    assert f"* `free-tiny` {role}" in page
    assert "* No latent model that saw as much text as `vanilla-tiny` is measured beside it." in page


@pytest.mark.parametrize(("free", "told"), [(1.9, "`free-tiny` did better"), (1.97, "**none** did better"), (2.1, "**none**")])
def test_a_model_is_better_only_beyond_its_errors_and_the_seed(
    numbers: ModuleType, monkeypatch: pytest.MonkeyPatch, free: float, told: str
) -> None:
    rows = {"vanilla-tiny": kept(2.0, converged=True, latent=False), "free-tiny": kept(free, converged=True)}
    for row, bits in zip(rows.values(), (2.0, free), strict=True):
        nats = -bits * 50 * math.log(2)
        row["scores"] = [{**score, "value": nats, "quarter": nats - 0.1, "sixteenth": nats - 0.3} for score in row["scores"]]
    monkeypatch.setattr(numbers, "kept", lambda kind: rows)
    monkeypatch.setattr(numbers, "_seen", lambda name: 8_200_000)
    assert told in numbers.written("<!-- numbers: reading -->\n<!-- end of numbers -->")


def test_an_unknown_table_is_an_error(numbers: ModuleType) -> None:
    with pytest.raises(UserError, match='Unknown table "speed"'):
        numbers.written("<!-- numbers: speed -->\n<!-- end of numbers -->")


QUIET = Console(quiet=True)


@pytest.fixture
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What would be measured in processes of its own, in their order; that of two-level-tiny fails."""
    asked: list[tuple[str, str]] = []

    def measured(kind: str, name: str, device: str, *, shown: bool) -> str | None:
        asked.append((kind, name))
        if name == "two-level-tiny":
            return "out of memory"
        facts = published.facts_of(kind, published.models()[name])
        published.file_of(kind, name).write_text(json.dumps({"facts": facts, "machine": {"device": "other"}, "seconds": 1}))
        return None

    monkeypatch.setattr(published, "KEPT", tmp_path)
    monkeypatch.setattr(published, "_apart", measured)
    return asked


def test_what_is_kept_is_not_measured_again_whatever_the_machine(apart: list[tuple[str, str]]) -> None:
    again = {"device": "cpu", "jobs": 1, "console": QUIET}
    assert published.measure_missing(["free-tiny", "vanilla-tiny"], ["likelihood"], **again) == []
    assert published.measure_missing(["free-tiny", "vanilla-tiny"], [], **again) == []
    assert apart[:2] == [("likelihood", "free-tiny"), ("likelihood", "vanilla-tiny")]
    assert apart[2:] == [("coverage", "free-tiny"), ("shares", "free-tiny")]


def test_other_settings_are_measured_again(apart: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    for samples in (64, 64, 128):
        other = replace(published.KINDS["likelihood"], settings={"max_samples": samples})
        monkeypatch.setitem(published.KINDS, "likelihood", other)
        published.measure_missing(["vanilla-tiny"], [], device="cpu", jobs=1, console=QUIET)
    assert apart == [("likelihood", "vanilla-tiny")] * 2


def test_the_slowest_is_first_and_one_that_fails_stops_no_other(apart: list[tuple[str, str]]) -> None:
    names = ["vanilla-tiny", "two-level-tiny", "free-tiny"]
    failures = published.measure_missing(names, ["likelihood"], device="cpu", jobs=1, console=QUIET)
    assert [name for _, name in apart] == ["two-level-tiny", "vanilla-tiny", "free-tiny"]
    assert failures == ["The likelihood of two-level-tiny failed:\nout of memory"]


def test_an_unknown_model_and_a_missing_device_are_found_before_anything_is_measured(apart: list[tuple[str, str]]) -> None:
    with pytest.raises(UserError, match='Did you mean "free-tiny"'):
        published.measure_missing(["fre-tiny"], [], device="cpu", jobs=1, console=QUIET)
    with pytest.raises(UserError, match="no device cuda:99 here"):
        published.measure_missing([], [], device="cuda:99", jobs=1, console=QUIET)
    assert not apart


def test_texts_are_kept_byte_for_byte_and_shorter_ones_are_their_beginnings() -> None:
    whole, short = texts.published_texts(), texts.published_texts(20, 64)
    assert sum(len(text.data) for text in whole) == 90_673
    assert {text.whole for text in whole if len(text.data) < texts.BYTES} == {True}
    by_id = {text.id: text.data for text in whole}
    assert [text.data for text in short] == [by_id[text.id][:64] for text in short]


def test_a_pass_of_a_narrow_model_is_larger_on_a_gpu() -> None:
    def tokens(device: str, width: int) -> int:
        config = SimpleNamespace(backbone=SimpleNamespace(width=width))
        return pass_tokens(cast(LatentDecoder, SimpleNamespace(device=torch.device(device), config=config)))

    assert [tokens("cpu", 128), tokens("cuda", 128), tokens("cuda", 4096)] == [1024, 2**18, LATENT_TOKENS]


def test_a_pool_is_resampled_with_the_counts_of_the_share() -> None:
    nats = torch.tensor([[2.0, 4.0] * 8], dtype=torch.float64).log()  # the second of each two comes from the prior
    pool = Weights(nats, torch.zeros_like(nats), torch.zeros_like(nats), torch.zeros(1), defensive=0.5)
    for share, prior in ((0.1, 1), (0.25, 4), (0.5, 8)):
        found = convergence.resampled(pool, share, 3, torch.Generator().manual_seed(0))
        assert found.exp().tolist() == pytest.approx([2 + 2 * prior / 16] * 3)


def test_a_resampled_estimate_divides_by_the_share_in_fact_drawn() -> None:
    """The prior is three times as dense as the proposal everywhere, and one sample of 16 comes from it."""
    even = torch.zeros(1, 16, dtype=torch.float64)
    pool = Weights(even, even + math.log(3.0), even, torch.zeros(1), defensive=0.5)
    found = convergence.resampled(pool, 0.1, 3, torch.Generator().manual_seed(0))
    assert found.exp().tolist() == pytest.approx([3 / (15 / 16 + 3 / 16)] * 3)


def test_an_interval_holds_the_truth_as_far_up_as_the_bias_goes() -> None:
    score = Score(-10.0, 0.1, 8, 16, 4, "iwae", quarter=-10.5, sixteenth=-11.5)  # gains halve: 0.5 is left
    for truth, expected in ((-9.9, (True, True)), (-9.4, (False, True)), (-9.2, (False, False)), (-10.6, (False, False))):
        assert coverage.covered(score, coverage.Truth(truth, 0.0, True)) == expected


def test_a_truth_is_known_where_two_estimators_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"iwae": [(-10.0, 0.1), (-20.0, 0.1)], "smc": [(-10.2, 0.1), (-20.6, 0.1)]}

    def told(*_: object, method: str, **__: object) -> list[Score]:
        return [Score(value, error, 8, 16, 4, method) for value, error in found[method]]

    monkeypatch.setattr(coverage, "score_texts", told)
    one, other = coverage.truths(cast(LatentDecoder, None), [[0, 1], [1, 0]], samples=coverage.MOST)
    assert (one.agrees, other.agrees) == (True, False)
    assert one.value == pytest.approx(-10.1)
    assert one.standard_error == pytest.approx(0.1 / math.sqrt(2))


def test_the_gpu_page_has_what_was_measured() -> None:
    text = gpu_page.PAGE.read_text(encoding="utf-8")
    assert filled(text, gpu_page.BLOCKS) == text, "run python -m benchmarks.gpu_page"


def test_tables_of_the_studies_are_what_their_lines_say() -> None:
    spec = importlib.util.spec_from_file_location("build_results", SCRIPT.parent / "build_results.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules["build_results"] = made
    spec.loader.exec_module(made)
    for page in made.PAGES:
        text = page.read_text(encoding="utf-8")
        assert filled(text, made.blocks()) == text, f"{page.name}: run python docs/build_results.py"
    kept = made.picture_of("plans").read_text(encoding="utf-8")
    if f"Matplotlib v{importlib.metadata.version('matplotlib')}" in kept:  # others draw other paths
        assert made.pictured("plans") == kept
