"""Granularities: where sites begin, by hand and against the text, in a row at once and token by token; what a run fills in.

Run: ``pytest tests/plugins/test_granularities.py``
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor

from latentlm import plugins
from latentlm.config import Strict, parse
from latentlm.errors import UserError
from latentlm.interface import (
    Granularity,
    TokenIds,
    TokenSet,
    begins_now,
    from_previous,
    pack_ids,
    parse_granularity,
    recent_tokens,
    site_starts,
)
from latentlm.interface.granularity import BUILT_IN, Chunk, Document, Token, assign_sites
from latentlm.tokenizer import BPETokenizer, ByteTokenizer, LibraryTokenizer, Tokenizer, load_tokenizer
from latentlm_granularities import Line, Sentence
from samples import pack

BYTES = ByteTokenizer()
INDENTED = ["def f(x):\n    if x:\n        return x\n\n    return 'a'\n\n\nclass A:\n    pass\n"] * 4
PROSE = ['"Stop!" he said. She did.\nWhy? (No one knew.) It was 3.14 a.m. or so.\r\n\r\n'] * 4
BPE = BPETokenizer.train([*INDENTED, *PROSE], vocabulary=330)
# Whose breaks hold white space or more breaks: indented lines are one token each.
WHOLE = BPETokenizer.train(["\n    return", "\n\n\n"] * 9, vocabulary=270)
END_OF_SENTENCE = rb"[.!?][\"')\]}]{0,2}(?=\s)"


class Words(Tokenizer):
    """Bytes, and a few longer tokens that other tokenizers have and `bpe:N` does not learn; the longest is taken."""

    name, end_of_text = "words", 0
    longer = (b'"\n', b". ", b"!\n", b'b."', b".'\n", b". a. ", b"')", b" a")
    texts = (b"", *(bytes([byte]) for byte in range(256)), *longer)
    vocabulary = len(texts)

    def encode(self, text: str | bytes) -> list[int]:
        data, tokens = text if isinstance(text, bytes) else text.encode(), []
        while data:
            fitting = [token for token in range(1, self.vocabulary) if data.startswith(self.texts[token])]
            tokens.append(max(fitting, key=lambda token: len(self.texts[token])))
            data = data[len(self.texts[tokens[-1]]) :]
        return tokens

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        return b"".join(self.texts[token] for token in tokens)

    def save(self, folder: Path) -> str:
        raise NotImplementedError


class Thirds(Granularity):
    """A third party's: a site at every token id divisible by three."""

    Config = Strict

    def begins(self, tokens: Tensor, positions: Tensor, documents: Tensor) -> Tensor:
        return tokens % 3 == 0


class Rises(Granularity):
    """A third party's: a site at every token that is larger than the one before and the one before that."""

    Config = Strict
    lookback = 2

    def begins(self, tokens: Tensor, positions: Tensor, documents: Tensor) -> Tensor:
        flags = []
        for level in range(5):  # in words of the helper, so that only flags move
            low = tokens < level
            before = from_previous(low, positions, documents)
            flags.append((tokens == level) & before & from_previous(before, positions, documents))
        return torch.stack(flags).any(0) | (positions == 0)


def made(kind: type[Granularity], tokenizer: Tokenizer = BYTES, **given_settings: Any) -> Any:
    return kind(parse(kind.Config, kind.fill(given_settings, tokenizer), source="test"))


