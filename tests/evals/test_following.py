"""The adapter knows a whole evaluation: what cannot be served is refused before anything is answered, whatever asks for it, and
answers from a database have their errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.models.dummy import DummyLM

from byte_models import byte_decoder
from latentlm.errors import UserError
from latentlm.interface import LatentDecoder
from latentlm.tokenizer import ByteTokenizer
from latentlm_evals.adapter import LatentLM
from latentlm_evals.dry_run import DryLM
from latentlm_evals.evaluation import run_with, task_manager
from latentlm_evals.following import announce
from latentlm_evals.reading import cut_and_joined, reader_of
from latentlm_evals.suites import task_path

CHOOSE, WRITE = "latentlm_next_line", "latentlm_copy"


@pytest.fixture(scope="module")
def model() -> LatentDecoder:
    return byte_decoder("free", context=256)


def evaluated(lm: LatentLM, *tasks: str, **options: Any) -> dict[str, Any]:
    """The counts of an evaluation as the `lm_eval` command makes it."""
    results = lm_eval.simple_evaluate(lm, tasks=list(tasks), task_manager=task_manager(tasks), **options)
    assert results is not None
    counts: dict[str, Any] = results["config"]["latentlm"]["likelihoods"]
    return counts


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer is computed."""
    monkeypatch.setattr("latentlm_evals.adapter.estimated", lambda *_, **__: pytest.fail("scored"))
    monkeypatch.setattr("latentlm_evals.writing.generate", lambda *_, **__: pytest.fail("generated"))


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("tasks", [[CHOOSE, WRITE], [WRITE]])
def test_what_could_not_be_generated_is_refused_before_any_likelihood(model: LatentDecoder, tasks: list[str]) -> None:
    with pytest.raises(UserError, match=r"task latentlm_copy: .*num_beams=3"):
        evaluated(LatentLM(model, samples=2), *tasks, limit=1, gen_kwargs="num_beams=3")


@pytest.mark.usefixtures("silent")
def test_what_could_not_be_scored_is_refused_before_any_text(model: LatentDecoder, tmp_path: Path) -> None:
    line = '{"context": "a", "choices": ["b", "%s"], "answer": 0}\n' % ("c" * 300)
    (tmp_path / "lines.jsonl").write_text(line)
    ours = (task_path() / "next_line.yaml").read_text().replace("!function data.next_line", "null")
    data = f"task: long\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/lines.jsonl}}}}\n"
    (tmp_path / "long.yaml").write_text(ours.replace("task: latentlm_next_line\n", data))
    lm = LatentLM(model, samples=2)
    with pytest.raises(UserError, match=r'task long: the continuation "ccc.* has 300 tokens'):
        run_with(lm, [WRITE, "long"], include_path=tmp_path, limit=1)
    with pytest.raises(UserError, match="a given continuation has no thoughts"):
        evaluated(LatentLM(model, enable_thinking=True, think_end_token="x"), WRITE, CHOOSE, limit=1)


def test_answers_from_a_database_have_the_errors_that_they_were_computed_with(model: LatentDecoder, tmp_path: Path) -> None:
    fresh = evaluated(LatentLM(model, samples=4), CHOOSE, "latentlm_heldout", limit=3)
    cache = str(tmp_path / "answers")
    found = [evaluated(LatentLM(model, samples=4), CHOOSE, "latentlm_heldout", limit=n, use_cache=cache) for n in (2, 3, 3)]
    assert [counts["recalled"] for counts in found] == [0, 10, 15]
    for counts in found[1:]:
        assert [counts[name] for name in ("requests", "unconverged")] == [15, fresh["unconverged"]]
        for task, told in fresh["tasks"].items():
            items = counts["tasks"][task]["items"]
            assert list(items) == ["0", "1", "2"]
            for each, scores in items.items():
                assert [one["converged"] for one in scores] == [one["converged"] for one in told["items"][each]]
                for name in ("value", "standard_error", "quarter", "effective_samples"):
                    assert [one[name] for one in scores] == pytest.approx([one[name] for one in told["items"][each]], abs=1e-4)


