"""The kit as a plugin author meets it: one line in a test file, collected and reported by pytest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import latentlm.testing
from latentlm.errors import UnknownNameError, UserError
from latentlm.testing import CHECKS, GROUPS, Check, NotApplicable, Subject

FILE = '''
import latentlm.testing

test_conformance = latentlm.testing.conformance(
    "vanilla",
    model={"event_dims": 0},
    checks=["state_round_trip", "prior_causal", "meta_build_equals_real"],
    expected_failures={"meta_build_equals_real": "it is not that broken"},
    label="mine",
)

class TestMine(latentlm.testing.Conformance):
    decoder = "free"
    model = {"event_dims": 3}
    checks = ["zero_injection_equals_vanilla", "no_latents_no_noise"]

test_wrong = latentlm.testing.conformance(
    "free", model={"granularity": "token"}, exact={"event_dims": 0}, checks=["no_latents_no_noise"],
    expected_failures={"no_latents_no_noise": "a free transformer has latents"},
)

test_failing = latentlm.testing.conformance(
    "free", model={"encoder": {"name": "free", "rope": False}}, checks=["posterior_varies_between_sites"],
    expected_failures={"posterior_varies_between_sites": "no positions"},
)
'''


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What pytest says about the file."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "test_mine.py").write_text(FILE, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-rA", "-v", "-p", "no:cacheprovider", "--rootdir", str(folder), str(folder)]
    wide = {**os.environ, "COLUMNS": "250"}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=folder, env=wide).stdout


@pytest.mark.parametrize(
    "line",
    [
        "test_mine.py::test_conformance[mine-state_round_trip] PASSED",
        "test_mine.py::test_conformance[mine-prior_causal] SKIPPED (does not apply: it has no latents)",
        "test_mine.py::test_conformance[mine-meta_build_equals_real] FAILED",
        "test_mine.py::TestMine::test_conformance[free-zero_injection_equals_vanilla] PASSED",
        "test_mine.py::TestMine::test_conformance[free-no_latents_no_noise] SKIPPED (does not apply: it has latents)",
        "test_mine.py::test_wrong[free-no_latents_no_noise] FAILED",
        "test_mine.py::test_failing[free-posterior_varies_between_sites] XFAIL (no positions)",
        "meta_build_equals_real is expected to fail (it is not that broken) but passes: take it off.",
        "is expected to fail (a free transformer has latents) but does not apply (it has latents): take it off.",
    ],
)
def test_every_check_is_a_test_of_its_own(report: str, line: str) -> None:
    said = " ".join(report.split())
    assert line in said, report


def test_a_check_that_does_not_exist_is_refused_at_once() -> None:
    with pytest.raises(UnknownNameError, match=r'Unknown check "prior_casual".*Did you mean "prior_causal"'):
        latentlm.testing.conformance("free", checks=["prior_casual"])
    with pytest.raises(UnknownNameError, match=r'Did you mean "resume_exact".*expected_failures'):
        latentlm.testing.conformance("free", expected_failures={"resume_exakt": "a reason"})
    with pytest.raises(UserError, match=r'list of names: write \["masks"\]'):
        latentlm.testing.conformance("free", checks="masks")
    with pytest.raises(UserError, match='needs a reason for "resume_exact"'):
        latentlm.testing.conformance("free", expected_failures={"resume_exact": " "})


def test_without_pytest_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytest", None)
    with pytest.raises(UserError, match=r"pip install pytest.*CHECKS"):
        latentlm.testing.conformance("free")


def test_a_check_is_called_without_pytest() -> None:
    CHECKS["unknown_settings_refused"](Subject("free"))
    with pytest.raises(NotApplicable, match="it has no parts"):
        CHECKS["unknown_settings_refused"](Subject("vanilla", model={"event_dims": 0}))


def test_every_check_has_a_line_and_a_place_in_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text(encoding="utf-8")
    for check in CHECKS.values():
        assert isinstance(check, Check)
        assert check.group in GROUPS
        assert check.line.endswith(".")
        assert f"`{check.name}`" in page, check.name


def test_importing_the_kit_imports_no_pytest() -> None:
    code = "import latentlm.testing, sys; print('pytest' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "False"
