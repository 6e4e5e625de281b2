"""What options of one question have in common runs once, and no number differs for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from latentlm.composed import ComposedDecoder, build
from latentlm.interface import LatentDecoder, Stems
from latentlm.likelihood import Score, nats, score_continuations
from latentlm.likelihood.texts import families, reading_order
from likelihood_parts import StickyBits, tiny
from samples import small_config

QUESTION = [0, 2, 1, 0, 1]
SHORT = [[0], [1], [2]]
LONG = [[0, 1, 1], [1, 2], [1, 0, 2, 2, 1], [2]]
KINDS = {
    "vanilla": lambda: build(small_config("vanilla", vocabulary=3), seed=1),
    "tokens": tiny,
    "chunks": lambda: tiny("chunk:2"),
    "a document": lambda: tiny("document"),
    "each after the one before": lambda: tiny(prior=StickyBits),
    "no encoder": lambda: tiny(encoder=False),
}


@contextmanager
def counted(model: ComposedDecoder, *blocks: int) -> Iterator[Counter[int]]:
    """Tokens that pass each of some blocks."""
    tokens: Counter[int] = Counter()

    def count(block: int) -> object:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            tokens[block] += inputs[0].shape[0] * inputs[0].shape[1]

        return model.backbone.blocks[block].register_forward_pre_hook(hook)

    hooks = [count(block) for block in blocks]
    yield tokens
    for hook in hooks:
        hook.remove()  # type: ignore[attr-defined]


def ask(model: LatentDecoder, options: list[list[int]], samples: int = 8, **settings: object) -> list[Score]:
    return score_continuations(model, [(QUESTION, option) for option in options], samples=samples, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["operational", "iwae", "elbo", "joint"])
def test_options_score_together_as_each_alone(kind: str, method: str) -> None:
    model = KINDS[kind]()
    together = ask(model, LONG + SHORT, method=method, greedy=True)
    for option, score in zip(LONG + SHORT, together, strict=True):
        (alone,) = ask(model, [option], method=method, greedy=True)
        assert score.value == pytest.approx(alone.value, abs=1e-4)
        assert (score.greedy, score.samples, score.proposal) == (alone.greedy, alone.samples, alone.proposal)
        assert score.quarter == pytest.approx(alone.quarter, abs=1e-4, nan_ok=True)


def test_latents_matter_to_the_scores_that_are_compared() -> None:
    for kind in ("tokens", "chunks", "a document", "each after the one before"):
        values = [ask(KINDS[kind](), LONG, samples=1, seed=seed)[0].value for seed in range(4)]
        assert max(values) - min(values) > 1e-2, kind


def test_options_of_one_token_are_one_pass() -> None:
    model = tiny()
    with counted(model, 0, 1) as tokens:
        ask(model, SHORT, greedy=True)
    assert tokens == {0: len(QUESTION), 1: 8 * len(QUESTION)}  # block 1 is the first with the latents


def test_the_trunk_runs_once_for_a_question() -> None:
    model, options = tiny(), [[0, 1, 1], [1, 2, 2], [2, 0, 0]]
    with counted(model, 0, 1) as tokens:
        ask(model, options)
    once = len(QUESTION) + 3 * 2  # the last token of an option is no input
    assert tokens == {0: once, 1: 8 * once}


def test_of_chunks_the_open_one_is_each_options_own() -> None:
    model, options = tiny("chunk:2"), [[0, 1, 1], [1, 2, 2], [2, 0, 0]]
    with counted(model, 0, 1) as tokens:
        ask(model, options)
    assert tokens == {0: len(QUESTION) + 3 * 2, 1: 8 * (4 + 3 * (len(QUESTION) - 4 + 2))}


def test_of_a_document_the_trunk_alone_is_shared() -> None:
    model, options = tiny("document"), [[0, 1, 1], [1, 2, 2], [2, 0, 0]]
    with counted(model, 0, 1) as tokens:
        ask(model, options)
    assert tokens == {0: len(QUESTION) + 3 * 2, 1: 8 * 3 * (len(QUESTION) + 2)}


def test_the_greedy_check_takes_no_pass_of_its_own() -> None:
    model = tiny()
    with counted(model, 0, 1) as plain:
        ask(model, LONG)
    with counted(model, 0, 1) as checked:
        ask(model, LONG, greedy=True)
    assert checked == plain


def test_further_rounds_leave_the_trunk_alone() -> None:
    model = tiny()
    with counted(model, 0) as tokens:
        scores = ask(model, [[0, 1, 1]], "auto", tolerance=1e-6, max_samples=128)  # type: ignore[arg-type]
    assert scores[0].samples == 128
    assert tokens == {0: len(QUESTION) + 2}


def test_a_decoder_that_shares_nothing_is_scored_alike() -> None:
    """The contract's own methods run every row by itself."""
    model = tiny()
    shared = ask(model, LONG, greedy=True)

    class Plain(type(model)):  # type: ignore[misc]
        shared_context, shared_hidden = LatentDecoder.shared_context, LatentDecoder.shared_hidden

    model.__class__ = Plain
    with counted(model, 0) as tokens:
        plain = ask(model, LONG, greedy=True)
    assert tokens[0] == 4 * (len(QUESTION) + 4)
    assert [score.value for score in plain] == pytest.approx([score.value for score in shared], abs=1e-5)
    assert [score.greedy for score in plain] == [score.greedy for score in shared]