def test_what_was_done_to_requests_is_counted_whoever_answers_them(
    model: LatentDecoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = str(tmp_path / "answers")
    vanilla = byte_decoder("vanilla", context=256)
    for lm in (vanilla, model):  # of a latent decoder texts are kept by other keys
        adapters = [LatentLM(lm, samples=2, max_length=100) for _ in range(2)]
        made, kept = (
            evaluated(each, CHOOSE, WRITE, limit=2, use_cache=f"{cache}-{lm.has_latents}", gen_kwargs="max_gen_toks=8")
            for each in adapters
        )
        assert made["truncated"] == kept["truncated"] > 8  # eight options, two prompts
        assert kept["recalled"] == 8
    caplog.clear()
    evaluated(LatentLM(vanilla, samples=2, max_length=100), CHOOSE, limit=2, use_cache=f"{cache}-False")
    assert "longer than the 100 tokens" in caplog.text


def test_tokens_across_the_join_are_counted_whoever_answers(tmp_path: Path) -> None:
    counted = []
    for _ in range(2):
        lm = LatentLM(byte_decoder("vanilla", context=256))
        lm.reader = replace(lm.reader, plain=lambda text: [len(text) % 250, *text.encode()])  # other tokens of a longer text
        counted.append(evaluated(lm, CHOOSE, limit=4, use_cache=str(tmp_path / "answers")))
    made, kept = counted
    assert (made["recalled"], kept["recalled"]) == (0, 16)
    assert made["joined"] == kept["joined"] == 16


def test_repeats_are_counted_whoever_answers(tmp_path: Path) -> None:
    line = '{"question": "%s", "answer": "x"}\n' % ("a" * 40)
    (tmp_path / "lines.jsonl").write_text(line)
    task = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/lines.jsonl}}}}\ntest_split: test\n"
    task += "task: twice\nrepeats: 2\noutput_type: generate_until\ndoc_to_text: '{{question}}'\ndoc_to_target: '{{answer}}'\n"
    (tmp_path / "twice.yaml").write_text(task + "generation_kwargs: {max_gen_toks: 4, until: ['.']}\n")
    counted = []
    for _ in range(2):
        lm = LatentLM(byte_decoder("vanilla", context=256), max_length=24)
        results = run_with(lm, ["twice"], include_path=tmp_path, use_cache=str(tmp_path / "answers"))
        counted.append(results["config"]["latentlm"]["likelihoods"]["truncated"])
    assert counted == [2, 2]


def test_cuts_and_joins_are_those_of_the_reader() -> None:
    reader = reader_of(ByteTokenizer(), None, elsewhere=False)
    joining = replace(reader, plain=lambda text: [len(word) for word in text.split(" ")])
    request = Instance("loglikelihood", {}, ("ab", "cd ef"), 0)
    assert cut_and_joined(joining, request, 100) == (False, True)
    assert cut_and_joined(reader, request, 100) == (False, False)
    assert cut_and_joined(reader, request, 6) == (True, False)
    assert cut_and_joined(reader, request, 7) == (False, False)  # the last token is no input


def test_a_dry_run_leaves_nothing_in_a_database_and_counts_what_is_not_in_it(model: LatentDecoder, tmp_path: Path) -> None:
    cache = str(tmp_path / "answers")
    dry = [DryLM(model, samples=4) for _ in range(2)]
    evaluated(dry[0], CHOOSE, WRITE, limit=2, use_cache=cache)
    counts = evaluated(LatentLM(model, samples=4), CHOOSE, limit=1, use_cache=cache)
    assert (counts["requests"], counts["recalled"]) == (4, 0)
    evaluated(dry[1], CHOOSE, limit=2, use_cache=cache)
    assert [lm.plan().requests for lm in dry] == [8, 4]
    assert [lm.plan().texts for lm in dry] == [2, 0]
    counts = evaluated(LatentLM(model, samples=4), CHOOSE, limit=2, use_cache=cache)
    assert (counts["requests"], counts["recalled"]) == (8, 4)


def test_a_dry_run_counts_no_texts_that_a_database_has(model: LatentDecoder, tmp_path: Path) -> None:
    cache = str(tmp_path / "answers")
    evaluated(LatentLM(model, samples=2), WRITE, limit=2, use_cache=cache)
    dry = DryLM(model, samples=2)
    evaluated(dry, WRITE, limit=3, use_cache=cache)
    assert dry.plan().texts == 1


def test_documents_have_the_numbers_that_the_logged_samples_have(model: LatentDecoder) -> None:
    counts = evaluated(LatentLM(model, samples=2), CHOOSE, samples={CHOOSE: [3, 7]})
    assert list(counts["tasks"][CHOOSE]["items"]) == ["3", "7"]


def test_counts_begin_anew_where_nobody_asked_for_the_last_ones(model: LatentDecoder) -> None:
    lm = LatentLM(model, samples=2)
    tasks = task_manager([CHOOSE])
    for _ in range(2):
        evaluator.evaluate(lm, tasks.load([CHOOSE]), limit=1)
    assert lm.get_model_info()["latentlm"]["likelihoods"]["requests"] == 4


class _Other(DummyLM):
    """Without a tokenizer, which lm-eval's own would fetch."""

    tokenizer = None


def test_evaluations_are_announced_once_and_other_models_take_no_notice() -> None:
    announce()
    before = evaluator.evaluate
    announce()
    assert evaluator.evaluate is before
    results = lm_eval.simple_evaluate(_Other(), tasks=[CHOOSE], task_manager=task_manager([CHOOSE]), limit=1)
    assert results is not None
    assert "latentlm" not in results["config"]
