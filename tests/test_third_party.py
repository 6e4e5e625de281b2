"""Plugins of other distributions, really installed (tests/distributions) and found through their metadata.

Every question is asked of a process of its own, in which all of them are installed beside each other: one that works, two that
are broken, two that claim one name.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from installing import install

NAMES = ("good", "broken_import", "broken_hook", "clash_a", "clash_b")
BROKEN = {
    "broken_import": ("latentlm-broken-import 0.3.1", "ImportError: libfancy.so.2 is not there"),
    "broken_hook": ("latentlm-broken-hook 0.4.2", "RuntimeError: the shelf fell down"),
}


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all of them installed."""
    return install(tmp_path_factory.mktemp("third-party"), *NAMES)


def python(site: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the folder on its path, before what is on it already."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LATENTLM_")}
    path = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
    variables = {**inherited, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "300", **environment}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, env=variables)


@pytest.fixture(scope="session")
def listed(site: Path) -> dict[str, Any]:
    """What `latentlm plugins --json` says."""
    done = python(site, "-m", "latentlm.cli", "plugins", "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def row(listed: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [plugin for plugin in listed["plugins"] if plugin["name"] == name]
    return dict(found)


def test_a_plugin_is_listed_with_its_distribution_and_parts(listed: dict[str, Any]) -> None:
    assert row(listed, "good") == {
        "name": "good",
        "distribution": "latentlm-good",
        "version": "1.2.0",
        "module": "latentlm_good",
        "builtin": False,
        "status": "ok",
        "error": None,
        "parts": {"encoder": ["good_linear"]},
        "cards": ["latentlm_good"],
    }


@pytest.mark.parametrize("name", BROKEN)
def test_broken_plugins_are_listed_as_failed_and_leave_no_part(listed: dict[str, Any], name: str) -> None:
    found = row(listed, name)
    distribution, error = BROKEN[name]
    assert (found["status"], found["error"]) == ("failed", error)
    assert f"{found['distribution']} {found['version']}" == distribution
    assert found["parts"] == {}


def test_everything_else_works_beside_broken_plugins(listed: dict[str, Any]) -> None:
    working = {"vanilla", "free", "schedules", "zoo", "good", "clash_a", "clash_b"}
    assert {name: row(listed, name)["status"] for name in working} == dict.fromkeys(working, "ok")


def test_a_clash_is_listed_with_both_distributions(listed: dict[str, Any]) -> None:
    (clash,) = listed["clashes"]
    assert (clash["socket"], clash["name"]) == ("kl_schedule", "twice_claimed")
    assert clash["plugins"] == ['plugin "clash_a" of latentlm-clash-a 1.0.0', 'plugin "clash_b" of latentlm-clash-b 2.0.0']


IN_USE = """
import json, warnings
said = []
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from latentlm import plugins, zoo
    from latentlm.composed import build
    from latentlm.config import BackboneConfig, ModelConfig
    from latentlm.errors import UserError
    from latentlm.interface import Batch
    from latentlm.interface import Noise

    def attempt(socket, name, **settings):
        try:
            return plugins.get(socket, name, **settings).__module__
        except UserError as error:
            return str(error)

    shape = BackboneConfig(width=32, blocks=2, heads=2, context=32)
    model = build(ModelConfig(decoder="free", event_dims=4, encoder="good_linear", backbone=shape))
    loss = model.loss(Batch.of([[256, 100, 101, 102]]), step=0, noise=Noise.keyed(0, ["row"])).total
    loss.backward()
    said = {
        "encoder": type(model.encoder).__name__,
        "loss": float(loss),
        "gradient": float(model.encoder.readout.weight.grad.abs().sum()),
        "cards": [card.name for card in zoo.list("good-*")],
        "loaded": type(zoo.load("good-nano").encoder).__name__,
        "clash": attempt("kl_schedule", "twice_claimed"),
        "clash, one named": attempt("kl_schedule", "twice_claimed", plugins=["clash_b"]),
        "not claimed twice": attempt("kl_schedule", "only_a"),
        "orphan": attempt("kl_schedule", "orphan"),
    }
said["warnings"] = [[type(w.message).__name__, str(w.message)] for w in caught if "Plugin" in type(w.message).__name__]
print(json.dumps(said))
"""


@pytest.fixture(scope="session")
def used(site: Path) -> dict[str, Any]:
    """What a process that uses the parts saw."""
    done = python(site, "-c", IN_USE)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_model_is_built_and_trained_with_the_encoder_of_another_distribution(used: dict[str, Any]) -> None:
    assert used["encoder"] == "LinearEncoder"
    assert 0 < used["loss"] < 20
    assert used["gradient"] > 0


def test_a_card_of_another_distribution_is_in_the_zoo_and_loads(used: dict[str, Any]) -> None:
    assert used["cards"] == ["good-nano"]
    assert used["loaded"] == "LinearEncoder"


@pytest.mark.parametrize("name", BROKEN)
def test_each_broken_plugin_costs_one_warning(used: dict[str, Any], name: str) -> None:
    distribution, error = BROKEN[name]
    (warning,) = [message for kind, message in used["warnings"] if distribution in message]
    assert f'plugin "{name}"' in warning
    assert error in warning
    assert len(used["warnings"]) == len(BROKEN)


def test_a_name_claimed_twice_is_an_error_that_names_both_distributions(used: dict[str, Any]) -> None:
    assert "latentlm-clash-a 1.0.0" in used["clash"]
    assert "latentlm-clash-b 2.0.0" in used["clash"]
    assert used["clash, one named"] == "latentlm_clash_b"
    assert used["not claimed twice"] == "latentlm_clash_a"


def test_the_part_of_a_plugin_that_failed_is_unknown_and_the_error_says_why(used: dict[str, Any]) -> None:
    assert used["orphan"].startswith('Unknown kl_schedule "orphan".')
    assert "the shelf fell down" in used["orphan"]


SWITCHED = """
import json, os, sys
from latentlm import plugins
from latentlm.cli.plugins import app
from latentlm.errors import PluginError
from typer.testing import CliRunner

def switch(**environment):
    for name in ("LATENTLM_PLUGINS", "LATENTLM_STRICT_PLUGINS"):
        os.environ.pop(name, None)
    os.environ.update(environment)
    plugins.reset()

def command(*arguments, **environment):
    switch(**environment)
    done = CliRunner().invoke(app, arguments)
    return done.exit_code, done.stdout, done.stderr

said = {
    "allowed": command("--json", LATENTLM_PLUGINS="vanilla,good", LATENTLM_STRICT_PLUGINS="1"),
    "modules": sorted(name for name in sys.modules if name.startswith("latentlm_")),
    "table": command(),
    "strict table": command(LATENTLM_PLUGINS="vanilla,broken_import", LATENTLM_STRICT_PLUGINS="1"),
}
switch(LATENTLM_STRICT_PLUGINS="1")
said["strict, one named"] = plugins.get("decoder", "free", plugins=["free"]).__name__
try:
    plugins.get("decoder", "free")
except PluginError as error:
    said["strict"] = str(error)
switch(LATENTLM_PLUGINS="")
said["none"] = plugins.names("decoder")
print(json.dumps(said))
"""


@pytest.fixture(scope="session")
def switched(site: Path) -> dict[str, Any]:
    """What a process sees that looks again under other environment variables."""
    done = python(site, "-c", SWITCHED)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_table_shows_what_failed_and_exits_with_success(switched: dict[str, Any]) -> None:
    code, table, complaints = switched["table"]
    assert (code, complaints) == (0, "")
    for distribution, error in BROKEN.values():
        (line,) = [line for line in table.splitlines() if distribution in line]
        assert "failed" in line
        assert error in line
    assert 'clash: kl_schedule "twice_claimed" is offered by' in table


def test_the_allow_list_lets_only_its_plugins_be_imported(switched: dict[str, Any]) -> None:
    code, text, _ = switched["allowed"]
    listed = json.loads(text)
    status = {plugin["name"]: plugin["status"] for plugin in listed["plugins"]}
    assert code == 0
    assert {name for name, value in status.items() if value == "ok"} == {"latentlm", "vanilla", "good"}
    assert set(status.values()) == {"ok", "disabled"}
    assert listed["clashes"] == []
    assert switched["modules"] == ["latentlm_good", "latentlm_vanilla"]


def test_an_empty_allow_list_leaves_what_is_built_in(switched: dict[str, Any]) -> None:
    assert switched["none"] == ["composed"]


def test_strict_mode_raises_where_a_failed_plugin_was_looked_into(switched: dict[str, Any]) -> None:
    assert switched["strict, one named"] == "FreeTransformer"
    assert any(distribution in switched["strict"] and error in switched["strict"] for distribution, error in BROKEN.values())


def test_strict_mode_makes_the_listing_exit_with_failure(switched: dict[str, Any]) -> None:
    code, table, _ = switched["strict table"]
    assert code == 1
    assert "libfancy" in table
