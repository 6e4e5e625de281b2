"""Files are read as what they are, and written without a loss."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from latentlm.config import writing, yaml_data
from latentlm.config.reading import json_data, read_bytes, read_text
from latentlm.config.writing import atomic_folder, open_to_append, remove_leftovers, write_text
from latentlm.errors import CheckpointError, UserError

FOLDER: dict[str, Any] = {"ours": lambda there: True, "kind": "a folder of this test"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", "yes"),
        ("off", "off"),
        ("2024-01-01", "2024-01-01"),
        ("true", True),
        ("1_000", 1000),
        ("'0100'", "0100"),
        ("0", 0),
        ("0.5", 0.5),
        ("0x10", 16),
        ("~", None),
    ],
)
def test_a_plain_word_is_what_it_looks_like(text: str, value: object) -> None:
    found = yaml_data(text, source="it")
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("text", ["0100", "1:30", "-1:30:00", "1:30.5"])
def test_a_number_to_another_base_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="another number to YAML"):
        yaml_data(f"steps: {text}", source="it")


def test_aliases_may_share_but_not_multiply_or_loop() -> None:
    assert yaml_data("a: &a [1]\nb: *a\n", source="it") == {"a": [1], "b": [1]}
    many = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 8))
    with pytest.raises(UserError, match="values"):
        yaml_data(f"a0: &a0 [1]\n{many}", source="it")
    with pytest.raises(UserError, match="leads back"):
        yaml_data("a: &a [*a]", source="it")


def test_a_json_key_twice_is_refused() -> None:
    assert json_data('{"a": {"b": 1}, "b": 2}', source="it") == {"a": {"b": 1}, "b": 2}
    with pytest.raises(UserError, match='"b" is there twice'):
        json_data('{"a": {"b": 1, "b": 2}}', source="it")


def test_a_pipe_is_no_file_of_settings_but_may_hold_a_text(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match="no plain file"):
        read_text(pipe)
    assert read_bytes(pipe) == b"", "nobody writes to it"
    begun = os.open(pipe, os.O_RDWR)
    os.write(begun, b"text")
    closing = threading.Timer(0.3, os.close, [begun])
    closing.start()
    assert read_bytes(pipe) == b"text"
    closing.join()


@pytest.mark.parametrize("read", [read_text, read_bytes])
def test_too_large_a_file_is_not_read(tmp_path: Path, read: Callable[[Path], object]) -> None:
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match="larger than"):
        read(path)


# ---------------------------------------------------------------------------------------------------------- writing


def test_a_new_file_has_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "new", "x")
        with atomic_folder(tmp_path / "folder", **FOLDER) as temporary:
            (temporary / "private").touch(0o600)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new", "folder", "folder/private")]
    assert modes == [0o640, 0o750, 0o640]


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_file_is_not_written_over(tmp_path: Path, kind: str) -> None:
    path, other = tmp_path / "it", tmp_path / "other"
    other.write_text("mine")
    {"link": lambda: path.symlink_to(other), "pipe": lambda: os.mkfifo(path), "folder": path.mkdir}[kind]()
    with pytest.raises(CheckpointError, match="stays as it is"):
        write_text(path, "x")
    assert other.read_text() == "mine"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["it", "other"]


def test_only_its_own_kind_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "it"
    path.write_text("mine")
    with pytest.raises(CheckpointError, match="not a poem"):
        write_text(path, "x", ours=lambda there: there.read_text() == "ours", kind="a poem")
    path.write_text("ours")
    write_text(path, "x", ours=lambda there: there.read_text() == "ours", kind="a poem")
    assert path.read_text() == "x"


@pytest.mark.parametrize("can", [True, False])
def test_a_folder_takes_the_place_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can: bool) -> None:
    """In one step, or in two where the system has no exchange."""
    if not can:
        monkeypatch.setattr(writing, "_exchange", lambda one, other: False)
    for text in ("old", "new"):
        with atomic_folder(tmp_path / "it", **FOLDER) as temporary:
            (temporary / text).write_text(text)
    assert [path.name for path in (tmp_path / "it").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


def test_a_kill_between_two_renames_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with atomic_folder(tmp_path / "it", **FOLDER) as temporary:
        (temporary / "old").write_text("old")
    rename, calls = Path.rename, []

    def dying(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(writing, "_exchange", lambda one, other: False)
        patch.setattr(Path, "rename", dying)
        patch.setattr(writing.shutil, "rmtree", lambda path, **options: None)
        with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "it", **FOLDER) as temporary:
            (temporary / "new").write_text("new")
    assert not (tmp_path / "it").exists()
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "it", **FOLDER):
        raise RuntimeError("refused")
    assert (tmp_path / "it" / "old").read_text() == "old"


@pytest.mark.parametrize("name", [".mode", "new", "old", "a[b]*", "\U0001f642" * 62, "x" * 255, "\udcff" * 200])
def test_a_name_may_be_whatever_the_file_system_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = tmp_path / name
    write_text(path, "text")
    path.chmod(0o600)
    writing._flush(path)  # as of a library that writes private files
    assert stat.S_IMODE(path.stat().st_mode) & 0o400
    path.unlink()
    monkeypatch.setattr(writing, "_exchange", lambda one, other: False)
    for text in ("old", "new"):
        with atomic_folder(path, **FOLDER) as temporary:
            (temporary / name).write_text(text)
    assert (path / name).read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_lines_are_added_to_plain_files_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "link").symlink_to("mine")
    (tmp_path / "nowhere").symlink_to("new")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "nowhere", "pipe", "."):
        with pytest.raises(CheckpointError, match="stays as it is"):
            open_to_append(tmp_path / name)
    for text in ("one\n", "two\n"):
        with open_to_append(tmp_path / "lines") as file:
            file.write(text)
    assert (tmp_path / "lines").read_text() == "one\ntwo\n"
    assert ((tmp_path / "mine").read_text(), (tmp_path / "new").exists()) == ("mine", False)


def test_what_takes_the_place_of_a_file_that_was_looked_at_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "_check_kind", lambda *given, **options: None)
    (tmp_path / "link").symlink_to("new")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(CheckpointError, match="could not be written"):
            open_to_append(tmp_path / name)
    assert not (tmp_path / "new").exists()


def test_leftovers_are_ours_alone(tmp_path: Path) -> None:
    mine = [".notes.part", ".a.latentlm", ".a.abcdefgh.latentlm", "b.abcdefgh.latentlm"]
    for name in mine:
        (tmp_path / name).write_text("mine")
    (tmp_path / ".it.abcdefgh.latentlm.link").symlink_to(tmp_path)
    (tmp_path / ".it.abcdefg_.latentlm").mkdir()
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*mine, ".it.abcdefgh.latentlm.link"])


def test_a_file_that_was_exchanged_after_it_was_opened_changes_nothing(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from latentlm.config.tensor_files import held

    path = tmp_path / "it.safetensors"
    save_file({"a": torch.ones(2)}, path)
    with held(path) as file:
        digest = file.sha256()
        save_file({"a": torch.zeros(2)}, tmp_path / "other")
        os.replace(tmp_path / "other", path)
        with file.tensors() as opened:
            assert opened.get_tensor("a").tolist() == [1.0, 1.0]
        assert file.sha256() == digest
