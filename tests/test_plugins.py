"""The plugin registry: registration in-process, clashes, unknown names, failures, lazy loading."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest
from torch import Tensor
from typer.testing import CliRunner

from latentlm import plugins
from latentlm.cli.plugins import app
from latentlm.config import Strict
from latentlm.errors import PluginError, UnknownNameError
from latentlm.interface import CONTRACT_VERSION, Context, Distribution, Encoder, KLSchedule, Objective
from latentlm.plugins import discovery as _discovery
from latentlm.plugins import hookimpl, moved


class Costless(KLSchedule):
    """Costs nothing."""

    Config = Strict

    def penalty(
        self, kl: Tensor, reconstruction: Tensor, site_mask: Tensor, target_mask: Tensor, *, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return kl.sum() * 0.0, {}


class Other(Costless):
    """Another class."""


class Unfinished(Encoder):
    """Lacks forward."""

    Config = Strict


class Lax(Costless):
    """Its Config would take any typo."""

    from pydantic import BaseModel as Config


class Blind(Encoder):
    """An encoder, to be put into the wrong socket."""

    Config = Strict

    def forward(self, context: Context, objective: Objective | None = None) -> Distribution:
        raise NotImplementedError


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A registry that has seen nothing, and no trace afterwards."""
    monkeypatch.delenv("LATENTLM_PLUGINS", raising=False)
    monkeypatch.delenv("LATENTLM_STRICT_PLUGINS", raising=False)
    plugins.reset()
    yield
    plugins.reset()


def module(
    name: str = "a_module",
    *,
    parts: object = None,
    cards: object = None,
    contract: object = CONTRACT_VERSION,
    **members: object,
) -> ModuleType:
    """A plugin's module. `parts` and `cards` are what its hooks return, or a function to call."""
    made = ModuleType(name)
    if contract is not None:
        made.latentlm_contract = contract  # type: ignore[attr-defined]

    def hook(called: str, result: object) -> Callable[[], object]:
        def run() -> object:
            return result() if callable(result) else result

        run.__name__ = called
        return hookimpl(run)

    if parts is not None:
        made.latentlm_parts = hook("latentlm_parts", parts)  # type: ignore[attr-defined]
    if cards is not None:
        made.latentlm_cards = hook("latentlm_cards", cards)  # type: ignore[attr-defined]
    vars(made).update(members)
    return made


def schedules(**named: object) -> dict[str, dict[str, object]]:
    return {"kl_schedule": named}


def fail(error: BaseException) -> Callable[[], object]:
    def raising() -> object:
        raise error

    return raising


class Installed(EntryPoint):
    """An entry point whose module is at hand, or whose import raises; `loads` counts."""

    def load(self) -> object:
        LOADS.append(self.name)
        found = MODULES[self.value]
        if isinstance(found, BaseException):
            raise found
        return found


MODULES: dict[str, ModuleType | BaseException] = {}
LOADS: list[str] = []


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replaces what is installed by modules (or errors), each under its keyword's name."""

    def put(**modules: ModuleType | BaseException) -> None:
        MODULES.clear()
        LOADS.clear()
        MODULES.update(modules)
        entries = [Installed(name, name, "latentlm") for name in modules]
        monkeypatch.setattr(_discovery, "entry_points", lambda group: entries if group == "latentlm" else [])
        plugins.reset()

    return put


def row(name: str) -> plugins.Plugin:
    (found,) = [plugin for plugin in plugins.listing() if plugin.name == name]
    return found


# ------------------------------------------------------------------------------------------------------- in-process


def test_a_registered_class_answers_to_its_name_until_it_is_taken_back() -> None:
    plugins.register("kl_schedule", "costless", Costless)
    assert plugins.get("kl_schedule", "costless") is Costless
    assert "costless" in plugins.names("kl_schedule")
    plugins.unregister("kl_schedule", "costless")
    plugins.unregister("kl_schedule", "costless")
    with pytest.raises(UnknownNameError):
        plugins.get("kl_schedule", "costless")


