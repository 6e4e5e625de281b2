"""What lm-eval's prompts are in tokens: the first token, blanks, joins, special tokens; beside lm-eval's own `hf`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing

from latentlm.composed import build
from latentlm.config import BackboneConfig, ModelConfig
from latentlm.errors import UserError
from latentlm.generation import generate
from latentlm.generation.prompts import fed_tokens
from latentlm.interface import LatentDecoder
from latentlm.likelihood import score_continuations
from latentlm.tokenizer import BPETokenizer, ByteTokenizer, PromptReader, load_tokenizer
from latentlm_evals.adapter import LatentLM
from latentlm_evals.reading import reader_of
from llama_folders import BOS, END, TEXT, llama_folder

PAIRS = [
    ("def area(width", ", height"),
    ("import ", "os"),  # a blank at the end
    ("", "return width"),
    (" ", "return width"),
    ("\n\n", "x"),
    (f"{BOS}import", " os"),  # brings its own first token
    (f"import{END}\nself", ".x = x"),
    ("x " * 90, "self.x = y"),  # cut from the left
]


def ask(kind: str, *arguments: object) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=arguments, idx=0)]


def likelihood(lm: LatentLM | HFLM, context: str, continuation: str) -> float:
    ((value, _),) = lm.loglikelihood(ask("loglikelihood", context, continuation), disable_tqdm=True)
    return value


def bpe_model(text: str = "hello world import os ", *, vocabulary: int = 300) -> LatentDecoder:
    """A vanilla card-like decoder over a byte-level BPE."""
    tokenizer = BPETokenizer.train([text * 50], vocabulary=vocabulary)
    sizes = {"vocabulary": tokenizer.vocabulary, "width": 32, "blocks": 2, "heads": 2, "context": 64, "init_std": 0.2}
    model = build(ModelConfig(backbone=BackboneConfig.model_validate(sizes)), seed=1).eval()
    model.tokenizer = tokenizer
    return model


@pytest.fixture(scope="module", params=[True, False], ids=["bos", "no-bos"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama_folder(tmp_path_factory.mktemp("llama"), bos=request.param)


# -------------------------------------------------------------------------------------------------- the first token


@pytest.mark.parametrize("settings", [{}, {"add_bos_token": True}, {"add_bos_token": False}], ids=str)
def test_a_folder_of_transformers_is_fed_as_hf_feeds_it(folder: Path, settings: dict[str, bool]) -> None:
    ours = LatentLM(str(folder), **settings)  # type: ignore[arg-type]
    theirs = HFLM(pretrained=str(folder), device="cpu", dtype="float32", **settings)  # type: ignore[arg-type]
    for context, continuation in PAIRS:
        try:
            expected = likelihood(theirs, context, continuation)
        except AssertionError:  # hf cannot score after a context without tokens; it stands for an empty one
            assert not context.strip()
            expected = likelihood(theirs, "", context + continuation)
        assert likelihood(ours, context, continuation) == pytest.approx(expected, abs=1e-4), (context, continuation)
    prompts = [Instance("generate_until", {}, (context or "x", {"until": ["("], "max_gen_toks": 8}), 0) for context, _ in PAIRS]
    for prompt in prompts:  # hf looks at the first prompt of a batch only
        assert ours.generate_until([prompt], disable_tqdm=True) == theirs.generate_until([prompt], disable_tqdm=True)


def test_a_card_is_fed_the_end_of_text_that_training_fed() -> None:
    model = bpe_model()
    end = [model.tokenizer.end_of_text]  # type: ignore[union-attr]
    given, asked = model.tokenizer.encode("import"), model.tokenizer.encode(" os")  # type: ignore[union-attr]
    for settings, first in (({}, end), ({"add_bos_token": True}, end), ({"add_bos_token": False}, [])):
        (expected,) = score_continuations(model, [(first + given, asked)])
        lm = LatentLM(model, **settings)  # type: ignore[arg-type]
        assert likelihood(lm, "import ", "os") == pytest.approx(expected.value, abs=1e-5)
        assert lm.facts()["first_token"] == (first[0] if first else None)


def test_a_prompt_to_continue_is_fed_as_generate_feeds_it() -> None:
    model = bpe_model()
    (expected,) = generate(model, ["hello"], max_tokens=6, temperature=0)
    asked = ask("generate_until", "hello", {"until": [], "max_gen_toks": 6})
    (text,) = LatentLM(model).generate_until(asked, disable_tqdm=True)
    assert text == expected.text
    (other,) = LatentLM(model, add_bos_token=False).generate_until(asked, disable_tqdm=True)
    assert other != text


def test_a_prefix_token_of_ones_own_stands_for_an_empty_context() -> None:
    model = bpe_model()
    asked = model.tokenizer.encode("hello")  # type: ignore[union-attr]
    (expected,) = score_continuations(model, [([5], asked)])
    assert likelihood(LatentLM(model, prefix_token_id=5), "", "hello") == pytest.approx(expected.value, abs=1e-5)


def test_generate_and_score_read_prompts_as_the_adapter_does(folder: Path, spaced: Path, tmp_path: Path) -> None:
    for source in (str(folder), str(spaced), _of_llama_2(spaced, tmp_path), bpe_model()):
        adapter = LatentLM(source)
        reader = PromptReader.of(adapter.model.tokenizer)  # type: ignore[arg-type]
        assert reader.prefix == adapter.prefix_token_id
        for context, continuation in [*PAIRS, ("", ""), ("a", "  b"), ("a  ", "b")]:
            assert reader.pair(context, continuation) == adapter.reader.pair(context, continuation)
            expected = adapter.reader.prompt(context)
            assert fed_tokens(adapter.model, context, 0) == expected
        assert adapter.reader.encode("a\udcff"), "a byte that is no UTF-8 is read somehow: hf would fail"


def _of_llama_2(spaced: Path, folder: Path) -> str:
    """The same as the folders of Llama 2 have it: a normaliser in the file, and a class of which transformers has rules."""
    shutil.copytree(spaced, folder / "llama2")
    file = folder / "llama2" / "tokenizer.json"
    backend = Backend.from_file(str(file))
    backend.pre_tokenizer = None
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.save(str(file))
    companion = file.with_name("tokenizer_config.json")
    companion.write_text(json.dumps({**json.loads(companion.read_text()), "tokenizer_class": "LlamaTokenizer"}))
    return str(file.parent)


@pytest.fixture(scope="module")
def spaced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose tokenizer is as SentencePiece's: a blank is put before a text, and blanks are letters of tokens."""
    folder = llama_folder(tmp_path_factory.mktemp("spaced"))
    backend = Backend(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<unk>", BOS, END, "<|endoftext|>"]
    backend.train_from_iterator([TEXT * 3], trainers.BpeTrainer(vocab_size=200, special_tokens=special, show_progress=False))
    backend.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, backend.token_to_id(BOS))])
    backend.save(str(folder / "tokenizer.json"))
    return folder


