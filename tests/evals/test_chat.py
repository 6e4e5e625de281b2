"""Conversations: `--apply_chat_template` with a system prompt and few-shot turns as `hf` has it, named templates, thoughts."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
import yaml
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from byte_models import byte_decoder
from latentlm.config import BackboneConfig, ModelConfig
from latentlm.errors import UserError
from latentlm.interface import Generation
from latentlm_evals.adapter import LatentLM
from latentlm_evals.chat import Thinking
from llama_folders import END, TEMPLATE, llama_folder

SHORT = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
STRICT = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama_folder(tmp_path_factory.mktemp("chat"), chat_template=TEMPLATE, context=512)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A multiple-choice task and one of generation, with examples to show."""
    tasks = tmp_path_factory.mktemp("tasks")
    rows = [{"question": f"What is {n} and {n}?", "choices": [f"{2 * n}", "x"], "answer": 0, "text": "4"} for n in range(6)]
    (tasks / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tasks / "rows.jsonl")}},
        "test_split": "test",
        "fewshot_split": "test",
        "num_fewshot": 2,
        "doc_to_text": "{{question}}\n",
    }
    choose = {"task": "choose", "output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": "answer"}
    write = {"task": "write", "output_type": "generate_until", "doc_to_target": "text"}
    write |= {"generation_kwargs": {"until": [END], "max_gen_toks": 8}}
    for task in (choose, write):
        (tasks / f"{task['task']}.yaml").write_text(yaml.safe_dump({**common, **task}))
    return tasks


def evaluated(lm: LM, tasks: Path, **settings: Any) -> dict[str, list[Any]]:
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    results = lm_eval.simple_evaluate(lm, tasks=["choose", "write"], task_manager=manager, limit=3, **settings)
    assert results is not None
    return dict(results["samples"])


@pytest.mark.parametrize("multiturn", [True, False])
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_conversations_and_answers_are_those_of_hf(folder: Path, tasks: Path, system: str | None, multiturn: bool) -> None:
    settings = {"apply_chat_template": True, "system_instruction": system, "fewshot_as_multiturn": multiturn}
    ours = evaluated(LatentLM(str(folder)), tasks, **settings)
    theirs = evaluated(HFLM(pretrained=str(folder), device="cpu", dtype="float32"), tasks, **settings)
    for task in ("choose", "write"):
        for one, other in zip(ours[task], theirs[task], strict=True):
            assert one["arguments"] == other["arguments"]
            assert ("<|im_start|>system" in one["arguments"][0][0]) == (system is not None)
            if task == "write":
                assert one["resps"] == other["resps"]
            else:
                values = [[value for ((value, _),) in sample["resps"]] for sample in (one, other)]
                assert values[0] == pytest.approx(values[1], abs=1e-4)