def test_registering_a_name_again_replaces_it() -> None:
    plugins.register("kl_schedule", "costless", Costless)
    plugins.register("kl_schedule", "costless", Other)
    assert plugins.get("kl_schedule", "costless") is Other
    assert plugins.clashes() == {}


def test_registration_does_not_shadow_an_installed_part() -> None:
    plugins.register("kl_schedule", "free_bits", Costless)
    with pytest.raises(PluginError, match=r'plugin "schedules" of latentlm .* of this process.*unregister'):
        plugins.get("kl_schedule", "free_bits")
    plugins.unregister("kl_schedule", "free_bits")
    assert plugins.get("kl_schedule", "free_bits").__module__ == "latentlm_schedules.free_bits"


def test_a_module_is_taken_as_an_entry_point_would_and_twice_is_once() -> None:
    for cls in (Other, Costless):
        plugins.register_module(module(parts=schedules(costless=cls)), name="mine")
    assert plugins.get("kl_schedule", "costless") is Costless
    assert row("mine").as_json() == {
        "name": "mine",
        "distribution": "this process",
        "version": "",
        "module": "a_module",
        "builtin": False,
        "status": "ok",
        "error": None,
        "parts": {"kl_schedule": ["costless"]},
        "cards": [],
    }


def test_one_class_offered_twice_is_no_clash() -> None:
    plugins.register("kl_schedule", "costless", Costless)
    plugins.register_module(module(parts=schedules(costless=Costless)))
    assert plugins.get("kl_schedule", "costless") is Costless
    assert plugins.clashes() == {}


def test_in_process_parts_are_found_whatever_the_request_and_the_allow_list_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTLM_PLUGINS", "")
    plugins.reset()
    plugins.register("kl_schedule", "costless", Costless)
    assert plugins.get("kl_schedule", "costless") is Costless
    assert plugins.get("kl_schedule", "costless", plugins=["schedules"]) is Costless


@pytest.mark.parametrize(
    ("socket", "name", "cls", "words"),
    [
        ("encoder", "x", Costless, "subclass of latentlm.interface.Encoder"),
        ("kl_schedule", "x", Blind, "subclass of latentlm.interface.KLSchedule"),
        ("kl_schedule", "x", Costless(None), "subclass of"),
        ("kl_schedule", "", Costless, "name"),
        ("kl_schedule", "a\x1b[2J", Costless, "printable"),
        ("encoder", "x", Unfinished, "forward"),
        ("kl_schedule", "x", Lax, "Strict"),
        ("encoders", "x", Costless, 'Did you mean "encoder"'),
    ],
)
def test_what_is_no_part_is_refused_and_leaves_nothing(socket: str, name: str, cls: type, words: str) -> None:
    with pytest.raises((PluginError, UnknownNameError), match=words):
        plugins.register(socket, name, cls)
    assert all(name not in plugins.names(socket) for socket in plugins.SOCKETS)


# ------------------------------------------------------------------------------------------------------ unknown names


def test_unknown_name_gets_the_nearest_and_what_is_installed() -> None:
    with pytest.raises(UnknownNameError, match=r'Unknown encoder "fre".*Did you mean "free".*Installed plugins:.*latentlm'):
        plugins.get("encoder", "fre")


def test_unknown_name_of_one_socket_that_is_known_in_another() -> None:
    with pytest.raises(UnknownNameError, match="name of a kl_schedule"):
        plugins.get("prior", "free_bits")


def test_unknown_socket_gets_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match='Unknown socket "injector"'):
        plugins.get("injector", "free")


def test_unknown_name_says_which_distribution_is_known_to_have_it(installed: Callable[..., None]) -> None:
    installed(other=module(parts=schedules(costless=Costless)))
    with pytest.raises(UnknownNameError, match=r'plugin "schedules" of the distribution latentlm has it') as caught:
        plugins.get("kl_schedule", "cyclical")
    assert "costless" in str(caught.value)


