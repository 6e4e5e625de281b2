"""Documents: every source, what is held out, what is dropped, and what is said when there is nothing to train on."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from latentlm.config import DataConfig
from latentlm.errors import UserError
from latentlm.tokenizer import BPETokenizer, ByteTokenizer, load_tokenizer
from latentlm.training.data import corpora
from latentlm.training.data.corpora import read_corpus, standard_library
from latentlm.training.data.prepared import EVALUATED, held_out_ids, load_documents, prepare

TEXTS = ["one text", "another text\nof two lines", "déjà vu"]


def found(path: Path | str, **settings: object) -> list[tuple[str, str]]:
    """(id, text) of every document under a path."""
    config = DataConfig.model_validate({"path": str(path), **settings})
    return [(document.id, document.data.decode()) for document in read_corpus(config)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty small files."""
    root = tmp_path / "texts"
    root.mkdir()
    for number in range(40):
        (root / f"{number:02}.txt").write_text(f"document {number} " * (number + 1))
    return root


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hugging Face libraries refuse the network at once, instead of trying for half a minute."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


# -------------------------------------------------------------------------------------------------------- sources


def test_the_standard_library_is_sources_without_tests_tables_and_installed_packages() -> None:
    documents = list(standard_library())
    names = [document.id for document in documents]
    assert {"json/decoder.py", "argparse.py"} <= set(names)
    assert names == sorted(names)
    assert not [name for name in names if {"test", "tests", "site-packages", "encodings"} & set(name.split("/"))]
    assert not [name for name in names if name.startswith("_sysconfigdata")]
    assert sum(len(document.data) for document in documents) > 5_000_000


def test_the_standard_library_is_the_same_inside_a_virtual_environment() -> None:
    running = Path(os.__file__).parent  # the modules that are imported come from the base interpreter
    first, *_ = standard_library()
    assert first.data == (running / first.id).read_bytes()


def test_a_stripped_standard_library_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "os.py").write_text("pass")
    with pytest.raises(UserError, match=r"only 1 Python sources.*libpython3-stdlib.*data\.path=FOLDER"):
        standard_library(tmp_path)


def test_a_folder_gives_a_document_per_matching_file_at_any_depth(tmp_path: Path) -> None:
    for name in ("b.md", "a/c.txt", "a/d.csv", ".git/e.txt", "__pycache__/f.txt", "g.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert found(tmp_path) == [(name, name) for name in ("a/c.txt", "b.md", "g.txt")]
    assert [name for name, _ in found(tmp_path, pattern="a/*, *.md")] == ["a/c.txt", "a/d.csv", "b.md"]


def test_a_folder_may_hold_files_of_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    (tmp_path / "x.txt").write_text("three")
    assert found(tmp_path, pattern="*") == [("rows.jsonl:1", "one"), ("rows.jsonl:2", "two"), ("x.txt", "three")]


def test_files_are_read_byte_for_byte(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9\r\n")
    assert [document.data for document in read_corpus(DataConfig(path=str(tmp_path)))] == [b"caf\xe9\r\n"]


def test_a_text_file_is_parted_at_lines_of_end_of_text(tmp_path: Path) -> None:
    path = tmp_path / "stories.txt"
    first = "one\nmore <|endoftext|> of\n<|endoftext|> <|endoftext|>\nit <|endoftext|>\n"
    path.write_text(f"{first}<|endoftext|>\ntwo\n <|endoftext|> \r\n\nthree")
    assert found(path) == [
        ("stories.txt:0", first),
        ("stories.txt:1", "two\n"),
        ("stories.txt:2", "\nthree"),
    ]


def test_a_text_file_without_separators_is_cut_into_passages_after_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    paragraph = "a line of a book\n" * 100 + "\n"
    path.write_text(paragraph * 10)
    texts = [text for _, text in found(path)]
    assert "".join(texts) == path.read_text()
    assert [len(text) // len(paragraph) for text in texts] == [3, 3, 3, 1]
    path.write_text("a line of a list\n" * 3000)
    assert [len(text) for _, text in found(path)] == [16388, 16388, 16388, 51000 - 3 * 16388]


def test_json_lines_plain_and_compressed_give_a_document_per_line(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"id": 1, "body": text}) + "\n\n" for text in TEXTS)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    for name in ("a.jsonl", "a.jsonl.gz"):
        assert found(tmp_path / name, text_field="body") == [(f"{name}:{2 * n + 1}", text) for n, text in enumerate(TEXTS)]


def test_parquet_gives_a_document_per_row(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"n": [1, 2, 3], "text": TEXTS}), tmp_path / "a.parquet", row_group_size=2)
    assert found(tmp_path / "a.parquet") == [(f"a.parquet:{n}", text) for n, text in enumerate(TEXTS)]