def test_a_template_without_a_system_role_gets_the_conversation_without_it(tmp_path: Path) -> None:
    lm = LatentLM(str(llama_folder(tmp_path, chat_template=STRICT)))
    history = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert lm.apply_chat_template(history) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_the_named_template_is_the_one_that_is_applied(tmp_path: Path) -> None:
    lm = LatentLM(str(llama_folder(tmp_path, chat_template={"default": TEMPLATE, "short": SHORT})))
    history = [{"role": "user", "content": "Hi"}]
    names = [lm.tokenizer_name]
    assert lm.chat_template("short") == SHORT
    names.append(lm.tokenizer_name)
    assert lm.apply_chat_template(history) == "Hi"
    assert lm.chat_template(True) == TEMPLATE
    names.append(lm.tokenizer_name)
    assert len(set(names)) == 3, "lm-eval keeps built requests by this name"
    assert lm.apply_chat_template(history).startswith("<|im_start|>user")
    with pytest.raises(UserError, match="short"):
        lm.chat_template("shrot")


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1 / 0 }}", "{% for i in range(10**9) %}x{% endfor %}", "{% include 'x' %}", "{{ raise_exception('no') }}", "{% for",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)  # fmt: skip
@pytest.mark.parametrize("roles", [("user",), ("system", "user")])
def test_a_template_that_raises_is_one_message(tmp_path: Path, template: str, roles: tuple[str, ...]) -> None:
    lm = LatentLM(str(llama_folder(tmp_path, chat_template=template)))
    with pytest.raises(UserError, match="the chat template cannot take this conversation: "):
        lm.apply_chat_template([{"role": role, "content": "Hi"} for role in roles])


def test_templates_that_are_no_texts_are_refused(tmp_path: Path) -> None:
    path = llama_folder(tmp_path) / "tokenizer_config.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps({**said, "chat_template": 5}))
    with pytest.raises(UserError, match="chat template 5, which is no text"):
        LatentLM(str(tmp_path)).chat_template(True)
    path.write_text(json.dumps({**said, "chat_template": [5]}))
    with pytest.raises(UserError, match="transformers cannot read the tokenizer"):
        LatentLM(str(tmp_path))


def test_no_template_is_one_message_before_any_work(tmp_path: Path) -> None:
    for lm in (LatentLM(str(llama_folder(tmp_path))), LatentLM(byte_decoder("vanilla"))):
        with pytest.raises(UserError, match="no chat template"):
            lm.chat_template(True)
        with pytest.raises(UserError, match="no chat template"):
            lm.apply_chat_template([{"role": "user", "content": "Hi"}])


def test_a_card_has_the_template_that_lies_beside_its_tokenizer(tmp_path: Path) -> None:
    source = llama_folder(tmp_path / "llama", chat_template=TEMPLATE)
    card_folder = tmp_path / "card"
    card_folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, card_folder / name)
    vocabulary = LatentLM(str(source)).model.config.backbone.vocabulary
    sizes = {"vocabulary": vocabulary, "width": 16, "blocks": 2, "heads": 2, "context": 64}
    config = ModelConfig(decoder="free", event_dims=2, backbone=BackboneConfig.model_validate(sizes))
    card = {"name": "c", "status": "architecture", "model": config.model_dump(mode="json"), "tokenizer": "tokenizer.json"}
    (card_folder / "card.yaml").write_text(yaml.safe_dump(card))
    with pytest.warns(UserWarning, match="random"):
        lm = LatentLM(str(card_folder), allow_random=True)
    prompt = lm.apply_chat_template([{"role": "user", "content": "Hi"}])
    assert prompt.startswith("<|im_start|>user\nHi")
    tokens = lm.tok_encode(prompt)
    assert tokens[0] == lm.eot_token_id  # what training fed
    assert tokens[1] in lm.model.tokenizer.special  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------------------------- thoughts


def test_thoughts_are_left_out_up_to_their_last_end() -> None:
    of_text, of_token = Thinking.of(True, "</t>"), Thinking.of(None, "7")
    assert of_text.answer("so </t> so </t>\n 4", []) == "4"
    assert of_text.answer(" no end", []) == "no end"
    assert of_token.after([1, 7, 2, 7, 3]) == [3]
    assert of_token.after([1, 2]) == [1, 2]
    assert of_token.answer(" no end", []) == "no end"
    assert Thinking().answer(" none wanted", []) == " none wanted"
    assert of_text.with_theirs({"a": 1}) == {"a": 1, "enable_thinking": True}


def test_thoughts_need_an_end_and_a_text_to_generate() -> None:
    with pytest.raises(UserError, match="think_end_token"):
        LatentLM(byte_decoder("vanilla"), enable_thinking=True)
    lm = LatentLM(byte_decoder("vanilla"), enable_thinking=True, think_end_token="</t>")
    with pytest.raises(UserError, match="enable_thinking"):
        lm.loglikelihood([Instance("loglikelihood", {}, ("a", "b"), 0)])


