"""Generation from a folder of transformers: ends where transformers ends, and says what it does not do."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers

from latentlm.errors import CheckpointError
from latentlm.generation.prompts import end_tokens
from latentlm.interop import load_llama
from latentlm.interop.generation_keys import GENERATION, GenerationWarning
from latentlm.tokenizer import BPETokenizer
from saved_llamas import edit_config, saved

PROMPTS = [[7, 3, 9], [1, 2, 30], [11, 12, 13]]


def write(folder: Path, **settings: Any) -> None:
    (folder / "generation_config.json").write_text(json.dumps(settings))


def their_continuations(folder: Path, count: int) -> list[list[int]]:
    """Greedy, of each prompt by transformers, the end token taken off."""
    import torch
    import transformers

    model = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    found = []
    for prompt in PROMPTS:
        fed = torch.tensor([prompt])
        made = model.generate(fed, attention_mask=torch.ones_like(fed), max_new_tokens=count, do_sample=False, pad_token_id=0)
        tokens = made[0, len(prompt) :].tolist()
        found.append(tokens[:-1] if tokens[-1] in ends else tokens)
    return found


def our_continuations(folder: Path, count: int) -> list[list[int]]:
    return [made.tokens for made in load_llama(folder).generate(PROMPTS, max_tokens=count, temperature=0)]


def a_token_of_each(folder: Path, place: int) -> list[int]:
    """The token that greedy decoding draws for each prompt at that place, where nothing stops it."""
    write(folder)
    return [tokens[place] for tokens in our_continuations(folder, place + 1)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    saved(folder)
    return folder


@pytest.fixture
def folder(plain: Path, tmp_path: Path) -> Path:
    for file in plain.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_any_of_several_end_tokens_ends_a_text(folder: Path) -> None:
    ends = a_token_of_each(folder, 4)
    write(folder, eos_token_id=ends)
    theirs = their_continuations(folder, 12)
    assert our_continuations(folder, 12) == theirs
    assert [len(tokens) for tokens in theirs] < [12, 12, 12]
    made = load_llama(folder).generate(PROMPTS, max_tokens=12, temperature=0)
    assert {one.finish for one in made} == {"end_of_text"}


@pytest.mark.parametrize("own", [True, False], ids=["generation_config.json", "config.json alone"])
@pytest.mark.parametrize("several", [True, False])
def test_the_end_tokens_are_read_where_transformers_reads_them(folder: Path, own: bool, several: bool) -> None:
    one, other, _ = a_token_of_each(folder, 3)
    ends = [one, other] if several else one
    edit_config(folder, eos_token_id=[50] if own else ends)
    if own:
        write(folder, eos_token_id=ends)
    else:
        (folder / "generation_config.json").unlink()
    assert our_continuations(folder, 9) == their_continuations(folder, 9)
    assert load_llama(folder).end_tokens == ({one, other} if several else {one})


def test_without_an_end_token_the_tokenizers_end_of_text_ends_a_text(tmp_path: Path) -> None:
    tokenizer = BPETokenizer.train(["some text"], vocabulary=258)
    saved(tmp_path, vocab_size=258)
    write(tmp_path)
    assert load_llama(tmp_path).end_tokens is None
    assert end_tokens(load_llama(tmp_path)) == frozenset()
    tokenizer.save(tmp_path)
    assert end_tokens(load_llama(tmp_path)) == {tokenizer.end_of_text}


def test_answers_that_were_kept_under_other_end_tokens_are_not_taken(folder: Path) -> None:
    from latentlm_evals.fingerprint import model_facts

    write(folder, eos_token_id=[3, 4])
    before = model_facts(load_llama(folder))
    write(folder, eos_token_id=[3])
    assert model_facts(load_llama(folder)) != before


@pytest.mark.parametrize("said", ["</s>", [1, "2"], True, {"id": 1}])
def test_an_end_token_that_is_no_number_is_refused(folder: Path, said: Any) -> None:
    write(folder, eos_token_id=said)
    with pytest.raises(CheckpointError, match="eos_token_id is"):
        load_llama(folder)


# ------------------------------------------------------------------------------------------------ what is not done


def test_every_key_of_a_generation_config_is_known() -> None:
    import transformers

    assert transformers.GenerationConfig().to_dict().keys() - GENERATION == set()


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2},
        {"suppress_tokens": [1, 2]},
        {"min_new_tokens": 5},
        {"num_beams": 3},
        {"forced_eos_token_id": 4},
        {"a_rule_of_tomorrow": 4},
    ],
)
def test_what_generate_does_not_do_is_said_by_name(folder: Path, settings: dict[str, Any]) -> None:
    write(folder, **settings)
    with pytest.warns(GenerationWarning, match=rf"generation_config\.json asks for {next(iter(settings))}="):
        load_llama(folder)


def test_the_same_is_said_of_config_json_where_it_stands_alone(folder: Path) -> None:
    edit_config(folder, repetition_penalty=1.3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_llama(folder)  # transformers does not read the key either while generation_config.json is there
    (folder / "generation_config.json").unlink()
    with pytest.warns(GenerationWarning, match=r"config\.json asks for repetition_penalty=1\.3"):
        load_llama(folder)


def test_settings_that_leave_the_text_as_it_is_cost_no_warning(folder: Path) -> None:
    off = {"repetition_penalty": 1.0, "num_beams": 1, "min_length": 0, "bad_words_ids": None, "suppress_tokens": []}
    write(folder, do_sample=True, temperature=0.6, top_p=0.9, max_length=4096, use_cache=True, bos_token_id=1, **off)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_llama(folder)


# ------------------------------------------------------------------------------------------------------- the text


def sentence_pieces(path: Path) -> int:
    """A tokenizer.json in SentencePiece's manner: blanks are U+2581, one in front of every text, U+65E5 is three bytes. Returns
    its number of symbols."""
    letters = ["<unk>", "</s>", "<0xE6>", "<0x97>", "<0xA5>", "\u2581", "a", "b", "\u2581a", "\u2581b"]
    symbols, merges = {letter: number for number, letter in enumerate(letters)}, [("\u2581", "a"), ("\u2581", "b")]
    backend = tokenizers.Tokenizer(models.BPE(symbols, merges, unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "</s>"])
    backend.save(str(path))
    return len(letters)


@pytest.fixture
def pieces(tmp_path: Path) -> Path:
    saved(tmp_path, vocab_size=sentence_pieces(tmp_path / "tokenizer.json"))
    return tmp_path


def test_a_text_is_what_its_tokens_add_behind_the_prompt(pieces: Path) -> None:
    model = load_llama(pieces)
    tokenizer = model.tokenizer
    assert tokenizer is not None
    made = model.generate(["a b"], max_tokens=3, samples=200, seed=1)
    blanks = 0
    for one in made:
        assert tokenizer.decode(one.prompt) + str(one.text) == tokenizer.decode([*one.prompt, *one.tokens])
        blanks += str(one.text).startswith(" ")
    assert blanks  # the case exists


def test_the_first_word_of_an_empty_prompt_has_no_blank_before_it(pieces: Path) -> None:
    tokenizer = load_llama(pieces).tokenizer
    assert tokenizer is not None
    word = tokenizer.encode("a b")
    assert tokenizer.decode_after([tokenizer.end_of_text], word) == b"a b"
    assert tokenizer.decode_after([tokenizer.end_of_text, *word], word) == b" a b"


def test_a_letter_whose_bytes_are_cut_by_the_prompts_end_is_whole(pieces: Path) -> None:
    tokenizer = load_llama(pieces).tokenizer
    assert tokenizer is not None
    whole = tokenizer.encode("a\u65e5")
    assert tokenizer.decode_after(whole[:-1], whole[-1:]) == "\u65e5".encode()


@pytest.mark.parametrize("stop", [" b", "b", " a"])
def test_stop_strings_are_sought_in_that_text(pieces: Path, stop: str) -> None:
    model = load_llama(pieces)
    tokenizer = model.tokenizer
    assert tokenizer is not None
    free = model.generate(["a"], max_tokens=6, samples=300, seed=2)
    stopped = model.generate(["a"], max_tokens=6, samples=300, seed=2, stop=stop)
    found = 0
    for whole, cut in zip(free, stopped, strict=True):
        assert cut.text == str(whole.text).partition(stop)[0]
        if stop in str(whole.text):
            found += 1
            assert cut.finish == "stop"
            assert cut.tokens == whole.tokens[: len(cut.tokens)]
            shorter = tokenizer.decode_after(cut.prompt, cut.tokens[:-1])
            assert stop.encode() not in shorter  # it stopped at the token that completed it
    assert found