def test_a_row_that_is_no_text_or_longer_than_a_text_is_refused_by_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pyarrow.table({"text": ["AAAA", "BBBB"]})
    parquet.write_table(table, tmp_path / "a.parquet", use_dictionary=False, compression="none")
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes().replace(b"BBBB", b"\xff\xfe\xfd\xfc"))
    with pytest.raises(UserError, match=r"a\.parquet, row 1, is no text"):
        found(tmp_path / "a.parquet")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n{"text": "as long as it likes"}\n'))
    monkeypatch.setattr(corpora, "MOST_LINE", 20)
    with pytest.raises(UserError, match=r"a\.jsonl\.gz, line 2, is longer"):
        found(tmp_path / "a.jsonl.gz")
    long = pyarrow.table({"text": ["a" * 2000], "n": [1]})
    parquet.write_table(long, tmp_path / "long.parquet", compression="zstd")
    with pytest.raises(UserError, match=r"long\.parquet: its rows, 0 MiB on average, are longer"):
        found(tmp_path / "long.parquet")
    parquet.write_table(pyarrow.table({"text": ["a"], "n": ["n" * 2000]}), tmp_path / "b.parquet", compression="zstd")
    with pytest.raises(UserError, match=r"b\.parquet: its rows"):
        found(tmp_path / "b.parquet", text_field="n")
    several = pyarrow.table({"text": ["a", "b" * 30], "text.more": ["c" * 90, "d" * 90]})
    parquet.write_table(several, tmp_path / "c.parquet", compression="zstd")
    monkeypatch.setattr(corpora, "MOST_LINE", 80)  # of a column that is small there are some 40 bytes about its values
    assert found(tmp_path / "b.parquet") == [("b.parquet:0", "a")]
    assert len(found(tmp_path / "c.parquet")) == 2
    with pytest.raises(UserError, match=r"c\.parquet: its rows"):
        found(tmp_path / "c.parquet", text_field="text.more")
    monkeypatch.setattr(corpora, "MOST_LINE", 29)
    monkeypatch.setattr(corpora, "_rows_together", lambda *_: 1)
    with pytest.raises(UserError, match=r"c\.parquet:1 is longer"):
        found(tmp_path / "c.parquet")


def test_a_text_that_is_written_once_and_repeated_is_not_unpacked_all_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["a" * 2**20] * 64}), path)
    with parquet.ParquetFile(path) as file:
        group = file.metadata.row_group(0)
        assert corpora._rows_together(path, group, "text") == corpora._ROWS
        monkeypatch.setattr(corpora, "_TOGETHER", 2**22)
        assert 1 <= corpora._rows_together(path, group, "text") <= 4


