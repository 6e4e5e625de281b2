"""The tables of measured numbers are what docs/numbers says, and are made of it alone."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from latentlm.errors import UserError
from latentlm.likelihood import Score

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
    score = Score(-value * 100, 0.5, 8, 32, 100, "iwae", quarter=-value * 100 - 0.5)
    return {
        "has_latents": latent, "bits_per_byte": {"value": value, "standard_error": 0.01}, "uncertainty": 0.0123,
        "converged": converged, "elbo_bits_per_byte": value + 0.1, "posterior_bits_per_byte": value - 0.1,
        "kl_bits_per_token": 0.2, "live_units": 3, "units": 8, "method": "iwae, 32 samples", "mutual_information_bits": None,
        "cross_entropy_bits": dict.fromkeys(("posterior", "shuffled", "prior", "constant"), value),
        "scores": [asdict(score), asdict(replace(score, value=score.value - 1))], "sizes": [50, 50],
    }  # fmt: skip


def test_pages_hold_what_was_measured(numbers: ModuleType) -> None:
    for page in numbers.PAGES:
        text = page.read_text(encoding="utf-8")
        assert numbers.written(text) == text, f"{page.name}: run python docs/build_numbers.py"


def test_tables_say_what_has_not_converged_and_pair_documents(
    numbers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numbers, "KEPT", tmp_path)
    for name, row in {"vanilla-tiny": kept(2.0, converged=True, latent=False), "free-tiny": kept(2.1, converged=False)}.items():
        (tmp_path / f"likelihood-{name}.json").write_text(json.dumps(row))
    page = numbers.written("before\n<!-- numbers: likelihoods -->\nold\n<!-- end of numbers -->\nafter\n")
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    assert "old" not in page
    assert "| `vanilla-tiny` | 2.0000 ± 0.0100 | exact |" in page
    assert "| `free-tiny` | 2.1000 ± 0.0100 | 0.0123 | **no** | +0.2885 ± 0.0000 |" in page  # 20 nats over 100 bytes
    assert numbers.written(page) == page


def test_an_unknown_table_is_an_error(numbers: ModuleType) -> None:
    with pytest.raises(UserError, match='No table is named "speed"'):
        numbers.written("<!-- numbers: speed -->\n<!-- end of numbers -->")