def test_a_tokenizer_that_is_code_of_the_folder_is_refused(tmp_path: Path) -> None:
    file = llama_folder(tmp_path) / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "auto_map": {"AutoTokenizer": ["mine.Mine", None]}}))
    with pytest.raises(UserError, match="never run"):
        LatentLM(str(tmp_path))


# ------------------------------------------------------------------------------------------------- blanks and joins


def test_a_context_of_blanks_is_an_empty_one() -> None:
    lm = LatentLM(bpe_model())
    expected = likelihood(lm, "", "\n\nhello")
    assert likelihood(lm, "\n\n", "hello") == pytest.approx(expected, abs=1e-6)
    assert likelihood(lm, "\n", "\nhello") == pytest.approx(expected, abs=1e-6)
    assert likelihood(lm, " ", "w") == pytest.approx(likelihood(lm, "", " w"), abs=1e-6)  # of one token


def test_a_token_that_spans_the_join_leaves_both_parts_as_they_are_alone() -> None:
    model = bpe_model()
    encode = model.tokenizer.encode  # type: ignore[union-attr]
    assert len(encode("import")) <= len(encode("impo")), "the cut leaves nothing"
    lm = LatentLM(model)
    (expected,) = score_continuations(model, [([lm.eot_token_id, *encode("impo")], encode("rt"))])
    assert likelihood(lm, "impo", "rt") == pytest.approx(expected.value, abs=1e-5)
    assert lm.get_model_info()["latentlm"]["likelihoods"]["joined"] == 1


def test_what_is_refused_is_refused_before_anything_is_scored_and_named_by_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentlm_evals.adapter.estimated", lambda *_, **__: pytest.fail("scored"))
    lm = LatentLM(bpe_model())
    for continuation, message in (("", 'of the context "hello" has no tokens'), ("os " * 99, 'continuation "os os')):
        requests = [*ask("loglikelihood", "hello", " world"), *ask("loglikelihood", "hello", continuation)]
        with pytest.raises(UserError, match=message):
            lm.loglikelihood(requests, disable_tqdm=True)


# -------------------------------------------------------------------------------------------------- special tokens


def test_special_tokens_that_a_prompt_spells_are_these_tokens_and_in_training_text_are_not(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("tokenizer.json", folder=llama_folder(tmp_path))
    reader = reader_of(tokenizer, tmp_path, elsewhere=False)
    text = f"import{END} os"
    marked = tokenizer._backend.token_to_id(END)  # type: ignore[attr-defined]
    assert reader.plain(text).count(marked) == 1
    assert marked not in tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert marked not in tokenizer.encode(text)  # reading a prompt has left no trace


def test_bytes_have_no_special_tokens() -> None:
    assert reader_of(ByteTokenizer(), None, elsewhere=False).encode("<s>") == [256, 60, 115, 62]


def test_readers_that_read_otherwise_have_other_names(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("tokenizer.json", folder=llama_folder(tmp_path))
    settings: tuple[dict[str, Any], ...] = ({}, {"add_bos_token": False}, {"prefix_token_id": 7})
    digests = {reader_of(tokenizer, None, elsewhere=False, **each).digest() for each in settings}
    assert len(digests) == 3
