"""Fill the tables of docs/lm-eval.md: every option, what it does here, and whether the answers are those of lm-eval's `hf`.

    python docs/build_lm_eval_options.py           run each option through both adapters and write the tables
    python docs/build_lm_eval_options.py --check   exit with 1 if the tables are not what would be written

Both adapters get one random Llama folder, whose tokenizer puts BOS before a text and has a chat template, and the same tasks.
The last column is measured: "yes" if every likelihood agrees to 1e-4 nats and every text is the same. What only the `lm_eval`
command has is run by that command. Needs `accelerate`, which `hf` imports.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lm_eval
import yaml
from lm_eval._cli import HarnessCLI
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from latentlm.errors import UserError
from latentlm_evals.adapter import LatentLM

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from lm_eval_options import COMMAND, HARNESS, MODEL, REQUESTS, Option  # noqa: E402 - which imports that too

from llama_folders import TEMPLATE, llama_folder  # noqa: E402 - the tests' own small folder

PAGE = Path(__file__).parent / "lm-eval.md"
CLOSE = 1e-4  # nats
SHORT = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"


def tables(folder: Path) -> dict[str, str]:
    """Name of a table -> its rows."""
    llama_folder(folder / "llama", chat_template={"default": TEMPLATE, "short": SHORT}, context=256)
    write_tasks(folder / "tasks")
    head = "| {} | here | equal to `hf`? |\n|---|---|---|\n"
    return {
        "requests": head.format("request") + "\n".join(_request_row(folder, *row) for row in REQUESTS),
        "model arguments": head.format("`--model_args`") + "\n".join(_row(folder, option) for option in MODEL),
        "harness": head.format("`lm_eval` option") + "\n".join(_row(folder, option) for option in HARNESS),
        "latentlm eval": _command(),
    }


def _command() -> str:
    """What `latentlm eval` has otherwise, those that say the same in one row."""
    said: dict[str, list[str]] = {}
    for name, what in COMMAND.items():
        said.setdefault(what, []).append(f"`{name}`")
    rows = [f"| {', '.join(names)} | {what} |" for what, names in said.items()]
    return "\n".join(["| `lm_eval run` | `latentlm eval` |", "|---|---|", *rows])


def write_tasks(folder: Path) -> None:
    """A multiple-choice task, one of generation, with examples to show, and one of whole texts."""
    folder.mkdir()
    rows = [{"question": f"What is {n} and {n}?", "choices": [str(2 * n), "self.x"], "answer": 0} for n in range(5)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}}}
    common |= {"test_split": "test", "fewshot_split": "test", "num_fewshot": 1, "doc_to_text": "{{question}}\n"}
    choose = {"task": "choose", "output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": "answer"}
    write = {"task": "write", "output_type": "generate_until", "doc_to_target": "{{choices[0]}}"}
    write["generation_kwargs"] = {"until": ["\n\n"], "max_gen_toks": 8}
    read = {"task": "read", "output_type": "loglikelihood_rolling", "doc_to_text": "", "num_fewshot": 0}
    read |= {"doc_to_target": "{{question}} {{question}} {{question}}", "metric_list": [{"metric": "word_perplexity"}]}
    for task in (choose, write, read):
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump({**common, **task}))
    (folder / "config").write_text(yaml.safe_dump({"num_fewshot": 2, "gen_kwargs": {"max_gen_toks": 5}}))


def _row(folder: Path, option: Option) -> str:
    """An option run through both."""
    here, equal = _measured(folder, option)
    return f"| `{option.written}` | {here} | {equal} |"


def _measured(folder: Path, option: Option) -> tuple[str, str]:
    """What it does here, and whether that is what it does in `hf`."""
    llama = {"pretrained": str(folder / "llama")}
    if option.unmeasured:
        return option.behaviour, f"not measured: {option.unmeasured}"
    if option.refused:
        for given in option.refused:
            _check_refused(_answers(folder, option, lambda given=given: LatentLM.create_from_arg_obj(llama | given)), *given)
        return _REFUSED
    if option.command is not None:
        ours, theirs = (_commanded(folder, model, option.command) for model in ("latentlm", "hf"))
    else:
        ours = _answers(folder, option, lambda **given: LatentLM.create_from_arg_obj(llama | given | option.ours))
        theirs = None
    if isinstance(ours, UserError):
        _check_refused(ours, *option.evaluate.get("gen_kwargs", {}))
        return _REFUSED
    if theirs is None:
        theirs = _answers(folder, option, lambda **given: HFLM(**llama | {"device": "cpu"} | given))
    return option.behaviour, _verdict(ours, theirs, option.why)


_REFUSED = ("refused by name, before any work", "no")


def _check_refused(found: Any, *names: str) -> None:
    """Stop unless this is a refusal that names what is refused."""
    if not (isinstance(found, UserError) and all(name in str(found) for name in names)):
        raise SystemExit(f"{', '.join(names)} should be refused by name: {found!r}")


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
        results = lm_eval.simple_evaluate(lm, tasks=list(option.tasks), task_manager=manager, **settings)
    except Exception as error:  # an adapter's refusal is a result, whatever its kind
        return error
    assert results is not None
    samples: dict[str, list[Any]] = results["samples"]
    return [answer for task in option.tasks for sample in samples[task] for answer in _flat(sample["resps"])]


def _commanded(folder: Path, model: str, words: tuple[str, ...]) -> Any:
    """The same by the `lm_eval` command, from the samples that it logs."""
    out = tempfile.mkdtemp(dir=folder)
    words = tuple(str(folder / "tasks" / "config") if word == "CONFIG" else word for word in words)
    line = ["run", "--model", model, "--model_args", f"pretrained={folder / 'llama'}", "--tasks", "choose,write"]
    line += ["--include_path", str(folder / "tasks"), "--limit", "4", "--output_path", out, "--log_samples", *words]
    harness = HarnessCLI()
    quick = partial(TaskManager, include_defaults=False)  # to index all of lm-eval's tasks takes seconds
    try:
        with (
            open(os.devnull, "w") as nowhere,
            redirect_stdout(nowhere),
            redirect_stderr(nowhere),
            patch("lm_eval.tasks.TaskManager", quick),
        ):
            harness.execute(harness._parser.parse_args(line))
    except Exception as error:
        return error
    logged = [path.read_text(encoding="utf-8") for path in sorted(Path(out).rglob("samples_*.jsonl"))]
    samples = [json.loads(line) for text in logged for line in text.splitlines()]
    return [_number(answer) for sample in samples for answer in _flat(sample["resps"])]


def _number(logged: str) -> float | str:
    """lm-eval logs numbers as text."""
    try:
        return float(logged)
    except ValueError:
        return logged


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
    failed = [each for each in (ours, theirs) if isinstance(each, Exception)]
    if isinstance(ours, Exception) and not (why and [type(each) for each in failed] == [type(ours)] * 2):
        raise ours
    if not failed and len(ours) == len(theirs) > 0 and all(map(_same, ours, theirs)):
        return "yes"
    if not why:
        raise SystemExit(f"no reason is given why these differ:\n{ours}\n{theirs!r}")
    return why if len(failed) == 2 else f"no: {why}"


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
