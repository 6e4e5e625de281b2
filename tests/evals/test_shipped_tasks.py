"""The shipped tasks: lm-eval reads them, models of 256 bytes see whole items, and training never saw the text."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from latentlm.config import DataConfig
from latentlm.training.data import EVALUATED, load_documents
from latentlm_evals.evaluation import task_manager
from latentlm_evals.suites import DEFAULT_SUITE, SUITE_TASKS, task_path

SHORT = {name.removeprefix("latentlm_") for name in SUITE_TASKS}


def items(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (task_path() / f"{name}.jsonl").read_text().splitlines()]


def sources() -> set[str]:
    lines = (task_path() / "sources.txt").read_text().splitlines()
    return {line for line in lines if line and not line.startswith("#")}


@pytest.fixture(scope="module")
def loaded() -> dict[str, Any]:
    """The tasks as lm-eval loads them by the name of the suite."""
    return dict(task_manager([DEFAULT_SUITE]).load([DEFAULT_SUITE])["tasks"])


def test_the_suite_is_the_shipped_tasks(loaded: dict[str, Any]) -> None:
    assert sorted(loaded) == sorted(SUITE_TASKS)


@pytest.mark.parametrize("name", sorted(SHORT))
def test_items_are_100_to_200_and_all_different(loaded: dict[str, Any], name: str) -> None:
    read = items(name)
    assert 100 <= len(read) <= 200
    assert len({json.dumps(item) for item in read}) == len(read)
    metadata = loaded[f"latentlm_{name}"].config.metadata
    assert metadata["items"] == len(read) == len(loaded[f"latentlm_{name}"].dataset["test"])
    assert all(0 < chance <= 8 for chance in metadata["chance"].values())


def test_everything_fits_250_bytes() -> None:
    for item in items("next_line"):
        assert len(item["context"]) + max(map(len, item["choices"])) <= 250
    assert max(len(item["text"]) for item in items("heldout")) <= 250
    for name in ("copy", "brackets"):
        assert max(len(item["context"]) + len(item["answer"]) for item in items(name)) <= 230


def test_options_differ_and_right_ones_stand_in_every_place_and_are_no_longer_than_wrong_ones() -> None:
    read = items("next_line")
    assert all(len(set(item["choices"])) == 4 for item in read)
    places = Counter(item["answer"] for item in read)
    assert min(places[place] for place in range(4)) > len(read) / 8
    for extreme in (max, min):  # choosing by length alone is no better than guessing
        hits = sum(len(item["choices"][item["answer"]]) == extreme(map(len, item["choices"])) for item in read)
        assert hits < len(read) * 0.40


def test_the_request_to_lm_eval_is_the_text_as_it_stood_in_the_source(loaded: dict[str, Any]) -> None:
    task = loaded["latentlm_next_line"]
    task.set_config("num_fewshot", 0)
    task.build_all_requests(limit=3)
    for number, instance in enumerate(task.instances):
        item = items("next_line")[number // 4]
        assert instance.args == (item["context"], item["choices"][number % 4])


def test_generated_answers_are_right() -> None:
    closing = str.maketrans("([{", ")]}")
    for item in items("brackets"):
        opened = [mark for mark in item["context"].rpartition("=")[2] if mark in "([{"]
        assert item["answer"] == "".join(reversed(opened)).translate(closing)
    for item in items("copy"):
        assert item["context"].endswith(f"self.{item['answer']} =")
        assert f", {item['answer']})" in item["context"]


def test_the_training_corpus_holds_the_sources_out() -> None:
    assert sources() == EVALUATED
    corpus = load_documents(DataConfig())
    assert {document.id for document in corpus.held_out} >= EVALUATED
    training = b"\0".join(document.data for document in corpus.train)
    assert not [item for item in items("heldout") if item["text"].encode() in training]
    assert not [item for item in items("next_line") if (item["context"] + item["choices"][item["answer"]]).encode() in training]
