"""A path that exists is a path, whatever characters it has."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from latentlm import zoo
from latentlm.config import DataConfig
from latentlm.errors import UserError, typed_path
from latentlm.interop import load_llama
from latentlm.tokenizer import BPETokenizer, load_tokenizer
from latentlm.training.data.corpora import read_corpus
from latentlm.training.loop import train
from latentlm.training.recipes import find_recipe, load_recipe
from saved_llamas import saved
from zoo_models import make_run

ODD = [
    "2024", "1e3", "on", "null", "a: b", "#x", "[x]", "{x}", "a=b", "a,b", "hf:d", "~nobody", "~", " lead", "it's", "x\\y", "*",
    "a.jsonl", "\u65e5\u672c", "line\nbreak", "owner:name", "[red]x", "\x1b[31m",
    "\U0001f600", "\x85\u2028", "x" * 100 + " " + "y" * 100,
]  # fmt: skip
RAW = os.fsdecode(b"raw\xff")  # a name that is no text in UTF-8
RECIPE = """
model: {decoder: vanilla, backbone: {width: 16, blocks: 1, heads: 2, context: 32}}
train: {steps: 1, batch: 2, device: cpu, threads: 1}
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path


def texts(name: str) -> None:
    Path(name).mkdir()
    for number in range(3):
        Path(name, f"{number}.txt").write_text(f"some text, number {number}")


@pytest.mark.parametrize("name", ODD)
def test_a_folder_of_data_is_read_and_a_run_on_it_trains_and_loads(name: str) -> None:
    texts(name)
    Path("recipe.yaml").write_text(RECIPE)
    recipe = load_recipe("recipe.yaml", [f"data.path={name}"])
    assert recipe.data.path == name
    assert [document.id for document in read_corpus(recipe.data)] == ["0.txt", "1.txt", "2.txt"]
    train(recipe, out=Path("runs", name), progress=False)
    assert zoo.load(str(Path("runs", name))).config.backbone.width == 16
    assert load_recipe(str(Path("runs", name))).data.path == name


@pytest.mark.parametrize("name", ODD)
def test_a_run_folder_is_a_model_and_a_recipe(name: str) -> None:
    make_run(Path(name))
    assert zoo.load(name).card is not None
    assert zoo.describe(name).card.name == "mine"
    Path(name, "recipe.yaml").write_text(RECIPE)
    assert find_recipe(name) == Path(name, "recipe.yaml")


def test_a_folder_of_data_may_have_a_name_that_is_no_text(place: Path) -> None:
    texts(RAW)
    Path("recipe.yaml").write_text(RECIPE)
    recipe = load_recipe("recipe.yaml", [f"data.path={RAW}"])
    train(recipe, out=Path("run"), progress=False)
    assert load_recipe("run").data.path == RAW
    with pytest.raises(UserError, match=r"raw\\udcff/run is no text in UTF-8"):
        train(recipe, out=Path(RAW, "run"), progress=False)
    shutil.copytree("run", RAW, dirs_exist_ok=True)
    if Path("/proc/self/fd").is_dir():  # the safetensors library opens no such path, but it does open files that are open
        assert zoo.load(RAW).card is not None


@pytest.mark.parametrize("name", ["my recipe.yaml", "recipe.yaml", "-x.yml", "\u65e5.yaml", "a/b c/recipe.yaml"])
def test_a_recipe_without_a_name_gets_one_from_any_file(name: str) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(RECIPE)
    wanted = {"my recipe.yaml": "my-recipe", "-x.yml": "x", "\u65e5.yaml": "run", "a/b c/recipe.yaml": "b-c"}
    assert load_recipe(name).name == wanted.get(name, Path.cwd().name)


@pytest.mark.parametrize("name", ["a,b.jsonl", "~x.TXT", "[1].txt", "hf:x.txt", "1.txt", "B.JSONL", "c.Jsonl.GZ"])
def test_a_file_of_data_is_read(name: str) -> None:
    import gzip

    line = b'{"text": "words"}\n'
    Path(name).write_bytes(gzip.compress(line) if name.endswith("GZ") else line)
    (document,) = read_corpus(DataConfig(path=name))
    assert document.data.strip() == (b"words" if "json" in name.lower() else line.strip())


def test_the_way_to_read_a_file_of_another_ending_works_for_odd_names() -> None:
    Path("d").mkdir()
    Path("d", "a,[b]*.dat").write_text("words")
    with pytest.raises(UserError, match=r"data\.pattern=") as caught:
        list(read_corpus(DataConfig(path="d/a,[b]*.dat")))
    pattern = str(caught.value).partition("data.pattern=")[2].partition(" ")[0]
    assert [document.data for document in read_corpus(DataConfig(path="d", pattern=pattern))] == [b"words"]


def test_a_source_that_is_text_or_nothing_is_taken_as_it_stands() -> None:
    def source(text: str) -> str | None:
        return load_recipe("free-tiny", [f"train.init={text}"]).train.init

    for text in ("run #2", "2024", "&a run", "~", "[run]", "true"):
        assert source(text) == text
    assert source("null") is None
    assert source('"null"') == "null"


def test_a_setting_that_is_text_is_taken_as_it_stands_and_quotes_are_taken_off() -> None:
    Path("recipe.yaml").write_text(RECIPE)

    def given(text: str) -> str:
        return load_recipe("recipe.yaml", [f"data.path={text}"]).data.path

    assert [given(text) for text in ("'a b'", '"#x"', "a b", "'half")] == ["a b", "#x", "a b", "'half"]
    assert load_recipe("recipe.yaml", ["train.steps=7", "model.decoder=vanilla"]).train.steps == 7


def test_a_home_folder_is_meant_only_where_there_is_none_of_that_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert typed_path("~/x") == tmp_path / "home" / "x"
    assert typed_path("~no-such-user/x") == Path("~no-such-user/x")
    Path("~").mkdir()
    Path("~", "x").touch()
    assert typed_path("~/x") == Path("~/x")
    for unknown in ("~no-such-user/x", "~no-such-user"):
        with pytest.raises(UserError):
            zoo.load(unknown)
        with pytest.raises(UserError):
            list(read_corpus(DataConfig(path=unknown)))


def test_a_tokenizer_lies_at_an_odd_path() -> None:
    Path("~x").mkdir()
    BPETokenizer.train(["some text"], vocabulary=258).save(Path("~x"))
    assert load_tokenizer("~x/tokenizer.json").vocabulary == 258


def test_a_name_of_the_zoo_goes_before_a_folder_of_transformers_as_before_any_folder() -> None:
    saved(Path("vanilla-tiny"))
    assert zoo.load("vanilla-tiny").card is not None
    assert zoo.load("./vanilla-tiny").config == load_llama("vanilla-tiny").config
    shutil.move("vanilla-tiny", "2024")
    assert zoo.load("2024").card is None
