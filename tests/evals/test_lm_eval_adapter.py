"""The rules of the adapter, one test each: what makes an lm-eval number of a latent decoder honest and reproducible."""

from __future__ import annotations

import hashlib
import random
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
import torch
import yaml
from lm_eval.api.instance import Instance
from safetensors.torch import save_file

from latentlm.composed import build
from latentlm.config import BackboneConfig, ModelConfig
from latentlm.errors import UserError
from latentlm.interface import LatentDecoder
from latentlm.likelihood import Score, score_continuations, score_texts
from latentlm.likelihood.estimating import estimated
from latentlm.likelihood.requests import How, Request
from latentlm.tokenizer import ByteTokenizer
from latentlm_evals import adapter as adapter_module
from latentlm_evals.adapter import LatentLM
from latentlm_evals.fingerprint import check_cache, claim_cache, keeps_answers

CONTEXT = 40


def config(decoder: str = "free") -> ModelConfig:
    sizes = {"vocabulary": 257, "width": 32, "blocks": 4, "heads": 2, "context": CONTEXT, "init_std": 0.1}
    return ModelConfig(decoder=decoder, event_dims=4 if decoder == "free" else 0, backbone=BackboneConfig.model_validate(sizes))


@pytest.fixture(scope="module")
def model() -> LatentDecoder:
    """A Free Transformer whose latents matter, over bytes."""
    made = build(config(), seed=1).eval()
    made.tokenizer = ByteTokenizer()
    return made


def ask(kind: str, arguments: Sequence[tuple[object, ...]]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=args, idx=number) for number, args in enumerate(arguments)]


def pairs() -> list[tuple[str, str]]:
    """Three questions with options of unlike lengths; the last has contexts that are cut from the left."""
    contexts = ["def f(x):\n    ", "a = [1, 2, 3]\nb", "the quick brown fox jumps over the lazy dog"]
    return [(context, option) for context in contexts for option in ("return x", " = a", "!", "zz top and more")]


