"""`generate(compile=True)`: a step as one graph gives the logits, latents and tokens of a step that is not compiled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from latentlm import zoo
from latentlm.cli import main
from latentlm.composed import build, graphs, static
from latentlm.config import BackboneConfig, ModelConfig
from latentlm.errors import UserError
from latentlm.generation import generate
from latentlm.interface import Bits, Context, Distribution, Generation, Latent, LatentDecoder, Latents, Noise, Prior
from likelihood_parts import StickyBits, tiny

SMALL = BackboneConfig(vocabulary=257, width=16, blocks=4, heads=2, context=64)
DECODERS = {
    "vanilla": {},
    "free": {"event_dims": 4},
    "free with settings": {"decoder": "free", "event_dims": 4, "injection": {"name": "free", "table": "additive"}},
    "causal": {"event_dims": 3},
    "chunk": {"event_dims": 3},
    "della": {"event_dims": 4},
    "ngram": {},
    "gaussian": {"event_dims": 4},
    "ltm": {"event_dims": 4, "injection": {"name": "thoughts", "slots": 1}},
    "two levels": {
        "decoder": "composed", "latents": {"intent": {"like": "gaussian", "dims": 4}, "bits": {"like": "free", "dims": 3}},
    },
}

USUAL = {"free", "chunk"}


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No C++ compiler, which takes half a minute."""
    torch._dynamo.reset()
    monkeypatch.setattr(graphs, "BACKEND", "aot_eager")
    yield
    torch._dynamo.reset()


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What torch reads of a step is run as it is, which is quick."""
    torch._dynamo.reset()
    monkeypatch.setattr(graphs, "BACKEND", "eager")
    yield
    torch._dynamo.reset()


def decoder(name: str, *, granularity: Any = None, **sizes: Any) -> LatentDecoder:
    settings = {"decoder": name, **DECODERS[name]} | ({} if granularity is None else {"granularity": granularity})
    backbone = SMALL.model_copy(update=sizes)
    model = build(ModelConfig.model_validate({**settings, "backbone": backbone})).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():  # some priors begin uniform: what goes from site to site would not matter
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in USUAL else pytest.mark.conformance) for name in DECODERS]
)
@torch.no_grad()
def test_a_compiled_step_is_the_step(name: str) -> None:
    """For rows of different lengths, and without a second graph for later tokens."""
    model = decoder(name)
    names = list(model.latents)
    tokens = torch.randint(0, 256, (3, 9), generator=torch.Generator().manual_seed(0))
    lengths, noise = torch.tensor([9, 5, 7]), {each: Noise.keyed(0, ["a", "b", "c"]).latent(each) for each in names}
    known = {"noise": noise, "last_latent": "posterior", "prior_temperature": 1.0, "capacity": 40}
    eager, compiled = (model.prefill(tokens, lengths, latents={}, **known) for _ in range(2))
    steps = model.compiled_steps(compiled, capacity=40)
    assert isinstance(steps, static.Static)
    torch._dynamo.utils.counters.clear()
    for number in range(8):
        fed = torch.randint(0, 256, (3,), generator=torch.Generator().manual_seed(number))
        eager = model.step(eager, fed, latents={}, noise=noise, prior_temperature=0.7)
        after = steps.step(fed, noise=noise, prior_temperature=dict.fromkeys(names, 0.7))
        torch.testing.assert_close(after.logits, eager.logits, atol=1e-5, rtol=1e-5)
        assert torch.equal(after.lengths, eager.lengths)
        for each in names:
            assert torch.equal(after.met[each].counts, eager.met[each].counts)
            sites = eager.met[each].value.shape[1]
            torch.testing.assert_close(after.met[each].value[:, :sites], eager.met[each].value)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.usefixtures("traced")
@torch.no_grad()
def test_torch_looks_again_where_more_columns_are_seen_and_at_another_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    looked = static.Static._looked
    monkeypatch.setattr(static.Static, "_looked", lambda self, *given: looks.append(self._column) or looked(self, *given))
    same_when_compiled(decoder("free"), [[1, 2, 3, 4, 5]], max_tokens=40, samples=1)
    assert looks == [6, 16, 32]
    model = decoder("free")
    noise = {"z": Noise.keyed(0, ["a"]).latent("z")}
    known = {"noise": noise, "last_latent": "posterior", "prior_temperature": 1.0, "capacity": 40}
    state = model.prefill(torch.tensor([[1, 2, 3]]), torch.tensor([3]), latents={}, **known)
    steps, at = model.compiled_steps(state, capacity=40), []
    mine = [torch.tensor([token]) for token in (7, 8, 9, 7, 8)]
    for fed, temperature in zip(mine, (1.0, 1.0, 1.0, 2.0, 2.0), strict=True):
        looks.clear()
        steps.step(fed, noise=noise, prior_temperature={"z": temperature})
        at.append(len(looks))
    assert at == [0, 1, 0, 1, 0]  # the first is not compiled
    assert [int(fed) for fed in mine] == [7, 8, 9, 7, 8]  # the caller's stay what they are
    for wrong in (torch.tensor([7, 7]), torch.tensor([7.5])):
        with pytest.raises(ValueError, match=r"it was \(1,\), torch.int64 before"):
            steps.step(wrong, noise=noise, prior_temperature={"z": 2.0})


@pytest.mark.usefixtures("traced")
def test_a_call_that_cannot_be_told_is_not_repeated() -> None:
    one, other = torch.zeros(1), torch.zeros(1)
    call = graphs.Call(lambda *given: [None, given[0] + 1], (one,), [None, other])
    assert graphs.repeated([], other) is graphs.repeated([call, call], other) is graphs.repeated([call], one) is None
    again = graphs.repeated([call], other)
    assert again is not None
    one.fill_(4.0)
    assert again() == 5.0
    with graphs.noted() as calls:
        assert graphs._calls.get() is calls
    assert graphs._calls.get() is None


def same_when_compiled(model: LatentDecoder, prompts: Any = ([1, 2, 3], [4, 5, 6, 7]), **asked: Any) -> list[Generation]:
    """The continuations, which are the same with compiled steps and without."""
    asked = {"max_tokens": 20, "samples": 2, "seed": 3, **asked}
    expected, found = (generate(model, prompts, compile=compiles, **asked) for compiles in (False, True))
    for one, other in zip(found, expected, strict=True):
        assert (one.text, one.tokens, one.finish) == (other.text, other.tokens, other.finish)
        for latent in one.latents or ():
            assert torch.equal(one.latents[latent].value, other.latents[latent].value)  # type: ignore[index]
    return found


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("latents", ["fresh", pytest.param("shared", marks=pytest.mark.conformance)])
def test_texts_are_the_same_whichever_rows_end_first(latents: str) -> None:
    asked = {"max_tokens": 24, "stop": ["e"], "latents": latents, "prior_temperature": 0.5}
    found = same_when_compiled(zoo.load("free-tiny"), ["def f(", "import os"], **asked)
    assert len({len(each.tokens) for each in found}) > 1


@pytest.mark.usefixtures("read")
def test_models_that_differ_have_graphs_of_their_own() -> None:
    """In what is no tensor, or in the shapes of weights; and a model that has changed since."""
    for change in ({}, {"norm_eps": 0.5}, {"feed_forward": 24}, {"vocabulary": 300}, {"heads": 4, "kv_heads": 4}):
        same_when_compiled(decoder("vanilla", **change))
    model = decoder("vanilla")
    before = same_when_compiled(model)
    model.backbone.norm.eps = 2.0
    assert [each.tokens for each in same_when_compiled(model)] != [each.tokens for each in before]


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_are_refused_for_a_graph_that_is_there_would_not_know_of_them(register: str) -> None:
    model = decoder("vanilla")
    hook = getattr(model.backbone.blocks[0].attention, register)(lambda module, *values: None)
    with pytest.raises(UserError, match="Attention has a forward hook, which is not compiled"):
        generate(model, [[1, 2, 3]], max_tokens=3, compile=True)
    hook.remove()
    model.check_compiled()
    of_all = getattr(torch.nn.modules.module, register.replace("register_", "register_module_"))(lambda module, *values: None)
    with pytest.raises(UserError, match="All modules have a forward hook"):
        model.check_compiled()
    of_all.remove()
    model.check_compiled()


@pytest.mark.usefixtures("read")
def test_a_sweep_of_temperatures_keeps_the_last_graphs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MOST", 2)
    model = decoder("free")
    for temperature in (0.5, 0.75, 1.25):
        same_when_compiled(model, prior_temperature=temperature)
    assert [words[0][1] for words in graphs._graphs[model]] == ["0.75", "1.25"]


@pytest.mark.usefixtures("read")
def test_steps_of_a_model_whose_attention_is_flex_are_compiled() -> None:
    same_when_compiled(decoder("free", attention="flex"))


@pytest.mark.conformance
@pytest.mark.usefixtures("read")
def test_a_graph_serves_all_temperatures_of_tokens_rows_and_columns_and_each_of_the_prior_has_one() -> None:
    model = decoder("free")
    torch._dynamo.utils.counters.clear()
    for tokens in (20, 35, 50):
        for rows in (2, 3, 4):
            same_when_compiled(model, [[1, 2, 3]] * rows, max_tokens=tokens, temperature=tokens / 40)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs == 2, "one for a size, and then one for any"
    for number, temperature in enumerate((0.5, 0.7, 2.0), start=1):
        same_when_compiled(model, prior_temperature=temperature)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs + number


@pytest.mark.usefixtures("read")
def test_sites_that_begin_where_earlier_tokens_say_so() -> None:
    """A token of the first half of all ends a sentence, and one of the other begins the next."""
    ends = {"closers": list(range(128)), "spaces": list(range(128, 256))}
    model = decoder("free", granularity={"name": "sentence", **ends})
    found = same_when_compiled(model, [[10, 200, 10, 201, 202, 10], [200, 10, 201]], max_tokens=40)
    assert len({each.latents["z"].value.shape[1] for each in found if each.latents}) > 1


@pytest.mark.usefixtures("read")
def test_a_temperature_of_the_prior_is_that_of_its_graph() -> None:
    model = decoder("causal")
    drawn = [same_when_compiled(model, prior_temperature=temperature)[0].latents for temperature in (1.0, 0.05)]
    assert not torch.equal(*(each["z"].value for each in drawn if each is not None))


class LastTwo(StickyBits):
    """Leans on the two sites before the last one: what is kept moves from place to place."""

    def start(self, context: Context, latent: Latent | None) -> Any:
        last = torch.zeros(context.rows, self.shape.latent.dims) if latent is None else latent.value[:, -1]
        return (last, torch.zeros_like(last))

    def step(
        self, state: Any, taps: Mapping[int, Tensor], previous: Tensor | None, starts: Tensor, above: Mapping[str, Tensor]
    ) -> tuple[Distribution, Any]:
        p = Bits(3 * (2 * state[1] - 1)[:, None] + self._logits(taps[0], state[0])[:, None])
        return p, (state[0] if previous is None else previous, state[0])


class Growing(StickyBits):
    """Keeps all sites."""

    def start(self, context: Context, latent: Latent | None) -> Any:
        return torch.zeros(context.rows, 1, self.shape.latent.dims) if latent is None else latent.value

    def step(
        self, state: Any, taps: Mapping[int, Tensor], previous: Tensor | None, starts: Tensor, above: Mapping[str, Tensor]
    ) -> tuple[Distribution, Any]:
        previous = state[:, -1] if previous is None else previous
        return Bits(self._logits(taps[0], state.mean(1))[:, None]), torch.cat((state, previous[:, None]), dim=1)


class Odd(StickyBits):
    """Bits that draw in a way of their own."""

    def step(
        self, state: Any, taps: Mapping[int, Tensor], previous: Tensor | None, starts: Tensor, above: Mapping[str, Tensor]
    ) -> tuple[Distribution, Any]:
        p, state = super().step(state, taps, previous, starts, above)
        return OddBits(p.logits), state


class OddBits(Bits):
    """At another place than the decoder says."""

    def sample(self, noise: Noise, *, differentiable: bool = False) -> Latent:
        return super().sample(noise.at([1] * len(noise)), differentiable=differentiable)


@pytest.mark.usefixtures("read")
def test_a_prior_that_keeps_its_last_values() -> None:
    model = tiny(prior=LastTwo, encoder=False, steps=0)
    same_when_compiled(model, [[0, 1], [2, 1, 0]], max_tokens=10, prefill="prior")


@pytest.mark.usefixtures("read")
@pytest.mark.parametrize(("prior", "message"), [(Growing, "state whose form changes"), (Odd, "draws more than uniform")])
def test_a_prior_that_no_graph_serves_is_refused(prior: type[Prior], message: str) -> None:
    model = tiny(prior=prior, encoder=False, steps=0)
    generate(model, [[0, 1, 2]], max_tokens=4, prefill="prior")
    with pytest.raises(UserError, match=f"{message}.*leave compile out"):
        generate(model, [[0, 1, 2]], max_tokens=4, prefill="prior", compile=True)


def test_what_is_not_compiled_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    growing = decoder("free")
    monkeypatch.setattr(growing.latents["z"].injection, "slots", ("prefix",))
    monkeypatch.setattr(growing, "prefill", None)
    with pytest.raises(UserError, match=r"injection \"free\".*grow with the text"):
        generate(growing, [[1]], max_tokens=4, compile=True)
    model = zoo.load("free-tiny")
    given = Latents({"z": Latent(torch.zeros(1, 2, model.latents["z"].dims))})
    with pytest.raises(UserError, match="give none there, or leave compile out"):
        generate(model, "def ", max_tokens=4, compile=True, continuation_latents=[given])
    long = Latents({"z": Latent(torch.zeros(1, 99, model.latents["z"].dims))})
    with pytest.raises(UserError, match="give none there, or leave compile out"):
        generate(model, "def ", max_tokens=4, compile=True, latents=[long])
    with pytest.raises(UserError, match="compile"):
        generate(model, "def ", max_tokens=4, compile="yes")  # type: ignore[arg-type]


@pytest.mark.conformance
def test_the_command_compiles(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With a C++ compiler, as a user does."""
    torch._dynamo.reset()
    said = []
    for more in ([], ["--compile"]):
        monkeypatch.setattr("sys.argv", ["latentlm", "generate", "free-tiny", "def ", "--max-tokens", "16", *more])
        with pytest.raises(SystemExit, match="0"):
            main()
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
