"""`latentlm eval`: lm-eval tasks on a model, through the adapter, whether or not the start-up hook is there.

    latentlm eval free-tiny                                          # the shipped tasks
    latentlm eval runs/mine --tasks latentlm_next_line --samples 64
    latentlm eval free-tiny --tasks my_task --include-path tasks/ --json
    latentlm eval runs/mine --suite headline --confirm-run-unsafe-code --use-cache answers

What `lm_eval run` has is here too, under the same names with dashes, but for what docs/lm-eval.md lists. `torchrun -m
latentlm.cli eval ...` shares an evaluation.
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from latentlm.cli.output import AsJson, emit
from latentlm.config.reading import json_data
from latentlm.config.writing import check_replaceable, write_text
from latentlm.errors import UserError, short, unknown_name
from latentlm_evals.outputs import has_keys
from latentlm_evals.strict_json import plain, strict_json
from latentlm_evals.suites import DEFAULT_SUITE, SUITES, task_path

EXAMPLES = """
Examples:

  latentlm eval free-tiny

  latentlm eval runs/mine --tasks latentlm_next_line,latentlm_copy --samples 64 --json

  latentlm eval free-tiny --samples auto --tolerance 0.1 --dry-run

  latentlm eval free-tiny --tasks my_task --include-path my_tasks/ --output results.json

  latentlm eval runs/mine --tasks "mmlu_*,gsm8k" --num-fewshot 5 --gen-kwargs temperature=0.7,do_sample=true --use-cache answers

  lm_eval --model latentlm --model_args model=free-tiny --tasks latentlm_short --include_path "$(latentlm eval --task-path)"