def one_document(tokens: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    row = torch.tensor([list(tokens)])
    return row, torch.arange(len(tokens))[None], torch.zeros_like(row)


def drawn(granularity: Granularity, text: str | bytes, tokenizer: Tokenizer = BYTES) -> str:
    """The text behind end-of-text, a bar before each token that begins a site."""
    tokens = [tokenizer.end_of_text, *tokenizer.encode(text)]
    starts = granularity.begins(*one_document(tokens))[0].tolist()
    pieces = [tokenizer.decode_bytes([token]) for token in tokens]
    return b"".join(b"|" * start + piece for start, piece in zip(starts, pieces, strict=True)).decode()


GRANULARITIES = {
    "token": Token(Strict()),
    "chunk": Chunk(Chunk.Config(length=3)),  # type: ignore[call-arg]
    "document": Document(Strict()),
    "line": Line(Line.Config(breaks=(0, 7))),  # type: ignore[call-arg]
    "sentence": Sentence(Sentence.Config(closers=(1, 2), marks=(3,), spaces=(4, 5), inside=(6,))),  # type: ignore[call-arg]
    "sentence_without_marks": Sentence(Sentence.Config(closers=(1, 2), spaces=(4, 5))),  # type: ignore[call-arg]
    "thirds": Thirds(Strict()),
    "rises": Rises(Strict()),
}
EACH = pytest.mark.parametrize("granularity", GRANULARITIES.values(), ids=GRANULARITIES.keys())


# ------------------------------------------------------------------------------------------------------------------ bytes


def test_a_line_begins_where_its_break_is_consumed() -> None:
    assert drawn(made(Line), "one\ntwo\n\n  three") == "|one|\ntwo|\n|\n  three"


def test_only_line_feeds_end_a_line() -> None:
    assert drawn(made(Line), "a\r\nb\rc\vd\fe\u2028f\x85g") == "|a\r|\nb\rc\vd\fe\u2028f\x85g"


def test_a_sentence_begins_at_the_white_space_after_its_end() -> None:
    assert drawn(made(Sentence), "It is. Is it?  Yes!\nYes") == "|It is.| Is it?|  Yes!|\nYes"


def test_punctuation_without_white_space_ends_no_sentence() -> None:
    assert drawn(made(Sentence), "pi=3.14, a.b. c?d") == "|pi=3.14, a.b.| c?d"


def test_closing_quotes_and_brackets_belong_to_the_sentence() -> None:
    assert drawn(made(Sentence), '"Stop!" he said (twice.) Or "(so.)" not') == '|"Stop!"| he said (twice.)| Or "(so.)"| not'
    assert drawn(made(Sentence), "a) b' c") == "|a) b' c"


def test_three_closing_marks_are_one_too_many_for_byte_tokens() -> None:
    assert drawn(made(Sentence), "so.))) not") == "|so.))) not"


def test_without_marks_the_lookback_is_one() -> None:
    assert (made(Sentence).lookback, made(Sentence, marks=[]).lookback, made(Line).lookback) == (3, 1, 0)
    assert drawn(made(Sentence, marks=[]), 'a." b. c') == '|a." b.| c'


# -------------------------------------------------------------------------------------------------------------------- BPE


@pytest.mark.parametrize("tokenizer", [BPE, WHOLE], ids=["mixed", "whole"])
def test_in_bpe_every_token_with_a_break_begins_a_line(tokenizer: BPETokenizer) -> None:
    line = made(Line, tokenizer)
    ids = [token for token in range(tokenizer.vocabulary) if b"\n" in tokenizer.decode_bytes([token])]
    assert list(line.config.breaks) == ids
    assert len(ids) > 1


def test_the_learned_tokens_hold_breaks_inside() -> None:
    """Else the test before would say nothing."""
    texts = {BPE.decode([token]) for token in made(Line, BPE).config.breaks}
    assert any(text.startswith("\n ") for text in texts), texts
    assert any(text.count("\n") > 1 for text in texts), texts


def test_a_break_with_its_indentation_in_one_token_begins_the_line() -> None:
    text = "if x:\n    return x\n\n\nclass"
    found = drawn(made(Line, BPE), text, BPE)
    assert found.replace("|", "") == text
    before, after = found.index("|", 1), found.index("return")
    assert found[before:after].startswith("|\n")
    assert "|" not in found[before + 1 : after]


TEXTS = st.text(alphabet="ab.!?\"') \n", max_size=30).filter(lambda text: not re.search(r"[\"')]{3}", text))


def test_ends_inside_tokens_and_across_them_begin_one_site_each() -> None:
    assert drawn(made(Sentence, Words()), 'A.. "No."\nYes. a. b."\nC', Words()) == '|A.|. "No.|"\nYes|. a. b."|\nC'


@settings(max_examples=300, deadline=None)
@given(text=TEXTS, tokenizer=st.sampled_from([BYTES, BPE, WHOLE, Words()]))
def test_sites_begin_where_the_text_says_whatever_the_tokenizer(text: str, tokenizer: Tokenizer) -> None:
    """The token that holds a line's break, or the white space after a sentence's end, begins a site, and no other does."""
    tokens = [tokenizer.end_of_text, *tokenizer.encode(text)]
    owner = [index for index, token in enumerate(tokens) for _ in tokenizer.decode_bytes([token])]  # of each byte
    data = text.encode()
    lines = {0} | {owner[found.start()] for found in re.finditer(rb"\n", data)}
    sentences = {0} | {owner[found.end()] for found in re.finditer(END_OF_SENTENCE, data)}
    for kind, expected in ((Line, lines), (Sentence, sentences)):
        begins = made(kind, tokenizer).begins(*one_document(tokens))[0]
        assert set(begins.nonzero()[:, 0].tolist()) == expected


# ------------------------------------------------------------------------------------- token by token, packing, padding


TOKENS = st.lists(st.integers(0, 8), min_size=1, max_size=24)


@EACH
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TOKENS, min_size=1, max_size=3), prompt=st.integers(1, 5))
def test_token_by_token_equals_the_whole_row(granularity: Granularity, texts: list[list[int]], prompt: int) -> None:
    """Only the last `lookback` tokens are kept, first those of prompts of different lengths, then those of each step."""
    rows = pack([[text] for text in texts])
    whole = site_starts(granularity, rows.inputs, rows.documents, rows.positions)
    lengths = torch.tensor([min(prompt + row, len(text)) for row, text in enumerate(texts)])
    kept = recent_tokens(granularity, rows.inputs, lengths)  # (B, lookback)
    for _ in range(max(map(len, texts))):
        going = lengths < torch.tensor([len(text) for text in texts])
        place = lengths.clamp(max=rows.inputs.shape[1] - 1)[:, None]
        recent = torch.cat((kept, rows.inputs.gather(1, place)), dim=1)  # (B, lookback + 1)
        begins = begins_now(granularity, recent, place[:, 0])
        assert torch.equal(begins[going], whole.gather(1, place)[:, 0][going])
        kept, lengths = recent[:, 1:], lengths + 1