def test_known_parts_are_those_that_the_first_party_plugins_offer() -> None:
    offered = {plugin.name: {name for named in plugin.parts.values() for name in named} for plugin in plugins.listing()}
    for name, (distribution, parts) in plugins.KNOWN.items():
        assert row(name).distribution == distribution
        assert offered[name] == set(parts)
    first_party = {p.name for p in plugins.listing() if p.distribution == "latentlm" and p.parts and not p.builtin}
    assert first_party == set(plugins.KNOWN)


def test_a_named_plugin_that_is_not_installed_is_an_error_with_the_nearest() -> None:
    with pytest.raises(PluginError, match=r'"schedule" is needed but not installed.*Did you mean "schedules"'):
        plugins.get("kl_schedule", "free_bits", plugins=["schedule"])


# ----------------------------------------------------------------------------------------------- naming the plugins


def test_a_part_of_a_plugin_that_is_not_named_is_found_all_the_same() -> None:
    assert plugins.get("kl_schedule", "free_bits", plugins=["vanilla"]).__name__ == "FreeBits"
    assert plugins.get("kl_schedule", "free_bits", plugins=[]).__name__ == "FreeBits"


def test_the_others_are_loaded_only_if_the_named_ones_do_not_have_it(installed: Callable[..., None]) -> None:
    installed(one=module("one", parts=schedules(one=Costless)), two=module("two", parts=schedules(two=Other)))
    assert plugins.get("kl_schedule", "one", plugins=["one"]) is Costless
    assert LOADS == ["one"]
    assert plugins.get("kl_schedule", "two", plugins=["one"]) is Other
    assert LOADS == ["one", "two"]


def test_the_named_plugin_wins_whoever_else_claims_the_name(installed: Callable[..., None]) -> None:
    installed(one=module("one", parts=schedules(same=Costless)), two=module("two", parts=schedules(same=Other)))
    plugins.register("kl_schedule", "same", type("Third", (Costless,), {}))
    plugins.listing()
    assert plugins.get("kl_schedule", "same", plugins=["one"]) is Costless
    assert plugins.get("kl_schedule", "same", plugins=["two"]) is Other
    with pytest.raises(PluginError, match="2 plugins offer"):
        plugins.get("kl_schedule", "same", plugins=["one", "two"])


def test_a_clash_among_those_that_are_not_named_is_an_error(installed: Callable[..., None]) -> None:
    installed(
        one=module("one", parts=schedules(same=Costless)),
        two=module("two", parts=schedules(same=Other)),
        fine=module("fine", parts=schedules(fine=Costless)),
    )
    with pytest.raises(PluginError, match="2 plugins offer"):
        plugins.get("kl_schedule", "same", plugins=["fine"])


def test_a_named_plugin_that_failed_is_not_replaced_by_anothers_part_of_that_name(installed: Callable[..., None]) -> None:
    installed(broken=ImportError("libfancy is not there"), other=module("other", parts=schedules(same=Other)))
    with pytest.warns(plugins.PluginWarning), pytest.raises(PluginError, match="libfancy is not there"):
        plugins.get("kl_schedule", "same", plugins=["broken"])
    assert plugins.get("kl_schedule", "same", plugins=["broken", "other"]) is Other


# ----------------------------------------------------------------------------------------------------------- built in


