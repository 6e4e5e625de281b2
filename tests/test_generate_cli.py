"""`latentlm generate`: texts and JSON, latents from texts and files, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from latentlm.cli.generate import app
from latentlm.errors import UserError
from latentlm.generation.latents import load_latents
from latentlm.interface import LatentDecoder
from latentlm.tokenizer import load_tokenizer

Run = Callable[..., str]


@pytest.fixture
def model(small: Callable[..., LatentDecoder], monkeypatch: pytest.MonkeyPatch) -> LatentDecoder:
    """What the command loads under any name."""
    import latentlm

    model = small("free", vocabulary=257, tie_embeddings=False, init_std=0.4)
    model.tokenizer = load_tokenizer("bytes")
    monkeypatch.setattr(latentlm, "zoo", SimpleNamespace(load=lambda name, *, device: model), raising=False)
    return model


@pytest.fixture
def run(model: LatentDecoder) -> Run:
    """Runs the command and returns what it printed; its errors come through."""

    def call(*arguments: str) -> str:
        return CliRunner().invoke(app, ["tiny", *arguments], catch_exceptions=False).output

    return call


def test_prompt_and_continuation_are_printed(run: Run, model: LatentDecoder) -> None:
    text = model.generate(["def "], max_tokens=6, seed=3)[0].text
    assert run("def ", "--max-tokens", "6", "--seed", "3") == f"def {text}\n"


def test_json_has_every_sample_of_every_prompt(run: Run) -> None:
    rows = json.loads(run("a", "b", "--samples", "2", "--max-tokens", "3", "--top-k", "5", "--json"))
    assert [(row["prompt"], row["sample"]) for row in rows] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert all(row["finish"] == "length" and len(row["tokens"]) == 3 for row in rows)


def test_saved_latents_reproduce_the_text(run: Run, model: LatentDecoder, tmp_path: Path) -> None:
    file = str(tmp_path / "z.safetensors")
    first = run("ab", "--temperature", "0", "--max-tokens", "12", "--save-latents", file)
    again = run("ab", "--temperature", "0", "--max-tokens", "12", "--load-latents", file, "--seed", "9")
    assert again == first
    assert run("ab", "--temperature", "0", "--max-tokens", "12", "--seed", "9") != first
    assert load_latents(file, model=model)[0].value.shape == (1, 3 + 11, 4)


def test_latents_come_from_a_text_or_the_text_of_a_file(run: Run, model: LatentDecoder, tmp_path: Path) -> None:
    (tmp_path / "source.txt").write_text("text to encode")
    settings = ("--temperature", "0", "--max-tokens", "12")
    by_text = run("te", *settings, "--latents-from", "text to encode")
    by_file = run("te", *settings, "--latents-from", str(tmp_path / "source.txt"))
    expected = model.generate(["te"], max_tokens=12, temperature=0, latents=model.encode("text to encode"))[0].text
    assert by_text == by_file == f"te{expected}\n"
    (tmp_path / "source.txt").write_bytes(b"caf\xe9")  # no UTF-8
    expected = model.generate(["te"], max_tokens=12, temperature=0, latents=model.encode([256, *b"caf\xe9"]))[0].text
    assert run("te", *settings, "--latents-from", str(tmp_path / "source.txt")) == f"te{expected}\n"


def test_stop_strings_may_be_typed_with_escapes(run: Run, model: LatentDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: dict[str, object] = {}
    monkeypatch.setattr(type(model), "generate", lambda self, prompts, **settings: heard.update(settings) or [])
    with pytest.raises(ValueError):  # nothing generated, so there is nothing to pair with the prompts
        run("a", "--stop", "\\n\\n", "--stop", "x")
    assert heard["stop"] == ["\n\n", "x"]


def test_contradictory_latents_are_refused(run: Run) -> None:
    with pytest.raises(UserError, match="Give one of"):
        run("a", "--latents", "shared", "--latents-from", "b")
    with pytest.raises(UserError, match="--latents-from"):
        run("a", "--latents", "some text")
    with pytest.raises(UserError, match="does not exist"):
        run("a", "--load-latents", "missing.safetensors")