def test_a_hugging_face_data_set_is_loaded_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None) -> None:
    """A folder in the layout of the hub goes through the same loader as a name."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    root = tmp_path / "set"
    root.mkdir()
    for split in ("train", "test"):
        (root / f"{split}.jsonl").write_text("".join(json.dumps({"text": f"{split} {text}"}) + "\n" for text in TEXTS))
    documents = found(f"hf:{root}", split="test")
    assert documents == [(f"{root}:test:{n}", f"test {text}") for n, text in enumerate(TEXTS)]
    assert len(found(f"hf:{root}", split="train[:2]")) == 2
    with pytest.raises(UserError, match=r"nothing.*data\.split \(now \"nothing\"\)"):
        found(f"hf:{root}", split="nothing")


def test_a_saved_data_set_is_read_from_its_folder(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"text": TEXTS})
    rows.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(str(tmp_path / "two"))
    assert [text for _, text in found(tmp_path / "one")] == TEXTS
    assert found(tmp_path / "two", split="test")[0] == ("two:test:0", TEXTS[0])
    with pytest.raises(UserError, match=r'Unknown split "tset".* Did you mean "test"'):
        found(tmp_path / "two", split="tset")


# -------------------------------------------------------------------------------------------------------- refusals


def test_a_missing_path_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("x")
    with pytest.raises(UserError, match=r'does not exist\. Did you mean "texts\.txt"'):
        found(tmp_path / "text.txt")


def test_an_unreachable_data_set_is_told_apart_from_a_path(no_network: None) -> None:
    with pytest.raises(UserError, match=r"no such file or folder here, and no Hugging Face data set.*network"):
        found("nobody/no-such-set")


def test_a_misspelt_stdlib_is_refused_without_asking_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "hub_documents", lambda *_: pytest.fail("asked the network"))
    with pytest.raises(UserError, match='Did you mean "stdlib"'):
        found("stdlb")


def test_an_unknown_extension_is_refused_with_a_way_to_read_it(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("a,b")
    with pytest.raises(UserError, match=r"table\.csv ends in none of \.txt.*data\.pattern=table\.csv"):
        found(tmp_path / "table.csv")


def test_a_folder_where_nothing_matches_says_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="It is empty"):
        found(tmp_path)
    (tmp_path / "a.rs").write_text("x")
    with pytest.raises(UserError, match=r"no file .* matches data\.pattern .*It has files ending in \.rs"):
        found(tmp_path)


def test_a_missing_column_names_the_nearest_in_every_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"content": "x", "id": 1}\n')
    parquet.write_table(pyarrow.table({"content": ["x"], "id": [1]}), tmp_path / "a.parquet")
    datasets.Dataset.from_dict({"content": ["x"], "id": [1]}).save_to_disk(str(tmp_path / "saved"))
    for name in ("a.jsonl", "a.parquet", "saved"):
        with pytest.raises(UserError, match=r'no column "contents". Did you mean "content"\? It has: content, id'):
            found(tmp_path / name, text_field="contents")


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    columns = [pyarrow.array(TEXTS), pyarrow.array(TEXTS)]
    parquet.write_table(pyarrow.Table.from_arrays(columns, names=["text", "text"]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r'a\.parquet has 2 columns called "text": rename one'):
        found(tmp_path / "a.parquet")


def test_a_column_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": 3}\n')
    with pytest.raises(UserError, match=r'a\.jsonl:1: "text" holds int'):
        found(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "line 2 is not readable as JSON"),
        ("a.jsonl", b'{"text": "\xff"}\n', "line 1 is not readable as JSON"),
        ("a.jsonl", b'{"text": "x", "text": "y"}\n', 'line 1 is not readable as JSON: the key "text" is there twice'),
        ("a.jsonl", b'"x"\n', "line 1: a str where an object"),
        ("a.jsonl.gz", b"not gzip", "cannot be read after line 0"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 9, mtime=0)[:-12], "cannot be read after line"),
        ("a.parquet", b"not parquet", "not readable as Parquet"),
    ],
    ids=["cut line", "not UTF-8", "a key twice", "not an object", "not gzip", "cut gzip", "not Parquet"],
)
def test_a_damaged_file_is_refused_with_its_place(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        found(tmp_path / name)


def test_data_with_nothing_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" \n")
    with pytest.raises(UserError, match=r"holds no document with text in it \(1 empty and 0 duplicate"):
        load_documents(DataConfig(path=str(tmp_path)))
    for name in "bc":
        (tmp_path / f"{name}.txt").write_text("same")
    with pytest.raises(UserError, match=r"only one document .*\(1 empty and 1 duplicate.*more files"):
        load_documents(DataConfig(path=str(tmp_path)))


# -------------------------------------------------------------------------------------------------------- held out


def test_no_held_out_text_is_trained_on_and_none_is_lost(folder: Path) -> None:
    (folder / "copies").mkdir()
    for path in sorted(folder.glob("*.txt")):
        (folder / "copies" / path.name).write_bytes(path.read_bytes())
    corpus = load_documents(DataConfig(path=str(folder), held_out=0.3))
    train, held_out = ({document.data for document in part} for part in (corpus.train, corpus.held_out))
    assert not train & held_out
    assert len(train | held_out) == len(corpus.train) + len(corpus.held_out) == 40
    assert corpus.duplicates == 40
    assert 4 <= len(held_out) <= 22


def test_adding_documents_moves_no_other_document() -> None:
    names = [f"{n}.txt" for n in range(200)]
    few, many = (held_out_ids(names[:count], seed=0, share=0.2) for count in (100, 200))
    assert many & set(names[:100]) == few
    assert 25 <= len(many) <= 55
    assert held_out_ids(names, seed=1, share=0.2) != many


def test_something_is_held_out_and_something_trained_on_at_any_share() -> None:
    assert len(held_out_ids(["a", "b", "c"], seed=0, share=1e-9)) == 1
    assert len(held_out_ids(["a", "b", "c"], seed=0, share=1 - 1e-9)) == 2


def test_what_the_evaluation_tasks_draw_on_is_held_out_at_any_seed() -> None:
    for seed in (0, 1):
        corpus = load_documents(DataConfig(seed=seed, held_out=0.01))
        assert not EVALUATED & {document.id for document in corpus.train}
        assert {document.id for document in corpus.held_out} > {"bisect.py", "textwrap.py"}


def test_fewer_documents_are_chosen_by_hash_and_stay_in_order(folder: Path) -> None:
    corpus = load_documents(DataConfig(path=str(folder), max_documents=12, held_out=0.3))
    names = [document.id for document in corpus.train + corpus.held_out]
    assert len(names) == 12
    assert len(corpus.held_out) <= 8, "the choice has nothing to do with being held out"
    assert sorted(names) != [f"{n:02}.txt" for n in range(12)]
    assert [document.id for document in corpus.train] == sorted(document.id for document in corpus.train)


def test_the_fingerprint_is_that_of_the_texts_their_names_and_their_parts(folder: Path) -> None:
    config = DataConfig(path=str(folder))
    before = load_documents(config).fingerprint()
    assert load_documents(config).fingerprint() == before
    assert load_documents(config.model_copy(update={"seed": 5})).fingerprint() != before
    (folder / "07.txt").write_text("changed")
    assert load_documents(config).fingerprint() != before


# -------------------------------------------------------------------------------------------------------- prepared


def test_prepared_bytes_are_the_documents(folder: Path) -> None:
    config = DataConfig(path=str(folder))
    corpus, prepared = load_documents(config), prepare(config)
    assert isinstance(prepared.tokenizer, ByteTokenizer)
    assert [bytes(prepared.train.document(n).tolist()) for n in range(len(prepared.train))] == [d.data for d in corpus.train]
    assert [(d.id, bytes(d.tokens.tolist()), d.bytes) for d in prepared.held_out] == [
        (d.id, d.data, len(d.data)) for d in corpus.held_out
    ]
    assert prepared.train.targets == prepared.train_bytes + len(corpus.train)
    assert prepared.bytes_per_target == prepared.train_bytes / prepared.train.targets
    assert prepared.fingerprint == corpus.fingerprint()


def test_bpe_is_trained_on_the_training_documents_only_saved_and_taken_up_again(folder: Path, tmp_path: Path) -> None:
    config = DataConfig(path=str(folder), tokenizer="bpe:400")
    for document in load_documents(config).held_out:
        (folder / document.id).write_text(document.id + "held-out words " * 400)
    prepared = prepare(config, folder=tmp_path / "run")
    assert all(b"held-out words" in document.data for document in prepared.held_out)
    assert len(prepared.tokenizer.encode("document 7 ")) < 6
    assert len(prepared.tokenizer.encode("held-out words ")) > 12
    assert load_tokenizer("tokenizer.json", folder=tmp_path / "run").vocabulary == prepared.tokenizer.vocabulary
    other = BPETokenizer.train(["zzzz" * 9], vocabulary=260)
    other.save(tmp_path / "run")
    assert prepare(config, folder=tmp_path / "run").tokenizer.vocabulary == other.vocabulary


def test_a_tokenizer_file_is_used_and_copied_to_the_run(folder: Path, tmp_path: Path) -> None:
    own = BPETokenizer.train(["document"], vocabulary=260)
    own.save(tmp_path)
    config = DataConfig(path=str(folder), tokenizer=str(tmp_path / "tokenizer.json"))
    assert prepare(config, folder=tmp_path / "run").tokenizer.vocabulary == own.vocabulary
    assert (tmp_path / "run" / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("spec", ["bpe", "bpe:many", "byts", "bpe:0"])
def test_a_malformed_tokenizer_setting_is_refused(folder: Path, spec: str) -> None:
    with pytest.raises(UserError, match=rf'data.tokenizer "{spec}" is none of "bytes", "bpe:N"'):
        prepare(DataConfig(path=str(folder), tokenizer=spec))
