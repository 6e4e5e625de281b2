"""Fill the tables of docs/lm-eval.md: every option, what it does here, and whether the answers are those of lm-eval's `hf`.

    python docs/build_lm_eval_options.py           run each option through both adapters and write the tables
    python docs/build_lm_eval_options.py --check   exit with 1 if the tables are not what would be written

Both adapters get one random Llama folder, whose tokenizer puts BOS before a text and has a chat template, and the same tasks.
The last column is measured: "yes" if every likelihood agrees to 1e-4 nats and every text is the same. Needs `accelerate`, which
`hf` imports.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lm_eval
import yaml
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from latentlm.errors import UserError
from latentlm_evals.adapter import LatentLM

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from llama_folders import BOS, END, TEMPLATE, llama_folder  # noqa: E402 - the tests' own small folder

PAGE = Path(__file__).parent / "lm-eval.md"
CLOSE = 1e-4  # nats
SHORT = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"


@dataclass(frozen=True)
class Option:
    """A row: how it is written, what it does here, and how to run it."""

    written: str
    behaviour: str
    model: dict[str, Any] = field(default_factory=dict)
    """Arguments of the adapter."""
    evaluate: dict[str, Any] = field(default_factory=dict)
    """Arguments of `lm_eval.simple_evaluate`."""
    why: str = ""
    """Where the answers differ, the reason."""


MODEL = [
    Option("pretrained=, model=", "the model: a zoo name, a run folder, a Llama folder"),
    Option("device=cpu", "where; under several processes each takes its own CUDA device", {"device": "cpu"}),
    Option("dtype=float32", "precision of the weights; None is the card's or config.json's", {"dtype": "float32"}),
    Option("batch_size=1", "requests per pass", {"batch_size": 1}),
    Option("batch_size=8", "", {"batch_size": 8}),
    Option("batch_size=auto", "8 on a CPU, else as many as fit a fixed memory", {"batch_size": "auto"}),
    Option("max_batch_size=4", "the most that auto takes", {"batch_size": "auto", "max_batch_size": 4}),
    Option("max_length=64", "tokens seen at most; contexts are cut from the left, counted, warned of once", {"max_length": 64}),
    Option("tokenizer=FOLDER", "another tokenizer.json, or `bytes`", {"tokenizer": "FOLDER"}),
    Option("add_bos_token=true", "feed the first token before every text", {"add_bos_token": True}),
    Option("add_bos_token=false", "feed none", {"add_bos_token": False}),
    Option("prefix_token_id=5", "stands for an empty context", {"prefix_token_id": 5}),
    Option("trust_remote_code=true", "accepted, unused: code of a folder is never run", {"trust_remote_code": True}),
    Option("think_end_token=...", "answers begin after the last of it, a text or a token's number", {"think_end_token": ","}),
    Option("enable_thinking=false", "passed to the chat template", {"enable_thinking": False}, {"apply_chat_template": True}),
    Option("chat_template_args={...}", "passed to it", {"chat_template_args": {"a": 1}}, {"apply_chat_template": True}),
    Option("logits_cache, truncation=false, use_fast_tokenizer, backend=causal, revision=main, ...", "accepted, unused",
           {"logits_cache": False, "truncation": False, "use_fast_tokenizer": True, "backend": "causal", "revision": "main"}),
    Option("parallelize=true, tp_plan=", "", {"parallelize": True}),
    Option("peft=, delta=, gptqmodel=, autogptq=, gguf_file=", "", {"peft": "folder"}),
    Option("softmax_dtype=, mixed_precision_dtype=", "", {"softmax_dtype": "float32"}),
    Option("subfolder=x, revision=x", "", {"revision": "x"}),
]  # fmt: skip
HARNESS = [
    Option("--num_fewshot 3", "lm-eval's own", evaluate={"num_fewshot": 3}),
    Option("--apply_chat_template", "the tokenizer's chat template (also a card's, from its folder)",
           evaluate={"apply_chat_template": True}),
    Option("--apply_chat_template short", "the template of that name", evaluate={"apply_chat_template": "short"},
           why="`hf` records the named template and applies the default one"),
    Option("--system_instruction", "a system turn, or before the prompt", evaluate={"system_instruction": "Be brief."}),
    Option("--system_instruction with a template", "",
           evaluate={"system_instruction": "Be brief.", "apply_chat_template": True}),
    Option("--fewshot_as_multiturn true", "each example is a turn",
           evaluate={"apply_chat_template": True, "fewshot_as_multiturn": True}),
    Option("--fewshot_as_multiturn false", "", evaluate={"apply_chat_template": True, "fewshot_as_multiturn": False}),
    Option("--limit 2", "lm-eval's own", evaluate={"limit": 2}),
    Option("--samples {...}", "lm-eval's own", evaluate={"limit": None, "samples": {"choose": [1, 3], "write": [0, 2]}}),
    Option("--use_cache PATH", "refuses another model's or setting's answers; never one sample for several repeats",
           evaluate={"use_cache": "FRESH"}),
    Option("--cache_requests true", "lm-eval's own; tokenizers and templates have names of their own",
           evaluate={"cache_requests": True, "apply_chat_template": True}),
    Option("--predict_only", "lm-eval's own", evaluate={"predict_only": True}),
    Option("--seed 7", "few-shot examples and metrics follow it; latents and sampled tokens follow seed= of --model_args, "
           "and a warning says so", evaluate={"torch_random_seed": 7, "random_seed": 7, "numpy_random_seed": 7}),
    Option("--confirm_run_unsafe_code", "lm-eval's own", evaluate={"confirm_run_unsafe_code": True}),
    Option("--gen_kwargs max_gen_toks=4", "tokens at most; also max_new_tokens, max_tokens, max_completion_tokens",
           evaluate={"gen_kwargs": {"max_gen_toks": 4}}),
    Option("--gen_kwargs max_completion_tokens=4", "", evaluate={"gen_kwargs": {"max_completion_tokens": 4}}),
    Option("--gen_kwargs until=[...]", "stop strings", evaluate={"gen_kwargs": {"until": ["e", "("]}}),
    Option("--gen_kwargs stop=[...]", "more stop strings", evaluate={"gen_kwargs": {"stop": ["e"]}},
           why="`hf` takes stop twice and fails"),
    Option("--gen_kwargs num_beams=1", "neutral values of transformers' arguments are accepted",
           evaluate={"gen_kwargs": {"num_beams": 1}}),
    Option("--gen_kwargs top_k=0,repetition_penalty=1.0", "", evaluate={"gen_kwargs": {"top_k": 0, "repetition_penalty": 1.0}}),
    Option("--gen_kwargs stop=None", "", evaluate={"gen_kwargs": {"stop": None}}, why="`hf` takes stop twice and fails"),
    Option("--gen_kwargs temperature=0", "greedy", evaluate={"gen_kwargs": {"temperature": 0}}),
    Option("--gen_kwargs do_sample=true,temperature=1", "sampled: numbers keyed by prompt and repeat; also top_p and top_k",
           evaluate={"gen_kwargs": {"do_sample": True, "temperature": 1.0}},
           why="other random numbers; without top_k `hf` samples from the top 50"),
    Option("--gen_kwargs num_beams=2", "", evaluate={"gen_kwargs": {"num_beams": 2}}),
    Option("--gen_kwargs repetition_penalty=1.2", "", evaluate={"gen_kwargs": {"repetition_penalty": 1.2}}),
]  # fmt: skip
REQUESTS: list[tuple[str, str, tuple[str, ...], str]] = [
    ("context and continuation", "the first token, context, continuation", ("def area(width", ", height"), ""),
    ("empty context", "the prefix token stands for it", ("", "return width"), ""),
    ("context of blanks", "the same: an empty context, the blanks the continuation's", (" \n", "return width"), ""),
    ("blank at a context's end", "the continuation's", ("import ", "os"), ""),
    ("prompt with special tokens", "these tokens", (f"import{END}\nself", ".x = x"), ""),
    ("prompt that begins with BOS", "no second one", (f"{BOS}import", " os"), ""),
    ("context too long", "cut from the left", ("x " * 300, "self.x = y"), ""),
    ("a token spans the join", "counted; `hf`'s cut, or where it leaves nothing both parts alone", ("impo", "rt"),
     "`hf` fails where its cut leaves nothing"),
    ("whole text (rolling)", "its tokens after the prefix token", ("class Point:\n    def __init__(self, x):\n" * 9,),
     "where a tokenizer puts BOS before a text, `hf` feeds it twice and counts it as text"),
]  # fmt: skip


def tables(folder: Path) -> dict[str, str]:
    """Name of a table -> its rows."""
    llama_folder(folder / "llama", chat_template={"default": TEMPLATE, "short": SHORT}, context=256)
    write_tasks(folder / "tasks")
    head = "| {} | here | equal to `hf`? |\n|---|---|---|\n"
    return {
        "requests": head.format("request") + "\n".join(_request_row(folder, *row) for row in REQUESTS),
        "model arguments": head.format("`--model_args`") + "\n".join(_row(folder, option) for option in MODEL),
        "harness": head.format("`lm_eval` option") + "\n".join(_row(folder, option) for option in HARNESS),
    }


def write_tasks(folder: Path) -> None:
    """A multiple-choice task and one of generation, with examples to show."""
    folder.mkdir()
    rows = [{"question": f"What is {n} and {n}?", "choices": [str(2 * n), "self.x"], "answer": 0} for n in range(5)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}}}
    common |= {"test_split": "test", "fewshot_split": "test", "num_fewshot": 1, "doc_to_text": "{{question}}\n"}
    choose = {"task": "choose", "output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": "answer"}
    write = {"task": "write", "output_type": "generate_until", "doc_to_target": "{{choices[0]}}"}
    write["generation_kwargs"] = {"until": ["\n\n"], "max_gen_toks": 8}
    for task in (choose, write):
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump({**common, **task}))


def _row(folder: Path, option: Option) -> str:
    """An option run through both."""
    llama = {"pretrained": str(folder / "llama")}
    ours = _answers(folder, option, lambda **given: LatentLM.create_from_arg_obj(llama | given))
    if isinstance(ours, UserError):
        return f"| `{option.written}` | refused by name, before any work | no |"
    theirs = _answers(folder, option, lambda **given: HFLM(**llama | {"device": "cpu"} | given))
    return f"| `{option.written}` | {option.behaviour} | {_verdict(ours, theirs, option.why)} |"


def _answers(folder: Path, option: Option, make: Callable[..., LM]) -> Any:
    """Every answer, in order, or the error."""
    given = {name: str(folder / "llama") if value == "FOLDER" else value for name, value in option.model.items()}
    settings = {"limit": 4, "bootstrap_iters": 0, **option.evaluate}
    if settings.get("use_cache") == "FRESH":
        settings["use_cache"] = tempfile.mkdtemp(dir=folder) + "/answers"
    try:
        lm = make(**given)
        if settings.get("apply_chat_template"):
            lm.chat_template(settings["apply_chat_template"])  # as the lm_eval command does
        manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
        results = lm_eval.simple_evaluate(lm, tasks=["choose", "write"], task_manager=manager, **settings)
    except Exception as error:  # an adapter's refusal is a result, whatever its kind
        return error
    assert results is not None
    samples: dict[str, list[Any]] = results["samples"]
    return [answer for task in ("choose", "write") for sample in samples[task] for answer in _flat(sample["resps"])]


def _flat(answer: Any) -> list[Any]:
    return [each for part in answer for each in _flat(part)] if isinstance(answer, list | tuple) else [answer]


def _request_row(folder: Path, name: str, behaviour: str, request: tuple[str, ...], why: str) -> str:
    """A single request through both."""
    kind = "loglikelihood" if len(request) == 2 else "loglikelihood_rolling"
    found = []
    for lm in (LatentLM(str(folder / "llama")), HFLM(pretrained=str(folder / "llama"), device="cpu", dtype="float32")):
        try:
            found.append(_flat(getattr(lm, kind)([Instance(kind, {}, request, 0)], disable_tqdm=True)))
        except AssertionError as error:
            found.append(error)
    return f"| {name} | {behaviour} | {_verdict(*found, why)} |"


def _verdict(ours: Any, theirs: Any, why: str) -> str:
    """Equal or not, and why not."""
    if isinstance(ours, Exception):
        raise ours
    same = not isinstance(theirs, Exception) and len(ours) == len(theirs) and all(map(_same, ours, theirs))
    if same:
        return "yes"
    if not why:
        raise SystemExit(f"no reason is given why these differ:\n{ours}\n{theirs!r}")
    return f"no: {why}"


def _same(one: Any, other: Any) -> bool:
    number = isinstance(one, float) and isinstance(other, float)
    return abs(one - other) < CLOSE if number else bool(one == other)


def filled(page: str, made: dict[str, str]) -> str:
    """The page with the tables between their marks."""
    for name, table in made.items():
        begin, end = f"<!-- {name}: made by build_lm_eval_options.py -->\n", f"\n<!-- end of {name} -->"
        before, _, rest = page.partition(begin)
        page = before + begin + table + end + rest.partition(end)[2]
    return page


def main() -> int:
    """Write or check; the exit status."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LM_HARNESS_CACHE_PATH"] = folder
        wanted = filled(PAGE.read_text(encoding="utf-8"), tables(Path(folder)))
    if "--check" in sys.argv[1:]:
        current = wanted == PAGE.read_text(encoding="utf-8")
        if not current:
            print(f"{PAGE.name} is not current: run python docs/build_lm_eval_options.py", file=sys.stderr)
        return int(not current)
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
