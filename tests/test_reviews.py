"""The synthetic reviews: their draws, their exact density, and reading an intent back; and the coin's, from which they come."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from latentlm.errors import UserError
from latentlm.training.data import synthetic
from latentlm.training.data.synthetic import reviews


@pytest.fixture(scope="module")
def texts() -> list[bytes]:
    return synthetic.Reviews().texts(5000, seed=3)


def test_a_draw_depends_on_the_seed_alone_and_the_intents_are_its_own() -> None:
    source = synthetic.Reviews()
    assert source.texts(5000, seed=1)[:3] == source.texts(3, seed=1)
    assert source.texts(3, seed=1) != source.texts(3, seed=2)
    assert source.intents(5000, seed=1)[:3].tolist() == source.intents(3, seed=1).tolist()


def test_the_densities_of_a_small_instance_sum_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reviews, "NOUNS", ("plot", "cast"))
    monkeypatch.setattr(reviews, "VERBS", ("is", "was"))
    monkeypatch.setattr(reviews, "POSITIVE", ("bright",))
    monkeypatch.setattr(reviews, "NEGATIVE", ("bland",))
    source = synthetic.Reviews(sentences=2, flip=0.2)
    sentences = [f"the {n} {v} {w}." for n in ("plot", "cast") for v in ("is", "was") for w in ("bright", "bland")]
    for template in ("i call the {n} {w}.", "a {w} {n}.", "what a {w} {n}!", "so {w}, that {n}."):
        sentences += [template.format(n=n, w=w) for n in ("plot", "cast") for w in ("bright", "bland")]
    every = [f"{one} {other}".encode() for one, other in itertools.product(sentences, repeat=2)]
    assert np.exp(-source.nats(every)).sum() == pytest.approx(1.0, rel=1e-12)
    # By hand: two agreeing opinions, four ways to fill the first template and two to fill the second.
    (nats,) = source.nats([b"the plot was bright. a bright cast."])
    assert math.exp(-nats) == pytest.approx(0.5 * (0.8**2 + 0.2**2) / 5 / 4 / 5 / 2)


def test_the_entropy_is_the_mean_of_the_density(texts: list[bytes]) -> None:
    source = synthetic.Reviews()
    nats = source.nats(texts)
    assert source.entropy == pytest.approx(nats.mean(), abs=4 * nats.std() / len(texts) ** 0.5)


def test_the_information_is_that_of_the_intent_in_what_is_written(texts: list[bytes]) -> None:
    # I(intent; text) = H(intent) - H(intent | text), by the posterior of the intent given the number of positive words.
    source = synthetic.Reviews(sentences=3, flip=0.1)
    positive = np.array([sum(word in reviews.POSITIVE for word in text.decode().replace(",", "").strip(".!").replace(
        ".", "").replace("!", "").split()) for text in texts])  # fmt: skip
    odds = (2 * positive - 3) * math.log(0.9 / 0.1)
    chance = 1 / (1 + np.exp(-odds))
    left = -(chance * np.log(chance) + (1 - chance) * np.log(1 - chance))
    assert source.information == pytest.approx(math.log(2) - left.mean(), abs=0.01)
    intents = source.intents(len(texts), seed=3)
    assert chance[intents].mean() > 0.9 > 0.1 > chance[~intents].mean()


@pytest.mark.parametrize(
    "text",
    [
        b"", b"a warm plot.", b"a warm plot. a warm plot. a warm plot. a warm plot.", b"a warm plot. a warm plot. a warm plot",
        b"a warm plot. a warm plot. a hot plot.", b"a warm plot.  a warm plot. a warm plot.", b"\xff. \xff. \xff.",
    ],
)  # fmt: skip
def test_what_is_never_written_has_no_density(text: bytes) -> None:
    assert synthetic.Reviews().nats([text]).tolist() == [math.inf]


def test_an_intent_is_read_from_any_text_by_its_opinion_words() -> None:
    source = synthetic.Reviews()
    assert source.read("a warm plot. the cast is stale. so lovely, that") == 1
    assert source.read("weak cast weak") == -1
    assert source.read("warm weak") == 0
    assert source.read("") == 0


def test_the_coins_intent_is_its_hidden_side() -> None:
    coin = synthetic.Coin(length=101, flip=0.1)
    read = [coin.read(text.decode()) > 0 for text in coin.texts(50, seed=4)]
    assert read == coin.intents(50, seed=4).tolist(), "so many tosses tell the coin"
    assert synthetic.Coin(length=3, flip=0.9).read("HHT") == -1
    assert synthetic.Coin(length=2).read("HT") == 0


@pytest.mark.parametrize("spec", ["reviews,flip=0.5", "reviews,flip=0", "reviews,sentences=0"])
def test_a_faulty_setting_is_refused(spec: str) -> None:
    with pytest.raises(UserError, match="1 to 64 sentences"):
        synthetic.source(spec)
