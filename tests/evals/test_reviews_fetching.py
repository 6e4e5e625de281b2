"""Fetching the rated reviews: by hash, by name, whole or not at all. Archives are made here; no network is asked."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from latentlm.config import DataConfig
from latentlm.errors import UserError
from latentlm.training.data import load_documents
from latentlm_evals.probe import fetching
from latentlm_evals.probe.attributes import read_attribute
from latentlm_evals.probe.judges import judge_name, make_judge
from latentlm_evals.probe_cli import reviews

ROOT = "vaderSentiment-3.3.2"
TABLE = "".join(f"{number}\t{2.5 if number % 2 else -1.25}\tA {'fine' if number % 2 else 'poor'} film, {number}.\r\n"
                for number in range(1, 61))  # fmt: skip
Change = Callable[[dict[str, Any]], None]


def tar(members: dict[str, Any]) -> bytes:
    """Text or bytes are files; a TarInfo is put in as it is."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as made:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                made.addfile(content)
                continue
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))
    return file.getvalue()


def link(name: str, target: str) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.linkname = tarfile.SYMTYPE, target
    return found


SNIPPETS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
INNER = f"{ROOT}/additional_resources/hutto_ICWSM_2014.tar.gz"
LEXICON = f"{ROOT}/vaderSentiment/vader_lexicon.txt"


def members() -> dict[str, Any]:
    return {
        f"{ROOT}/LICENSE.txt": "MIT", LEXICON: "fine\t1.0\t0\t[]\npoor\t-1.0\t0\t[]\n",
        INNER: tar({"../../escaped": "out", SNIPPETS: TABLE}),
    }  # fmt: skip


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes an archive of that layout, which then is the pinned one, and sets up an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def make(change: Change = lambda members: None) -> Path:
        content = members()
        change(content)
        path = tmp_path / fetching.ARCHIVE
        path.write_bytes(tar(content))
        monkeypatch.setattr(fetching, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
        return path

    return make


def test_what_is_fetched_trains_a_model_is_an_attribute_and_has_a_judge(made: Callable[..., Path]) -> None:
    done = CliRunner().invoke(reviews, ["--archive", str(made()), "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    path = json.loads(done.stdout)["texts"]
    corpus = load_documents(DataConfig(path=path))
    assert len(corpus.train) + len(corpus.held_out) == 60
    found = read_attribute("reviews", count=1)
    assert (found.texts[0], found.ratings[0], found.threshold) == (b"A fine film, 1.", 2.5, 0.0)
    judge = make_judge(judge_name(None, found), found)
    assert [judge("a fine one"), judge("a poor one")] == [1, -1]
    folder = Path(path).parent
    assert sorted(one.name for one in folder.iterdir()) == ["LICENSE", "lexicon.tsv", "reviews.jsonl"]
    assert not list(folder.parent.parent.parent.rglob("escaped"))


def test_pip_downloads_it_once_by_its_hash(made: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    archive, calls = made().read_bytes(), []

    def pip(command: list[str], **settings: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        folder = Path(command[command.index("--dest") + 1])
        assert f"--hash=sha256:{fetching.SHA256}" in (folder / "requirements.txt").read_text(encoding="utf-8")
        (folder / fetching.ARCHIVE).write_bytes(archive)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(fetching.subprocess, "run", pip)
    assert fetching.fetch().complete
    assert fetching.fetch() == fetching.cached()
    assert len(calls) == 1
    assert {"download", "--no-deps", "--no-binary", ":all:", "--require-hashes"} <= set(calls[0])


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "reviews.jsonl.bak"])
def test_a_folder_with_anything_else_in_it_stays(made: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    archive, folder = made(), fetching.cached().folder
    folder.mkdir(parents=True)
    (folder / name).write_text("mine")
    monkeypatch.setattr(fetching, "download", lambda folder: pytest.fail("too late"))
    for options in ({"anew": True}, {"archive": archive}, {}):
        with pytest.raises(UserError, match="with nothing else in it"):
            fetching.fetch(**options)
    assert [path.name for path in folder.iterdir()] == [name]


def test_reviews_are_fetched_over_older_ones(made: Callable[..., Path]) -> None:
    archive = made()
    fetching.fetch(archive=archive).texts.write_text("old")
    assert "old" not in fetching.fetch(archive=archive).texts.read_text()


def test_without_a_network_pips_own_words_and_a_remedy(made: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    made()
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: retrying\nERROR: No matching distribution found")
    monkeypatch.setattr(fetching.subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(UserError, match=r"No matching distribution found.*--archive"):
        fetching.fetch()
    assert not fetching.cached().folder.exists()


def test_another_archive_than_the_pinned_one_is_not_opened(made: Callable[..., Path]) -> None:
    archive = made()
    archive.write_bytes(archive.read_bytes() + b"\0")
    with pytest.raises(UserError, match="it is not the file that was pinned"):
        fetching.fetch(archive=archive)
    assert not fetching.cached().folder.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (LEXICON, None, "vader_lexicon.txt' not found"),
        (LEXICON, link(LEXICON, "/etc/passwd"), "no plain file"),
        (INNER, b"no archive", "cannot be read from the archive"),
        (INNER, tar({SNIPPETS: link(SNIPPETS, "../../../etc/passwd")}), "no plain file"),
        (INNER, tar({SNIPPETS: "1\tgood\ttext"}), "line 1: not a number"),
        (INNER, tar({SNIPPETS: "1\t0.5"}), "line 1"),
    ],
)
def test_an_archive_of_another_layout_is_refused_and_leaves_nothing(
    made: Callable[..., Path], name: str, content: Any, message: str
) -> None:
    def change(members: dict[str, Any]) -> None:
        members.pop(name)
        members |= {} if content is None else {name: content}

    with pytest.raises(UserError, match=message):
        fetching.fetch(archive=made(change))
    assert not fetching.cached().folder.exists()


def test_a_member_that_is_too_large_is_not_read(made: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_MOST", len(TABLE) - 1)
    with pytest.raises(UserError, match="at most"):
        fetching.fetch(archive=made())
