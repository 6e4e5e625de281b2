"""The page about KL schedules names every one of them, with the names of its settings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from latentlm import plugins

PAGE = (Path(__file__).parent.parent / "docs" / "schedules.md").read_text(encoding="utf-8")
NAMES = sorted(plugins.names("kl_schedule"))


@pytest.mark.parametrize("name", NAMES)
def test_the_page_has_the_schedule_and_its_settings(name: str) -> None:
    row = re.findall(rf"^\| `{name}` \|.*$", PAGE, flags=re.MULTILINE)[0]  # the first table; others have measurements
    fields = plugins.get("kl_schedule", name).Config.model_fields
    named = set(re.findall(r"`([a-z_]+)[^`]*`", row.split("|")[-2]))
    assert named == set(fields)
