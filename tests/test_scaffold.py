"""`latentlm new-plugin`: what it writes is a working distribution, and what it refuses."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

from environments import fresh_environment
from latentlm import plugins
from latentlm.cli.new_plugin import app
from latentlm.composed import build, complete
from latentlm.config import Recipe, parse
from latentlm.errors import UnknownNameError, UserError
from latentlm.interface import CONTRACT_VERSION, Batch, Noise
from latentlm.plugins.describing import every
from latentlm.plugins.scaffold import SOCKETS, write_method, write_plugin
from latentlm.testing import CHECKS, NotApplicable, Subject
from latentlm.testing.registry import chosen
from latentlm.tokenizer import ByteTokenizer


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose packages can be imported, for as long as the test lasts."""
    monkeypatch.syspath_prepend(str(tmp_path / "written"))
    yield tmp_path / "written"
    for module in [name for name in sys.modules if name.startswith("latentlm_begun")]:
        del sys.modules[module]
    plugins.reset()


@pytest.mark.parametrize("socket", SOCKETS)
def test_a_written_part_builds_and_its_recipe_is_valid(on_path: Path, socket: str) -> None:
    write_plugin("begun", socket=socket, folder=on_path)
    importlib.invalidate_caches()
    plugins.register_module(importlib.import_module("latentlm_begun"), name="begun")
    data = yaml.safe_load((on_path / "recipes" / "begun.yaml").read_text(encoding="utf-8"))
    recipe = parse(Recipe, data, source="the written recipe")
    model = build(recipe.model, plugin_names=recipe.plugins)
    loss = model.loss(Batch.of([[256, 1, 2, 3, 4]]), step=0, noise=Noise.keyed(0, ["row"]))
    assert torch.isfinite(loss.total)
    filled = getattr(recipe.model, socket)
    assert (filled if socket == "granularity" else filled.name) == "begun"


def test_a_written_granularity_is_filled_from_the_tokenizer_and_passes_its_checks(on_path: Path) -> None:
    write_plugin("begun", socket="granularity", folder=on_path)
    importlib.invalidate_caches()
    plugins.register_module(importlib.import_module("latentlm_begun"), name="begun")
    filled = plugins.get("granularity", "begun").fill({}, ByteTokenizer())
    assert filled == {"ends": [9]}
    subject = Subject("free", model={"granularity": {"name": "begun", **filled}})
    for name in chosen(["granularity"]):
        CHECKS[name](subject)


@pytest.fixture
def method(on_path: Path) -> Recipe:
    """The recipe of a method that was written and taken in."""
    write_method("begun", folder=on_path)
    importlib.invalidate_caches()
    plugins.register_module(importlib.import_module("latentlm_begun"), name="begun")
    data = yaml.safe_load((on_path / "recipes" / "begun.yaml").read_text(encoding="utf-8"))
    return parse(Recipe, data, source="the written recipe")


def test_a_written_method_fills_every_socket_of_its_own_decoder(method: Recipe) -> None:
    config = complete(method.model, plugin_names=method.plugins)
    assert [getattr(config, socket).name for socket in ("encoder", "prior", "injection")] == ["begun"] * 3
    model = build(config, plugin_names=method.plugins)
    loss = model.loss(Batch.of([[256, 1, 2, 3, 4]]), step=0, noise=Noise.keyed(0, ["row"]))
    loss.total.backward()
    assert torch.isfinite(loss.total)
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert {"begun"} == {part.name for part in every() if part.family == "begun"}


@pytest.mark.parametrize("granularity", ["token", "chunk:3", "document"])
def test_a_written_method_passes_the_kits_structural_checks(method: Recipe, granularity: str) -> None:
    subject = Subject("begun", model={"granularity": granularity})
    passed = 0
    for name in chosen(["structure", "masks", "gradients"]):
        try:
            CHECKS[name](subject)
            passed += 1
        except NotApplicable:
            pass
    assert passed > 10


def test_a_written_methods_modules_are_the_contracts_version(tmp_path: Path) -> None:
    written = write_method("begun", folder=tmp_path / "x")
    text = (tmp_path / "x" / "latentlm_begun" / "__init__.py").read_text(encoding="utf-8")
    assert f"latentlm_contract = {CONTRACT_VERSION} " in text
    assert all("$" not in path.read_text(encoding="utf-8").replace("${{", "").replace('"$(', "").replace("$ ", "")
               for path in written)  # fmt: skip


