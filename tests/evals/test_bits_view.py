"""A look at bits: what is shown is what the model computes, and nothing of a text reaches the page unescaped."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from byte_models import byte_decoder
from latentlm.interface import Batch, Latent, Noise
from latentlm_evals.bits_html import section
from latentlm_evals.bits_view import BitShown, view

TEXT = "def add(a, b):\n    return a + b\n"


@torch.no_grad()
def test_chances_and_flips_are_the_models_own() -> None:
    model = byte_decoder("free")
    tokens = [256, *TEXT.encode()]
    found = view(model, tokens, prompt="def ", length=8)
    assert found is not None
    context = model.context(Batch.of([tokens[:-1]], [tokens[1:]]))
    drawn = model.infer(context, Noise.keyed(0, ["bits"]))
    chances = model.posterior(context, "z", drawn).expected()
    assert chances is not None
    first = found.bits[0]
    assert first.chances == pytest.approx(chances[0, :, first.number].tolist())
    assert [bit.variance for bit in found.bits] == sorted((bit.variance for bit in found.bits), reverse=True)
    flip = found.flips[0]
    place = next(p for p in range(len(tokens) - 1) if model.tokenizer.decode(tokens[max(1, p - 28) : p + 1]) == flip.before)  # type: ignore[union-attr]
    under = []
    for value in (0.0, 1.0):
        changed = drawn["z"].value.clone()
        changed[0, place, first.number] = value
        under.append(model.logits(model.hidden(context, Latent(changed)))[0, place].softmax(-1))
    assert flip.distance == pytest.approx(float(0.5 * (under[0] - under[1]).abs().sum()), abs=1e-5)
    assert flip.distance > 0.01, "this decoder's bits matter"
    assert flip.under[1][0][1] == pytest.approx(float(under[1].max()), abs=1e-5)


def test_what_is_written_differs_by_the_bit_alone() -> None:
    model = byte_decoder("free")
    found = view(model, [256, *TEXT.encode()], prompt="def ", length=12)
    again = view(model, [256, *TEXT.encode()], prompt="def ", length=12)
    assert found is not None
    assert found == again
    assert found.written[0] != found.written[1]
    deaf = byte_decoder("free")
    for parameter in deaf.injection.parameters():  # type: ignore[union-attr]
        torch.nn.init.zeros_(parameter)
    silent = view(deaf, [256, *TEXT.encode()], prompt="def ", length=12)
    assert silent is not None
    assert silent.written[0] == silent.written[1]
    assert {flip.distance for flip in silent.flips} == {0.0}


def test_a_decoder_without_bits_has_nothing_to_look_at() -> None:
    assert view(byte_decoder("vanilla"), [256, *TEXT.encode()], prompt="def ") is None


def test_a_page_shows_text_as_text() -> None:
    found = view(byte_decoder("free"), [256, *b"<script>alert(1)</script>" * 2], prompt="<b>", length=4)
    assert found is not None
    bits = [BitShown(0, 0.1, [0.9] * len(found.pieces))]
    html = section("<i>name", replace(found, bits=bits))
    assert "<script" not in html
    assert "<i>name" not in html
    assert "&lt;script&gt;alert" in html
    assert html.count("<tr>") == 1 + len(found.flips)
