"""Where cards are found, how names are resolved, and how a run gets onto a shelf."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from latentlm import zoo
from latentlm.errors import CheckpointError, UserError
from latentlm.zoo import shelves
from latentlm.zoo.weights import weights_of
from zoo_models import architecture, edit_card, make_run

SHIPPED = ["free-1.5b", "free-8b", "free-tiny", "vanilla-1.5b", "vanilla-8b", "vanilla-tiny"]


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's shelf, empty; returns it."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("LATENTLM_ZOO_PATH", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data" / "latentlm" / "zoo"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    make_run(tmp_path / "run")
    return tmp_path / "run"


def names(pattern: str = "*") -> list[str]:
    return [card.name for card in zoo.list(pattern)]


# ------------------------------------------------------------------------------------------------------ looking


def test_the_shipped_cards_are_there() -> None:
    assert set(SHIPPED) <= set(names())


def test_wildcards_choose_and_the_list_is_sorted() -> None:
    assert names("*-8b") == ["free-8b", "vanilla-8b"]
    assert names("nothing-*") == []


def test_folders_of_the_zoo_path_are_shelves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    architecture(tmp_path / "a", name="first")
    make_run(tmp_path / "b" / "anything")
    monkeypatch.setenv("LATENTLM_ZOO_PATH", os.pathsep.join([str(tmp_path / "a"), str(tmp_path / "b"), "/nowhere"]))
    assert {"first", "mine"} <= set(names())
    assert zoo.load("mine").card == zoo.list("mine")[0]


def test_one_name_on_two_shelves_is_an_error_with_both_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [architecture(tmp_path / folder, name="twice") for folder in ("a", "b")]
    monkeypatch.setenv("LATENTLM_ZOO_PATH", os.pathsep.join(str(file.parent) for file in files))
    with pytest.raises(UserError, match='2 cards are called "twice"') as caught:
        zoo.describe("twice")
    assert all(str(file) in str(caught.value) for file in files)
    with pytest.warns(shelves.CardWarning, match='2 cards are called "twice"'):
        assert set(names()) & {"free-8b", "twice"} == {"free-8b"}
    assert zoo.describe("free-8b").card.name == "free-8b"  # the others still work
    assert zoo.describe(files[0]).card.name == "twice"


def test_one_shelf_named_twice_is_one_shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = architecture(tmp_path / "a", name="once").parent
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.setenv("LATENTLM_ZOO_PATH", os.pathsep.join([str(folder), str(folder), str(tmp_path / "link")]))
    assert names("once") == ["once"]


def test_a_broken_card_costs_a_warning_and_nothing_else(own: Path) -> None:
    own.mkdir(parents=True)
    (own / "broken.yaml").write_text("name: [")
    (own / "other.yaml").write_text("steps: 3\n")
    with pytest.warns(shelves.CardWarning) as seen:
        assert set(SHIPPED) <= set(names())
    assert len(seen) == 2
    assert "broken.yaml is not readable as YAML" in str(seen[0].message)


def test_a_name_goes_before_a_folder_of_that_name(tmp_path: Path) -> None:
    make_run(tmp_path / "free-8b")
    assert shelves.find("free-8b").card.name == "free-8b"
    assert shelves.find("./free-8b").card.name == "mine"
    assert shelves.find(Path("free-8b")).card.name == "mine"


def test_cards_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert set(SHIPPED) <= set(names())


# ------------------------------------------------------------------------------------------------------ adding


def test_an_added_run_is_found_by_name_and_loads_the_same_weights(run: Path, own: Path) -> None:
    entry = shelves.add_run(run)
    assert entry.path == own / "mine" / "card.yaml"
    added, trained = zoo.load("mine", weights="required"), zoo.load(run)
    assert all((weights_of(added)[name] == tensor).all() for name, tensor in weights_of(trained).items())
    assert added.card is not None
    assert added.card.training == {"steps": 3}
    assert (own / "mine" / "recipe.yaml").is_file()


def test_an_added_run_may_have_another_name_and_shelf(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelves.add_run(run, name="yours", shelf=tmp_path / "shelf")
    assert names("yours") == []
    monkeypatch.setenv("LATENTLM_ZOO_PATH", str(tmp_path / "shelf"))
    assert names("yours") == ["yours"]


def test_an_added_run_keeps_its_tokenizer(tmp_path: Path) -> None:
    from latentlm.tokenizer import BPETokenizer
    from zoo_models import small_recipe

    tokenizer = BPETokenizer.train(["low lower lowest"] * 4, vocabulary=260)
    make_run(tmp_path / "run", recipe=small_recipe(vocabulary=tokenizer.vocabulary), tokenizer="tokenizer.json")
    tokenizer.save(tmp_path / "run")
    shelves.add_run(tmp_path / "run")
    loaded = zoo.load("mine").tokenizer
    assert loaded is not None
    assert loaded.encode("lowest") == tokenizer.encode("lowest")


@pytest.mark.parametrize("name", ["free-8b", "mine"])
def test_a_name_that_is_taken_is_refused(run: Path, name: str) -> None:
    shelves.add_run(run)
    with pytest.raises(UserError, match=f'There is a model called "{name}"'):
        shelves.add_run(run, name=name)


def test_a_name_that_is_no_name_is_refused(run: Path, own: Path) -> None:
    with pytest.raises(UserError, match="is no name"):
        shelves.add_run(run, name="../mine")
    assert not own.exists()


def test_a_damaged_run_is_not_added(run: Path, own: Path) -> None:
    (run / "model.safetensors").write_bytes(b"x" * 10)
    with pytest.raises(CheckpointError, match="truncated"):
        shelves.add_run(run)
    assert not own.exists()


def test_an_unfinished_run_is_not_added(run: Path) -> None:
    (run / "card.yaml").unlink()
    with pytest.raises(UserError, match="not finished"):
        shelves.add_run(run)


def test_an_architecture_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished run"):
        shelves.add_run(architecture(tmp_path / "a", name="plain"))


def test_a_shelf_that_cannot_be_written_to_is_named(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot add mine to .*file/shelf.*Choose another folder"):
        shelves.add_run(run, shelf=tmp_path / "file" / "shelf")


def test_a_full_disk_leaves_nothing_behind(run: Path, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shelves.shutil, "copyfile", full)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="cannot add mine"):
        shelves.add_run(run)
    assert list(own.iterdir()) == []
    assert "mine" not in names()


def test_replacing_keeps_what_the_run_does_not_know(run: Path, own: Path) -> None:
    old = architecture(own, name="mine")
    shelves.add_run(run, replace=True)
    card = zoo.list("mine")[0]
    assert not old.exists()
    assert (card.status, card.baseline) == ("trained", "vanilla-1.5b")
    assert card.paper is not None
    make_run(own.parent / "later")
    edit_card(own.parent / "later", training={"steps": 9})
    shelves.add_run(own.parent / "later", replace=True)
    assert (zoo.list("mine")[0].training, zoo.list("mine")[0].baseline) == ({"steps": 9}, "vanilla-1.5b")


@pytest.mark.parametrize("claim", ["tokenizer", "weights"])
def test_what_a_card_calls_its_own_is_not_therefore_replaced(run: Path, own: Path, claim: str) -> None:
    shelves.add_run(run)
    folder = own / "mine"
    (folder / "thesis.pdf").write_text("mine", encoding="utf-8")
    weights = {"uri": "thesis.pdf", "sha256": "a" * 64, "size": 4}
    edit_card(folder, **({"tokenizer": "thesis.pdf"} if claim == "tokenizer" else {"weights": weights}))
    with pytest.raises(UserError):
        shelves.add_run(run, replace=True)
    assert (folder / "thesis.pdf").read_text(encoding="utf-8") == "mine"


def test_a_card_of_another_shelf_is_never_replaced(run: Path) -> None:
    with pytest.raises(UserError, match=r'called "free-8b" already, in .*cards/free-8b\.yaml'):
        shelves.add_run(run, name="free-8b", replace=True)
