"""The probe: a z that knows the intent is seen to know it and to decide it, one that does not is not; the parts of it, and the
command."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from latentlm import zoo
from latentlm.composed import ComposedDecoder, build
from latentlm.config import BackboneConfig, ModelConfig
from latentlm.errors import UserError
from latentlm.interface import Batch, Context, Encoder, Gaussian, Noise, Objective, Shape
from latentlm.testing import PlantedEncoder
from latentlm.tokenizer import ByteTokenizer
from latentlm.training.data.synthetic import Coin
from latentlm_evals.diversity_cli import app as diversity_app
from latentlm_evals.intervals import bootstrapped, share
from latentlm_evals.probe import judges
from latentlm_evals.probe.attributes import Attribute, read_attribute
from latentlm_evals.probe.classify import Answers, fitted, out_of_fold, shuffled
from latentlm_evals.probe.features import encoded
from latentlm_evals.probe.generated import Pair, agreement, judged
from latentlm_evals.probe.picture import NEGATIVE, POSITIVE, draw, picture
from latentlm_evals.probe.probing import Example, Probed, Settings, probe
from latentlm_evals.probe.unseen import without_trained
from latentlm_evals.probe_cli import app

COIN = "synthetic:coin,length=3,flip=0.1"
RIGHT = 0.9**3 + 3 * 0.9**2 * 0.1
"""Share of three tosses whose majority is the coin's side."""


class Majority(Encoder):
    """z is what most tosses of a document show, +-1, or nothing at all."""

    Config = PlantedEncoder.Config
    taps = ()
    sees_future = True
    knows = True

    def forward(self, context: Context, objective: Objective | None = None) -> Gaussian:
        """(B, 1, 1)."""
        signs = (context.tokens == ord("H")).float() - (context.tokens == ord("T")).float()
        side = (signs * (context.documents >= 0)).sum(1).sign()[:, None, None]
        deviation = torch.full_like(side, 0.1 if self.knows else 1.0)
        return Gaussian(side if self.knows else 0 * side, deviation.log())


def coin_decoder(decoder: str) -> ComposedDecoder:
    sizes = {"vocabulary": 257, "width": 16, "blocks": 1, "heads": 2, "context": 16, "init_std": 0.1}
    latents = {"event_dims": 1, "granularity": "document"} if decoder == "gaussian" else {}
    config = ModelConfig.model_validate({"decoder": decoder, **latents, "backbone": BackboneConfig.model_validate(sizes)})
    model = build(config, seed=0)
    model.tokenizer = ByteTokenizer()
    assert isinstance(model, ComposedDecoder)
    return model


def trained(model: ComposedDecoder) -> ComposedDecoder:
    """On tosses of the coin, for a second."""
    optimiser = torch.optim.Adam([one for one in model.parameters() if one.requires_grad], lr=0.02)
    rows = [[256, *text, 256] for text in Coin(length=3, flip=0.1).texts(32 * 80, seed=0)]
    for step in range(80):
        here = rows[32 * step : 32 * (step + 1)]
        batch = Batch.of([row[:-1] for row in here], [row[1:] for row in here])
        loss = model.loss(batch, step=step, noise=Noise.keyed(0, list(range(32))))
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
    return model.eval()


@pytest.fixture(scope="module")
def knowing() -> ComposedDecoder:
    """Its z is the majority, and the decoder has learned to write it."""
    model = coin_decoder("gaussian")
    (latent,) = model.latents.values()
    latent.plant(Majority(None, Shape(backbone=model.config.backbone, latent=latent.shape)))
    latent.kl_schedule = None
    return trained(model)


@pytest.fixture(scope="module")
def plain() -> ComposedDecoder:
    return trained(coin_decoder("vanilla"))


@pytest.fixture(scope="module")
def found(knowing: ComposedDecoder, plain: ComposedDecoder) -> Probed:
    return probe(knowing, read_attribute(COIN, count=400), Settings(), baseline=plain)


def test_a_z_that_knows_the_intent_has_the_information_that_it_was_given(found: Probed) -> None:
    entropy = -(RIGHT * math.log2(RIGHT) + (1 - RIGHT) * math.log2(1 - RIGHT))
    z = found.known["z"]
    assert z.information.value == pytest.approx(1 - entropy, abs=0.09)
    assert z.information.low < 1 - entropy < z.information.high + 0.02
    assert z.accuracy.value == pytest.approx(RIGHT, abs=0.025)
    assert abs(z.shuffled.value) < 0.02
    assert found.ceiling is not None
    assert found.ceiling < 1


def test_exchanging_it_flips_what_is_written(found: Probed) -> None:
    (swap,) = found.written.swaps
    assert swap.flips.value == pytest.approx(RIGHT**2, abs=0.1)
    assert swap.other_way.value < 0.1
    assert swap.follows.value > 0.9
    assert found.written.groups.more.low > 0.1


