"""`generate(compile=True)`: a step as one graph gives the logits, latents and tokens of a step that is not compiled."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from latentlm import zoo
from latentlm.cli import main
from latentlm.composed import build, static
from latentlm.config import BackboneConfig, ModelConfig
from latentlm.errors import UserError
from latentlm.generation import generate
from latentlm.interface import Latent, LatentDecoder, Latents, Noise

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
    """One graph or an error, and no C++ compiler, which takes half a minute."""
    torch._dynamo.reset()
    static._compiled.cache_clear()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager", fullgraph=True))
    yield
    static._compiled.cache_clear()


def decoder(name: str) -> LatentDecoder:
    settings = {"decoder": name, **DECODERS[name]}
    model = build(ModelConfig.model_validate({**settings, "backbone": SMALL})).eval()
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
@pytest.mark.parametrize("latents", ["fresh", pytest.param("shared", marks=pytest.mark.conformance)])
def test_texts_are_the_same_whichever_rows_end_first(latents: str) -> None:
    model = zoo.load("free-tiny")
    asked = {"max_tokens": 24, "samples": 2, "stop": ["e"], "latents": latents, "seed": 3}
    expected = generate(model, ["def f(", "import os"], **asked)  # type: ignore[arg-type]
    found = generate(model, ["def f(", "import os"], compile=True, **asked)  # type: ignore[arg-type]
    assert len({len(each.tokens) for each in expected}) > 1
    for one, other in zip(found, expected, strict=True):
        assert (one.text, one.tokens, one.finish) == (other.text, other.tokens, other.finish)
        assert one.latents is not None
        assert other.latents is not None
        assert torch.equal(one.latents["z"].value, other.latents["z"].value)


def test_what_is_not_compiled_is_refused() -> None:
    model = decoder("gaussian")
    known = {"noise": Noise.keyed(0, ["a"]), "last_latent": "posterior", "prior_temperature": 1.0, "capacity": 8}
    state = model.prefill(torch.zeros(1, 3, dtype=torch.long), torch.tensor([3]), latents={}, **known)
    for held in state.cache.prefixes.values():
        held.update({key: replace(prefix, since=prefix.documents) for key, prefix in held.items()})
    with pytest.raises(UserError, match="Prefixes that grow"):
        model.compiled_steps(state, capacity=8)
    model = zoo.load("free-tiny")
    given = Latents({"z": Latent(torch.zeros(1, 2, model.latents["z"].dims))})
    with pytest.raises(UserError, match="give none there, or leave compile out"):
        generate(model, "def ", max_tokens=4, compile=True, continuation_latents=[given])
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