"""

app = typer.Typer(add_completion=False)


def _print_task_path(asked: bool) -> None:
    if asked:
        typer.echo(str(task_path()), file=sys.stdout)
        raise typer.Exit


@app.command(epilog=EXAMPLES)
def evaluate(
    model: Annotated[str, typer.Argument(help="A name of the zoo, or a run folder.")],
    tasks: Annotated[str | None, typer.Option(help="Comma-separated lm-eval tasks, groups and patterns (mmlu_*).")] = None,
    suite: Annotated[str | None, typer.Option(help=f"Instead of tasks: {', '.join(SUITES)}.")] = None,
    include_path: Annotated[Path | None, typer.Option(help="Folder with task files of your own.")] = None,
    score: Annotated[str, typer.Option(help="operational, auto, iwae, smc, elbo, prior or joint.")] = "operational",
    samples: Annotated[str, typer.Option(help='Latent samples per request; "auto": as many as --tolerance takes.')] = "16",
    tolerance: Annotated[float, typer.Option(help="Nats of a continuation, bits per byte of a text.")] = 0.01,
    max_samples: Annotated[int, typer.Option(min=1, help='Where "auto" gives up, and the results say so.')] = 256,
    seed: Annotated[int, typer.Option(help="Seed of the keyed random numbers.")] = 0,
    limit: Annotated[float | None, typer.Option(min=0, help="Items per task, or their share below 1.")] = None,
    batch_size: Annotated[str, typer.Option(help='Requests per forward pass, or "auto".')] = "auto",
    device: Annotated[str | None, typer.Option(help='"cpu", "cuda", ...; default: the model\'s.')] = None,
    tokenizer: Annotated[str | None, typer.Option(help='For a card without one: "bytes" or a tokenizer.json.')] = None,
    allow_random: Annotated[bool, typer.Option(help="Evaluate an architecture card's random weights.")] = False,
    model_args: Annotated[str, typer.Option(help="Any other argument of the adapter: add_bos_token=false,max_length=512")] = "",
    num_fewshot: Annotated[int | None, typer.Option("--num-fewshot", "-f", min=0, help="Examples first.")] = None,
    fewshot_seed: Annotated[int, typer.Option(help="Of the choice of examples.")] = 1234,
    gen_kwargs: Annotated[str, typer.Option(help="Over the tasks' own: temperature=0.7,do_sample=true")] = "",
    apply_chat_template: Annotated[bool, typer.Option(help="Ask as a conversation, by the tokenizer's chat template.")] = False,
    chat_template: Annotated[str | None, typer.Option(help="The same by the template of this name.")] = None,
    system_instruction: Annotated[str | None, typer.Option(help="Goes before every prompt.")] = None,
    fewshot_as_multiturn: Annotated[bool, typer.Option(help="In a conversation, each example is a turn.")] = True,
    use_cache: Annotated[Path | None, typer.Option(help="Keep answers here, and take them from here.")] = None,
    cache_requests: Annotated[bool, typer.Option(help="Keep the built requests too.")] = False,
    predict_only: Annotated[bool, typer.Option(help="Answers only, no metrics; for --output.")] = False,
    metadata: Annotated[str, typer.Option(help='For tasks that ask for it: a=1,b=[2,3] or a JSON object.')] = "",
    write_out: Annotated[bool, typer.Option("--write-out", "-w", help="Say each task's first prompt and answer.")] = False,
    confirm_run_unsafe_code: Annotated[bool, typer.Option(help="Run code that the model writes (mbpp).")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what the evaluation will take.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write lm-eval's whole results here, as JSON.")] = None,
    log_samples: Annotated[bool, typer.Option(help="Every item with its answers in --output's file.")] = True,
    as_json: AsJson = False,
    show_task_path: Annotated[
        bool, typer.Option("--task-path", is_eager=True, callback=_print_task_path, help="Print the shipped tasks' folder.")
    ] = False,
) -> None:
    """Run lm-eval tasks on a model. The default are the shipped ones, which need no network."""
    from rich.console import Console

    from latentlm_evals.adapter import LatentLM
    from latentlm_evals.dry_run import DryLM
    from latentlm_evals.evaluation import check_tasks, group_results, run_with, task_results
    from latentlm_evals.fingerprint import check_cache
    from latentlm_evals.tables import show_plans

    names = _names(tasks, suite)
    if limit is not None and not limit < 2**63:
        raise UserError(f"--limit {limit} is no number of items; leave it out for every item.")
    if limit == 0:  # lm-eval takes it for no limit
        raise UserError("--limit 0 leaves nothing to evaluate; leave it out for every item.")
    _check_text(system_instruction or "", "--system-instruction")
    check_tasks(names, include_path)
    _check_output(output)
    if use_cache is not None:
        check_cache(use_cache)
    if predict_only and not log_samples:
        raise UserError("--predict-only leaves nothing but the answers: leave --no-log-samples out.")
    said = _settings(metadata, "--metadata")
    given = {
        "model": model,
        "score": score,
        "samples": samples,
        "tolerance": tolerance,
        "max_samples": max_samples,
        "seed": seed,
        "batch_size": batch_size,
        "device": device,
        "tokenizer": tokenizer,
        "allow_random": allow_random,
    }
    adapter = (DryLM if dry_run else LatentLM).create_from_arg_obj(given | _settings(model_args, "--model-args"))
    with redirect_stdout(sys.stderr):  # lm-eval, metrics and plugins may print; standard output is for the results
        results = run_with(
            adapter,
            names,
            include_path=include_path,
            limit=limit,
            num_fewshot=num_fewshot,
            fewshot_random_seed=fewshot_seed,
            gen_kwargs=_settings(gen_kwargs, "--gen-kwargs") or None,
            apply_chat_template=chat_template or apply_chat_template,
            system_instruction=system_instruction,
            fewshot_as_multiturn=fewshot_as_multiturn and bool(chat_template or apply_chat_template),
            use_cache=None if use_cache is None else str(use_cache),
            cache_requests=cache_requests,
            predict_only=predict_only,
            metadata=said,
            write_out=write_out,
            confirm_run_unsafe_code=confirm_run_unsafe_code,
        )
    if isinstance(adapter, DryLM):
        found = adapter.everybodys()
        if found is None:  # another process says it
            return
        if as_json:
            emit(asdict(found))
        else:
            show_plans({model: found}, console=Console())
        return
    if results is None:  # the first of several processes has them
        return
    rows, groups = task_results(results), group_results(results)
    facts = results["config"]["latentlm"]
    if output is not None:
        kept = results if log_samples else {key: value for key, value in results.items() if key != "samples"}
        write_text(output, strict_json(kept), ours=_are_results, kind=_RESULTS)
    if as_json:
        said = {"model": model, "facts": facts, "tasks": [vars(row) for row in rows], "groups": [vars(row) for row in groups]}
        emit(plain(said))
    else:
        _print_table(model, rows, groups, facts)


def _check_text(text: str, option: str) -> None:
    """Raise UserError for bytes that are no UTF-8, which lm-eval cannot take."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{option} is no text in UTF-8.") from None