@pytest.mark.parametrize("limit", [3, 12, 50])
def test_no_more_logits_are_held_than_the_limit(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """Also where those of all samples at one position are more."""
    model = tiny()
    whole = ask(model, LONG, greedy=True)
    monkeypatch.setattr(nats, "LOGITS", limit)
    sizes, logits = [], model.logits

    def watched(hidden: Tensor) -> Tensor:
        made = logits(hidden)
        sizes.append(made.numel())
        return made

    monkeypatch.setattr(model, "logits", watched)
    pieces = ask(model, LONG, greedy=True)
    assert max(sizes) <= limit
    assert [score.value for score in pieces] == pytest.approx([score.value for score in whole], abs=1e-5)
    assert [score.greedy for score in pieces] == [score.greedy for score in whole]


def test_stems_of_fewer_rows_keep_who_begins_like_whom() -> None:
    stems = Stems(torch.tensor([0, 1, 0, 1, 4]), torch.tensor([5, 3, 5, 3, 2]))
    fewer = stems.select(torch.tensor([1, 2, 3]))
    assert (fewer.first.tolist(), fewer.lengths.tolist()) == ([0, 1, 0], [3, 5, 3])
    assert stems.spared == 8


def test_stems_are_as_long_as_every_row_of_theirs_allows() -> None:
    stems = Stems(torch.tensor([0, 1, 0]), torch.tensor([5, 3, 5]))
    assert stems.within(torch.tensor([9, 9, 4])).lengths.tolist() == [4, 3, 4]


SHOTS = [0, 1, 2, 2, 1, 0, 1, 1, 2, 0, 0, 1, 2, 1, 0, 2, 1, 2]


@pytest.mark.parametrize("kind", ["vanilla", "tokens", "a document"])
def test_a_beginning_that_contexts_share_runs_once_through_the_trunk(kind: str) -> None:
    model = KINDS[kind]() if kind == "vanilla" else _roomy(kind)
    asked = [([*SHOTS, *own], option) for own in ([0], [1, 2], [2, 2, 1]) for option in ([0, 1], [1, 2, 0])]
    asked.append(([1, 0, 2], [2, 1]))
    with counted(model, 0) as tokens:
        together = score_continuations(model, asked, samples=8)
    # The shots, the one context beside them, padded; what is left of contexts; what is left of options.
    assert tokens[0] == 2 * len(SHOTS) + 4 * 3 + 7 * 2
    for request, score in zip(asked, together, strict=True):
        (alone,) = score_continuations(model, [request], samples=8)
        assert score.value == pytest.approx(alone.value, abs=1e-4)


def _roomy(kind: str) -> ComposedDecoder:
    """A decoder with latents and a context of 64 tokens."""
    granularity = "token" if kind == "tokens" else "document"
    return build(small_config(bits=2, granularity=granularity, vocabulary=3, init_std=0.5), seed=1).eval()


def test_contexts_of_one_beginning_are_scored_next_to_one_another() -> None:
    shots = list(range(20))
    contexts = [[*shots, 1], [7] * 30, [*shots, 2, 2], [7] * 30, [*shots, 1], [9]]
    assert reading_order(contexts, [23, 31, 24, 35, 26, 50]) == [5, 3, 1, 4, 0, 2]


def test_few_tokens_in_common_are_not_worth_a_pass() -> None:
    one, other = (1,) * 15 + (2,), (1,) * 15 + (3,)
    assert families([one, other]) == [[one], [other]]
    assert families([(1, *one), (1, *other)]) == [[(1, *one), (1, *other)]]
    assert families([(1, *one) + (4,) * 17, (1, *other) + (4,) * 17]) == [[(1, *one) + (4,) * 17], [(1, *other) + (4,) * 17]]
