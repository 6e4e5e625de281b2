"""A vanilla decoder through our adapter gives the numbers of lm-eval's own `hf` adapter on the same weights."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from latentlm.generation import generate
from latentlm.tokenizer import BPETokenizer
from latentlm_evals.adapter import LatentLM
from llama_folders import llama_folder

CONTEXT = 48
TEXT = "def area(width, height):\n    return width * height\n\nclass Point:\n    def __init__(self, x):\n        self.x = x\n"
WORDS = TEXT.split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama (grouped queries, untied) with a byte-level tokenizer, as transformers saves it."""
    folder = tmp_path_factory.mktemp("llama")
    tokenizer = BPETokenizer.train([TEXT * 3], vocabulary=290)
    tokenizer.save(folder)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"})
    )
    config = LlamaConfig(
        vocab_size=tokenizer.vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        eos_token_id=tokenizer.end_of_text,
        bos_token_id=None,
        initializer_range=0.3,  # sharp predictions: greedy choices are not ties
    )
    generator_state = torch.get_rng_state()
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    torch.set_rng_state(generator_state)
    return folder


@pytest.fixture(scope="module")
def ours(folder: Path) -> LatentLM:
    return LatentLM(str(folder), batch_size=3)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> HFLM:
    return HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=1)


def requests(kind: str, arguments: list[tuple[object, ...]]) -> list[Instance]:
    """lm-eval's requests with these arguments."""
    return [Instance(request_type=kind, doc={}, arguments=args, idx=number) for number, args in enumerate(arguments)]


def pieces(count: int, shortest: int, longest: int) -> list[str]:
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=rng.randint(shortest, longest))) for _ in range(count)]


def test_loglikelihood_and_is_greedy_are_those_of_hf(ours: LatentLM, theirs: HFLM) -> None:
    pairs = [(context, f" {piece}") for context, piece in zip(pieces(12, 0, 12), pieces(12, 1, 5), strict=True)]
    pairs += [("", "return width"), ("def f(x): ", "x"), ("x " * 60, "self.x = y")]  # empty, spaced, cut from the left
    asked = requests("loglikelihood", list(pairs))
    for (ours_value, ours_greedy), (value, greedy) in zip(
        ours.loglikelihood(asked, disable_tqdm=True), theirs.loglikelihood(asked, disable_tqdm=True), strict=True
    ):
        assert ours_value == pytest.approx(value, abs=1e-4)
        assert ours_greedy == greedy


def test_options_of_one_question_are_those_of_hf(ours: LatentLM, theirs: HFLM) -> None:
    """Of one token and of several, after contexts that begin alike."""
    shots = "def area(width, height):\n    return width * height\n"
    contexts = [f"{shots}{piece}" for piece in ("class A", "class B:", "self")]
    pairs = [(context, option) for context in contexts for option in ("x", "y", "z", " return self.x", " return x", " = x")]
    asked = requests("loglikelihood", list(pairs))
    for one, other in zip(
        ours.loglikelihood(asked, disable_tqdm=True), theirs.loglikelihood(asked, disable_tqdm=True), strict=True
    ):
        assert one[0] == pytest.approx(other[0], abs=1e-4)
        assert one[1] == other[1]


def test_is_greedy_is_true_for_what_greedy_decoding_yields_and_for_nothing_else(ours: LatentLM, theirs: HFLM) -> None:
    context = ours.tok_encode("def area(width")
    (found,) = generate(ours.model, [context], max_tokens=4, temperature=0)
    other = [*found.tokens[:-1], (found.tokens[-1] + 1) % 256]
    for adapter in (ours, theirs):
        asked = [(("", ""), context, found.tokens), (("", ""), context, other)]
        answers = adapter._loglikelihood_tokens(asked, disable_tqdm=True)
        assert [greedy for _, greedy in answers] == [True, False]


def test_rolling_likelihood_is_that_of_hf_in_one_and_in_several_windows(ours: LatentLM, theirs: HFLM) -> None:
    texts = [*pieces(4, 1, 8), *pieces(3, 60, 90)]
    assert len(theirs.tok_encode(texts[-1])) > 2 * CONTEXT
    asked = requests("loglikelihood_rolling", [(text,) for text in texts])
    assert ours.loglikelihood_rolling(asked, disable_tqdm=True) == pytest.approx(
        theirs.loglikelihood_rolling(asked, disable_tqdm=True), abs=1e-4 * 3
    )


def test_greedy_generations_are_those_of_hf(ours: LatentLM, theirs: HFLM) -> None:
    settings = {"until": ["\n", "("], "max_gen_toks": 10}
    asked = requests("generate_until", [(context, dict(settings)) for context in [*pieces(6, 1, 6), "x " * 60]])
    asked += requests("generate_until", [("class Point", {"until": [], "max_gen_toks": 20, "do_sample": False})])
    assert ours.generate_until(asked, disable_tqdm=True) == theirs.generate_until(asked, disable_tqdm=True)


def test_a_text_ends_at_the_tokenizers_end_of_text_too_as_in_hf(tmp_path: Path) -> None:
    """Where generation_config.json names another end token alone, as chat-tuned folders do."""
    folder = llama_folder(tmp_path / "ends")
    lm = LatentLM(str(folder))
    prompts = ["def area(", "import os", "class P", "return width"]
    written = [generate(lm.model, [lm.reader.encode(prompt)], max_tokens=12, temperature=0)[0].tokens for prompt in prompts]
    (frequent, _), *_ = Counter(token for tokens in written for token in set(tokens[2:])).most_common(1)
    weights = load_file(folder / "model.safetensors")
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        rows = weights[name].clone()
        rows[[lm.eot_token_id, frequent]] = rows[[frequent, lm.eot_token_id]]
        weights[name] = rows
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    said = json.loads((folder / "generation_config.json").read_text())
    end = lm.tok_encode("<|im_end|>", add_special_tokens=False)
    (folder / "generation_config.json").write_text(json.dumps({**said, "eos_token_id": end}))
    ours, theirs = LatentLM(str(folder)), HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=1)
    asked = [(prompt, {"until": [], "max_gen_toks": 20}) for prompt in prompts]
    found = [lm.generate_until(requests("generate_until", asked), disable_tqdm=True) for lm in (ours, theirs)]
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["~tilde", "123"])
def test_a_folder_is_found_as_zoo_load_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    llama_folder(tmp_path / name)
    assert LatentLM.create_from_arg_string(f"model={name}").model.config.backbone.width == 32


def test_a_models_name_goes_before_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    llama_folder(tmp_path / "free-tiny")
    lm = LatentLM("free-tiny")
    assert lm.model.card is not None
    assert lm.tok_encode("ab") == [256, 97, 98], "bytes after end-of-text, not the folder's tokens"