def _names(tasks: str | None, suite: str | None) -> list[str]:
    """The tasks that are asked for. Raises UserError for both or an unknown suite."""
    if suite is not None and tasks is not None:
        raise UserError("--suite and --tasks both say what to run: give one of them.")
    if suite is not None and suite not in SUITES:
        raise unknown_name("suite", suite, SUITES)
    return [name.strip() for name in (tasks if tasks is not None else suite or DEFAULT_SUITE).split(",") if name.strip()]


def _settings(text: str, option: str) -> dict[str, Any]:
    """`a=1,b=[x]` as lm_eval reads it, or a JSON object. Raises UserError."""
    from lm_eval._cli.utils import handle_cli_value_string, split_top_level

    if text.lstrip().startswith("{"):
        try:
            return dict(json_data(text, source=option))
        except UserError as error:
            raise UserError(f"{error} {text} is no JSON object: write NAME=VALUE or mend it.") from None
    found = {}
    for piece in split_top_level(text):
        name, equals, value = piece.partition("=")
        if not piece.strip():
            continue
        if not equals:
            raise UserError(f'{option}: "{piece}" is not of the form NAME=VALUE.')
        try:
            found[name.strip()] = handle_cli_value_string(value.strip())
        except (ValueError, MemoryError, RecursionError):  # digits of another script, more digits or brackets than Python reads
            raise UserError(f'{option}: "{short(value)}" is no value.') from None
    return found


def _check_output(output: Path | None) -> None:
    """Refuse a place that cannot be written before the long work, not after."""
    if output is None:
        return
    if output.is_dir() or not output.parent.is_dir():
        raise UserError(f"--output {output} is not a file in an existing folder; give one, such as results.json.")
    check_replaceable(output, _are_results, kind=_RESULTS)


def _are_results(path: Path) -> bool:
    return has_keys(path, {"results", "configs"})


_RESULTS = "a file of results as this command writes it"


def _print_table(model: str, rows: list[Any], groups: list[Any], facts: dict[str, Any]) -> None:
    from rich.console import Console

    from latentlm.cli.tables import ReadableTable
    from latentlm.cli.text import escaped
    from latentlm_evals.scored import verdict

    how = f"{facts['score']}, K={facts['samples']}" if facts["samples"] else "exact likelihoods"
    filtered = any(row.filter != "none" for row in [*rows, *groups])
    names = ("task", "metric", *(["filter"] if filtered else []))
    title = f"{escaped(model)} ({how}, seed {facts['seed']})"
    table = ReadableTable(*names, names=len(names), title=title, title_justify="left", show_edge=False, pad_edge=False)
    for column in ("value", "stderr", "chance", "items"):
        table.add_column(column, justify="right", no_wrap=True)
    for part in (rows, groups):
        for row in part:
            error = "-" if row.standard_error is None else f"{row.standard_error:.4f}"
            chance = "-" if row.chance is None else f"{row.chance:g}"
            words = [row.task, row.metric, *([row.filter] if filtered else [])]
            table.add_row(*map(escaped, words), f"{row.value:.4f}", error, chance, str(row.items))
        table.add_section()
    Console().print(table)
    if (found := verdict(facts, option="--samples")) is not None:
        Console().print(f"[yellow]* {escaped(found)}[/yellow]")
