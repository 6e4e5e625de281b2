"""`latentlm parts`: what is listed, described and said to fit, and that text of plugins is shown, never obeyed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import ConfigDict, Field
from typer.testing import CliRunner

from latentlm import plugins
from latentlm.cli.parts import app
from latentlm.config import Strict
from latentlm.errors import UnknownNameError, UserError, shown
from latentlm.interface import Bits, Context, Distribution, Encoder, Objective
from latentlm.plugins.describing import every, family, named, partners
from latentlm.plugins.settings import settings
from latentlm.training.recipes import load_recipe


class Odd:
    """No type of JSON's."""


class Every(Strict):
    """A setting of each kind."""

    needed: int
    share: float = Field(0.5, gt=0, lt=1, description="of the\n whole")
    steps: int | None = Field(None, ge=2)
    word: Literal["a", "b"] = "a"
    sizes: list[Annotated[int, Field(ge=3)]] = Field(default_factory=lambda: [4], min_length=1)


class WithOdd(Strict):
    """A type without a JSON schema."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    odd: Odd | None = None


class Hostile(Encoder):
    """[red]Not red[/red], \x1b[31mnor this\x1b[0m, nor \u202ethis.

    More.

    Example::

        never shown
    """

    Config = WithOdd
    latents = family = "bits"
    granularities = ("token",)
    sees_future = False
    needs_objective = False

    def forward(self, context: Context, objective: Objective | None = None) -> Distribution:
        return Bits(context.taps[0])


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A registry of what is installed, and a terminal that is wide enough for whole cells."""
    monkeypatch.setenv("COLUMNS", "300")
    plugins.reset()
    yield
    plugins.reset()


def said(*arguments: str) -> str:
    result = CliRunner().invoke(app, [*arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def data(*arguments: str) -> Any:
    return json.loads(said(*arguments, "--json"))


# --------------------------------------------------------------------------------------------------------------- list


def test_every_registered_part_is_listed_with_its_plugin() -> None:
    listed = {(part["socket"], part["name"], part["plugin"]) for part in data("list")}
    offered = {(s, n, p.name) for p in plugins.listing() for s, named in p.parts.items() for n in named}
    assert listed == offered
    assert ("prior", "causal_bits", "causal") in listed


def test_one_socket_alone() -> None:
    assert {part["socket"] for part in data("list", "--socket", "prior")} == {"prior"}
    (bits,) = [part for part in data("list", "--socket", "prior") if part["name"] == "causal_bits"]
    assert (bits["family"], bits["granularities"]) == ("bits", None)


def test_without_a_command_it_lists() -> None:
    assert said() == said("list")
    assert said("--socket", "encoder") == said("list", "--socket", "encoder")
    assert "causal_bits" in said()


def test_every_part_has_a_line_that_says_what_it_is() -> None:
    assert [part.name for part in every() if not part.summary] == []


def test_a_socket_with_a_typo_is_named() -> None:
    with pytest.raises(UnknownNameError, match='Did you mean "prior"'):
        said("list", "--socket", "priors")


# ----------------------------------------------------------------------------------------------------------- describe


def test_a_name_is_described_in_every_socket_that_has_it() -> None:
    assert [part["socket"] for part in data("describe", "free")] == ["decoder", "encoder", "injection"]


def test_settings_say_type_default_range_and_meaning() -> None:
    encoder = data("describe", "free")[1]
    tap = {"name": "tap", "type": "int or none", "default": "null", "range": ">= 0"}
    assert encoder["settings"][0].items() >= tap.items()
    assert "block whose input is read" in encoder["settings"][0]["description"]
    assert '"exact" or "sampled"' in said("describe", "free")


def test_kinds_of_settings() -> None:
    found = {setting.name: setting for setting in settings(Every, prefix="x.")}
    assert [(s.type, s.default, s.range) for s in found.values()] == [
        ("int", "required", ""),
        ("float", "0.5", "> 0, < 1"),
        ("int or none", "null", ">= 2"),
        ('"a" or "b"', "a", ""),
        ("list of int", "[4]", "at least 1 items, each >= 3"),
    ]
    assert found["x.share"].description == "of the whole"


def test_a_type_without_a_json_schema_is_told_by_its_annotation() -> None:
    (odd,) = settings(WithOdd)
    assert "Odd" in odd.type


def test_a_part_says_how_it_is_called_and_where_it_is_written() -> None:
    prior, encoder = data("describe", "causal_bits")[0], data("describe", "fitted_thoughts")[0]
    assert prior["flags"]["autoregressive"] is True
    assert encoder["flags"] == {"sees_future": True, "needs_objective": True, "reads_above": False}
    assert data("describe", "thoughts")[0]["flags"]["slots"] == ["cross"]
    assert "latentlm_causal/memory.py:" in prior["source"]


def test_a_decoder_says_its_defaults() -> None:
    assert data("describe", "free")[0]["defaults"] == {
        "encoder": "free", "prior": "uniform_bits", "injection": "free", "kl_schedule": "free_bits", "event_dims": "16",
        "granularity": "token",
    }  # fmt: skip


def test_partners_share_family_and_a_granularity() -> None:
    (encoder,) = [part for part in named("free") if part.socket == "encoder"]
    found = partners(encoder, every())
    assert {"uniform_bits", "causal_bits", "trunk_bits"} <= set(found["prior"])
    assert not {"standard_normal", "causal_levels"} & set(found["prior"])
    assert "encoder" not in found
    (prompt,) = named("prompt_normal")
    assert partners(prompt, every())["encoder"] == ["della", "fitted_thoughts", "gaussian_tower"]
    assert partners(named("geco")[0], every()) == {}


def test_the_family_is_read_under_its_name() -> None:
    assert family(type("New", (), {"family": "real", "latents": "bits"})) == "real"
    assert family(type("Old", (), {"latents": "bits"})) is None
    assert family(type("Neither", (), {})) is None


def test_an_unknown_part_gets_the_nearest_and_a_plugin_its_parts() -> None:
    with pytest.raises(UnknownNameError, match=r'Unknown part "causal_bit". Did you mean "causal_bits"'):
        said("describe", "causal_bit")
    with pytest.raises(UserError, match=r'"schedules" is a plugin, not a part. Its parts: capacity'):
        said("describe", "schedules")


# ---------------------------------------------------------------------------------------------------------------- for


def test_parts_that_fit_a_recipe_and_why_the_others_do_not() -> None:
    found = {fit["name"]: fit for fit in data("for", "demo-free", "prior")}
    assert found["uniform_bits"]["note"] == "the recipe's own"
    assert found["standard_normal"]["reason"] == 'its family is "real"; the encoder "free" has "bits"'
    assert "serves document" in found["prompt_normal"]["reason"]


def test_what_a_decoder_changes_along_with_a_part_is_said(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text("model: {decoder: chunk}")
    found = {fit["name"]: fit for fit in data("for", str(tmp_path / "grid.yaml"), "encoder")}
    assert found["fsq"]["fits"]
    assert "prior causal_levels" in found["fsq"]["note"]


def test_every_schedule_fits_and_a_model_without_latents_takes_none() -> None:
    assert all(fit["fits"] for fit in data("for", "gaussian-tiny", "kl_schedule"))
    with pytest.raises(UserError, match="model without latents"):
        said("for", "demo-vanilla", "prior")
    with pytest.raises(UnknownNameError, match='Did you mean "encoder"'):
        said("for", "demo-free", "encodr")


ONE = "model:\n  decoder: composed\n  latents: {bits: {like: free, dims: 4}}\n  backbone: {width: 32, blocks: 2, heads: 2}\n"


@pytest.mark.parametrize("place", ["prior", "bits.prior"])
def test_one_latent_by_name_is_meant_with_and_without_its_name(place: str, tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text(ONE)
    fitting = {fit["name"]: fit["fits"] for fit in data("for", str(tmp_path / "one.yaml"), place)}
    assert fitting["causal_bits"]
    assert not fitting["mog"]
    assert "model.latents.bits.prior=NAME" in said("for", str(tmp_path / "one.yaml"), place)


@pytest.mark.parametrize(
    ("recipe", "place", "value"),
    [
        ("demo-free", "z.prior", "causal_bits"),
        ("two-level-tiny", "bits.prior", "causal_bits"),
        ("two-level-tiny", "bits.granularity", "chunk:4"),
    ],
)
def test_the_key_that_it_advises_is_one_that_the_recipe_takes(recipe: str, place: str, value: str) -> None:
    (key,) = re.findall(r"(model\.\S+)=NAME", said("for", recipe, place))
    assert load_recipe(recipe, [f"{key}={value}"])


def test_a_latent_that_is_none_is_named() -> None:
    with pytest.raises(UnknownNameError, match='Unknown latent "y"'):
        said("for", "demo-free", "y.prior")
    with pytest.raises(UserError, match=r"several latents: ask for intent\.prior or bits\.prior"):
        said("for", "two-level-tiny", "prior")


def test_granularities_are_tried_as_other_parts_are() -> None:
    bits = {fit["name"]: fit for fit in data("for", "two-level-tiny", "bits.granularity")}
    assert all(bits[name]["fits"] for name in ("token", "chunk", "document", "line", "sentence"))
    assert (bits["token"]["note"], bits["chunk"]["note"]) == ("the recipe's own", "for example chunk:8")
    vector = {fit["name"]: fit["fits"] for fit in data("for", "gaussian-tiny", "granularity")}
    assert [name for name, fits in vector.items() if fits] == ["document"]
    codes = {fit["name"]: fit for fit in data("for", "chunk-tiny", "granularity")}
    assert (codes["chunk"]["note"], codes["line"]["fits"]) == ("the recipe's own", False)


# -------------------------------------------------------------------------------------------------- text of strangers


@pytest.mark.parametrize("arguments", [("list",), ("describe", "hostile[bold]"), ("for", "demo-free", "encoder")])
def test_markup_and_control_characters_of_plugins_are_shown_not_obeyed(arguments: tuple[str, ...]) -> None:
    plugins.register("encoder", "hostile[bold]", Hostile)
    text = said(*arguments)
    assert "hostile[bold]" in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    if arguments[0] != "for":
        assert r"[red]Not red[/red], \x1b[31mnor this" in text
    assert "never shown" not in text


def test_shown_keeps_lines_and_letters() -> None:
    assert shown("a\tb\nç—д\r\x07") == "a b\nç—д\\r\\x07"


@pytest.mark.parametrize("command", [(), ("list",), ("describe",), ("for",)])
def test_every_help_has_examples(command: tuple[str, ...]) -> None:
    assert "latentlm parts" in said(*command, "--help").partition("Examples:")[2]
