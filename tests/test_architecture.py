"""Arrows point one way: shelves import the frame, the frame imports no shelf; and nothing unpickles."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHELVES = sorted(path.parent for folder in ("plugins", "zoo", "evals") for path in ROOT.glob(f"{folder}/*/__init__.py"))
PARTS = [folder for folder in SHELVES if folder.parent.name == "plugins"]
SOURCES = [path for top in ("latentlm", "plugins", "zoo", "evals", "benchmarks") for path in sorted((ROOT / top).rglob("*.py"))]


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of every import of a file, those inside functions too; name is empty for `import module`. Imports by a
    string (`importlib.import_module("x")`, `__import__("x")`) count."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parts[-node.level - 1] if node.level else ""
            module = ".".join(part for part in (package, node.module or "") if part)
            yield from ((module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func)
            if called.endswith("import_module") or called == "__import__":
                yield str(node.args[0].value), ""


def top(module: str) -> str:
    return module.partition(".")[0]


def test_there_is_something_to_look_at() -> None:
    assert {"latentlm_vanilla", "latentlm_free", "latentlm_schedules"} <= {folder.name for folder in PARTS}
    assert len(SOURCES) > 40


def test_the_frame_imports_no_shelf() -> None:
    found = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in sorted((ROOT / "latentlm").rglob("*.py"))
        for module, _ in imports(path)
        if top(module).startswith("latentlm_")
    ]
    assert found == []


def test_plugins_import_the_frame_and_themselves_only() -> None:
    found = [
        f"{path.relative_to(ROOT)} imports {module}"
        for folder in PARTS
        for path in sorted(folder.rglob("*.py"))
        for module, _ in imports(path)
        if top(module).startswith("latentlm_") and top(module) != folder.name
    ]
    assert found == []


def test_shelves_import_no_private_name_of_another_package() -> None:
    found = [
        f"{path.relative_to(ROOT)} imports {module}.{name}"
        for folder in SHELVES
        for path in sorted(folder.rglob("*.py"))
        for module, name in imports(path)
        if top(module).startswith("latentlm") and top(module) != folder.name
        if any(part.startswith("_") and not part.startswith("__") for part in [*module.split("."), name])
    ]
    assert found == []


def test_nothing_that_is_installed_imports_tests() -> None:
    names = {path.stem for path in (ROOT / "tests").glob("*.py")} | {"tests", "pytest"}
    kit = ROOT / "latentlm" / "testing" / "collecting.py"  # makes tests for plugin authors, and imports pytest when they ask
    found = [
        f"{path.relative_to(ROOT)} imports {m}"
        for path in SOURCES
        for m, _ in imports(path)
        if top(m) in names and not (path == kit and m == "pytest")
    ]
    assert found == []


@pytest.mark.parametrize("forbidden", ["pickle", "cPickle", "dill", "joblib", "shelve", "marshal"])
def test_nothing_imports_a_pickler(forbidden: str) -> None:
    assert [str(path.relative_to(ROOT)) for path in SOURCES for m, _ in imports(path) if top(m) == forbidden] == []


def test_nothing_loads_what_could_run_code() -> None:
    # torch.load unpickles, yaml.load builds objects, allow_pickle is numpy's door to the same; `yaml.safe_load` is fine.
    refused = {"torch.load", "torch.save", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "np.load", "numpy.load"}
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                named = {keyword.arg for keyword in node.keywords}
                if ast.unparse(node.func) in refused or named & {"allow_pickle", "trust_remote_code"}:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node.func)}")
            if isinstance(node, ast.ImportFrom) and node.module in ("torch", "yaml"):
                taken = {f"{node.module}.{alias.name}" for alias in node.names} & refused
                found.extend(f"{path.relative_to(ROOT)}:{node.lineno}: {name}" for name in taken)
    assert found == []


def test_importing_the_frame_imports_no_plugin_and_nothing_heavy() -> None:
    modules = "latentlm, latentlm.plugins, latentlm.interface, latentlm.config, latentlm.composed.build, latentlm.composed"
    code = f"import {modules}, json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True, timeout=120)
    loaded = {top(name) for name in json.loads(done.stdout)}
    assert "latentlm" in loaded
    assert {name for name in loaded if name.startswith("latentlm_")} == set()
    assert loaded & {"xformers", "lm_eval", "transformers", "datasets", "matplotlib", "tokenizers"} == set()


def test_importing_the_package_itself_imports_not_even_torch() -> None:
    code = "import latentlm, latentlm.cli, json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    loaded = {top(name) for name in json.loads(done.stdout)}
    assert loaded & {"torch", "transformers", "lm_eval"} == set()
    assert {name for name in loaded if name.startswith("latentlm_")} == set()