def card_folder(folder: Path, *, trained: bool, tokenizer: str | None = "bytes") -> Path:
    """A model folder, as the zoo and run folders have them."""
    card = {"name": "tested", "status": "architecture", "model": config().model_dump(mode="json"), "tokenizer": tokenizer}
    if trained:
        save_file(build(config(), seed=1).state_dict(), folder / "model.safetensors")
        data = (folder / "model.safetensors").read_bytes()
        weights = {"uri": "model.safetensors", "sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        card |= {"status": "trained", "weights": weights}
    (folder / "card.yaml").write_text(yaml.safe_dump(card))
    return folder


# ------------------------------------------------------------------------------------------- what a score is


def test_options_are_scored_alone_whatever_options_stand_beside_them(model: LatentDecoder) -> None:
    together = LatentLM(model).loglikelihood(ask("loglikelihood", pairs()), disable_tqdm=True)
    for pair, (value, greedy) in zip(pairs(), together, strict=True):
        ((alone, alone_greedy),) = LatentLM(model).loglikelihood(ask("loglikelihood", [pair]), disable_tqdm=True)
        assert value == pytest.approx(alone, abs=1e-4)
        assert greedy == alone_greedy


def test_every_option_is_a_request_of_its_own_even_where_two_share_their_inputs(
    model: LatentDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Request] = []

    def spy(model: LatentDecoder, requests: list[Request], how: How) -> list[Score]:
        asked.extend(requests)
        return estimated(model, requests, how)

    monkeypatch.setattr(adapter_module, "estimated", spy)
    LatentLM(model).loglikelihood(ask("loglikelihood", [("ab", "ca"), ("ab", "cb"), ("ab", "cb")]), disable_tqdm=True)
    assert sorted(request.tokens[request.begins :] for request in asked) == [[99, 97], [99, 98], [99, 98]]


def test_scores_do_not_depend_on_batch_size_padding_or_order(model: LatentDecoder) -> None:
    questions, texts = pairs(), ["x", "def f(x):\n    return x\n" * 4, "abc " * 7]
    prompts = [(context, {"until": ["\n"], "max_gen_toks": 6}) for context, _ in questions[::4]]
    expected = None
    for size, seed in ((1, 0), (3, 1), ("auto", 2)):
        lm = LatentLM(model, batch_size=size)
        orders = [random.Random(seed).sample(range(len(each)), len(each)) for each in (questions, texts, prompts)]
        likelihoods = lm.loglikelihood(ask("loglikelihood", [questions[n] for n in orders[0]]), disable_tqdm=True)
        rolling = lm.loglikelihood_rolling(ask("loglikelihood_rolling", [(texts[n],) for n in orders[1]]), disable_tqdm=True)
        generated = lm.generate_until(ask("generate_until", [prompts[n] for n in orders[2]]), disable_tqdm=True)
        found = [dict(zip(o, values, strict=True)) for o, values in zip(orders, (likelihoods, rolling, generated), strict=True)]
        if expected is None:
            expected = found
        for number in range(len(questions)):
            assert found[0][number][0] == pytest.approx(expected[0][number][0], abs=1e-4)
            assert found[0][number][1] == expected[0][number][1]
        assert [found[1][n] for n in range(3)] == pytest.approx([expected[1][n] for n in range(3)], abs=1e-4)
        assert found[2] == expected[2]


def test_is_greedy_is_the_argmax_of_the_predictive_mixture(model: LatentDecoder) -> None:
    context = list(b"def f(x):")
    # One token needs no proposal: its operational score is the log of the mixture itself, over the same K draws.
    scores = score_continuations(model, [(context, [token]) for token in range(257)], samples=4)
    best = max(range(257), key=lambda token: scores[token].value)
    lm = LatentLM(model, samples=4)
    answers = lm._loglikelihood_tokens([(("", ""), context, [token]) for token in range(257)], disable_tqdm=True)
    assert [token for token, (_, greedy) in enumerate(answers) if greedy] == [best]


def test_the_scoring_method_is_the_one_asked_for(model: LatentDecoder) -> None:
    context, continuation = list(b"def f(x):"), list(b" return x")
    for method in ("operational", "iwae", "elbo", "prior", "joint"):
        lm = LatentLM(model, score=method, samples=3, seed=5, last_latent="prior")
        ((value, _),) = lm._loglikelihood_tokens([(("", ""), context, continuation)], disable_tqdm=True)
        keyed = {"samples": 3, "seed": 5, "last_latent": "prior", "keys": [tuple(context)]}
        (expected,) = score_continuations(model, [(context, continuation)], method=method, **keyed)  # type: ignore[arg-type]
        assert value == pytest.approx(expected.value, abs=1e-5)


def test_rolling_windows_of_a_latent_decoder_are_disjoint_texts_after_one_context_token(model: LatentDecoder) -> None:
    text = "def f(x):\n    return x\n" * 5
    (value,) = LatentLM(model, samples=4).loglikelihood_rolling(ask("loglikelihood_rolling", [(text,)]), disable_tqdm=True)
    (expected,) = score_texts(model, [[256, *text.encode()]], method="iwae", samples=4)
    assert len(text) > 2 * CONTEXT
    assert value == pytest.approx(expected.value, abs=1e-4)  # the same random numbers


def test_an_empty_text_has_no_information(model: LatentDecoder) -> None:
    assert LatentLM(model).loglikelihood_rolling(ask("loglikelihood_rolling", [("",)]), disable_tqdm=True) == [0.0]


def test_a_context_too_long_is_cut_from_the_left(model: LatentDecoder) -> None:
    lm = LatentLM(model, max_length=16, samples=2)
    context, continuation = list(b"x" * 50 + b"def f(x):"), list(b" return")
    ((value, _),) = lm._loglikelihood_tokens([(("", ""), context, continuation)], disable_tqdm=True)
    (expected,) = score_continuations(model, [(list(b"xdef f(x):"), continuation)], samples=2, keys=[tuple(context)])
    assert value == pytest.approx(expected.value, abs=1e-5)


# ----------------------------------------------------------------------------------------------- generation


def test_generation_is_greedy_unless_the_task_samples(model: LatentDecoder) -> None:
    lm = LatentLM(model)
    plain, sampled = {"until": [], "max_gen_toks": 8}, {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 2.0}
    texts = lm.generate_until(ask("generate_until", [("def ", plain), ("def ", sampled)]), disable_tqdm=True)
    again = lm.generate_until(ask("generate_until", [("def ", sampled), ("def ", plain)]), disable_tqdm=True)
    assert texts == again[::-1]
    assert texts[0] != texts[1]


def test_repeats_of_a_sampled_question_are_different_samples(model: LatentDecoder) -> None:
    settings = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.5}
    texts = LatentLM(model).generate_until(ask("generate_until", [("def ", settings)]) * 3, disable_tqdm=True)
    assert len(set(texts)) == 3


def test_an_unserved_generation_argument_is_refused_by_name(model: LatentDecoder) -> None:
    with pytest.raises(UserError, match="num_beams"):
        LatentLM(model).generate_until(ask("generate_until", [("def ", {"until": [], "num_beams": 4})]), disable_tqdm=True)


# ------------------------------------------------------------------------------------------- what is refused


def test_random_weights_are_refused_unless_allowed(tmp_path: Path) -> None:
    folder = str(card_folder(tmp_path, trained=False))
    with pytest.raises(UserError, match="allow_random=true"):
        LatentLM(folder)
    with pytest.warns(UserWarning, match="random"):
        assert LatentLM(folder, allow_random=True).facts()["card_status"] == "architecture"


def test_an_architecture_of_the_zoo_is_refused_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentlm.zoo.load", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(UserError, match="random weights"):
        LatentLM("free-8b")


