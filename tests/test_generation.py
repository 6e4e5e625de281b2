"""Generation: caches, batches, keyed randomness, control of the latents, ends of texts. On untrained models."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from latentlm.errors import UserError
from latentlm.generation import Generation
from latentlm.generation.latents import cut, edited
from latentlm.interface import Batch, Latent, LatentDecoder, State
from latentlm.tokenizer import load_tokenizer
from samples import VOCABULARY

Maker = Callable[..., LatentDecoder]
GRANULARITIES = ["token", "chunk:3", "document"]
PROMPTS = [[3, 1, 4, 1, 5], [2, 7], [9, 2, 6, 5, 3, 5, 8], [1]]


@pytest.fixture
def lively(small: Maker) -> Maker:
    """Models whose greedy texts vary with the latents: an untied readout, large weights."""

    def make(decoder: str = "free", **settings: object) -> LatentDecoder:
        return small(decoder, **{"tie_embeddings": False, "init_std": 0.4, **settings})

    return make


@pytest.fixture
def text_model(lively: Maker) -> Maker:
    """Models that read and write bytes."""

    def make(decoder: str = "free", **settings: object) -> LatentDecoder:
        model = lively(decoder, vocabulary=257, **settings)
        model.tokenizer = load_tokenizer("bytes")
        return model

    return make


def tokens_of(generations: list[Generation]) -> list[list[int]]:
    return [made.tokens for made in generations]


def spied_logits(model: LatentDecoder, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Collects the logits (B, V) of prefill and of every step."""
    seen: list[torch.Tensor] = []
    for name in ("prefill", "step"):
        call = getattr(model, name)

        def spy(*arguments: object, _call: Callable[..., State] = call, **named: object) -> State:
            state = _call(*arguments, **named)
            seen.append(state.logits.clone())
            return state

        monkeypatch.setattr(model, name, spy)
    return seen


