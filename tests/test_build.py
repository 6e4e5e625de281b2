"""From a configuration to a decoder: settings of default parts changed alone, and what a part says when it cannot be made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import nn

from latentlm import plugins
from latentlm.composed import build, complete
from latentlm.config import BackboneConfig, ModelConfig, PartSpec, Recipe, Strict
from latentlm.errors import CheckpointError, UserError
from latentlm.interface import Bits, Context, Distribution, Encoder, Objective, Shape
from latentlm.plugins.provenance import explained
from latentlm.tokenizer import ByteTokenizer
from latentlm.training.recipes import load_recipe
from latentlm.training.setup import resolve
from latentlm.zoo.weights import load_into, weights_of
from samples import small_config


class PickyConfig(Strict):
    """Which error to raise."""

    error: str = ""
    size: int = Field(1, ge=1)


class Picky(Encoder):
    """Fails as it is told."""

    Config = PickyConfig
    sees_future = False
    taps = (0,)

    def __init__(self, config: Any, shape: Shape) -> None:
        super().__init__(config, shape)
        errors = {
            "value": ValueError("size must divide the width."),
            "type": TypeError("no such thing"),
            "user": UserError("size must divide the width."),
            "named": UserError('the encoder "picky" dislikes it.'),
            "checkpoint": CheckpointError("no file"),
            "bug": RuntimeError("a bug"),
        }
        if config.error:
            raise errors[config.error]

    def forward(self, context: Context, objective: Objective | None = None) -> Distribution:
        return Bits(context.taps[0][..., :4])


class Tied(Encoder):
    """Two projections of one weight."""

    Config = PickyConfig
    sees_future = False
    taps = (0,)

    def __init__(self, config: Any, shape: Shape) -> None:
        super().__init__(config, shape)
        width = shape.backbone.width
        self.first, self.second = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.second.weight = self.first.weight
        for layer in (self.first, self.second):
            layer.register_buffer("seen", getattr(self.first, "seen", torch.zeros(1)), persistent=False)

    def forward(self, context: Context, objective: Objective | None = None) -> Distribution:
        return Bits(self.second(self.first(context.taps[0]))[..., :4])


@pytest.fixture(autouse=True)
def picky() -> Iterator[None]:
    plugins.register("encoder", "picky", Picky)
    plugins.register("encoder", "tied", Tied)
    yield
    plugins.reset()


def test_a_weight_that_a_part_has_twice_is_one_when_it_is_built_saved_and_loaded(tmp_path: Path) -> None:
    config = small_config("free").model_copy(update={"encoder": PartSpec(name="tied")})
    model, again = build(config, seed=0), build(config, init=False)
    tied = next(iter(model.latents.values())).encoder
    assert tied.first.weight is tied.second.weight
    assert tied.first.seen is tied.second.seen
    assert "encoder.second.weight" not in " ".join(weights_of(model))
    save_file(weights_of(model), tmp_path / "model.safetensors")
    load_into(again, tmp_path / "model.safetensors")
    loaded = next(iter(again.latents.values())).encoder
    assert loaded.first.weight is loaded.second.weight
    assert torch.equal(loaded.second.weight, tied.first.weight)


def part(**settings: Any) -> PartSpec:
    return PartSpec.model_validate(settings)


def model(decoder: str, **settings: Any) -> ModelConfig:
    return ModelConfig(decoder=decoder, backbone=BackboneConfig(width=32, blocks=4, heads=2, context=32), **settings)


# ------------------------------------------------------------------------------------- one setting of a default part


def test_settings_without_a_name_change_the_default_part() -> None:
    default, changed = complete(model("free")), complete(model("free", encoder=part(tap=1), kl_schedule=part(bits=0.25)))
    assert changed.encoder is not None
    assert changed.encoder.name == "free"
    assert changed.encoder.settings == {**default.encoder.settings, "tap": 1}  # type: ignore[union-attr]
    assert changed.kl_schedule is not None
    assert (changed.kl_schedule.name, changed.kl_schedule.settings["bits"]) == ("free_bits", 0.25)
    assert changed.prior == default.prior


def test_the_defaults_own_settings_stay_where_they_are_not_changed() -> None:
    spec = complete(model("della", kl_schedule=part(cycles=2))).kl_schedule
    assert spec is not None
    assert (spec.name, spec.settings["bits"], spec.settings["cycles"]) == ("optimus", 0.0, 2)


@pytest.mark.parametrize(
    ("decoder", "socket", "settings", "name"),
    [
        ("causal", "encoder", {"tap": 1}, "free"),
        ("chunk", "encoder", {"pool": "mean"}, "chunk_codes"),
        ("gaussian", "encoder", {}, "gaussian_tower"),
        ("ltm", "kl_schedule", {"weight": 0.5}, "constant"),
        ("della", "injection", {"layers": [1, 2]}, "della"),
    ],
)
def test_every_decoder_with_defaults_takes_such_settings(
    decoder: str, socket: str, settings: dict[str, Any], name: str
) -> None:
    spec = getattr(complete(model(decoder, **{socket: part(**settings)})), socket)
    assert spec.name == name
    assert spec.settings.items() >= settings.items()
    build(model(decoder, **{socket: part(**settings)}), device="meta")


def test_the_default_that_the_granularity_chooses_is_the_one_changed() -> None:
    spec = complete(model("causal", granularity="document", prior=part())).prior
    assert spec is not None
    assert spec.name == "trunk_bits"


def test_a_complete_configuration_stays_as_it_is() -> None:
    whole = complete(model("free", encoder=part(tap=1)))
    assert complete(whole) == whole


def test_an_unknown_setting_of_a_default_part_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r'settings of encoder "free": unknown key "tpa". Did you mean "tap"'):
        complete(model("free", encoder=part(tpa=1)))


def test_a_decoder_without_a_default_says_so() -> None:
    with pytest.raises(UserError, match=r'"composed" has no default encoder whose settings.*model\.encoder\.name=NAME'):
        complete(model("composed", event_dims=4, encoder=part(tap=1), prior="uniform_bits", injection="free"))


# -------------------------------------------------------------------------------------- settings of the decoder itself


def with_decoder(decoder: Any) -> ModelConfig:
    return complete(ModelConfig(decoder=decoder, backbone=model("vanilla").backbone))


def test_a_decoders_own_settings_are_filled_and_stay() -> None:
    whole = with_decoder(part(name="ngram", rows=7))
    assert isinstance(whole.decoder, PartSpec)
    assert whole.decoder_name == "ngram"
    assert whole.decoder.settings == {"rows": 7, "orders": [2, 3], "block": None, "slot": "kv", "init_std": None}
    assert complete(whole) == whole
    assert with_decoder("ngram").decoder == with_decoder(part(name="ngram")).decoder


def test_a_decoder_without_settings_is_its_name() -> None:
    assert with_decoder(part(name="vanilla")).decoder == "vanilla"


@pytest.mark.parametrize(
    ("decoder", "words"),
    [
        (part(name="ngram", rosw=7), r'settings of decoder "ngram": unknown key "rosw". Did you mean "rows"'),
        (part(name="vanilla", rows=7), r'settings of decoder "vanilla": unknown key "rows"'),
        (part(rows=7), r'settings of decoder "vanilla": unknown key "rows"'),
        (part(name="ngram", above=["intent"]), r'settings of decoder "ngram": unknown key "above"'),
        (part(name="ngarm"), r'"ngarm".*Did you mean "ngram"'),
    ],
)
def test_what_a_decoder_does_not_take_is_refused_by_name(decoder: PartSpec, words: str) -> None:
    with pytest.raises(UserError, match=words):
        with_decoder(decoder)


# --------------------------------------------------------------------------------------- a part that cannot be made


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("value", 'encoder "picky" (error=value): size must divide the width.'),
        ("type", 'encoder "picky" (error=type): no such thing'),
        ("user", 'encoder "picky": size must divide the width.'),
        ("named", 'the encoder "picky" dislikes it.'),
        ("checkpoint", 'encoder "picky": no file'),
    ],
)
def test_a_parts_complaint_is_one_line_with_part_and_settings(error: str, words: str) -> None:
    config = small_config("free").model_copy(update={"encoder": part(name="picky", error=error)})
    with pytest.raises(UserError) as caught:
        build(config)
    assert str(caught.value) == words
    assert isinstance(caught.value, CheckpointError) == (error == "checkpoint")


def test_a_bug_of_a_part_keeps_its_traceback() -> None:
    config = small_config("free").model_copy(update={"encoder": part(name="picky", error="bug")})
    with pytest.raises(RuntimeError, match="a bug"):
        build(config)


def test_a_first_party_part_is_named_with_its_complaint() -> None:
    with pytest.raises(UserError, match=r'^injection "free": .*the limit is 2\^24'):
        build(small_config("free").model_copy(update={"event_dims": 30}), device="meta")


# ------------------------------------------------------------------------------------------------ whose parts they are


def test_a_resolved_recipe_names_the_plugins_that_it_takes_parts_from() -> None:
    recipe = Recipe(model=model("free", prior="causal_bits"))
    assert resolve(recipe).plugins == ["causal", "free", "schedules"]
    named = recipe.model_copy(update={"plugins": ["schedules", "free", "zoo"]})
    assert resolve(named).plugins == ["schedules", "free", "zoo", "causal"]


def test_built_in_and_in_process_parts_come_from_no_plugin() -> None:
    parts = {"encoder": "picky", "prior": "uniform_bits", "injection": "free"}
    assert resolve(Recipe(model=model("composed", event_dims=4, **parts))).plugins == ["free"]


# ------------------------------------------------------------------------------------ one setting of a granularity


@pytest.mark.parametrize("recipe", ["chunk-tiny", "chunk-fsq-tiny"])
def test_the_length_of_a_chunk_can_be_changed_alone(recipe: str) -> None:
    changed = resolve(load_recipe(recipe, ["model.granularity.length=4"]), tokenizer=ByteTokenizer())
    built = build(changed.model, device="meta")
    assert built.latents["z"].granularity_text == "chunk:4"


def test_settings_of_a_granularity_without_a_name_change_the_default_one() -> None:
    assert build(model("chunk", granularity={"length": 3}), device="meta").latents["z"].granularity_text == "chunk:3"
    many = load_recipe("three-level-tiny", ["model.latents.plan.granularity.length=4"]).model
    assert build(many, device="meta").latents["plan"].granularity_text == "chunk:4"
    with pytest.raises(UserError, match=r'granularity "token": unknown key "length". It has no settings'):
        build(model("free", granularity={"length": 4}), device="meta")


def test_a_granularity_written_twice_over_is_one() -> None:
    assert build(model("chunk", granularity={"name": "chunk:5"}), device="meta").latents["z"].granularity_text == "chunk:5"


# ------------------------------------------------------------------------------------------- whose part it is


@pytest.mark.parametrize(
    ("error", "said"), [("value", "size must divide the width."), ("named", 'the encoder "picky" dislikes it.')]
)
def test_what_a_part_of_several_latents_dislikes_names_the_latent(error: str, said: str) -> None:
    latents = {"intent": {"like": "gaussian"}, "bits": {"like": "free", "dims": 4, "encoder": part(name="picky", error=error)}}
    with pytest.raises(UserError, match=rf'^bits\.encoder "picky"( \(error=value\))?: {said}$'):
        build(model("composed", latents=latents), device="meta")


def test_what_a_part_dislikes_of_the_others_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def bind(self: Picky, parts: object) -> None:
        raise ValueError("no friend of its prior")

    monkeypatch.setattr(Picky, "bind", bind)
    with pytest.raises(UserError, match='encoder "picky": no friend of its prior'):
        build(model("free", event_dims=4, encoder=part(name="picky")), device="meta")


def test_a_plugin_that_has_changed_is_named_in_a_sentence_of_its_own() -> None:
    before = {"gone": {"distribution": "gone", "version": "1"}}
    for said in ("tap must be prime", "tap must be prime.", "is tap prime?"):
        expected = r"^tap must be prime\. Since x, plugin|^is tap prime\? Since x, plugin"
        with pytest.raises(UserError, match=expected), explained(before, what="x"):
            raise UserError(said)