def test_the_baseline_flips_either_way_and_its_groups_agree_by_chance(found: Probed) -> None:
    assert found.baseline is not None
    (swap,) = found.baseline.swaps
    assert swap.flips.value == pytest.approx(0.25, abs=0.15)
    assert swap.other_way.value == pytest.approx(0.25, abs=0.15)
    assert swap.follows.value == pytest.approx(0.5, abs=0.12)
    assert found.baseline.groups.more.value == pytest.approx(0.0, abs=0.12)


@pytest.mark.conformance
def test_a_z_that_says_nothing_of_the_text_is_worth_nothing(knowing: ComposedDecoder) -> None:
    dead = copy.deepcopy(knowing)
    (latent,) = dead.latents.values()
    blind = Majority(None, Shape(backbone=dead.config.backbone, latent=latent.shape))
    blind.knows = False
    latent.plant(blind)
    found = probe(dead, read_attribute(COIN, count=300), Settings(groups=2))
    assert found.known["z"].information.value == pytest.approx(0.0, abs=0.02)
    assert found.known["z"].accuracy.low < 0.5 < found.known["z"].accuracy.high
    (swap,) = found.written.swaps
    assert swap.flips.low < swap.other_way.high
    assert swap.other_way.low < swap.flips.high
    assert swap.follows.value == pytest.approx(0.5, abs=0.1)


@pytest.mark.conformance
def test_a_z_that_changes_nothing_flips_nothing(knowing: ComposedDecoder) -> None:
    deaf = copy.deepcopy(knowing)
    for name, parameter in deaf.named_parameters():
        if name.startswith("injection."):
            parameter.data.zero_()
    found = probe(deaf, read_attribute(COIN, count=60), Settings(groups=2, pairs=10))
    assert found.known["z"].accuracy.value > 0.9, "z still knows"
    assert found.written.swaps[0].flips.value == found.written.swaps[0].other_way.value == 0.0


def test_numbers_do_not_depend_on_the_rows_beside(knowing: ComposedDecoder) -> None:
    texts = read_attribute(COIN, count=50).texts
    whole = encoded(knowing, texts, seed=0, progress=lambda done, total: None)
    part = encoded(knowing, texts[:5], seed=0, progress=lambda done, total: None)
    assert np.allclose(whole.joined[:5], part.joined)
    assert whole.latents[0]["z"].value.shape == (1, 1, 1)


# --------------------------------------------------------------------------------------------------- classifier, intervals


def test_the_bound_is_near_the_information_of_a_noisy_channel() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random(2000) < 0.5
    seen = (labels ^ (rng.random(2000) < 0.1)).astype(float)
    features = np.stack([seen, rng.normal(size=2000)], axis=1)
    information = out_of_fold(features, labels).information
    assert information.value == pytest.approx(1 + 0.9 * math.log2(0.9) + 0.1 * math.log2(0.1), abs=0.05)
    assert information.low < 0.531 < information.high


def test_many_features_that_mean_nothing_are_not_believed() -> None:
    rng = np.random.default_rng(0)
    labels, features = rng.random(200) < 0.3, rng.normal(size=(200, 100))
    assert -0.05 < out_of_fold(features, labels).information.value < 0.02
    assert -0.05 < shuffled(labels[:, None].astype(float), labels).information.value < 0.02
    constant = out_of_fold(np.zeros((200, 3)), labels)
    assert constant.accuracy.value == pytest.approx(1 - labels.mean())


def test_what_a_classifier_has_learned_by_heart_does_not_count() -> None:
    rng = np.random.default_rng(1)
    labels = rng.random(100) < 0.5
    seen = (labels ^ (rng.random(100) < 0.25)).astype(float)[:, None]
    features = np.concatenate((seen, rng.normal(size=(100, 40))), axis=1)
    channel = 1 + 0.25 * math.log2(0.25) + 0.75 * math.log2(0.75)
    by_heart = fitted(features, labels).decision_function(features)
    assert Answers(labels, by_heart, np.full(100, 0.5)).information.value > 1.5 * channel
    assert out_of_fold(features, labels).information.value < channel


def test_intervals_have_a_length_at_the_ends_and_hold_the_mean() -> None:
    assert share([1.0] * 20).low == pytest.approx(0.8389, abs=1e-4)  # Wilson: n / (n + z^2)
    assert share([1.0] * 20).high == 1.0
    half = share([0.0, 1.0] * 50)
    assert (half.low, half.high) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert math.isnan(share([]).value)
    found = bootstrapped(np.random.default_rng(0).normal(size=400))
    assert found.high - found.low == pytest.approx(2 * 1.96 / 20, rel=0.15)


