"""What parts declare is looked at when a decoder is built: a field that is missing, mistyped, or does not fit is named together
with its part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from conformance.broken import offered, right
from latentlm import plugins
from latentlm.composed import build, complete, fill_granularities
from latentlm.config import ModelConfig, Strict, parse
from latentlm.errors import PluginError, UserError
from latentlm.interface import Batch, Condition, Granularity, KLSchedule, Noise, begins_now, count_sites
from latentlm.testing import Subject
from latentlm.testing.subject import STRUCTURAL
from latentlm.tokenizer import ByteTokenizer


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
    assert f'lower.{socket} "wrong_here" (Wrong) does not declare `{field}`' in said


WRONG = [
    ("encoder", "taps", 2), ("encoder", "sees_future", "yes"), ("encoder", "family", ("bits",)),
    ("prior", "taps", ("2",)), ("prior", "autoregressive", None), ("prior", "granularities", "token"),
    ("injection", "blocks", ()), ("injection", "blocks", 2), ("injection", "slots", "residual"),
    ("injection", "reads_above", 1),
]  # fmt: skip


@pytest.mark.parametrize(("socket", "field", "value"), WRONG)
def test_a_field_of_another_kind(socket: str, field: str, value: Any) -> None:
    said = refusal(socket, with_field(socket, field, value))
    assert f'lower.{socket} "wrong_here" (Wrong) declares `{field}` as {value!r}' in said


UNFIT = [
    ("injection", "blocks", (4,), "injects into blocks"),
    ("injection", "slots", ("residual", "no_such_slot"), "needs the condition slots"),
    ("prior", "family", "real", "do not agree on the kind of latents, their `family`"),
    ("encoder", "taps", (3,), "reads taps"),
    ("prior", "granularities", ("document",), "does not serve granularity"),
]


@pytest.mark.parametrize(("socket", "field", "value", "words"), UNFIT)
def test_a_field_that_does_not_fit(socket: str, field: str, value: Any, words: str) -> None:
    said = refusal(socket, with_field(socket, field, value))
    assert words in said
    assert f'lower.{socket} "wrong_here"' in said


def test_above_needs_a_part_that_reads_it() -> None:
    said = refusal("prior", with_field("prior", "reads_above", False), above=True)
    assert 'lower.prior "wrong_here" cannot read other latents (`reads_above`), but its `above` names upper' in said


def test_the_right_parts_are_taken() -> None:
    assert list(Subject("right").model.latents) == ["z"]


# ------------------------------------------------------------------------------------------------ left over of version 1


SEE = 'See docs/plugins.md, "From version 1 to version 2"'


def left(socket: str, **own: Any) -> str:
    """What a right part that has something of version 1 is refused with."""
    base: Any = {"encoder": right.WindowBits, "prior": right.LearnedBits, "injection": right.LinearBits}[socket]
    said = refusal(socket, type("Wrong", (base,), own))
    assert SEE in said
    assert f'lower.{socket} "wrong_here" (Wrong)' in said
    return said


@pytest.mark.parametrize("socket", ["encoder", "prior", "injection"])
@pytest.mark.parametrize(
    ("old", "value", "new"),
    [
        ("latents", "real", "family"),
        ("surrogate_operations", lambda self: 3.0, "operations()"),
        ("fitting_passes", 2.0, "operations()"),
    ],
)
def test_a_word_of_version_1_is_refused_with_its_new_one(socket: str, old: str, value: Any, new: str) -> None:
    assert f"has `{old}`, which version 2 of the contracts calls `{new}`" in left(socket, **{old: value})


def test_sites_of_an_injection_are_its_blocks() -> None:
    assert "has `sites`, which version 2 of the contracts calls `blocks`" in left("injection", sites=(0,))


METHODS = [
    ("prior", "step", lambda self, state, taps, previous, starts: None, "state, taps, previous, starts, above"),
    ("encoder", "advance", lambda self: None, "step"),
    ("injection", "bind", lambda self: None, "parts"),
    ("prior", "bind", lambda self, encoder: None, "parts"),
    ("prior", "operations", lambda self, shape: None, ""),
    ("encoder", "forward", lambda self: None, "context"),
    ("encoder", "auxiliary", lambda self, latent, context: None, "latent, context, batch"),
    ("encoder", "init_weights", lambda self: None, "generator"),
    ("prior", "forward", lambda self, context: None, "context, latent"),
    ("prior", "start", lambda self, context: None, "context, latent"),
    ("injection", "forward", lambda self, latent: None, "latent, context"),
]  # fmt: skip


@pytest.mark.parametrize(("socket", "method", "function", "wanted"), METHODS)
def test_a_method_of_version_1_is_refused(socket: str, method: str, function: Any, wanted: str) -> None:
    said = left(socket, **{method: function})
    assert f"has `{method}(self" in said
    assert f"called as `{method}(self{', ' if wanted else ''}{wanted})`" in said


def test_a_word_that_means_something_else_is_no_word_of_version_1() -> None:
    class Fine(right.LinearBits):
        sites = "places"

        def __init__(self, config: Any, shape: Any) -> None:
            super().__init__(config, shape)
            self.latents = torch.nn.Parameter(torch.zeros(3))

        def init_weights(self, generator: Any = None) -> None:
            super().init_weights(generator)
            self.latents.data.zero_()

        def advance(self, step: int, *, more: int = 0) -> None:
            pass

        def bind(self, parts: Any, **more: Any) -> None:
            pass

    assert built("injection", Fine)


class Half(KLSchedule):
    """Costs nothing."""

    Config = Strict

    def penalty(self, kl: Any, reconstruction: Any, site_mask: Any, target_mask: Any, *, step: int) -> Any:
        return reconstruction.sum() * 0.0, {}


def test_a_schedule_is_looked_at_as_other_parts_are() -> None:
    old = type("Old", (Half,), {"advance": lambda self: None})
    with pytest.raises(UserError, match=r"kl_schedule \"wrong_here\" \(Old\) has `advance\(self\)`.*`advance\(self, step\)`"):
        built("kl_schedule", old)
    costs = {"penalty": lambda self, kl, reconstruction, site_mask, target_mask: None}
    with pytest.raises(UserError, match=r"\(Costs\) has `penalty\(self, kl, .*, which is called as .*_mask, step=step\)`"):
        built("kl_schedule", type("Costs", (Half,), costs))
    with pytest.raises(UserError, match=r"\(State\) has `load_state_dict\(self\)`.*`load_state_dict\(self, state\)`"):
        built("kl_schedule", type("State", (Half,), {"load_state_dict": lambda self: None}))
    with pytest.raises(UserError, match="declares `steers_reconstruction` as 'yes'"):
        built("kl_schedule", type("Yes", (Half,), {"steers_reconstruction": "yes"}))
    assert built("kl_schedule", Half)


def built(socket: str, part: type, **settings: Any) -> Any:
    """The right decoder with a part exchanged."""
    plugins.register(socket, "wrong_here", part)
    try:
        return build(Subject("right", model={socket: {"name": "wrong_here", **settings}}).config)
    finally:
        plugins.unregister(socket, "wrong_here")


# --------------------------------------------------------------------------------------------------------- granularities


class AtZero(Granularity):
    """A site at every token 0."""

    Config = Strict

    def begins(self, tokens: Any, positions: Any, documents: Any) -> Any:
        return (tokens == 0) | (positions == 0)


@pytest.mark.parametrize("lookback", ["x", -1, None, 1.0, True])
def test_a_lookback_is_a_count(lookback: Any) -> None:
    with pytest.raises(UserError, match=r'granularity "wrong_here" \(Wrong\) declares `lookback` as .*0 or more'):
        built("granularity", type("Wrong", (AtZero,), {"lookback": lookback}))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda found: found.long(), r"int64 of shape \(2, 4\)"),
        (lambda found: found[0], r"bool of shape \(4,\)"),
        (lambda found: None, "NoneType"),
        (lambda found: found.tolist(), "list"),
    ],
)
def test_where_sites_begin_is_flags_of_the_tokens_shape(answer: Any, said: str) -> None:
    wrong = type("Wrong", (AtZero,), {"begins": lambda self, *given: answer(AtZero.begins(self, *given))})
    with pytest.raises(UserError, match=rf'granularity "wrong_here": `begins` returned {said} for tokens of shape \(2, 4\)'):
        built("granularity", wrong)


def refusing(*given: Any) -> None:
    raise ValueError("I would rather not")


@pytest.mark.parametrize("method", ["__init__", "begins"])
def test_what_a_granularity_has_against_its_settings_names_it(method: str) -> None:
    with pytest.raises(UserError, match='granularity "wrong_here": I would rather not'):
        built("granularity", type("Wrong", (AtZero,), {method: refusing}))


def test_an_encoder_that_is_fitted_is_called_with_its_objective() -> None:
    said = left("encoder", needs_objective=True, forward=lambda self, context: None)
    assert "`forward(self, context)`, which is called as `forward(self, context, objective)`" in said


def test_a_granularity_that_fails_on_some_tokens_is_named() -> None:
    table = torch.tensor([True, False, True, False])
    wrong: Any = type("Short", (AtZero,), {"begins": lambda self, tokens, positions, documents: table[tokens]})
    short, message = wrong(Strict()), "the granularity Short cannot say where sites begin in this text: IndexError"
    assert begins_now(short, torch.tensor([[2]]), torch.tensor([1])).item()
    with pytest.raises(PluginError, match=message):
        begins_now(short, torch.tensor([[9]]), torch.tensor([1]))
    with pytest.raises(PluginError, match=message):
        count_sites(short, [1, 2, 9])


@pytest.mark.parametrize(
    ("fill", "said"), [(refusing, "I would rather not"), (lambda *given: None, "`fill` returned NoneType")]
)
def test_what_a_granularity_has_against_a_tokenizer_names_it_and_its_latent(fill: Any, said: str) -> None:
    plugins.register("granularity", "wrong_here", type("Wrong", (AtZero,), {"fill": classmethod(fill)}))
    latents = {"bits": {"like": "free", "dims": 2, "granularity": "wrong_here"}}
    config = parse(ModelConfig, {"decoder": "composed", "backbone": STRUCTURAL, "latents": latents}, source="test")
    try:
        with pytest.raises(UserError, match=f'bits.granularity "wrong_here": {said}'):
            fill_granularities(complete(config), ByteTokenizer())
    finally:
        plugins.unregister("granularity", "wrong_here")


# ------------------------------------------------------------------------------------------------------- effects declared


def test_a_condition_that_would_have_no_effect_is_refused() -> None:
    class Elsewhere(right.LinearBits):
        def forward(self, latent: Any, context: Any) -> Condition:
            (slots,) = super().forward(latent, context).blocks.values()
            return Condition({self.blocks[0] - 1: slots})

    class Embedding(right.LinearBits):
        def forward(self, latent: Any, context: Any) -> Condition:
            return replace(super().forward(latent, context), embedding=torch.zeros(1, 1, self.shape.width))

    batch, noise = Batch.of([[1, 2, 3]]), Noise.keyed(0, ["row"])
    with pytest.raises(UserError, match=r"\(Elsewhere\) conditions blocks \[\d\], but declares `blocks` as \(\d,\)"):
        built("injection", Elsewhere).loss(batch, step=0, noise=noise)
    with pytest.raises(UserError, match=r"\(Embedding\) conditions the embedding, but declares `slots`"):
        built("injection", Embedding).loss(batch, step=0, noise=noise)
