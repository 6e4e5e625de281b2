"""What users write: keys that are unknown or there twice, numbers that are none, latents taken out of a recipe."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from latentlm.composed import build, complete
from latentlm.config import ModelConfig, PartSpec, Strict, apply_overrides, parse, read_json, read_yaml, yaml_data
from latentlm.errors import UnknownNameError, UserError, did_you_mean
from latentlm.training.recipes import load_recipe


class Inner(Strict):
    """Settings within settings."""

    size: int = 1


class Outer(Strict):
    """Every way to have settings inside."""

    one: Inner | None = None
    many: tuple[Inner, ...] = ()
    named: dict[str, Inner] | None = None
    share: float = 0.5
    flag: bool = False
    either: int | bool = 1


# ------------------------------------------------------------------------------------------------------ unknown keys


@pytest.mark.parametrize(("key", "near"), [("dimms", "dims"), ("pior", "prior"), ("event_dims", "dims"), ("lik", "like")])
def test_a_typo_in_a_latent_has_the_nearest_key_of_a_latent(key: str, near: str) -> None:
    with pytest.raises(UserError, match=f'unknown key "model.latents.intent.{key}". Did you mean "{near}"'):
        load_recipe("two-level-tiny", [f"model.latents.intent.{key}=8"])


@pytest.mark.parametrize("data", [{"one": {"sise": 1}}, {"many": [{}, {"sise": 1}]}, {"named": {"x": {"sise": 1}}}])
def test_the_nearest_key_is_found_wherever_settings_lie(data: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r'unknown key "\S+sise". Did you mean "size"'):
        parse(Outer, data, source="test")
    text = repr(data).replace("sise", "zzz")
    with pytest.raises(UserError, match="Known: size"):
        parse(Outer, yaml_data(text, source="test"), source="test")


def test_a_part_without_settings_says_so() -> None:
    config = ModelConfig(decoder="free", prior=PartSpec.model_validate({"tap": 1}))
    with pytest.raises(UserError, match=r'settings of prior "uniform_bits": unknown key "tap". It has no settings.'):
        complete(config)


def test_a_word_of_another_name_is_near() -> None:
    assert did_you_mean("event_dims", ["dims", "like"]) == ' Did you mean "dims"?'
    assert did_you_mean("dims", ["decoder", "event_dims"]) == ' Did you mean "event_dims"?'
    assert did_you_mean("zzz", ["dims"]) == ""


def test_settings_that_are_no_mapping_are_refused_in_plain_words() -> None:
    with pytest.raises(UserError, match=r"model\.latents\.intent: settings are needed \(key: value\), not 3"):
        load_recipe("two-level-tiny", ["model.latents.intent=3"])


# -------------------------------------------------------------------------------------------------------- keys twice


TWICE = "model:\n  latents:\n    bits: {like: free}\n    bits: {like: gaussian}\n"


def test_a_key_that_is_there_twice_is_refused_with_both_places(tmp_path: Path) -> None:
    (tmp_path / "twice.yaml").write_text(TWICE)
    with pytest.raises(UserError, match=r'the key "bits" is there twice, first in line 3, then in line 4, column 5'):
        read_yaml(tmp_path / "twice.yaml")
    with pytest.raises(UserError, match='the key "a" is there twice'):
        apply_overrides({}, ["model.latents={a: {}, 'a': {}}"])


def test_what_an_anchor_brings_may_be_replaced() -> None:
    text = "base: &base {a: 1, b: 2}\nmade: {<<: *base, b: 3}\nagain: {<<: *base, a: 4}"
    assert yaml_data(text, source="test")["made"] == {"a": 1, "b": 3}
    assert yaml_data(text, source="test")["again"] == {"a": 4, "b": 2}


def test_a_text_that_yaml_cannot_read_at_all_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_text("a: \x07")
    with pytest.raises(UserError, match=r"odd\.yaml is not readable as YAML: .*not allowed"):
        read_yaml(tmp_path / "odd.yaml")


# ---------------------------------------------------------------------------------------------------- yes for a number


def test_yes_is_no_number() -> None:
    with pytest.raises(UserError, match=r'settings of encoder "free": tap: a number is needed, not yes'):
        complete(ModelConfig(decoder="free", encoder=PartSpec.model_validate({"tap": True})))
    for data in ({"one": {"size": True}}, {"share": False}):
        with pytest.raises(UserError, match="a number is needed"):
            parse(Outer, data, source="test")
    assert parse(Outer, {"flag": True, "either": True}, source="test").either is True


@pytest.mark.parametrize("before", ["train=5", "train=[1]", "train=true", "model.event_dims=4"])
def test_a_setting_of_what_has_none_is_refused_and_not_put_in_its_place(before: str) -> None:
    key = before.partition("=")[0]
    with pytest.raises(UserError, match=rf"{key}\.steps=3.* changes a setting of {key.split('.')[-1]}, which is .*it has none"):
        load_recipe("vanilla-tiny", [before, f"{key}.steps=3"])
    assert load_recipe("vanilla-tiny", ["train=null", "train.steps=3"]).train.steps == 3


def test_a_key_twice_among_very_many_is_found_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{" + ", ".join(f'"k{number}": 1' for number in range(200_000)) + ', "k199999": 2}')
    start = time.process_time()
    with pytest.raises(UserError, match='the key "k199999" is there twice'):
        read_json(tmp_path / "a.json")
    assert time.process_time() - start < 20


# -------------------------------------------------------------------------------------------------- without a latent


def test_null_takes_a_latent_out_of_a_recipe() -> None:
    recipe = load_recipe("two-level-tiny", ["model.latents.intent=null"])
    assert list(build(recipe.model, device="meta").latents) == ["bits"]
    with pytest.raises(UnknownNameError, match=r'Unknown latent "intnt"\. Did you mean "intent"'):
        load_recipe("two-level-tiny", ["model.latents.intnt=null"])
    with pytest.raises(UnknownNameError, match=r'latent in bits\.prior\.above "intent"'):
        complete(load_recipe("two-level-causal-tiny", ["model.latents.intent=null"]).model)