def test_pairs_and_groups_are_counted_by_hand() -> None:
    reads = {"good": 1, "bad": -1, "?": 0}
    pairs = [Pair("good", "bad"), Pair("bad", "good"), Pair("good", "good"), Pair("?", "bad")]
    swap = judged("z", pairs, reads.__getitem__)
    assert (swap.flips.value, swap.other_way.value, swap.follows.value) == (0.25, 0.25, 0.5)
    assert swap.undecided == 1 / 8
    groups = agreement(np.array([[1, 1, 1], [-1, -1, 0]]))
    assert groups.within.value == pytest.approx((1 + 1 / 3) / 2)
    assert (groups.across.value, groups.more.value) == (0.0, groups.within.value)
    assert groups.undecided == pytest.approx(1 / 6)


# -------------------------------------------------------------------------------------------------------------- attributes


def rated(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_ratings_of_a_file_are_parted_in_the_middle_or_where_it_is_said(tmp_path: Path) -> None:
    stars = rated(tmp_path / "stars.jsonl", [{"text": f"text {number}", "rating": number % 5 + 1} for number in range(50)])
    found = read_attribute(stars, count=1)
    assert (found.threshold, found.left_out, len(found.texts)) == (3.0, 10, 40)
    assert found.labels.mean() == 0.5
    assert read_attribute(stars, count=1, threshold=4.5).labels.sum() == 10
    rows = [{"text": "a", "rating": 3}, {"text": "b", "rating": -0.1}, {"text": "c", "rating": 0}]
    signed = rated(tmp_path / "signed.jsonl", rows)
    assert read_attribute(signed, count=1).labels.tolist() == [True, False]
    words = rated(tmp_path / "words.jsonl", [{"text": "a", "rating": "Positive"}, {"text": "b", "rating": False}])
    assert read_attribute(words, count=1).labels.tolist() == [True, False]
    (tmp_path / "tabs.tsv").write_text("1\ta\r\n\n0\tb\tb\n", encoding="utf-8")
    tabs = read_attribute(str(tmp_path / "tabs.tsv"), count=1)
    assert (tabs.texts, tabs.labels.tolist()) == ([b"a", b"b\tb"], [True, False])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"txt": "a", "rating": 1}], 'Did you mean "txt".*--text-field'),
        ([{"text": "a", "ratings": 1}], 'Did you mean "ratings".*--rating-field'),
        ([{"text": "a", "rating": "fine"}], "is no rating"),
        ([{"text": "a", "rating": float("nan")}], "is no rating"),
        ([{"text": 3, "rating": 1}], "holds int, not text"),
        ([["a", 1]], "line 1: a list"),
        ([], "holds no text"),
    ],
)
def test_a_faulty_file_is_refused_by_line(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_attribute(rated(tmp_path / "rated.jsonl", rows), count=1)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("synthetic:reveiws", 'Did you mean "reviews"'),
        ("synthetic:letter", "no intent.*coin, reviews"),
        ("reveiws", 'Did you mean "reviews"'),
        ("reviews", "latentlm reviews"),
        ("synthetic:reviews,flip=2", "0 < flip < 0.5"),
    ],
)
def test_a_faulty_attribute_is_refused(spec: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match=message):
        read_attribute(spec, count=10)


def test_texts_that_were_trained_on_are_left_out(tmp_path: Path) -> None:
    rows = [{"text": f"text {number}", "rating": number % 2} for number in range(200)]
    path = rated(tmp_path / "rated.jsonl", rows)
    run = tmp_path / "run"
    run.mkdir()
    (run / "card.yaml").write_text((zoo.shelves.find("vanilla-tiny").path).read_text(encoding="utf-8"), encoding="utf-8")
    recipe = f"name: r\nmodel: {{decoder: vanilla}}\ndata: {{path: {path}, held_out: 0.5}}\n"
    (run / "recipe.yaml").write_text(recipe, encoding="utf-8")
    attribute = read_attribute(path, count=1)
    left, seen = without_trained(attribute, [str(run)])
    assert 60 < seen < 140
    assert len(left.texts) == 200 - seen
    assert without_trained(attribute, ["vanilla-tiny"])[1] == 0
    few = replace(attribute, texts=attribute.texts[:60], ratings=attribute.ratings[:60])
    with pytest.raises(UserError, match="held_out"):
        without_trained(few, [str(run)])


# ------------------------------------------------------------------------------------------------------------------ judges


