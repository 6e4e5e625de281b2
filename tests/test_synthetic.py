"""Synthetic sources: their draws, their exact density, and reading a text back."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from latentlm.config import DataConfig
from latentlm.errors import UserError
from latentlm.training.data import synthetic
from latentlm.training.data.prepared import load_documents
from latentlm.training.data.synthetic import letter
from latentlm.training.data.synthetic.letter import read


@pytest.fixture(scope="module")
def texts() -> list[bytes]:
    return synthetic.source("letter").texts(20_000, seed=3)


def test_draws_are_the_papers_texts(texts: list[bytes]) -> None:
    characters = np.array([list(text[2:]) for text in texts])
    assert {len(text) for text in texts} == {66}
    assert all(text[1:2] == b">" for text in texts)
    noise = (characters == ord("!")).mean()
    assert noise == pytest.approx(1 / 16, abs=0.001)  # 1.28 million characters: 5 standard errors
    starts = [read(chr(text[0]), text[2:].decode()).start for text in texts]
    assert set(starts) == set(range(57))
    assert len({text[0] for text in texts}) == 26


def test_a_draw_depends_on_the_seed_alone() -> None:
    source = synthetic.source("letter")
    assert source.texts(5000, seed=1)[:3] == source.texts(3, seed=1)
    assert source.texts(3, seed=1) != source.texts(3, seed=2)
    assert len(set(source.texts(9000, seed=1))) > 8500, "blocks differ"


def test_the_density_is_that_of_the_process_by_enumeration(monkeypatch: pytest.MonkeyPatch) -> None:
    # Six characters, three copies: all 3^6 texts of one letter, each by its starts and its noise, one after another.
    monkeypatch.setattr(letter, "LENGTH", 6)
    monkeypatch.setattr(letter, "STARTS", 4)
    windows = np.arange(6) - np.arange(4)[:, None]
    monkeypatch.setattr(letter, "_INSIDE", (windows >= 0) & (windows < 3))
    total = 0.0
    for characters in itertools.product("A_!", repeat=6):
        text = "A>" + "".join(characters)
        by_hand = 0.0
        for start in range(4):
            clean = ["A" if start <= place < start + 3 else "_" for place in range(6)]
            chances = [1 / 16 if c == "!" else 15 / 16 * (c == was) for c, was in zip(characters, clean, strict=True)]
            by_hand += math.prod(chances) / 4 / 26
        (nats,) = synthetic.Letter().nats([text.encode()])
        assert math.exp(-nats) == pytest.approx(by_hand, rel=1e-12)
        total += math.exp(-nats)
    assert total == pytest.approx(1 / 26, rel=1e-12)


def test_the_entropy_is_the_mean_of_the_density(texts: list[bytes]) -> None:
    source = synthetic.Letter()
    nats = source.nats(texts)
    assert source.entropy == pytest.approx(nats.mean(), abs=4 * nats.std() / len(texts) ** 0.5)
    # What noise hides of the start has a spread of its own a hundred times smaller: the mean number of starts that fit.
    noisy = np.array([text.count(b"!") for text in texts])
    hidden = math.log(57) - (nats - math.log(26) + noisy * math.log(1 / 16) + (64 - noisy) * math.log(15 / 16))
    whole = math.log(57) + 64 * (math.log(16) / 16 - 15 / 16 * math.log(15 / 16))
    assert whole - (source.entropy - math.log(26)) == pytest.approx(hidden.mean(), abs=4 * hidden.std() / len(texts) ** 0.5)
    assert (source.entropy - math.log(26)) / math.log(2) == pytest.approx(27.4118, abs=1e-4)


@pytest.mark.parametrize("text", [b"A>" + b"_" * 64, b"a>" + b"a" * 8 + b"_" * 56, b"A>" + b"A" * 8 + b"_" * 55, b""])
def test_what_is_never_written_has_no_density(text: bytes) -> None:
    assert synthetic.Letter().nats([text]).tolist() == [math.inf]


def test_every_draw_reads_as_valid_and_the_start_is_where_it_was_put(texts: list[bytes]) -> None:
    assert all(read(chr(text[0]), text[2:].decode()).valid for text in texts)
    found = read("K", "_" * 9 + "KK!KKKKK" + "_" * 20 + "!" + "_" * 26)
    assert (found.start, found.noise, found.valid) == (9, frozenset({11, 37}), True)


@pytest.mark.parametrize(
    "text",
    [
        "_" * 9 + "K" * 8 + "_" * 46,  # a character short
        "_" * 9 + "K" * 7 + "_" * 48,  # a copy short
        "_" * 9 + "K" * 8 + "_" * 20 + "K" + "_" * 26,  # a copy too many
        "_" * 9 + "KKKXKKKK" + "_" * 47,
        "",
    ],
)
def test_other_texts_do_not(text: str) -> None:
    assert not read("K", text).valid


def test_a_recipe_trains_on_a_source_and_keeps_copies() -> None:
    corpus = load_documents(DataConfig(path="synthetic:letter", max_documents=4000, held_out=0.1))
    texts = [document.data for document in corpus.train + corpus.held_out]
    assert sorted(texts) == sorted(synthetic.source("letter").texts(4000, seed=0))
    assert len(set(texts)) < len(texts)
    assert 300 < len(corpus.held_out) < 500


def test_an_unknown_source_names_the_nearest() -> None:
    with pytest.raises(UserError, match='Did you mean "letter"'):
        load_documents(DataConfig(path="synthetic:leter"))


# ------------------------------------------------------------------------------------------------------ the other sources

SPECS = [
    "letter", "coin", "coin,length=5,flip=0.1", "sums", "sums,length=5,fillers=3", "sums,shown=6", "sums,forwards=1",
    "product", "automaton,length=6", "subset",
]  # fmt: skip


@pytest.mark.parametrize("spec", SPECS)
def test_every_source_draws_what_it_can_evaluate_and_its_entropy_is_the_mean(spec: str) -> None:
    source = synthetic.source(spec)
    drawn = source.texts(3000, seed=1)
    nats = source.nats(drawn)
    assert source.entropy == pytest.approx(nats.mean(), abs=max(4 * nats.std() / len(drawn) ** 0.5, 1e-9))
    assert source.texts(10, seed=1) == drawn[:10]
    assert source.texts(10, seed=2) != drawn[:10]
    assert len({len(text) for text in drawn}) == 1
    wrong = [b"", drawn[0] + b"x", drawn[0][:-1], b"\xff" * len(drawn[0])]
    assert source.nats(wrong).tolist() == [math.inf] * 4


@pytest.mark.parametrize(
    "spec", ["coin,length=6", "sums,length=4", "sums,length=4,shown=2", "product", "automaton,length=5", "subset,length=7"]
)
def test_the_densities_of_small_sources_sum_to_one(spec: str) -> None:
    source = synthetic.source(spec)
    if isinstance(source, synthetic.Plan):
        every = [source.text(source.secret(number)) for number in range(source.secrets)]
    else:
        every = [bytes(tosses) for tosses in itertools.product(b"HT", repeat=6)]
    assert len(set(every)) == len(every)
    assert np.exp(-source.nats(every)).sum() == pytest.approx(1.0, rel=1e-12)


def test_the_coin_is_the_papers() -> None:
    coin = synthetic.Coin(length=7, flip=0.25)
    assert coin.nats([b"HHTHHHH"])[0] == pytest.approx(-math.log(0.5 * (0.75**6 * 0.25 + 0.25**6 * 0.75)))
    assert 0 < coin.information < math.log(2)
    assert synthetic.Coin(length=400).information == pytest.approx(math.log(2), abs=1e-6), "many tosses tell the coin"


def test_consequences_are_easy_forwards_and_several_secrets_may_share_one() -> None:
    assert synthetic.Sums(length=4).consequence("0123") == "0321"  # 0+1+3, 1+2+0, 2+3+1, 3+0+2, mod 4
    assert synthetic.Sums(length=4, shown=2).consequence("0123") == "03"
    assert synthetic.Product().consequence("1299") == "1188"
    assert synthetic.Automaton(length=4).consequence("0110") == "1101"  # 0^(0|1), 0^(1|1), 1^(1|0), 1^(0|0)
    assert synthetic.Product().consequence("1836") == synthetic.Product().consequence("1254")


def test_forwards_writes_the_same_secrets_before_their_consequences() -> None:
    backwards, forwards = synthetic.Sums(length=5, fillers=1), synthetic.Sums(length=5, fillers=1, forwards=1)
    for one, other in zip(backwards.texts(5, seed=0), forwards.texts(5, seed=0), strict=True):
        first, _, second = one[1:].partition(b"=")
        assert other == b"\n" + second + b"=" + first
        assert math.isinf(forwards.nats([one])[0]) or first == second


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("coin,lenght=3", 'Did you mean "length"'),
        ("coin,length=x", "no whole number"),
        ("coin,flip=2", "0 < flip < 1"),
        ("coin,length=3,length=4", "length is there twice"),
        ("sums,length=99", "4 to 24"),
        ("letter,length=3", "letter"),
        ("sums,shown=9", "1 to 8 sums"),
        ("subset,forwards=2", "1 writes s first"),
        ("product,length=6", "leave it out"),
    ],
)
def test_a_faulty_setting_of_a_source_is_refused(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        synthetic.source(spec)


@pytest.mark.parametrize("name", list(synthetic.SOURCES))
def test_more_texts_than_memory_holds_are_refused_before_any_is_drawn(name: str) -> None:
    with pytest.raises(UserError, match=r"synthetic texts=1,099,511,627,776 takes .*Choose fewer"):
        synthetic.source(name).texts(2**40, seed=0)
