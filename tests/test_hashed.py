"""Records that carry a hash of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from latentlm.config.hashed import hash_record, read_hashed, with_hash
from latentlm.errors import UserError


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    record = {"step": 3, "names": ["a\udcff", "é"], "nested": {"x": [1.5, None, True]}}
    (tmp_path / "a.json").write_text(with_hash(record))
    assert read_hashed(tmp_path / "a.json") == record


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (json.dumps({"step": 4, "sha256": hash_record({"step": 3})}), "has been changed"),
        (json.dumps({"step": 3}), "no record with a hash"),
        ("[1]", "no record with a hash"),
        ("{", "not readable as JSON"),
        ('{"sha256": "x", "a": ' + "[" * 480 + "]" * 480 + "}", "has been changed|nested too deep"),
        ('{"sha256": "x", "a": ' + "[" * 990 + "]" * 990 + "}", "has been changed|nested too deep"),
    ],
)
def test_what_was_not_is_refused(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=says):
        read_hashed(tmp_path / "a.json")
