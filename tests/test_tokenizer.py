"""Tokenizers: nothing is lost, text never becomes end-of-text, what is saved loads the same, bad specs are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers

from latentlm.errors import UserError
from latentlm.tokenizer import (
    END_OF_TEXT,
    BPETokenizer,
    ByteTokenizer,
    LibraryTokenizer,
    byte_letters,
    check_vocabulary,
    load_tokenizer,
)

SENTENCES = ["the cat sat on the mat, the end", "def f(x):\n    return x + 1\n", "déjà vu, déjà vu", "the 日本語 text"] * 3
TRAINED = BPETokenizer.train(SENTENCES, vocabulary=300)


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=40))
def test_bytes_come_back_from_byte_tokens(data: bytes) -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.decode_bytes(tokenizer.encode(data)) == data


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40))
def test_text_comes_back_from_bpe_tokens(text: str) -> None:
    assert TRAINED.decode(TRAINED.encode(text)) == text


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=40))
def test_bytes_that_are_not_utf8_come_back_from_bpe_tokens(data: bytes) -> None:
    assert TRAINED.decode_bytes(TRAINED.encode(data)) == data


def test_a_lone_surrogate_keeps_its_three_bytes() -> None:
    for tokenizer in (ByteTokenizer(), TRAINED):
        assert tokenizer.decode_bytes(tokenizer.encode("a\ud800b")) == b"a\xed\xa0\x80b"


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=40))
def test_bytes_of_an_argument_that_is_no_utf8_are_these_bytes(data: bytes) -> None:
    argument = data.decode("utf-8", "surrogateescape")  # as Python reads arguments and names of files
    for tokenizer in (ByteTokenizer(), TRAINED):
        assert tokenizer.encode(argument) == tokenizer.encode(data)
        assert tokenizer.decode_bytes(tokenizer.encode_prompt(f"{argument}{END_OF_TEXT}")).startswith(data)


def test_byte_tokens_are_the_bytes_and_256_ends_a_text() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.encode("hé") == [104, 0xC3, 0xA9]
    assert (tokenizer.end_of_text, tokenizer.vocabulary) == (256, 257)
    assert tokenizer.decode([104, 256, 105, 0xFF]) == "hi\ufffd"


def test_bpe_learns_merges_and_puts_end_of_text_last() -> None:
    assert TRAINED.end_of_text == TRAINED.vocabulary - 1
    assert 257 < TRAINED.vocabulary <= 300
    assert len(TRAINED.encode("the cat sat")) < len("the cat sat")


def test_bpe_gives_no_more_symbols_than_asked_and_all_where_the_text_allows() -> None:
    assert BPETokenizer.train(SENTENCES, vocabulary=270).vocabulary == 270
    assert BPETokenizer.train(["a"], vocabulary=270).vocabulary == 257


def test_the_letters_of_bytes_are_those_of_the_library() -> None:
    assert sorted(byte_letters()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    encode = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str
    assert encode("\x00 é\x7f")[0][0] == "".join(byte_letters()[byte] for byte in "\x00 é\x7f".encode())


def test_training_twice_gives_the_same_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for name in "ab":
        BPETokenizer.train(SENTENCES, vocabulary=300).save(tmp_path / name)
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (tmp_path / "b/tokenizer.json").read_bytes()


def test_end_of_text_spelled_out_in_a_text_is_text(tmp_path: Path) -> None:
    loaded = load_tokenizer(TRAINED.save(tmp_path), folder=tmp_path)
    for tokenizer in (ByteTokenizer(), TRAINED, loaded, _unigram(tmp_path / "unigram.json")):
        end = "</s>" if type(tokenizer) is LibraryTokenizer else "<|endoftext|>"
        tokens = tokenizer.encode(f"a {end} b{end}")
        assert tokenizer.end_of_text not in tokens
        assert tokenizer.decode(tokens).replace(" ", "") == f"a{end}b{end}"  # SentencePiece may put a space into the halves


def test_end_of_text_stands_for_no_bytes() -> None:
    assert TRAINED.decode([TRAINED.end_of_text, *TRAINED.encode("cat"), TRAINED.end_of_text]) == "cat"


def test_pieces_of_the_tokens_of_a_text_are_the_text() -> None:
    data = b"\n\n    the cat.\r\n caf\xe9 " + "日本".encode()
    for tokenizer in (ByteTokenizer(), TRAINED):
        pieces = tokenizer.pieces()
        assert b"".join(pieces[token] for token in tokenizer.encode(data)) == data
        assert (len(pieces), pieces[tokenizer.end_of_text]) == (tokenizer.vocabulary, b"")


def test_encoding_many_texts_equals_encoding_each() -> None:
    texts = [b"the cat", b"", b"caf\xe9 sat", "日本".encode()]
    for tokenizer in (ByteTokenizer(), TRAINED):
        arrays = tokenizer.encode_all(texts)
        assert [array.tolist() for array in arrays] == [tokenizer.encode(text) for text in texts]
        assert {array.dtype for array in arrays} == {np.dtype(np.uint16)}


def test_what_is_saved_loads_the_same(tmp_path: Path) -> None:
    assert TRAINED.save(tmp_path) == "tokenizer.json"
    loaded = load_tokenizer("tokenizer.json", folder=tmp_path)
    assert (loaded.name, loaded.vocabulary, loaded.end_of_text) == (TRAINED.name, TRAINED.vocabulary, TRAINED.end_of_text)
    assert loaded.encode(b"the caf\xe9 \xf0") == TRAINED.encode(b"the caf\xe9 \xf0")
    assert isinstance(load_tokenizer(ByteTokenizer().save(tmp_path), folder=tmp_path), ByteTokenizer)


def test_an_id_outside_the_vocabulary_is_refused() -> None:
    for tokenizer in (ByteTokenizer(), TRAINED):
        for token in (-1, tokenizer.vocabulary):
            with pytest.raises(ValueError, match="is not one of the"):
                tokenizer.decode([token])


# ------------------------------------------------------------------------------------------ files of other makers


def _unigram(path: Path) -> LibraryTokenizer:
    """A tokenizer in the manner of SentencePiece: no byte letters, `</s>` in the vocabulary of the model itself."""
    letters = [(letter, -5.0) for letter in "▁abt</s>\n"]
    backend = tokenizers.Tokenizer(models.Unigram([("<unk>", -9.0), ("</s>", 0.0), ("▁the", -1.0), *letters], unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens(["<unk>", "</s>"])
    return _load(backend, path)


def _load(backend: Any, path: Path) -> Any:
    backend.save(str(path))
    return load_tokenizer(str(path))


def test_a_tokenizer_of_another_maker_is_read(tmp_path: Path) -> None:
    tokenizer = _unigram(tmp_path / "tokenizer.json")
    assert type(tokenizer) is LibraryTokenizer
    assert tokenizer.end_of_text == 1
    assert tokenizer.encode("the the") == [2, 2]
    assert tokenizer.decode([2, 2, 1]) == "the the"
    assert tokenizer.encode(b"\xff") == tokenizer.encode("\ufffd")


def _byte_level(*special: str) -> Any:
    vocabulary = {letter: number for number, letter in enumerate(byte_letters())}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.add_special_tokens(list(special))
    return backend


def test_a_byte_level_tokenizer_of_another_maker_is_lossless(tmp_path: Path) -> None:
    tokenizer = _load(_byte_level("<|begin_of_text|>", "<|end_of_text|>"), tmp_path / "tokenizer.json")
    assert type(tokenizer) is BPETokenizer
    assert (tokenizer.end_of_text, tokenizer.vocabulary) == (257, 258)
    assert tokenizer.decode_bytes(tokenizer.encode(b"7 \xff <|begin_of_text|>")) == b"7 \xff <|begin_of_text|>"


def test_a_tokenizer_that_changes_the_text_does_not_pass_for_lossless(tmp_path: Path) -> None:
    spaced, normalised = _byte_level("</s>"), _byte_level("</s>")
    spaced.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    normalised.normalizer = normalizers.NFC()
    for backend in (spaced, normalised):
        assert type(_load(backend, tmp_path / "tokenizer.json")) is LibraryTokenizer


def test_the_companion_file_says_which_token_ends_a_text_and_is_saved(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|stop|>"}}))
    tokenizer = _load(_byte_level("</s>", "<|stop|>"), tmp_path / "tokenizer.json")
    assert tokenizer.end_of_text == 257
    (tmp_path / "run").mkdir()
    assert load_tokenizer(tokenizer.save(tmp_path / "run"), folder=tmp_path / "run").end_of_text == 257


def test_a_tokenizer_without_end_of_text_is_refused_with_its_special_tokens(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no end-of-text token \(special tokens: <\|im_start\|>\).*eos_token"):
        _load(_byte_level("<|im_start|>"), tmp_path / "tokenizer.json")


# ------------------------------------------------------------------------------------------------------- refusals


def test_a_tokenizer_outside_the_cards_folder_is_refused(tmp_path: Path) -> None:
    card = tmp_path / "card"
    card.mkdir()
    TRAINED.save(tmp_path)
    (card / "link.json").symlink_to(tmp_path / "tokenizer.json")
    for spec in ("../tokenizer.json", str(tmp_path / "tokenizer.json"), "link.json"):
        with pytest.raises(UserError, match="lies outside"):
            load_tokenizer(spec, folder=card)


def test_a_missing_a_broken_and_an_unknown_tokenizer_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text('{"version": "1.0"')
    (tmp_path / "other.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match="does not exist"):
        load_tokenizer("tokenizer.json", folder=tmp_path)
    for name, words in {"broken.json": "is not readable as JSON", "other.json": r"is not a tokenizer\.json"}.items():
        with pytest.raises(UserError, match=words):
            load_tokenizer(name, folder=tmp_path)
    with pytest.raises(UserError, match='Did you mean "bytes"'):
        load_tokenizer("byte")


def test_a_bpe_smaller_than_the_bytes_is_refused() -> None:
    with pytest.raises(UserError, match="257 or more"):
        BPETokenizer.train(SENTENCES, vocabulary=256)


def test_vocabularies_that_differ_are_refused_with_the_remedy() -> None:
    check_vocabulary(ByteTokenizer(), 257, source="card x")
    with pytest.raises(UserError, match=r'card x: .* 512, the tokenizer "bytes" has 257 .*model\.backbone\.vocabulary=257'):
        check_vocabulary(ByteTokenizer(), 512, source="card x")


def test_an_end_of_text_that_the_companion_names_need_not_be_marked_special(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1, "<end>": 2}, []))
    backend.add_special_tokens(["</s>"])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    tokenizer = _load(backend, tmp_path / "tokenizer.json")
    assert tokenizer.end_of_text == 2
    assert tokenizer.encode("a<end>b") == [0, 1]  # the letters of the name are none of this tokenizer's
    (tmp_path / "run").mkdir()
    assert load_tokenizer(tokenizer.save(tmp_path / "run"), folder=tmp_path / "run").end_of_text == 2


def test_an_end_of_text_that_is_named_but_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    with pytest.raises(UserError, match=r'"<\|im_end\|>" ends a text \(eos_token\), but .* has no such token'):
        _load(_byte_level("</s>"), tmp_path / "tokenizer.json")


@pytest.mark.parametrize("tokens", [None, 5, "ab", b"ab", [1.5], ["a"], [float("nan")], [10**30], [-1], [True]])
def test_what_is_no_token_is_not_decoded(tokens: Any) -> None:
    for tokenizer in (ByteTokenizer(), BPETokenizer.train(["a text"], vocabulary=257)):
        with pytest.raises(UserError, match="token"):
            tokenizer.decode(tokens)


@pytest.mark.parametrize("text", [None, 5, ["a"], float("nan"), bytearray(b"a")])
def test_what_is_no_text_is_not_encoded(text: Any) -> None:
    for tokenizer in (ByteTokenizer(), BPETokenizer.train(["a text"], vocabulary=257)):
        with pytest.raises(UserError, match="a text must be str or bytes"):
            tokenizer.encode(text)