@EACH
@settings(max_examples=60, deadline=None)
@given(row=st.lists(TOKENS, min_size=2, max_size=4), padding=st.integers(0, 3))
def test_packed_documents_are_as_if_alone(granularity: Granularity, row: list[list[int]], padding: int) -> None:
    packed = pack([row, [[1] * (sum(map(len, row)) + padding)]])
    begins = site_starts(granularity, packed.inputs, packed.documents, packed.positions)[0]
    alone = [site_starts(granularity, t, d, p)[0] for t, p, d in map(one_document, row)]
    assert torch.equal(begins, torch.cat([*alone, torch.zeros(padding, dtype=torch.bool)]))


@EACH
def test_later_tokens_change_nothing(granularity: Granularity) -> None:
    tokens, positions, documents = one_document([3, 1, 4, 1, 3, 5, 0, 2, 6, 5])
    begins = granularity.begins(tokens, positions, documents)
    for length in range(1, tokens.shape[1]):
        early = granularity.begins(tokens[:, :length], positions[:, :length], documents[:, :length])
        assert torch.equal(early, begins[:, :length])


@EACH
def test_sites_are_numbered_in_each_row_from_zero(granularity: Granularity) -> None:
    batch = pack([[[3, 1, 4, 1, 5], [2, 6, 5]], [[2, 7, 1, 4]]])
    site_of, sites = assign_sites(granularity, batch.inputs, batch.documents, batch.positions)
    assert (site_of.shape, site_of.dtype, sites) == (batch.inputs.shape, torch.long, int(site_of.max()) + 1)
    starts = site_starts(granularity, batch.inputs, batch.documents, batch.positions)
    for row in range(2):
        real = batch.documents[row] >= 0
        assert site_of[row, 0] == 0
        assert torch.equal(site_of[row].diff()[real[1:]] == 1, starts[row, 1:][real[1:]])