def teacher_forced(model: LatentDecoder, made: Generation) -> torch.Tensor:
    """Logits (n, V) for each generated token, without a cache, under the generation's own latents."""
    context = model.context(Batch.of([made.prompt + made.tokens[:-1]]))
    logits = model.logits(model.hidden(context, made.latents))
    return logits[0, len(made.prompt) - 1 :].detach()


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("decoder", ["free", "vanilla"])
def test_cached_equals_uncached_along_the_generated_path(
    lively: Maker, monkeypatch: pytest.MonkeyPatch, decoder: str, granularity: str
) -> None:
    model = lively(decoder, granularity=granularity)
    seen = spied_logits(model, monkeypatch)
    generations = model.generate(PROMPTS, max_tokens=9)
    cached = torch.stack(seen, dim=1)  # (B, n, V), longest prompt first
    order = sorted(range(len(PROMPTS)), key=lambda row: -len(PROMPTS[row]))
    for place, row in enumerate(order):
        torch.testing.assert_close(cached[place], teacher_forced(model, generations[row]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("latents", ["fresh", "shared"])
def test_batched_equals_single_in_any_order_and_batch_size(lively: Maker, latents: str, granularity: str) -> None:
    model = lively("free", granularity=granularity)
    together = model.generate(PROMPTS, max_tokens=9, latents=latents, samples=2)
    backwards = model.generate(PROMPTS[::-1], max_tokens=9, latents=latents, samples=2, batch_size=3)
    for row, prompt in enumerate(PROMPTS):
        alone = model.generate([prompt], max_tokens=9, latents=latents, samples=2)
        place = len(PROMPTS) - 1 - row
        for sample in range(2):
            for other in (together[2 * row + sample], backwards[2 * place + sample]):
                assert other.tokens == alone[sample].tokens
                assert torch.equal(other.latents.value, alone[sample].latents.value)


def test_latents_matter_in_these_tests(lively: Maker) -> None:
    model = lively("free")
    texts = {tuple(made.tokens) for made in model.generate([[3, 1]], max_tokens=9, temperature=0, samples=4)}
    assert len(texts) > 1


def test_seeds_reproduce_and_the_global_state_is_left_alone(lively: Maker) -> None:
    model = lively("free")
    first = model.generate(PROMPTS, max_tokens=8, seed=5)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    again = model.generate(PROMPTS, max_tokens=8, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert tokens_of(first) == tokens_of(again)
    assert tokens_of(first) != tokens_of(model.generate(PROMPTS, max_tokens=8, seed=6))


def test_equal_prompts_and_samples_differ_unless_their_keys_are_equal(lively: Maker) -> None:
    model = lively("free")
    twice = model.generate([[3, 1], [3, 1]], max_tokens=8, samples=2)
    assert len({tuple(made.tokens) for made in twice}) == 4
    keyed = model.generate([[3, 1], [3, 1]], max_tokens=8, keys=["same", "same"])
    assert keyed[0].tokens == keyed[1].tokens


def test_latents_do_not_change_with_the_temperature_of_the_tokens(lively: Maker) -> None:
    model = lively("free")
    warm, cold = (model.generate([[3, 1]], max_tokens=8, temperature=t)[0] for t in (1.0, 0.0))
    assert warm.tokens != cold.tokens
    assert torch.equal(warm.latents.value, cold.latents.value)


@pytest.mark.parametrize("granularity", ["token", "chunk:3"])
def test_shared_latents_are_equal_at_equal_distance_from_the_prompts_end(lively: Maker, granularity: str) -> None:
    model = lively("free", granularity=granularity)
    prompts = [[3, 1, 4], [2, 7, 1, 8, 2, 8]]  # whole chunks, so that offsets in sites and in tokens agree
    shared = model.generate(prompts, max_tokens=9, latents="shared", prefill="prior", samples=2)
    length = 3 if granularity == "token" else 1
    after = {tuple(made.latents.value[0, length * (1 + row // 2) :].flatten().tolist()) for row, made in enumerate(shared)}
    assert len(after) == 1
    # Under the prior the prompts' own last sites are shared as well.
    assert torch.equal(shared[0].latents.value, shared[2].latents.value[:, -shared[0].latents.value.shape[1] :])
    assert shared[0].tokens != shared[1].tokens
    fresh = model.generate(prompts, max_tokens=9, samples=2)
    assert not torch.equal(fresh[0].latents.value, fresh[1].latents.value)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_giving_latents_back_reproduces_the_text(lively: Maker, granularity: str) -> None:
    model = lively("free", granularity=granularity)
    first = model.generate(PROMPTS, max_tokens=9, temperature=0, seed=1)
    again = model.generate(PROMPTS, max_tokens=9, temperature=0, seed=2, latents=[made.latents for made in first])
    assert tokens_of(again) == tokens_of(first)
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.latents.value, other.latents.value)
    assert tokens_of(model.generate(PROMPTS, max_tokens=9, temperature=0, seed=2)) != tokens_of(first)


@pytest.mark.parametrize("granularity", ["token", "chunk:3"])
def test_latents_that_end_early_go_on_with_the_prior(lively: Maker, granularity: str) -> None:
    model = lively("free", granularity=granularity)
    plain = model.generate(PROMPTS, max_tokens=9, temperature=0)
    values = [torch.full((1, sites, 4), 1.0) for sites in (2, 3, 4, 5)]  # within, at and beyond the prompts' ends
    made = model.generate(PROMPTS, max_tokens=9, temperature=0, latents=[Latent(value) for value in values])
    for row, value in enumerate(values):
        sites = min(value.shape[1], made[row].latents.value.shape[1])
        assert (made[row].latents.value[:, :sites] == 1).all()
        assert torch.equal(made[row].latents.value[:, sites:], plain[row].latents.value[:, sites:])
        torch.testing.assert_close(teacher_forced(model, made[row]).argmax(-1).tolist(), made[row].tokens)
        alone = model.generate([PROMPTS[row]], max_tokens=9, temperature=0, latents=Latent(value))[0]
        assert alone.tokens == made[row].tokens


def test_continuation_latents_begin_after_the_prompt(lively: Maker) -> None:
    model = lively("free")
    given = Latent(torch.ones(1, 4, 4))
    made = model.generate(PROMPTS, max_tokens=8, latents="shared", continuation_latents=given)
    plain = model.generate(PROMPTS, max_tokens=8, latents="shared")
    for prompt, one, other in zip(PROMPTS, made, plain, strict=True):
        inside = slice(len(prompt), len(prompt) + 4)
        assert (one.latents.value[:, inside] == 1).all()
        outside = torch.ones(one.latents.value.shape[1], dtype=torch.bool)
        outside[inside] = False
        assert torch.equal(one.latents.value[:, outside], other.latents.value[:, outside])


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_encoding_a_text_gives_the_latents_of_its_prefill(lively: Maker, granularity: str) -> None:
    model = lively("free", granularity=granularity)
    text = [3, 1, 4, 1, 5]
    encoded = model.encode(text, seed=4, samples=2)
    made = model.generate([text], max_tokens=3, seed=4, samples=2)
    for sample in range(2):
        inside = made[sample].latents.value[:, : encoded.value.shape[1]]
        assert torch.equal(inside[0], encoded.value[sample])


def test_encoding_at_temperature_zero_takes_the_likelier_value_of_every_bit(lively: Maker) -> None:
    model = lively("free")
    likelier = model.posterior(model.context(Batch.of([PROMPTS[0]]))).logits > 0
    assert torch.equal(model.encode(PROMPTS[0], temperature=0).value.bool(), likelier)


def test_an_edited_latent_changes_the_text_from_its_site_on(lively: Maker) -> None:
    model = lively("free")
    first = model.generate([[3, 1]], max_tokens=12, temperature=0)[0]
    kept = [first.latents.value[0, 6].clone()]
    flipped = edited(first.latents, sites=6, value=1 - kept[0])
    second = model.generate([[3, 1]], max_tokens=12, temperature=0, latents=flipped)[0]
    assert second.tokens[:5] == first.tokens[:5]  # site 6 conditions the fifth new token, and acts on the sixth
    difference = (teacher_forced(model, first) - teacher_forced(model, second)).abs().amax(-1)
    assert difference[:5].max() < 1e-5
    assert difference[5] > 1e-4


def test_frequencies_of_pairs_of_tokens_are_their_probabilities(lively: Maker) -> None:
    model, count = lively("vanilla", vocabulary=3), 4000
    made = model.generate([[1, 2]], max_tokens=2, samples=count, batch_size=count)
    found = torch.zeros(3, 3, dtype=torch.float64)
    for one in made:
        found[one.tokens[0], one.tokens[1]] += 1 / count
    context = model.context(Batch.of([[1, 2, first] for first in range(3)]))
    probability = model.logits(model.hidden(context, None)).double().softmax(-1).detach()
    expected = probability[0, 1, :, None] * probability[:, 2]
    assert ((found - expected).abs() <= 4 * (expected * (1 - expected) / count).sqrt()).all()


def test_prior_temperature_reaches_prefill_and_steps(lively: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively("free")
    heard: list[object] = []
    for name in ("prefill", "step"):
        call = getattr(model, name)

        def listen(*arguments: object, _call: Callable[..., State] = call, **named: object) -> State:
            heard.append(named["prior_temperature"])
            return _call(*arguments, **named)

        monkeypatch.setattr(model, name, listen)
    model.generate([[1]], max_tokens=3, prior_temperature=0.25)
    assert heard == [{"z": 0.25}] * 3


def test_prefill_and_last_latent_say_who_draws_the_prompts_sites(text_model: Maker) -> None:
    model = text_model("free", bits=12)
    encoder = model.generate(["abcd"], max_tokens=2)[0].latents.value
    mixed = model.generate(["abcd"], max_tokens=2, last_latent="prior")[0].latents.value
    prior = model.generate(["abcd"], max_tokens=2, prefill="prior")[0].latents.value
    assert torch.equal(mixed[:, :4], encoder[:, :4])
    assert torch.equal(mixed[:, 4], prior[:, 4])
    assert not torch.equal(encoder[:, :4], prior[:, :4])


def test_finished_rows_leave_without_changing_the_others(text_model: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    model = text_model("free")
    prompts = ["a", "bcd", "ef", ""]
    whole = model.generate(prompts, max_tokens=20)
    end = whole[1].tokens[4]  # declare a token that one row draws to be the end of text
    monkeypatch.setattr(model.tokenizer, "end_of_text", end)
    model_prompts = [made.prompt for made in whole]
    widths = spied_logits(model, monkeypatch)
    cut_short = model.generate(model_prompts, max_tokens=20)
    for made, full in zip(cut_short, whole, strict=True):
        stops = full.tokens.index(end) if end in full.tokens else 20
        assert made.tokens == full.tokens[:stops]
        assert made.finish == ("end_of_text" if stops < 20 else "length")
        sites = len(made.prompt) + min(stops, 19)
        assert torch.equal(made.latents.value, full.latents.value[:, :sites])
    assert cut_short[1].finish == "end_of_text"
    assert widths[-1].shape[0] < widths[0].shape[0]


def test_texts_begin_with_end_of_text_and_lists_are_taken_as_they_are(text_model: Maker) -> None:
    model = text_model("vanilla")
    made = model.generate(["ab", "", [97, 98], []], max_tokens=2)
    assert [one.prompt for one in made] == [[256, 97, 98], [256], [97, 98], [256]]
    assert made[0].latents is None
    assert made[1].tokens != made[3].tokens  # the same prompt twice, two draws
    alone = model.generate("ab", max_tokens=2)
    assert (len(alone), alone[0].tokens) == (1, made[0].tokens)


def planted(model: LatentDecoder, monkeypatch: pytest.MonkeyPatch, text: bytes) -> None:
    """Makes greedy generation write `text`."""
    script = iter(text)

    def draw(logits: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor([next(script)]), logits.shape[-1]).float()

    for name in ("prefill", "step"):
        call = getattr(model, name)

        def write(*arguments: object, _call: Callable[..., State] = call, **named: object) -> State:
            state = _call(*arguments, **named)
            object.__setattr__(state, "logits", draw(state.logits))
            return state

        monkeypatch.setattr(model, name, write)


@pytest.mark.parametrize(
    ("written", "stop", "expected", "finish"),
    [
        (b"one\n\ntwo", "\n\n", "one", "stop"),  # across two tokens
        (b"one\ntwo\n\n", ["\n\n", "tw"], "one\n", "stop"),  # whichever comes first
        (b"aab--b", ["b--b"], "aa", "stop"),  # after a false start
        ("naïve — ok".encode(), ["—"], "naïve ", "stop"),  # several bytes
        (b"one two", ["xyz"], "one two", "length"),
        (b"STOP", ["STOP"], "", "stop"),
        (b"xab", ["b", "ab"], "x", "stop"),  # two end together: the one that begins first
    ],
)
def test_stop_strings_are_found_across_tokens_and_cut_off(
    text_model: Maker, monkeypatch: pytest.MonkeyPatch, written: bytes, stop: str | list[str], expected: str, finish: str
) -> None:
    model = text_model("vanilla")
    planted(model, monkeypatch, written)
    made = model.generate(["p"], max_tokens=len(written), temperature=0, stop=stop)[0]
    assert (made.text, made.finish) == (expected, finish)
    assert bytes(made.tokens) == written[: len(made.tokens)]
    if finish == "stop":
        first = [stop] if isinstance(stop, str) else stop
        assert any(bytes(made.tokens).endswith(goal.encode()) for goal in first)  # nothing is drawn after it


def test_tokens_are_announced_in_the_order_of_each_row(lively: Maker) -> None:
    model = lively("free")
    heard: dict[tuple[int, int], list[int]] = {}
    made = model.generate(
        PROMPTS,
        max_tokens=5,
        samples=2,
        on_token=lambda prompt, sample, token: heard.setdefault((prompt, sample), []).append(token),
    )
    assert [heard[row // 2, row % 2] for row in range(len(made))] == tokens_of(made)


def test_too_long_prompts_are_refused_or_cut(text_model: Maker) -> None:
    model = text_model("free")  # context 64
    with pytest.raises(UserError, match="Prompt 1 has 61 tokens and max_tokens is 4, but the model's context is 64"):
        model.generate(["a", "x" * 60], max_tokens=4)
    assert len(model.generate(["x" * 59], max_tokens=4)[0].tokens) <= 4
    made = model.generate(["x" * 70 + "end"], max_tokens=4, truncate="left")[0]
    assert len(made.prompt) == 60
    assert made.prompt[-3:] == list(b"end")
    with pytest.raises(UserError, match="no room"):
        model.generate(["a"], max_tokens=64, truncate="left")
    with pytest.raises(UserError, match="context is 64"):
        model.encode("x" * 64)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"samples": 0}, "samples"),
        ({"prior_temperature": 0.0}, "prior_temperature"),
        ({"latents": "shard"}, "fresh"),
        ({"stop": ["x"]}, "need a tokenizer"),
        ({"keys": ["only one"]}, "one key per prompt"),
        ({"latents": Latent(torch.zeros(1, 3, 5))}, "5 events"),
        ({"latents": Latent(torch.zeros(3, 3, 4))}, "give 1 or 4"),
    ],
)
def test_what_cannot_be_served_is_refused(lively: Maker, settings: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        lively("free").generate(PROMPTS, **{"max_tokens": 4, **settings})  # type: ignore[arg-type]


def test_prompts_that_are_not_the_models_are_refused(lively: Maker) -> None:
    with pytest.raises(UserError, match="needs a tokenizer"):
        lively("free").generate(["text"], max_tokens=2)
    with pytest.raises(UserError, match=f"0 to {VOCABULARY - 1}"):
        lively("free").generate([[VOCABULARY]], max_tokens=2)
    with pytest.raises(UserError, match="no latents"):
        lively("vanilla").encode([1, 2])
    with pytest.raises(UserError, match="no latents"):
        lively("vanilla").generate([[1]], max_tokens=2, latents=cut(Latent(torch.zeros(1, 3, 4)), 0, 2))


def test_tokens_beyond_the_tokenizer_are_never_drawn(lively: Maker) -> None:
    model = lively("vanilla", vocabulary=400, init_std=0.5)
    model.tokenizer = load_tokenizer("bytes")
    assert max(max(made.tokens, default=0) for made in model.generate(["a"], max_tokens=30, samples=8)) < 257


# ---------------------------------------------------------------------------------------------- what callers give


def test_prompts_are_read_from_tensors_and_arrays(text_model: Maker) -> None:
    model, given = text_model(), torch.tensor([[1, 2, 3], [4, 5, 6]])
    texts = [[made.tokens for made in model.generate(one, max_tokens=2)] for one in (given, given.numpy(), given.tolist())]
    assert texts[0] == texts[1] == texts[2]