def test_the_lexicon_adds_valences_and_words_are_learned_from_the_rated_texts(tmp_path: Path) -> None:
    (tmp_path / "lexicon.tsv").write_text("good\t1.9\t0.5\t[1]\nbad\t-2.5\t0.5\t[1]\nisn't\t0.1\t0\t[]\n", encoding="utf-8")
    judge = judges.lexicon(tmp_path / "lexicon.tsv")
    assert [judge(text) for text in ("GOOD, good: bad!", "good and bad", "badly", "")] == [1, -1, 0, 0]
    texts = [f"{word} {filler}".encode() for filler in "abcdefghijklmnopqrst" for word in ("fine", "poor")]
    learned = judges.words(Attribute("file", texts, np.array([1.0, -1.0] * 20), 0.0))
    assert [learned("so fine"), learned("so poor")] == [1, -1]


@pytest.mark.parametrize(
    ("name", "message"),
    [("leixcon", 'Did you mean "lexicon"'), ("rule", "take lexicon or words"), ("lexicon", "latentlm reviews")],
)
def test_a_judge_that_cannot_judge_is_refused(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match=message):
        judges.judge_name(name, Attribute("file", [b"a"], np.array([1.0]), 0.0))


# ----------------------------------------------------------------------------------------------------- picture and command


def test_strange_text_reaches_the_picture_as_text(found: Probed) -> None:
    odd = replace(found, examples=[Example(("$x_1^", "\x1b[31m"), ("$a$ costs $\\frac", "<&>\x00\ud800" + "w" * 300), (1, 0))])
    text = picture(odd, "m_$y^")
    assert "\x1b" not in text
    assert "\x00" not in text
    assert picture(odd, "m_$y^") == text


def test_the_picture_says_the_numbers_and_what_each_text_reads_as(found: Probed) -> None:
    left, right = draw(found, "m").axes
    assert f"{found.known['z'].accuracy.value:.0%} of {found.texts} labels" in left.get_title(loc="left")
    assert f"{found.written.swaps[0].flips.value:.0%} of {found.written.swaps[0].pairs} pairs" in right.get_title(loc="left")
    assert sum(len(dots.get_offsets()) for dots in left.collections) == found.texts
    written = [one for one in right.texts if one.get_family() == ["monospace"]]
    reads = [{POSITIVE: 1, NEGATIVE: -1}.get(str(one.get_color()), 0) for one in written]
    assert reads == [read for example in found.examples[:3] for read in example.read]


def test_the_command_writes_numbers_and_a_picture(tmp_path: Path) -> None:
    small = ["--texts", "60", "--pairs", "2", "--groups", "2", "--max-tokens", "4", "--baseline", "vanilla-tiny"]
    call = ["two-level-tiny", "--attribute", "synthetic:reviews", *small, "--out", str(tmp_path)]
    done = CliRunner().invoke(app, [*call, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    numbers = json.loads(done.stdout)
    assert numbers == json.loads((tmp_path / "probe.json").read_text(encoding="utf-8"))
    assert set(numbers["known"]) == {"z", "intent", "bits", "words", "baseline states"}
    assert [swap["name"] for swap in numbers["written"]["swaps"]] == ["z", "intent", "bits"]
    assert len(numbers["scores"]) == numbers["texts"] == 60
    assert "<svg" in (tmp_path / "probe.svg").read_text(encoding="utf-8")
    assert (numbers["judge"], numbers["known"]["words"]["accuracy"]["value"] > 0.7) == ("rule", True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vanilla-tiny", "--attribute", "synthetic:coin"], "no latents to probe"),
        (["gaussian-tiny", "--attribute", "synthetic:coin", "--baseline", "free-tiny"], "give a vanilla decoder"),
        (["gausian-tiny", "--attribute", "synthetic:coin"], 'Did you mean "gaussian-tiny"'),
        (["free-8b", "--attribute", "synthetic:coin"], "without trained weights"),
        (["gaussian-tiny", "--attribute", "synthetic:coin", "--max-tokens", "999"], "lower --max-tokens"),
        (["gaussian-tiny", "--attribute", "synthetic:coin", "--judge", "rul"], 'Did you mean "rule"'),
        (["gaussian-tiny", "--attribute", "synthetic:coin", "--threshold", "1"], "leave it out"),
    ],
)
def test_what_cannot_be_probed_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (app, ["free-8b", "--attribute", "synthetic:coin"]),
        (diversity_app, ["free-8b", "vanilla-8b", "--task", "synthetic:sums"]),
    ],
)
def test_an_advice_names_only_options_of_the_command(command: typer.Typer, arguments: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Name a trained model") as told:
        CliRunner().invoke(command, [*arguments, "--out", str(tmp_path)], catch_exceptions=False)
    options = {option for parameter in typer.main.get_command(command).params for option in parameter.opts}
    assert {word.strip("().,;:`") for word in str(told.value).split() if word.strip("(").startswith("--")} <= options
    assert "tokenizer=" not in str(told.value)
    assert "allow_random" not in str(told.value)