def test_the_distribution_names_its_entry_point_and_ships_its_tests(tmp_path: Path) -> None:
    written = write_plugin("begun-here", socket="prior", folder=tmp_path / "x")
    project = tomllib.loads((tmp_path / "x" / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == "latentlm-begun-here"
    assert project["entry-points"]["latentlm"] == {"begun_here": "latentlm_begun_here"}
    names = {str(path.relative_to(tmp_path / "x")) for path in written}
    assert {"tests/test_conformance.py", ".github/workflows/test.yml", "latentlm_begun_here/prior.py", ".gitignore"} <= names
    workflow = yaml.safe_load((tmp_path / "x" / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))
    assert {"run": "pytest"} in workflow["jobs"]["test"]["steps"]
    assert all("$" not in path.read_text(encoding="utf-8").replace("${{", "").replace('"$(', "").replace("$ ", "")
               for path in written)  # fmt: skip


def test_names_that_cannot_be_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='"2fast" is no name'):
        write_plugin("2fast", socket="encoder", folder=tmp_path / "a")
    with pytest.raises(UserError, match='encoder called "free" already'):
        write_plugin("free", socket="encoder", folder=tmp_path / "a")
    with pytest.raises(UserError, match='plugin called "zoo" is installed'):
        write_plugin("zoo", socket="encoder", folder=tmp_path / "a")
    with pytest.raises(UnknownNameError, match='Did you mean "encoder"'):
        write_plugin("mine", socket="encodr", folder=tmp_path / "a")
    with pytest.raises(UserError, match='decoder called "chunk" already'):
        write_method("chunk", folder=tmp_path / "a")
    with pytest.raises(UserError, match='prior called "mog" already'):
        write_method("mog", folder=tmp_path / "a")
    with pytest.raises(UserError, match="Give --method"):
        CliRunner().invoke(app, ["mine", "--method", "--socket", "prior"], catch_exceptions=False)
    assert not (tmp_path / "a").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not an empty folder"):
        write_plugin("mine", socket="encoder", folder=tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]


def test_the_command_prints_what_to_do_next_or_json(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["mine", "--out", str(tmp_path / "a")], catch_exceptions=False)
    assert "latentlm train recipes/mine.yaml" in result.output
    result = CliRunner().invoke(app, ["mine", "--out", str(tmp_path / "b"), "--json"], catch_exceptions=False)
    assert "latentlm_mine/encoder.py" in json.loads(result.output)["files"]
    result = CliRunner().invoke(app, ["mine", "--method", "--out", str(tmp_path / "c"), "--json"], catch_exceptions=False)
    modules = {f"latentlm_mine/{name}.py" for name in ("__init__", "distribution", "encoder", "prior", "injection")}
    assert modules <= set(json.loads(result.output)["files"])
    assert "latentlm new-plugin mine" in CliRunner().invoke(app, ["--help"]).output


@pytest.mark.slow
@pytest.mark.conformance
@pytest.mark.parametrize("option", ["", " --method"])
def test_ten_minutes_from_nothing_to_a_scored_model(tmp_path: Path, option: str) -> None:
    """In a fresh environment: write, install, test, train, score with lm_eval, as the written README says."""
    environment = fresh_environment(tmp_path / "venv", tmp_path / "home")

    def typed(command: str, folder: Path) -> str:
        done = subprocess.run(
            ["bash", "-c", command], env=environment, cwd=folder, capture_output=True, text=True, timeout=500, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    typed(f"latentlm new-plugin begun{option}", tmp_path)
    folder = tmp_path / "latentlm-begun"
    typed("pip install --quiet -e .", folder)
    assert "latentlm-begun 0.1.0" in typed("latentlm plugins", folder)
    tests = typed("pytest -v -p no:cacheprovider", folder)
    assert tests.count(" PASSED ") > 15
    assert " FAILED " not in tests
    typed("latentlm train recipes/begun.yaml --out runs/begun train.steps=4 data.max_documents=20", folder)
    scored = typed(
        "lm_eval --model latentlm --model_args model=runs/begun,samples=2 --tasks latentlm_next_line "
        '--include_path "$(latentlm eval --task-path)" --limit 3',
        folder,
    )
    assert "latentlm_next_line" in scored