def by_name(documents: Tensor, positions: Tensor, spec: str) -> tuple[Tensor, int]:
    """The sites of a built-in granularity by its name alone: a site at every n-th position, or at a document's first."""
    rows, length = documents.shape
    if spec == "token":
        return torch.arange(length).expand(rows, -1), length
    starts = (positions == 0) if spec == "document" else (positions % int(spec.removeprefix("chunk:")) == 0)
    site_of = ((starts & (documents >= 0)).long().cumsum(dim=1) - 1).clamp(min=0).masked_fill(documents < 0, 0)
    return site_of, int(site_of.max()) + 1


@pytest.mark.parametrize("spec", ["token", "chunk:1", "chunk:2", "chunk:5", "document"])
def test_built_in_granularities_number_sites_as_their_names_say(spec: str) -> None:
    batch = pack([[[3, 1, 4, 1, 5, 9], [2, 6, 5]], [[2, 7, 1, 8]]])
    name, given_settings = parse_granularity(spec)
    granularity = BUILT_IN[name](parse(BUILT_IN[name].Config, given_settings, source="test"))
    found, sites = assign_sites(granularity, batch.inputs, batch.documents, batch.positions)
    expected, count = by_name(batch.documents, batch.positions, spec)
    assert torch.equal(found, expected)
    assert (sites, found.stride()) == (count, expected.stride())


def test_a_batch_that_goes_on_within_a_site_has_one() -> None:
    tokens = torch.tensor([[65, 66]])
    site_of, sites = assign_sites(made(Line), tokens, torch.zeros_like(tokens), torch.tensor([[7, 8]]))
    assert (site_of.tolist(), sites) == ([[0, 0]], 1)


# ----------------------------------------------------------------------------------------------------- a third party's


def test_a_granularity_of_a_third_party_takes_the_same_way() -> None:
    batch = pack([[[4, 3, 5, 6], [1, 2]]])
    site_of, sites = assign_sites(Thirds(Strict()), batch.inputs, batch.documents, batch.positions)
    assert (site_of.tolist(), sites) == ([[0, 1, 1, 2, 3, 3]], 4)  # the second document begins one although it does not say so


def test_a_granularity_registers_as_any_part_does() -> None:
    plugins.register("granularity", "thirds_example", Thirds)
    try:
        assert plugins.get("granularity", "thirds_example") is Thirds
        assert plugins.get("granularity", "line") is Line
    finally:
        plugins.unregister("granularity", "thirds_example")


# -------------------------------------------------------------------------------------------------- what a run fills in


def test_a_run_fills_in_the_ids_of_bytes() -> None:
    assert Line.fill({}, BYTES) == {"breaks": [10]}
    filled = Sentence.fill({}, BYTES)
    assert filled == {
        "closers": sorted(b".!?"), "marks": sorted(b"\"')]}"), "spaces": sorted(b" \t\n\r\v\f"), "inside": [],
    }  # fmt: skip


@pytest.mark.parametrize("kind", [Line, Sentence])
@pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["bytes", "bpe"])
def test_what_is_filled_in_survives_yaml_and_a_second_run(kind: type[Granularity], tokenizer: Tokenizer) -> None:
    filled = kind.fill({}, tokenizer)
    read = yaml.safe_load(yaml.safe_dump(filled))
    assert read == filled
    assert kind.fill(read, tokenizer) == filled
    assert parse(kind.Config, read, source="test").model_dump(mode="json") == filled


