"""Several latents in one decoder: what a configuration may say, what a build refuses, what goes by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from latentlm import plugins, zoo
from latentlm.composed import ComposedDecoder, build, complete
from latentlm.config import Card, ModelConfig, Recipe, parse
from latentlm.errors import UserError
from latentlm.generation import load_latents, save_latents
from latentlm.interface import Batch, Latent, Latents, Noise, by_name
from latentlm.likelihood import score_continuations, score_texts
from latentlm.training import load_recipe, make_model, resolve

BACKBONE = {"vocabulary": 17, "width": 32, "blocks": 4, "heads": 4, "context": 64, "init_std": 0.3}
TWO: dict[str, Any] = {"intent": {"like": "gaussian", "dims": 2}, "bits": {"like": "free", "dims": 3}}
ABOVE: dict[str, Any] = {**TWO, "bits": {**TWO["bits"], "prior": {"name": "causal_bits", "above": ["intent"]}}}


def config(latents: dict[str, Any], **more: Any) -> ModelConfig:
    return parse(ModelConfig, {"decoder": "composed", "backbone": BACKBONE, "latents": latents, **more}, source="test")


def decoder(latents: dict[str, Any], *, seed: int = 1) -> ComposedDecoder:
    model = build(config(latents), seed=seed).eval()
    assert isinstance(model, ComposedDecoder)
    return model


# ---------------------------------------------------------------------------------------------------- what may be said


def test_like_takes_a_methods_four_parts_and_its_defaults() -> None:
    done = complete(config(TWO)).latents
    gaussian = complete(ModelConfig(decoder="gaussian", backbone=config(TWO).backbone, event_dims=2))
    for socket in ("encoder", "prior", "injection", "kl_schedule"):
        assert getattr(done["intent"], socket) == getattr(gaussian, socket)
    assert done["intent"].granularity == gaussian.granularity == "document"
    assert complete(config({"z": {"like": "gaussian"}})).latents["z"].dims == 32, "the method's own number"


def test_one_setting_of_a_parts_default_can_be_changed_alone() -> None:
    changed = {**TWO, "bits": {**TWO["bits"], "injection": {"table": "additive"}}}
    done = complete(config(changed)).latents["bits"].injection
    assert done is not None
    assert (done.name, done.settings["table"], done.settings["norm"]) == ("free", "additive", "joint")


def test_a_completed_configuration_completes_to_itself_also_through_yaml() -> None:
    done = complete(config(ABOVE))
    assert complete(done) == done
    written = yaml.safe_load(yaml.safe_dump(done.model_dump(mode="json", exclude_none=True), sort_keys=False))
    assert list(written["latents"]) == ["intent", "bits"]
    assert complete(parse(ModelConfig, written, source="written")) == done


@pytest.mark.parametrize("flat", [{"event_dims": 0}, {"granularity": "token"}, {"encoder": "free"}, {"prior": {"tap": 1}}])
def test_the_flat_form_beside_latents_is_refused(flat: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(flat))} stands beside `latents`"):
        config(TWO, **flat)


def test_a_flat_configuration_is_written_as_ever() -> None:
    assert "latents" not in ModelConfig(decoder="free", event_dims=4).model_dump()
    spec = complete(ModelConfig(decoder="free", event_dims=4)).prior
    assert spec is not None
    assert spec.model_dump() == {"name": "uniform_bits"}, "no trace of `above`"


@pytest.mark.parametrize(
    ("latents", "said"),
    [
        ({"Intent": {"like": "free"}}, "is no name for a latent"),
        ({"bits": {**TWO["bits"], "prior": {"name": "causal_bits", "above": ["bits"]}}}, "which is itself"),
        ({"bits": {**TWO["bits"], "prior": {"name": "causal_bits", "above": ["nobody"]}}}, 'in bits.prior.above "nobody"'),
        ({"bits": ABOVE["bits"], "intent": TWO["intent"]}, "a later latent: put it before"),
        (
            {**TWO, "bits": {**TWO["bits"], "prior": {"name": "uniform_bits", "above": ["intent"]}}},
            'bits.prior "uniform_bits" cannot read',
        ),
        ({"a": {"like": "vanilla"}}, "which has no latents"),
        ({"a": {"prior": "uniform_bits", "dims": 2}}, 'latent "a" has no injection'),
        ({"a": {"like": "fre"}}, 'Did you mean "free"'),
        (
            {**TWO, "bits": {**TWO["bits"], "encoder": {"tap": 3}}},
            r"only 0 to 2 are free of z and of .* Lower model\.latents\.bits\.encoder\.tap\.$",
        ),
        ({**TWO, "bits": {"like": "free", "dims": 2, "encoder": {"tap": 0}, "injection": {"block": 9}}}, "blocks 0 to 3"),
        (
            {"bits": TWO["bits"], "intent": TWO["intent"]},
            r'bits.encoder "free" reads taps \(2,\), but only 0 to 0 are free of z and of the latents bits, intent \(.*\)\. '
            r"Lower model\.latents\.bits\.encoder\.tap, or put intent before bits in `latents`",
        ),
        (
            {name: {**latent, "kl_schedule": {"name": "geco", "cross_entropy_bits": 1.0}} for name, latent in TWO.items()},
            "Two KL schedules steer the reconstruction",
        ),
        ({"a": {"like": "ltm"}, "b": {"like": "ltm"}}, r"Two latents are fitted \(a, b\)"),
        ({"items": {"like": "free", "dims": 2}, "b": TWO["bits"]}, 'A latent cannot be called "items"'),
        ({**TWO, "bits": {**TWO["bits"], "kl_schedule": {"name": "constant", "above": ["intent"]}}}, "reads no latents"),
        ({**TWO, "bits": {**TWO["bits"], "encoder": {"tapp": 3}}}, 'settings of bits.encoder "free": unknown key "tapp"'),
        ({**TWO, "bitz": {"dims": 3}}, 'has no prior.*Did you mean "bits"'),
        ({"a": {"prior": "uniform_bits", "injection": "free"}}, "needs a.dims >= 1"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_remedy(latents: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        decoder(latents)


def test_only_the_decoder_composed_has_latents_and_a_decoder_of_more_than_parts_lends_none() -> None:
    with pytest.raises(UserError, match="`like: free`"):
        build(config(TWO, decoder="free"))

    class Louder(plugins.get("decoder", "free")):  # type: ignore[misc]
        def logits(self, hidden: torch.Tensor) -> torch.Tensor:
            return 2.0 * super().logits(hidden)

    plugins.register("decoder", "louder", Louder)
    try:
        with pytest.raises(UserError, match=r"more than its parts \(logits\)"):
            decoder({"z": {"like": "louder", "dims": 2}})
    finally:
        plugins.unregister("decoder", "louder")


def test_cards_of_several_latents_are_version_two_and_their_order_counts() -> None:
    card = {"name": "x", "status": "architecture", "model": {"decoder": "composed", "latents": TWO}}
    with pytest.raises(UserError, match="card_version is 2"):
        parse(Card, card, source="card")
    kept = parse(Card, {**card, "card_version": 2}, source="card")
    from latentlm_evals.fingerprint import _hash, _in_order  # the two that make a card's hash

    turned = kept.model_copy(deep=True)
    turned.model.latents = dict(reversed(kept.model.latents.items()))
    assert _hash(_in_order(kept.model_dump(mode="json"))) != _hash(_in_order(turned.model_dump(mode="json")))


# ---------------------------------------------------------------------------------------------------------- by name


def test_parameters_bear_their_latents_name() -> None:
    names = {name for name, _ in decoder(TWO).named_parameters()}
    wanted = {"latents.intent.encoder.head.readout.weight", "latents.bits.encoder.zeta", "latents.bits.injection.table.weight"}
    assert wanted <= names
    alone = {name for name, _ in decoder({"z": TWO["bits"]}).named_parameters()}
    assert {"encoder.zeta", "injection.table.weight"} <= alone


def test_a_latent_after_others_changes_none_of_their_draws() -> None:
    more = {**TWO, "last": {"like": "free", "dims": 2, "encoder": {"tap": 2}, "injection": {"block": 3}}}
    context = decoder(TWO).context(Batch.of([[1, 2, 3, 4]]))
    two = decoder(TWO).sample_prior(context, Noise.keyed(0, ["row"]))
    three = decoder(more).sample_prior(decoder(more).context(Batch.of([[1, 2, 3, 4]])), Noise.keyed(0, ["row"]))
    for name in TWO:
        assert torch.equal(two[name].value, three[name].value)
    assert not torch.equal(three["bits"].value[..., :2], three["last"].value), "each has a stream of its own"


def test_the_streams_of_latents_are_nobody_elses() -> None:
    with pytest.raises(ValueError, match="those of latents"):
        Noise.keyed(0, ["row"]).stream("latent/bits")


def test_a_latent_of_one_decoder_draws_what_it_always_did_whatever_its_name() -> None:
    flat = build(ModelConfig(decoder="free", backbone=config(TWO).backbone, event_dims=3), seed=1).eval()
    named = decoder({"bits": TWO["bits"]})
    batch, noise = Batch.of([[1, 2, 3, 4, 5]]), Noise.keyed(0, ["row"])
    assert torch.equal(flat.loss(batch, step=0, noise=noise).total, named.loss(batch, step=0, noise=noise).total)
    one = flat.generate([[1, 2]], max_tokens=6, seed=4)[0]
    assert one.tokens == named.generate([[1, 2]], max_tokens=6, seed=4)[0].tokens


def test_what_is_asked_of_the_only_latent_is_refused_where_there_are_several() -> None:
    model = decoder(TWO)
    for ask in (lambda: model.event_dims, lambda: model.granularity, lambda: model.name_of(), lambda: model.kl_schedule):
        with pytest.raises(UserError, match="intent, bits"):
            ask()
    with pytest.raises(UserError, match="give each by name"):
        model.hidden(model.context(Batch.of([[1, 2]])), Latent(torch.zeros(1, 2, 3)))
    with pytest.raises(UserError, match='Did you mean "intent"'):
        by_name({"intend": 1}, ["intent", "bits"], default=0, what="latents")


def test_the_parts_below_read_what_is_above_and_the_encoder_above_a_tap_depends_on_it() -> None:
    model = decoder(ABOVE)
    for parameter in model.latents["bits"].prior.parameters():
        parameter.data.normal_(0.0, 0.5, generator=torch.Generator().manual_seed(0))
    context = model.context(Batch.of([[1, 2, 3, 4]]))
    first, second = (Latents({"intent": Latent(torch.full((1, 1, 2), value))}) for value in (-2.0, 2.0))
    bits = Latent(torch.zeros(1, 4, 3))
    before, after = (model.prior(context, "bits", above.plus("bits", bits)).expected() for above in (first, second))
    assert before is not None
    assert after is not None
    assert not torch.allclose(before, after)
    q_before, q_after = (model.posterior(context, "bits", above).expected() for above in (first, second))
    assert q_before is not None
    assert q_after is not None
    assert not torch.allclose(q_before, q_after), "free reads block L/2, above the vector's injection"


def test_a_prior_whose_tap_is_free_of_z_reads_the_vector_through_above_alone() -> None:
    """With the tap below every injection nothing but `Context.above` can carry the vector to the prior of the bits."""
    prior = {**ABOVE["bits"]["prior"], "tap": 0}
    model = decoder({**ABOVE, "bits": {**ABOVE["bits"], "prior": prior}})
    assert not any(sockets.changes(0) for sockets in model.latents.values()), "or the tap carries the vector too"
    for parameter in model.latents["bits"].prior.parameters():
        parameter.data.normal_(0.0, 0.5, generator=torch.Generator().manual_seed(0))
    context = model.context(Batch.of([[1, 2, 3, 4]]))
    bits = Latent(torch.zeros(1, 4, 3))
    below, above = (
        model.prior(context, "bits", Latents({"intent": Latent(torch.full((1, 1, 2), value)), "bits": bits})).expected()
        for value in (-2.0, 2.0)
    )
    assert below is not None
    assert above is not None
    assert not torch.allclose(below, above)


@pytest.mark.parametrize("latents", [TWO, ABOVE], ids=["two", "above"])
def test_given_and_shared_latents_go_by_name(latents: dict[str, Any], tmp_path: Path) -> None:
    model = decoder(latents)
    made = model.generate([[1, 2, 3]], max_tokens=5, seed=1, samples=2)
    assert made[0].latents is not None
    assert list(made[0].latents) == ["intent", "bits"]
    save_latents(tmp_path / "kept.safetensors", [one.latents for one in made if one.latents is not None], model=model)
    kept = load_latents(tmp_path / "kept.safetensors", model=model)
    again = model.generate([[1, 2, 3]], max_tokens=5, seed=1, samples=2, latents=kept)
    assert [one.tokens for one in again] == [one.tokens for one in made]
    vector = {"intent": kept[0]["intent"]}
    for one in model.generate([[1, 2, 3]], max_tokens=5, seed=1, samples=2, latents=vector):
        assert one.latents is not None
        assert torch.equal(one.latents["intent"].value, kept[0]["intent"].value)
    shared = model.generate([[1, 2, 3]], max_tokens=5, seed=1, samples=2, latents={"intent": "shared"})
    values = [one.latents for one in shared]
    assert values[0] is not None
    assert values[1] is not None
    assert torch.equal(values[0]["intent"].value, values[1]["intent"].value)
    assert not torch.equal(values[0]["bits"].value, values[1]["bits"].value)


def test_rows_of_which_one_lacks_a_latent_are_refused(tmp_path: Path) -> None:
    model = decoder(TWO)
    whole = model.encode([1, 2, 3])
    half = Latents({"intent": whole["intent"]})
    with pytest.raises(UserError, match="have no bits"):
        model.generate([[1, 2], [3, 4]], max_tokens=2, latents=[half, whole])
    with pytest.raises(UserError, match="have no bits"):
        save_latents(tmp_path / "rows.safetensors", [half, whole])
    save_latents(tmp_path / "twice.safetensors", [whole, whole])
    assert len(load_latents(tmp_path / "twice.safetensors", model=model)) == 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"latents": []}, "0 latents are given"),
        ({"latents": None}, "not None"),
        ({"latents": {"intent": None}}, "given for intent are no `Latent`"),
        ({"latents": {"intent": torch.zeros(1, 1, 2)}}, "given for intent are no `Latent`"),
        ({"latents": "sharde"}, 'Did you mean "shared"'),
        ({"prefill": {"intent": "priorr"}}, "prefill must be .*, not 'priorr'"),
        ({"last_latent": "x"}, "last_latent must be"),
        ({"prefill": {"intend": "prior"}}, 'Did you mean "intent"'),
    ],
)
def test_settings_that_mean_nothing_are_refused_by_name(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        decoder(TWO).generate([[1, 2]], max_tokens=2, **given)


def test_the_decoders_own_methods_say_what_they_lack() -> None:
    model, noise = decoder(ABOVE), Noise.keyed(0, ["row"])
    context = model.context(Batch.of([[1, 2, 3]]))
    fed, lengths = torch.tensor([[1, 2, 3]]), torch.tensor([3])
    with pytest.raises(UserError, match='Did you mean "bits"'):
        model.posterior(context, "bit")
    with pytest.raises(UserError, match="The encoder of bits depends on intent"):
        model.posterior(context, "bits")
    with pytest.raises(UserError, match="noise given by name lacks bits"):
        model.prefill(fed, lengths, noise={"intent": noise})
    with pytest.raises(UserError, match=r"1 rows of sites of 3 dimensions, \(1, S, 3\), are needed"):
        model.prefill(fed, lengths, noise=noise, latents={"bits": Latent(torch.zeros(1, 3, 5))})
    state = model.prefill(fed, lengths, noise=noise)
    with pytest.raises(UserError, match="values given for bits have shape"):
        model.step(state, torch.tensor([1]), noise=noise, latents={"bits": torch.zeros(1, 8)})


def test_a_file_of_latents_without_names_is_the_only_latents(tmp_path: Path) -> None:
    path = tmp_path / "old.safetensors"
    save_file({"latent.00000000": torch.ones(4, 3)}, path, metadata={"format": "latentlm.latents.1", "granularity": "token"})
    (kept,) = load_latents(path, model=decoder({"bits": TWO["bits"]}))
    assert kept["bits"].value.shape == (1, 4, 3)
    with pytest.raises(UserError, match='Unknown latent "z"'):
        load_latents(path, model=decoder(TWO))


def test_a_chunk_is_written_with_its_length_however_it_was_said() -> None:
    said = [{"like": "chunk", "dims": 3, "granularity": scale} for scale in ("chunk:3", {"name": "chunk", "length": 3})]
    assert [decoder({"plan": latent}).granularity for latent in said] == ["chunk:3", "chunk:3"]


def test_a_causal_prior_serves_lines_too() -> None:
    model = decoder({"line": {"like": "causal", "dims": 2, "granularity": {"name": "line", "breaks": [5]}}})
    made = model.generate([[1, 5, 2, 5]], max_tokens=6, seed=2)[0]
    assert made.latents is not None
    assert made.latents["line"].value.shape[1] == 1 + [*made.prompt, *made.tokens][:-1].count(5)
    assert score_texts(model, [[1, 5, 2, 5, 3, 4]], samples=8)[0].proposal == "posterior"


def test_scores_say_what_latents_were_drawn_from() -> None:
    model = decoder(TWO)
    assert score_texts(model, [[1, 2, 3, 4]], samples=4)[0].proposal == "posterior"
    assert score_continuations(model, [([1, 2], [3])], samples=4)[0].proposal == "target", "of one target it has seen nothing"
    half = decoder({**TWO, "bits": {"prior": "uniform_bits", "injection": "free", "dims": 3}})
    assert score_texts(half, [[1, 2, 3, 4]], samples=4)[0].proposal == "intent: posterior, bits: target"


# ------------------------------------------------------------------------------------------------------- shipped


@pytest.mark.parametrize("name", ["two-level-tiny", "two-level-causal-tiny", "three-level-tiny"])
def test_the_shipped_recipes_build_and_their_model_scores(name: str) -> None:
    recipe: Recipe = resolve(load_recipe(name), vocabulary=257)
    model = make_model(recipe, "cpu").eval()
    assert len(model.latents) == (3 if name.startswith("three") else 2)
    score = score_texts(model, [[256, *b"def f(x):\n    return x\n"]], samples=4)[0]
    assert -200 < score.value < 0


def test_the_shipped_card_says_what_its_latents_are() -> None:
    model = zoo.load("two-level-tiny")
    assert {name: latent.granularity_text for name, latent in model.latents.items()} == {"intent": "document", "bits": "token"}
    drawn = zoo.describe("two-level-tiny").drawing
    assert "q(bits | x, intent)" in drawn
    assert "prefix of intent" in drawn
    assert json.dumps(zoo.describe("two-level-tiny").as_json())


def test_what_several_latents_have_apart_says_how_to_ask_for_one() -> None:
    model = decoder(TWO)
    loss = model.loss(Batch.of([[1, 2, 3]]), step=0, noise=Noise.keyed(0, ["a"]))
    with pytest.raises(UserError, match=r'several latents \(intent, bits\).*`loss\.latents\["bits"\]\.kl`'):
        _ = loss.kl
    assert loss.latents["bits"].kl.shape == (1, 3, 3)
    state = model.prefill(torch.tensor([[1, 2]]), torch.tensor([2]), noise=Noise.keyed(0, ["a"]))
    with pytest.raises(UserError, match=r'`state\.met\["bits"\]\.counts`'):
        _ = state.site_counts
    with pytest.raises(UserError, match=r'`model\.latents\["bits"\]\.dims`'):
        _ = model.event_dims
