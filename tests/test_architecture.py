"""Arrows point one way: shelves import the frame, the frame imports no shelf, no import goes round in a circle; the house stays
small enough to walk through; and nothing unpickles."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

import latentlm
from latentlm import training

ROOT = Path(__file__).parent.parent
SHELVES = sorted(path.parent for folder in ("plugins", "zoo", "evals") for path in ROOT.glob(f"{folder}/*/__init__.py"))
PARTS = [folder for folder in SHELVES if folder.parent.name == "plugins"]
SOURCES = [path for top in ("latentlm", "plugins", "zoo", "evals", "benchmarks") for path in sorted((ROOT / top).rglob("*.py"))]

TOPS = {"plugins", "zoo", "evals"}  # folders on the import path; their packages' names begin below them
KNOWN: set[tuple[str, str]] = set()
Arrows = dict[str, dict[str, str]]
"""Importing module -> imported module -> "file:line" of the import."""


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


# ------------------------------------------------------------------------------------------------------------- circles


def module_name(path: Path) -> str:
    """The name a file is imported by; a package's __init__ goes by the package's."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    parts = parts[1:] if parts[0] in TOPS else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Those that run when the module is imported, or would under TYPE_CHECKING: everything outside functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from import_statements(child)


def targets(statement: ast.Import | ast.ImportFrom, path: Path, modules: Iterable[str]) -> set[str]:
    """The modules of ours that a statement names. `from a.b import c` means the module a.b.c if there is one, else a.b."""
    if isinstance(statement, ast.Import):
        return {alias.name for alias in statement.names} & set(modules)
    prefix = module_name(path.parent / "__init__.py").split(".")
    above = prefix[: len(prefix) - statement.level + 1] if statement.level else []
    module = ".".join([*above, *([statement.module] if statement.module else [])])
    names = [f"{module}.{alias.name}" for alias in statement.names]
    return {name if name in modules else module for name in names} & set(modules)


@cache
def arrows() -> Arrows:
    """Who imports whom, among the modules of the repository."""
    paths = {module_name(path): path for path in SOURCES}
    found: Arrows = {name: {} for name in paths}
    for name, path in paths.items():
        for statement in import_statements(ast.parse(path.read_text(encoding="utf-8"))):
            for target in targets(statement, path, paths):
                found[name].setdefault(target, f"{path.relative_to(ROOT)}:{statement.lineno} imports {target}")
    return found


def circle(graph: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The arrows of one circle of a graph; empty where there is none."""
    try:
        TopologicalSorter({node: set(reached) for node, reached in graph.items()}).prepare()
    except CycleError as error:
        nodes = error.args[1][::-1]  # graphlib names each node before the one that depends on it
        return [graph[one][other] for one, other in pairwise(nodes)]
    return []


def contracted(graph: Arrows, package: str) -> Arrows:
    """The arrows between a package's direct children, each with everything inside it; its __init__ is one of them."""
    inside: Arrows = {}
    for name, reached in graph.items():
        for target, where in reached.items():
            if all((each + ".").startswith(package + ".") for each in (name, target)):
                room, other = (".".join(each.split(".")[: package.count(".") + 2]) for each in (name, target))
                if room != other:
                    inside.setdefault(room, {}).setdefault(other, where)
    return inside


def without_known() -> Arrows:
    pairs = KNOWN | {(other, one) for one, other in KNOWN}
    return {name: {to: where for to, where in reached.items() if (name, to) not in pairs} for name, reached in arrows().items()}


def test_no_import_goes_round_in_a_circle() -> None:
    assert circle(without_known()) == []


def test_no_package_has_a_circle_between_its_rooms() -> None:
    packages = sorted({module_name(path) for path in SOURCES if path.name == "__init__.py"})
    assert [circle(contracted(without_known(), package)) for package in packages] == [[]] * len(packages)


def test_a_known_circle_that_is_gone_is_taken_off_the_list() -> None:
    whole = {pair for pair in KNOWN if all(other in arrows().get(one, {}) for one, other in (pair, pair[::-1]))}
    assert whole == KNOWN


def test_circles_are_found() -> None:
    graph = {"a.b": {"a.c.d": "b to d"}, "a.c.e": {"a.b": "e to b"}, "a.c.d": {"f": "d to f"}}
    assert circle(graph) == []
    assert sorted(circle(contracted(graph, "a"))) == ["b to d", "e to b"]
    assert len(circle({"a": {"b": "a to b"}, "b": {"c": "b to c"}, "c": {"a": "c to a"}})) == 3


def test_arrows_lead_down_in_the_drawing_of_the_house() -> None:
    drawing = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    lines = [line for line in drawing.splitlines() if re.match(r"\d +\w", line)]
    drawn = {name: int(line[0]) for line in lines for name in re.findall(r"\w+", line) if name in latentlm.__all__}
    assert sorted(drawn) == sorted(latentlm.__all__)
    down = {f"latentlm.{name}": floor for name, floor in drawn.items()} | {"latentlm": -1, "latentlm.__main__": 99}
    between = contracted(without_known(), "latentlm")
    level = [where for room, reached in between.items() for to, where in reached.items() if down[to] >= down[room]]
    assert level == []


# ---------------------------------------------------------------------------------------------------------------- size


def test_the_frame_has_few_rooms() -> None:
    doors = {"__pycache__", "__main__.py"}  # the second for `torchrun ... -m latentlm`
    entries = sorted(path.name for path in (ROOT / "latentlm").iterdir() if path.name not in doors)
    assert len(entries) <= 16, entries


def test_no_module_is_long() -> None:
    paths = [path.relative_to(ROOT) for path in SOURCES if not path.is_relative_to(ROOT / "benchmarks")]
    long = {str(path): len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in paths}
    assert {path: lines for path, lines in long.items() if lines > 400} == {}


# -------------------------------------------------------------------------------------------------------------- shelves


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
    asked = "dir(latentlm), latentlm.__version__, latentlm.training.load_recipe"
    code = f"import latentlm, latentlm.cli, json, sys; {asked}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    loaded = {top(name) for name in json.loads(done.stdout)}
    assert loaded & {"torch", "transformers", "lm_eval"} == set()
    assert {name for name in loaded if name.startswith("latentlm_")} == set()


# --------------------------------------------------------------------------------------------------------- public faces


def test_the_package_names_its_rooms() -> None:
    entries = [path for path in (ROOT / "latentlm").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()]
    assert sorted(latentlm.__all__) == sorted(path.stem for path in entries if not path.name.startswith("__"))
    assert set(latentlm.__all__) <= set(dir(latentlm))


def test_a_room_is_there_when_it_is_asked_for() -> None:
    code = "import latentlm; print(latentlm.zoo.load.__module__, latentlm.training.train.__module__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["latentlm.zoo.loading", "latentlm.training.loop"]


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    for module in (latentlm, training):
        with pytest.raises(AttributeError, match="has no attribute 'cellar'"):
            _ = module.cellar


def test_every_public_name_of_the_training_room_is_there() -> None:
    assert sorted(training.__all__) == sorted(name for names in training._HOMES.values() for name in names)
    assert [name for name in training.__all__ if not hasattr(training, name)] == []