def test_end_of_text_ends_no_line_and_no_sentence_however_it_is_spelled() -> None:
    backend = tokenizers.Tokenizer.from_str(BPE._backend.to_str())
    backend.add_special_tokens(["the end.\n"])
    tokenizer = BPETokenizer(backend, name="spelled", end_of_text="the end.\n")
    assert tokenizer.end_of_text == BPE.vocabulary
    assert made(Line, tokenizer).config == made(Line, BPE).config
    assert made(Sentence, tokenizer).config == made(Sentence, BPE).config


def test_ids_given_by_hand_stay() -> None:
    paragraphs = [token for token in made(Line, BPE).config.breaks if BPE.decode([token]).count("\n") > 1]
    assert Line.fill({"breaks": paragraphs}, BPE) == {"breaks": paragraphs}
    assert Sentence.fill({"closers": [59]}, BYTES) == {**Sentence.fill({}, BYTES), "closers": [59]}


@pytest.mark.parametrize("kind", [Line, Sentence])
def test_ids_of_another_tokenizer_are_refused(kind: type[Granularity]) -> None:
    with pytest.raises(UserError, match=r"another tokenizer's: leave `\w+` out"):
        kind.fill(kind.fill({}, BYTES), BPE)
    with pytest.raises(UserError, match='is beyond the 257 symbols of the tokenizer "bytes"'):
        kind.fill({**kind.fill({}, BYTES), next(iter(kind.Config.model_fields)): [10, 300]}, BYTES)


def _sentencepiece(path: Path, *pieces: str) -> LibraryTokenizer:
    """A tokenizer in the manner of SentencePiece, whose words begin with a space that its decoder leaves out at first place."""
    vocabulary = [(piece, -float(index)) for index, piece in enumerate(["<unk>", "</s>", "▁", *pieces])]
    backend = tokenizers.Tokenizer(models.Unigram(vocabulary, unk_id=0))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    backend.add_special_tokens(["<unk>", "</s>"])
    backend.save(str(path))
    found = load_tokenizer(str(path))
    assert type(found) is LibraryTokenizer
    return found


def test_words_that_carry_their_space_are_known_by_it(tmp_path: Path) -> None:
    tokenizer = _sentencepiece(tmp_path / "tokenizer.json", "a", "▁the", ".", "▁cat")
    sentence = made(Sentence, tokenizer)
    assert [tokenizer.pieces()[token] for token in sentence.config.spaces] == [b" ", b" the", b" cat"]
    assert drawn(sentence, "the cat. the cat", tokenizer).replace(" ", "") == "|thecat.|thecat"


def test_a_tokenizer_without_breaks_or_sentences_is_refused(tmp_path: Path) -> None:
    tokenizer = _sentencepiece(tmp_path / "tokenizer.json", "a", "b")
    with pytest.raises(UserError, match=r'no token of the tokenizer "tokenizer.json" has a line break.*"chunk:n"'):
        Line.fill({}, tokenizer)
    with pytest.raises(UserError, match=r'no tokens that end with \. ! or \? .* Take granularity "line"'):
        Sentence.fill({}, tokenizer)


@pytest.mark.parametrize(("kind", "by_hand"), [(Line, "breaks: [10]"), (Sentence, r"spaces: \[9, 10, 13, 32\]")])
def test_settings_that_nothing_has_filled_are_refused_with_the_remedy(kind: type[Granularity], by_hand: str) -> None:
    with pytest.raises(UserError, match=r"`latentlm train` fills the ids in .* by hand, list"):
        parse(kind.Config, {}, source="test")
    with pytest.raises(UserError, match=by_hand.replace("[10]", r"\[10\]")):
        parse(kind.Config, {}, source="test")


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(UserError, match=r'unknown key "break".*"breaks"'):
        parse(Line.Config, {"break": [10]}, source="test")


# --------------------------------------------------------------------------------------------------------- sets of ids


class Ids(Strict):
    ids: TokenIds = ()


@settings(max_examples=50, deadline=None)
@given(st.sets(st.integers(0, 5000), max_size=600))
def test_ids_come_back_from_a_list_and_from_a_packed_string(ids: set[int]) -> None:
    packed = pack_ids(ids)
    assert isinstance(packed, str) == (len(ids) > 256)
    assert Ids.model_validate({"ids": packed}).ids == tuple(sorted(ids))
    assert Ids.model_validate({"ids": packed}).model_dump(mode="json") == {"ids": packed}


