"""docs/reference.md: every key of a recipe is in it, with a word on what it does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from latentlm.config import BackboneConfig, DataConfig, EvaluateConfig, ModelConfig, Recipe, RopeScaling, TrainConfig
from latentlm.plugins.settings import settings

PAGE = (Path(__file__).parent.parent / "docs" / "reference.md").read_text(encoding="utf-8")
SCHEMAS: dict[str, type[BaseModel]] = {
    "": Recipe,
    "model.": ModelConfig,
    "model.backbone.": BackboneConfig,
    "model.backbone.rope_scaling.": RopeScaling,
    "data.": DataConfig,
    "train.": TrainConfig,
    "train.evaluate.": EvaluateConfig,
}


@pytest.mark.parametrize("prefix", SCHEMAS)
def test_every_key_is_on_the_page_and_says_what_it_does(prefix: str) -> None:
    for setting in settings(SCHEMAS[prefix], prefix=prefix):
        if f"{setting.name}." not in SCHEMAS:
            assert f"| `{setting.name}` | " in PAGE
            assert setting.description, f"{setting.name} has no description"


@pytest.mark.parametrize(
    ("key", "row"),
    [
        ("train.min_learning_rate", "float | `0.1` | `>= 0, <= 1` |"),
        ("data.max_documents", "int or none | `null` | `>= 2` |"),
        ("model.decoder", "str or mapping | `vanilla` |"),
    ],
)
def test_a_key_has_its_type_default_and_range(key: str, row: str) -> None:
    assert f"| `{key}` | {row}" in PAGE


@pytest.mark.parametrize("call", [r"Bits\(logits", r"Codes\(logits", r"Gaussian\(mean"])
def test_the_families_say_how_they_are_made(call: str) -> None:
    assert re.search(rf"^\| `{call}.*\(B, S, ", PAGE, re.MULTILINE)