def test_the_frames_own_parts_are_there_whatever_is_installed_or_allowed(
    installed: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from latentlm.composed import ComposedDecoder

    monkeypatch.setenv("LATENTLM_PLUGINS", "")
    installed(one=module("one", parts={}))
    assert plugins.get("decoder", "composed") is ComposedDecoder
    assert plugins.get("decoder", "composed", plugins=["one"]) is ComposedDecoder
    assert LOADS == []
    assert [plugin.builtin for plugin in plugins.listing()] == [True, False]


def test_the_frames_own_parts_load_no_plugin_where_plugins_are_named(installed: Callable[..., None]) -> None:
    installed(one=module("one", parts=schedules(one=Costless)), two=module("two", parts=schedules(two=Other)))
    plugins.get("decoder", "composed", plugins=["one"])
    assert LOADS == ["one"]


def test_a_plugin_that_claims_a_built_in_name_must_be_named(installed: Callable[..., None]) -> None:
    from latentlm.composed import ComposedDecoder

    theirs = type("Theirs", (ComposedDecoder,), {})
    installed(bold=module("bold", parts={"decoder": {"composed": theirs}}))
    with pytest.raises(PluginError, match="latentlm itself and plugin \"bold\""):
        plugins.get("decoder", "composed")
    assert plugins.get("decoder", "composed", plugins=["bold"]) is theirs
    assert plugins.get("decoder", "composed", plugins=["latentlm"]) is ComposedDecoder


def test_the_table_marks_what_is_built_in(installed: Callable[..., None]) -> None:
    installed(one=module("one", parts=schedules(one=Costless)))
    text = CliRunner().invoke(app, [], catch_exceptions=False).output
    assert "(built in)" in text
    rows = {row["name"]: row["builtin"] for row in json.loads(CliRunner().invoke(app, ["--json"]).output)["plugins"]}
    assert rows == {"latentlm": True, "one": False}


def test_granularity_is_a_socket() -> None:
    assert "granularity" in plugins.SOCKETS
    with pytest.raises(PluginError, match="granularity 'x' must be a subclass"):
        plugins.register("granularity", "x", 3)  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------------------------------- clashes


def test_two_plugins_with_one_name_are_an_error_until_one_is_named(installed: Callable[..., None]) -> None:
    one, two = schedules(same=Costless, only_one=Costless), schedules(same=Other)
    installed(one=module("one", parts=one), two=module("two", parts=two))
    with pytest.raises(PluginError, match=r'2 plugins offer the kl_schedule "same": plugin "one".* and plugin "two"'):
        plugins.get("kl_schedule", "same")
    assert plugins.get("kl_schedule", "only_one") is Costless
    assert plugins.get("kl_schedule", "same", plugins=["two"]) is Other
    ((key, origins),) = plugins.clashes().items()
    assert key == ("kl_schedule", "same")
    assert len(origins) == 2


def test_the_allow_list_ends_a_clash(installed: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTLM_PLUGINS", " two , ")
    installed(one=module("one", parts=schedules(same=Costless)), two=module("two", parts=schedules(same=Other)))
    assert plugins.get("kl_schedule", "same") is Other
    assert [row("one").status, row("two").status] == ["disabled", "ok"]


# ---------------------------------------------------------------------------------------------------------- failures

CARD_THAT_IS_NOT = Path("/nowhere/card.yaml")
FAILURES = {
    "import": (ImportError("libfancy is not there"), "ImportError: libfancy is not there"),
    "exit": (SystemExit(3), "SystemExit: 3"),
    "no contract": (module(parts={}, contract=None), "does not state the version"),
    "newer contract": (module(parts={}, contract=CONTRACT_VERSION + 1), f"version {CONTRACT_VERSION + 1}"),
    "contract of the wrong type": (module(parts={}, contract="1"), "version '1'"),
    "no hook": (module(), "neither of the hooks"),
    "hook that is not marked": (module(latentlm_parts=lambda: schedules()), "no hook: decorate it"),
    "hook with a misspelt name": (module(parts={}, latentlm_part=hookimpl(lambda: schedules())), "latentlm_part"),
    "hook that raises": (module(parts=schedules(left=Costless), cards=fail(RuntimeError("fell"))), "RuntimeError: fell"),
    "hook that returns None": (module(parts=lambda: None), "returned None"),
    "parts that are no dict": (module(parts=[Costless]), "must return"),
    "unknown socket": (module(parts={"kl_schedule": {"left": Costless}, "encoders": {}}), 'Did you mean "encoder"'),
    "one bad part": (module(parts=schedules(left=Costless, bad=Blind)), "subclass of"),
    "card that is not there": (module(parts=schedules(left=Costless), cards=[CARD_THAT_IS_NOT]), "does not exist"),
    "one path for cards": (module(parts={}, cards="card.yaml"), "list of paths"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failing_plugin_costs_one_warning_and_leaves_nothing_behind(installed: Callable[..., None], case: str) -> None:
    broken, words = FAILURES[case]
    installed(broken=broken, fine=module("fine", parts=schedules(fine=Other)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            assert plugins.get("kl_schedule", "fine") is Other
            assert plugins.names("kl_schedule") == ["fine"]
            assert plugins.cards() == []
    (warning,) = caught
    assert warning.category is plugins.PluginWarning
    assert 'plugin "broken"' in str(warning.message)
    assert words in str(warning.message)
    record = row("broken")
    assert record.status == "failed"
    assert words in str(record.error)
    assert not any(record.parts.values())
    assert LOADS.count("broken") == 1


def test_an_unknown_name_mentions_the_plugins_that_failed(installed: Callable[..., None]) -> None:
    installed(broken=ImportError("libfancy is not there"))
    with pytest.warns(plugins.PluginWarning), pytest.raises(UnknownNameError, match="libfancy is not there"):
        plugins.get("kl_schedule", "fine")


def test_strict_mode_raises_at_every_look_up_and_still_lists(
    installed: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTLM_STRICT_PLUGINS", "1")
    installed(broken=ImportError("libfancy is not there"), fine=module("fine", parts=schedules(fine=Other)))
    for _ in range(2):
        with pytest.raises(PluginError, match="libfancy is not there") as caught:
            plugins.get("kl_schedule", "fine")
        assert isinstance(caught.value.__cause__, ImportError)
    assert plugins.get("kl_schedule", "fine", plugins=["fine"]) is Other
    assert [plugin.status for plugin in plugins.listing() if plugin.installed] == ["failed", "ok"]
    monkeypatch.setenv("LATENTLM_STRICT_PLUGINS", "0")
    assert plugins.get("kl_schedule", "fine") is Other


def test_ctrl_c_during_an_import_goes_through(installed: Callable[..., None]) -> None:
    installed(broken=KeyboardInterrupt())
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may run where it is ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            plugins.listing()
    finally:
        signal.signal(signal.SIGINT, handler)


# ------------------------------------------------------------------------------------------- plugins of version 1


def importing(statement: str) -> ImportError:
    """The error that an import statement ends in."""
    with pytest.raises(ImportError) as caught:
        exec(statement)
    return caught.value


def failure_of(installed: Callable[..., None], plugin: ModuleType | BaseException) -> str:
    """The one warning that a plugin costs."""
    installed(old=plugin)
    with pytest.warns(plugins.PluginWarning) as caught:
        plugins.listing()
    (warning,) = caught
    return str(warning.message)


def test_a_plugin_that_states_version_1_is_told_what_changed(
    installed: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("latentlm.interface.CONTRACT_VERSION", "latentlm.composed.builtin.latentlm_contract"):
        monkeypatch.setattr(place, 2)
    said = failure_of(installed, module(parts={}, contract=1))
    assert "written for version 1 of the contracts" in said
    assert said.count(moved.CHANGED) == 1
    assert moved.CHANGED not in failure_of(installed, module(parts={}, contract=3))


@pytest.mark.parametrize("old", moved.MODULES)
def test_an_import_of_a_module_that_moved_says_where_to(installed: Callable[..., None], old: str) -> None:
    room, name = moved.MODULES[old]
    package, _, leaf = f"latentlm.{old}".rpartition(".")
    for statement in (f"from latentlm.{old} import {name}", f"import latentlm.{old}", f"from {package} import {leaf}"):
        said = failure_of(installed, importing(statement))
        assert f"latentlm.{old} is now latentlm.{room} (from latentlm.{room} import {name}). {moved.CHANGED}" in said
        assert "ModuleNotFoundError" not in said
    exec(f"from latentlm.{room} import {name}")


def test_an_import_of_a_name_that_moved_says_where_to(installed: Callable[..., None]) -> None:
    said = failure_of(installed, importing("from latentlm.composed import Noise"))
    assert "Noise is no longer in latentlm.composed (from latentlm.interface import Noise)" in said
    assert moved.CHANGED in said


@pytest.mark.parametrize(
    "statement",
    ["import latentlm.nonsense", "from latentlm.composed import nonsense", "from latentlm import nonsense",
     "import numpy.noise", "from math import noise"],
)  # fmt: skip
def test_any_other_failed_import_keeps_its_own_words(installed: Callable[..., None], statement: str) -> None:
    error = importing(statement)
    assert f"{type(error).__name__}: {error}" in failure_of(installed, error)


# -------------------------------------------------------------------------------------------- lazy, once, allow-list


def test_only_named_plugins_are_loaded_and_each_once(installed: Callable[..., None]) -> None:
    installed(one=module("one", parts=schedules(one=Costless)), two=module("two", parts=schedules(two=Other)))
    for _ in range(2):
        assert plugins.get("kl_schedule", "one", plugins=["one"]) is Costless
    assert LOADS == ["one"]
    assert plugins.names("kl_schedule") == ["one", "two"]
    assert LOADS == ["one", "two"]


def test_threads_load_a_plugin_once(installed: Callable[..., None]) -> None:
    installed(one=module("one", parts=schedules(one=Costless)))
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(plugins.get("kl_schedule", "one"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [Costless] * 8
    assert LOADS == ["one"]


def test_a_plugin_may_ask_for_parts_of_others_while_it_loads(installed: Callable[..., None]) -> None:
    def derived() -> object:
        return schedules(derived=type("Derived", (plugins.get("kl_schedule", "base"),), {}))

    installed(a=module("a", parts=derived), b=module("b", parts=schedules(base=Costless)))
    assert issubclass(plugins.get("kl_schedule", "derived"), Costless)
    assert plugins.names("kl_schedule") == ["base", "derived"]


def test_an_empty_allow_list_allows_none(installed: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTLM_PLUGINS", "")
    installed(one=module("one", parts=schedules(one=Costless)))
    assert plugins.names("kl_schedule") == []
    assert row("one").status == "disabled"
    assert LOADS == []
    with pytest.raises(UnknownNameError, match="LATENTLM_PLUGINS leaves out: one"):
        plugins.get("kl_schedule", "one")


def test_an_allow_list_with_a_typo_warns(installed: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTLM_PLUGINS", "schedule")
    installed(schedules=module("schedules", parts={}))
    with pytest.warns(UserWarning, match='"schedule", which is not installed.*Did you mean "schedules"'):
        plugins.listing()


def test_a_process_imports_only_the_plugins_that_were_named() -> None:
    code = (
        "import sys, json; from latentlm import plugins; seen = [sorted(m for m in sys.modules if m.startswith('latentlm_'))]\n"
        "plugins.get('kl_schedule', 'constant', plugins=['schedules'])\n"
        "seen.append(sorted({m.partition('.')[0] for m in sys.modules if m.startswith('latentlm_')})); print(json.dumps(seen))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(done.stdout) == [[], ["latentlm_schedules"]]


def test_cards_are_listed_by_name_whatever_their_layout() -> None:
    zoo = next(plugin for plugin in plugins.listing() if plugin.name == "zoo")
    assert {"free-8b", "free-tiny"} <= set(zoo.card_names)
    assert zoo.as_json()["cards"] == zoo.card_names