def test_half_of_a_large_vocabulary_fits_a_card() -> None:
    ids = torch.randperm(128_000, generator=torch.Generator().manual_seed(0))[:64_000].tolist()
    packed = pack_ids(ids)
    assert len(packed) < 25_000
    assert Ids.model_validate({"ids": packed}).ids == tuple(sorted(ids))


@pytest.mark.parametrize("text", ["packed:", "packed:%%%", str(pack_ids(range(999)))[:-8], "10, 13", "packed:eA=="])
def test_a_damaged_string_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"damaged; leave them out|token ids are a list"):
        parse(Ids, {"ids": text}, source="test")


def test_a_small_string_does_not_unfold_into_a_large_one() -> None:
    import base64
    import zlib

    with pytest.raises(UserError, match="damaged"):
        parse(Ids, {"ids": "packed:" + base64.b64encode(zlib.compress(b"\xff" * 2**22)).decode()}, source="test")


def test_negative_ids_are_refused_and_others_sorted() -> None:
    assert Ids(ids=(3, 1, 3)).ids == (1, 3)
    with pytest.raises(UserError, match="0 or more; found -1"):
        parse(Ids, {"ids": [2, -1]}, source="test")


@settings(max_examples=50, deadline=None)
@given(st.sets(st.integers(0, 40), max_size=20), st.lists(st.integers(0, 60), min_size=1, max_size=20))
def test_a_set_contains_what_isin_says(ids: set[int], tokens: list[int]) -> None:
    asked = torch.tensor(tokens).view(1, -1)
    assert torch.equal(TokenSet(ids).contains(asked), torch.isin(asked, torch.tensor(sorted(ids), dtype=torch.long)))


def test_a_set_made_on_the_meta_device_works_off_it() -> None:
    with torch.device("meta"):
        line = made(Line)
    with torch.inference_mode():
        assert line.begins(*one_document([65, 10])).tolist() == [[True, True]]
    assert line.begins(*one_document([65, 66, 10])).tolist() == [[True, False, True]]


# ------------------------------------------------------------------------------------------------------ what users write


@pytest.mark.parametrize(
    ("spec", "name", "expected"),
    [
        ("token", "token", {}),
        ("document", "document", {}),
        ("chunk:8", "chunk", {"length": 8}),
        ("line", "line", {}),
        ({"name": "line", "breaks": [10]}, "line", {"breaks": [10]}),
        ({"name": "chunk", "length": 4}, "chunk", {"length": 4}),
        ({"name": "chunk:8", "length": 4}, "chunk", {"length": 4}),
    ],
)
def test_a_granularity_is_written_as_a_name_or_a_mapping(spec: Any, name: str, expected: dict[str, Any]) -> None:
    assert parse_granularity(spec) == (name, expected)


@pytest.mark.parametrize("spec", ["", "chunk:0", "chunk:x", "chunk:-1", "chunk: 8", "line:3", 8, None, {"breaks": [10]}])
def test_what_is_no_granularity_is_refused(spec: Any) -> None:
    with pytest.raises(UserError, match=r'is not one of "token", "chunk:n"'):
        parse_granularity(spec)


@pytest.mark.parametrize("settings_", [{}, {"length": 0}, {"length": 2, "size": 3}])
def test_a_chunk_needs_a_length(settings_: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"length|size"):
        parse(Chunk.Config, settings_, source="test")


def test_sites_per_token_are_known_roughly() -> None:
    per_token = {name: granularity.sites_per_token(64) for name, granularity in GRANULARITIES.items()}
    assert per_token["token"] == 1
    assert per_token["chunk"] == 1 / 3
    assert per_token["document"] == 1 / 64
    assert per_token["line"] == per_token["thirds"] == 1 / 16
    assert GRANULARITIES["line"].sites_per_token(4) == 1 / 4