@pytest.mark.parametrize("end", ["text", "token"])
def test_answers_after_thoughts_are_those_of_hf(folder: Path, end: str) -> None:
    plain = LatentLM(str(folder))
    (whole,) = plain.generate_until(asked(["zzz"]), disable_tqdm=True)
    wanted = str(plain.reader.plain(",")[0]) if end == "token" else ","
    ours = LatentLM(str(folder), think_end_token=wanted)
    theirs = HFLM(pretrained=str(folder), device="cpu", dtype="float32", think_end_token=wanted)
    (found,) = ours.generate_until(asked(["zzz"]), disable_tqdm=True)
    assert [found] == theirs.generate_until(asked(["zzz"]), disable_tqdm=True)
    assert len(found) < len(whole)


def asked(stop: list[str]) -> list[Instance]:
    return [Instance("generate_until", {}, ("class Point", {"until": stop, "max_gen_toks": 24}), 0)]


def test_wherever_the_model_stops_the_answers_are_those_of_hf(folder: Path) -> None:
    """Stop strings before, in and after the end of the thoughts, and ends that never come."""
    ours, theirs = LatentLM(str(folder)), HFLM(pretrained=str(folder), device="cpu", dtype="float32")
    (whole,) = ours.generate_until(asked([]), disable_tqdm=True)
    cut = [whole[start : start + size] for start in range(len(whole) - 2) for size in (1, 2, 3)]
    pieces = list(dict.fromkeys(filter(str.isascii, cut)))
    assert len(pieces) > 15
    ends: list[str | int | None] = [None, "never", pieces[0], pieces[9], pieces[-3], *ours.reader.plain(whole)[3:5]]
    differ = 0
    for end in ends:
        ours.writer = replace(ours.writer, thinking=Thinking.of(None, end))
        theirs.think_end_token = end
        for stop in pieces:
            found = ours.generate_until(asked([stop]), disable_tqdm=True)
            assert found == theirs.generate_until(asked([stop]), disable_tqdm=True), (end, stop)
            differ += found != [whole.split(stop)[0]]
    assert differ, "the ends are met"


WRITTEN = [
    "so\n\nso</t>\n 4\n\nmore", " 4, without an end\n\nmore", "\n\nso</t>4", "so</t> so</t>\n\n", "</t>", "4", "", "  ",
    "so</t>so xab", "xab",
]  # fmt: skip


@pytest.mark.parametrize("stop", [[], ["\n\n"], ["t>"], ["</t>"], ["</t>\n", "so"], ["ab", "xab"], ["s", " "]])
@pytest.mark.parametrize("end", [None, "</t>", "", "t", "4", "token"])
def test_what_counts_of_a_text_is_what_counts_in_hf(
    folder: Path, monkeypatch: pytest.MonkeyPatch, end: str | None, stop: list[str]
) -> None:
    """Both are handed the same tokens as what the model wrote, so that all that differs is what is made of them."""
    ours = LatentLM(str(folder))
    end = str(ours.reader.plain("4")[0]) if end == "token" else end
    ours.writer = replace(ours.writer, thinking=Thinking.of(None, end))
    theirs = HFLM(pretrained=str(folder), device="cpu", dtype="float32", think_end_token=end)
    for text in WRITTEN:
        tokens = ours.reader.plain(text)
        cut = text[: min([place for each in stop if (place := text.find(each)) >= 0], default=None)]  # as `generate` has it
        given = [Generation(text=cut, tokens=tokens, prompt=[1], latents=None, finish="length", sample=0)]
        monkeypatch.setattr("latentlm_evals.writing.generate", lambda *_, given=given, **__: given)
        after = torch.tensor([tokens], dtype=torch.long)
        monkeypatch.setattr(theirs, "_model_generate", lambda context, after=after, **_: torch.cat([context, after], dim=1))
        found = ours.generate_until(asked(stop), disable_tqdm=True)
        assert found == theirs.generate_until(asked(stop), disable_tqdm=True), text


BAD_ENDS = [([3], "neither a text nor"), (True, "neither a text nor"), (99999, "is no token")]


@pytest.mark.parametrize(("end", "message"), BAD_ENDS)
def test_an_end_of_thoughts_that_is_none_is_refused(folder: Path, end: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        LatentLM(str(folder), think_end_token=end)