def test_a_card_without_a_tokenizer_is_refused_until_one_is_given(tmp_path: Path) -> None:
    folder = str(card_folder(tmp_path, trained=True, tokenizer=None))
    with pytest.raises(UserError, match="tokenizer="):
        LatentLM(folder)
    assert LatentLM(folder, tokenizer="bytes").tok_encode("ab") == [256, 97, 98]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "free-tinny"}, "free-tiny"),
        ({"modle": "free-tiny"}, 'Did you mean "model"'),
        ({}, "needs a model"),
        ({"model": "free-tiny", "score": "operatonal", "allow_random": True}, 'Did you mean "operational"'),
        ({"model": "free-tiny", "samples": "auto", "max_samples": 16}, "begins with 32"),
        ({"model": "free-tiny", "tolerance": "inf"}, "above 0, not inf"),
        ({"model": "free-tiny", "refine": "many"}, "refine=many is not a whole number"),
        ({"model": "free-tiny", "last_latent": 1}, "last_latent"),
        ({"model": "free-tiny", "batch_size": "many", "allow_random": True}, "batch_size"),
        ({"model": "free-tiny", "max_length": 10**6, "allow_random": True}, "max_length"),
        ({"model": "free-tiny", "max_length": "long"}, "max_length=long is not a whole number"),
        ({"model": "free-tiny", "max_batch_size": "x"}, "max_batch_size=x is not a whole number"),
        ({"model": "free-tiny", "seed": 1.5}, "seed=1.5 is not a whole number"),
        ({"model": "free-tiny", "allow_random": "perhaps"}, "allow_random=perhaps is neither true nor false"),
        ({"model": "free-tiny", "add_bos_token": "no"}, "add_bos_token=no is neither true nor false"),
        ({"model": "free-tiny", "enable_thinking": "off"}, "enable_thinking=off is neither true nor false"),
        ({"model": "free-tiny", "prefix_token_id": 257}, "they go from 0 to 256"),
        ({"model": "free-tiny", "chat_template_args": 3}, "chat_template_args=3 is no mapping"),
        ({"model": "free-tiny", "dtype": "floaty"}, "floaty"),
        ({"model": "free-tiny", "device": "banana"}, "banana"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_model_args_that_cannot_be_served_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LatentLM.create_from_arg_obj(arguments, {"device": "cuda:0" if not torch.cuda.is_available() else None})


# --------------------------------------------------------------------------------------- cache and fingerprint


def test_the_fingerprint_has_every_thing_that_an_answer_depends_on(model: LatentDecoder, tmp_path: Path) -> None:
    facts = LatentLM(str(card_folder(tmp_path, trained=True)), samples=4, seed=7, score="iwae").facts()
    assert facts["card"] == "tested"
    assert len(facts["card_sha256"]) == len(facts["weights_sha256"]) == 64
    assert (facts["score"], facts["samples"], facts["seed"]) == ("iwae", 4, 7)
    assert {"free", "vanilla"} & facts["plugins"].keys()
    other = build(config(), seed=2)
    other.tokenizer = ByteTokenizer()
    assert LatentLM(other).facts()["weights_sha256"] != LatentLM(model).facts()["weights_sha256"]


def test_a_cache_of_another_fingerprint_is_refused(model: LatentDecoder) -> None:
    database: dict[str, object] = {}
    claim_cache(database, LatentLM(model, samples=4).facts())
    claim_cache(database, LatentLM(model, samples=4).facts())  # its own is taken back
    with pytest.raises(UserError, match="samples was 4, is 8"):
        claim_cache(database, LatentLM(model, samples=8).facts())


@pytest.mark.parametrize(
    ("lines", "good"),
    [
        ("", True),
        ("CREATE TABLE unnamed (key TEXT PRIMARY KEY, value BLOB)", True),
        ("CREATE TABLE mine (key, value)", False),
        ("CREATE TABLE unnamed (key TEXT PRIMARY KEY, value BLOB); CREATE TABLE mine (a)", False),
        ("CREATE TABLE unnamed (key, value, mine)", False),
    ],
)
def test_answers_are_kept_in_a_database_of_answers_alone(tmp_path: Path, lines: str, good: bool) -> None:
    with closing(sqlite3.connect(tmp_path / "kept_rank0.db")) as database:
        database.executescript(lines)
    before = (tmp_path / "kept_rank0.db").read_bytes()
    assert keeps_answers(tmp_path / "kept_rank0.db") == good
    if not good:
        with pytest.raises(UserError, match=r"kept_rank0\.db is not a database of kept answers"):
            check_cache(tmp_path / "kept")
    assert (tmp_path / "kept_rank0.db").read_bytes() == before


def test_a_cache_that_nobody_signed_is_refused() -> None:
    with pytest.raises(UserError, match="use_cache"):
        claim_cache({"0" * 64: (-1.0, False)}, {})
