"""lm-eval's `--use_cache` database never gives one sample to several repeats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM

from byte_models import byte_decoder
from latentlm.interface import LatentDecoder
from latentlm_evals.adapter import LatentLM

GREEDY = {"until": ["\n\n\n"], "do_sample": False, "max_gen_toks": 16}


def repeated(model: LatentDecoder, database: Path, settings: dict[str, Any], repeats: int = 8) -> list[str]:
    """The answers to one question asked several times, as `lm_eval --use_cache` asks it."""
    lm = CachingLM(LatentLM(model), str(database))
    question = Instance(request_type="generate_until", doc={}, arguments=("Question: how many?\nAnswer:", settings), idx=0)
    try:
        return [str(text) for text in lm.generate_until([question] * repeats)]
    finally:
        lm.dbdict.close()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("free", GREEDY),
        ("vanilla", {**GREEDY, "do_sample": True}),
        ("vanilla", {"until": [], "max_gen_toks": 16, "temperature": 1}),
    ],
    ids=["latents", "do_sample", "a bare temperature"],
)
def test_repeats_of_what_is_drawn_are_the_same_samples_with_and_without_a_filled_cache(
    kind: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = byte_decoder(kind)
    alone = repeated(model, tmp_path / "one.db", settings, repeats=1)
    first = repeated(model, tmp_path / "two.db", settings)
    assert len(set(first)) > 4
    assert first[:1] == alone
    # Fewer repeats before give no more than these.
    assert repeated(model, tmp_path / "one.db", settings) == first
    monkeypatch.setattr("latentlm_evals.writing.generate", lambda *_, **__: pytest.fail("asked the model again"))
    assert repeated(model, tmp_path / "two.db", settings) == first


def test_the_one_text_of_greedy_decoding_without_latents_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = byte_decoder("vanilla")
    first = repeated(model, tmp_path / "a.db", GREEDY, repeats=2)
    assert first[0] == first[1]
    monkeypatch.setattr("latentlm_evals.writing.generate", lambda *_, **__: pytest.fail("asked the model again"))
    assert repeated(model, tmp_path / "a.db", GREEDY, repeats=3) == [first[0]] * 3
