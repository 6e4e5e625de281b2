"""What parts declare is looked at when a decoder is built: a field that is missing, mistyped, or does not fit is named together
with its part."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from conformance.broken import offered, right
from latentlm import plugins
from latentlm.composed import build
from latentlm.config import ModelConfig, parse
from latentlm.errors import UserError
from latentlm.testing import Subject
from latentlm.testing.subject import STRUCTURAL


@pytest.fixture(scope="module", autouse=True)
def broken() -> Iterator[None]:
    """The parts, in this process."""
    offered.register()
    yield
    offered.unregister()


def with_field(socket: str, field: str, value: Any) -> type:
    """The right part of a socket, called Wrong, with one field set after everything else."""
    base: Any = {"encoder": right.WindowBits, "prior": right.LearnedBits, "injection": right.LinearBits}[socket]

    class Wrong(base):
        def __init__(self, config: Any, shape: Any) -> None:
            super().__init__(config, shape)
            setattr(self, field, value)

    return Wrong


def without_field(socket: str, field: str) -> type:
    """The right part of a socket, called Wrong, that does not declare one field."""
    made = with_field(socket, "spare_field", None)
    base: Any = made

    class Wrong(base):
        def __init__(self, config: Any, shape: Any) -> None:
            super().__init__(config, shape)
            vars(self).pop(field, None)

        def __getattribute__(self, name: str) -> Any:
            if name == field:
                raise AttributeError(name)
            return super().__getattribute__(name)

    return Wrong


def refusal(socket: str, part: type, *, above: bool = False) -> str:
    """What a decoder of two latents with the part is refused with."""
    plugins.register(socket, "wrong_here", part)
    names = {"encoder": "right_encoder", "prior": "right_prior", "injection": "right_injection"}
    spec = {"name": "wrong_here", **({"above": ["upper"]} if above else {})}
    latents = {"upper": {"dims": 2, **names}, "lower": {"dims": 2, **names, socket: spec}}
    try:
        with pytest.raises(UserError) as caught:
            build(parse(ModelConfig, {"decoder": "composed", "backbone": STRUCTURAL, "latents": latents}, source="test"))
    finally:
        plugins.unregister(socket, "wrong_here")
    return str(caught.value)


MISSING = [
    ("encoder", "taps"), ("encoder", "sees_future"), ("injection", "blocks"), ("injection", "slots"),
]  # fmt: skip


@pytest.mark.parametrize(("socket", "field"), MISSING)
def test_a_field_that_is_missing(socket: str, field: str) -> None:
    said = refusal(socket, without_field(socket, field))
    assert f"Wrong, the {socket} of lower, does not declare `{field}`" in said


WRONG = [
    ("encoder", "taps", 2), ("encoder", "sees_future", "yes"), ("encoder", "family", ("bits",)),
    ("prior", "taps", ("2",)), ("prior", "autoregressive", None), ("prior", "granularities", "token"),
    ("injection", "blocks", ()), ("injection", "blocks", 2), ("injection", "slots", "residual"),
    ("injection", "reads_above", 1),
]  # fmt: skip


@pytest.mark.parametrize(("socket", "field", "value"), WRONG)
def test_a_field_of_another_kind(socket: str, field: str, value: Any) -> None:
    said = refusal(socket, with_field(socket, field, value))
    assert f"Wrong, the {socket} of lower, declares `{field}` as {value!r}" in said


UNFIT = [
    ("injection", "blocks", (4,), "Wrong injects into blocks"),
    ("injection", "slots", ("residual", "no_such_slot"), "Wrong needs the condition slots"),
    ("prior", "family", "real", "do not agree on the kind of latents, their `family`"),
    ("encoder", "taps", (3,), "Wrong reads taps"),
    ("prior", "granularities", ("document",), "Wrong does not serve granularity"),
]


@pytest.mark.parametrize(("socket", "field", "value", "words"), UNFIT)
def test_a_field_that_does_not_fit(socket: str, field: str, value: Any, words: str) -> None:
    said = refusal(socket, with_field(socket, field, value))
    assert words in said
    assert "Wrong" in said


def test_above_needs_a_part_that_reads_it() -> None:
    said = refusal("prior", with_field("prior", "reads_above", False), above=True)
    assert "Wrong cannot read other latents (`reads_above`), but its `above` names upper" in said


def test_the_right_parts_are_taken() -> None:
    assert list(Subject("right").model.latents) == ["z"]
