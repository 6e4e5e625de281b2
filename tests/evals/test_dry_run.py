"""A dry run plans the very requests that the evaluation would score, in the same way."""

from __future__ import annotations

from typing import Any

import lm_eval
import pytest
from lm_eval.api.instance import Instance

from byte_models import byte_decoder
from latentlm.interface import LatentDecoder
from latentlm.likelihood.planning import Plan
from latentlm.likelihood.requests import How, Request
from latentlm.likelihood.results import Score
from latentlm.likelihood.scoring import texts_to_score
from latentlm_evals.adapter import LatentLM
from latentlm_evals.dry_run import DryLM, TaskPlan
from latentlm_evals.evaluation import task_manager
from latentlm_evals.generation_settings import GenerationSettings
from latentlm_evals.ranks import Ranks
from latentlm_evals.writing import Writer

TASKS = ["latentlm_next_line", "latentlm_heldout"]
TEXTS = ["def f(x):\n    return x\n" * 9, "", "the quick brown fox"]

Scoring = list[tuple[How, list[Request]]]


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> Scoring:
    """What was planned, and how; each kind takes a second."""
    found: Scoring = []

    def spy(model: LatentDecoder, requests: list[Request], how: How) -> Plan:
        found.append((how, requests))
        return Plan(len(requests), 10, (how.samples, how.most), (1.0, 2.0), len(found) * 100)

    monkeypatch.setattr("latentlm_evals.dry_run.plan", spy)
    return found


def roll(lm: LatentLM, texts: list[str]) -> list[float]:
    asked = [Instance("loglikelihood_rolling", {}, (text,), number) for number, text in enumerate(texts)]
    return lm.loglikelihood_rolling(asked, disable_tqdm=True)


def evaluate(lm: LatentLM) -> dict[str, Any]:
    results = lm_eval.simple_evaluate(lm, tasks=TASKS, task_manager=task_manager(TASKS), limit=3, bootstrap_iters=0)
    assert results is not None
    return dict(results)


def test_whole_texts_are_planned_as_texts(planned: Scoring) -> None:
    model = byte_decoder("gaussian")
    lm = DryLM(model, samples="auto", tolerance=0.05, max_samples=64, seed=3)
    assert len(roll(lm, TEXTS)) == 3
    lm.plan()
    ((how, requests),) = planned
    texts = [[256, *text.encode()] for text in TEXTS if text]
    settings = {"samples": "auto", "tolerance": 0.05, "max_samples": 64, "seed": 3, "batch_size": lm.batch_size}
    expected, _, expected_how = texts_to_score(model, texts, **settings)  # type: ignore[arg-type]
    assert how == expected_how
    assert how.refine == 50
    assert requests == expected


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("free", {}),
        ("gaussian", {"samples": "auto", "max_samples": 64, "tolerance": 0.1}),
        ("gaussian", {"samples": 8, "refine": 3, "score": "joint", "last_latent": "prior"}),
        ("free", {"samples": 8, "score": "smc", "max_length": 100}),
        ("free", {"samples": 8, "windows": "overlapping"}),
        ("vanilla", {}),
    ],
)
def test_an_evaluation_scores_what_was_planned(
    kind: str, settings: dict[str, Any], planned: Scoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = byte_decoder(kind, context=200)
    scored: dict[How, list[Request]] = {}

    def spy(model: LatentDecoder, requests: list[Request], how: How) -> list[Score]:
        scored.setdefault(how, []).extend(requests)
        return [Score(-1.0, 0.0, 1.0, 0, 1, how.method, greedy=False) for _ in requests]

    dry = DryLM(model, **settings)
    evaluate(dry)
    found = dry.plan()
    monkeypatch.setattr("latentlm_evals.adapter.estimated", spy)
    evaluate(LatentLM(model, **settings))
    assert dict(planned) == scored
    assert found.requests == sum(map(len, scored.values()))


def test_what_continuations_and_texts_take_is_added_up(planned: Scoring) -> None:
    dry = DryLM(byte_decoder("free", context=200), samples="auto", max_samples=128)
    evaluate(dry)
    found = dry.plan()
    assert len(planned) == 2, "two ways of scoring"
    asked = sum(len(requests) for _, requests in planned)
    assert found == TaskPlan(asked, 20, (32, 128), (2.0, 4.0), 200, texts=0, written=0, writing=0.0)


@pytest.mark.usefixtures("planned")
def test_texts_are_planned_by_what_they_take_to_their_last_token(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[int, int]] = []
    now = 0.0

    def write(_: Writer, prompts: list[list[int]], settings: GenerationSettings, keys: object) -> list[str]:
        nonlocal now
        assert dry.model.end_tokens == frozenset(), "no text ends early"
        now += 5.0 + settings.max_tokens  # five seconds to read, one for each token
        written.append((len(prompts), settings.max_tokens))
        return [""] * len(prompts)

    monkeypatch.setattr("latentlm_evals.dry_run.time.perf_counter", lambda: now)
    monkeypatch.setattr(Writer, "write", write)
    dry = DryLM(byte_decoder("vanilla", context=200), batch_size=2)
    ask = [Instance("generate_until", {}, ("x" * n, {"max_gen_toks": 20, "until": ["."]}), n) for n in range(5)]
    assert dry.generate_until(ask, disable_tqdm=True) == [""] * 5
    found = dry.plan()
    assert (found.texts, found.written, found.requests) == (5, 100, 0)
    assert found.writing == 3 * (5.0 + 20)
    assert {size for size, _ in written} == {2}
    assert found.lines() == {"texts": "5: 100 tokens, 75 s at most"}
    assert dry.model.end_tokens is None, "as it was"
    nothing = DryLM(byte_decoder("vanilla"))
    assert nothing.plan().lines()["requests"] == "0"


@pytest.mark.usefixtures("planned")
def test_the_plans_of_several_processes_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    dry = DryLM(byte_decoder("free", context=200), samples=4)
    monkeypatch.setattr(dry, "plan", lambda: TaskPlan(3, 30, (4, 4), (1.0, 2.0), 70, texts=1, written=5, writing=4.0))
    other = TaskPlan(2, 20, (4, 4), (3.0, 1.0), 90, texts=2, written=10, writing=1.0)
    monkeypatch.setattr(Ranks, "gather", lambda self, plan: [plan, other])
    assert dry.everybodys() == TaskPlan(5, 50, (4, 4), (3.0, 2.0), 90, texts=3, written=15, writing=4.0)
    monkeypatch.setattr(Ranks, "gather", lambda self, plan: None)
    assert dry.everybodys() is None


def test_a_dry_run_scores_nothing_and_counts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentlm_evals.adapter.estimated", lambda *_, **__: pytest.fail("scored"))
    results = evaluate(DryLM(byte_decoder("free", context=200)))
    told = results["config"]["latentlm"]["likelihoods"]
    assert (told["requests"], told["tasks"]) == (0, {})
    assert not any("likelihoods" in sample for samples in results["samples"].values() for sample in samples)


def test_the_plan_of_an_evaluation_is_timed() -> None:
    dry = DryLM(byte_decoder("gaussian"), samples="auto", max_samples=64, refine=2)
    roll(dry, TEXTS)
    found = dry.plan()
    assert (found.requests, found.samples) == (3, (32, 64))
    assert found.tokens == sum(len(text) for text in TEXTS)
    assert 0 < found.seconds[0] < found.seconds[1]
