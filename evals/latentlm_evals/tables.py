"""The terminal tables of a comparison."""

from __future__ import annotations

from rich.console import Console

from latentlm.cli.tables import ReadableTable
from latentlm.cli.text import escaped
from latentlm.likelihood.planning import Plan
from latentlm_evals.paired_tables import show_tasks
from latentlm_evals.results import Comparison, Estimate, ModelResult, TaskResult, taxed
from latentlm_evals.study.results import USED

_SIDE_BY_SIDE = 3
"""Models that stand in columns; more of them stand in rows."""
_ALWAYS = ("ELBO, bits/byte", "posterior cross-entropy, bits/byte", "KL, bits/token", "live units")
"""Rows that are there also where no model has a latent."""


def show(comparison: Comparison, *, console: Console) -> None:
    """Print the main table, its notes, and the tasks."""
    held_out = comparison.held_out
    title = f"{held_out['documents']} held-out documents, {held_out['bytes']:,} bytes"
    for table in _main(comparison.models, title):
        console.print(table)
    if comparison.unconverged:
        console.print(f"[yellow]* {escaped(comparison.unconverged)}[/yellow]")
    if comparison.warning:
        console.print(f"[yellow]{escaped(comparison.warning)}[/yellow]")
    console.print(
        "[dim]bits/byte: honest likelihood of held-out documents (exact for vanilla, a lower bound on it for latent models): "
        f"{comparison.scored} ±: standard error clustered by document; difference paired with the first model, negative is "
        "better. The posterior cross-entropy is no likelihood: its latents have seen the targets. The tax: the difference of a "
        "latent model from a first one that has no latent.[/dim]"
    )
    if any(model.tasks for model in comparison.models):
        console.print(_tasks(comparison.models, comparison.task_scoring))
    for model in comparison.models:
        if model.tasks_verdict is not None:
            console.print(f"[yellow]* {escaped(model.name)}: {escaped(model.tasks_verdict)}[/yellow]")
    if comparison.paired_tasks is not None:
        show_tasks(comparison.paired_tasks, console=console)


def _main(models: list[ModelResult], title: str) -> list[ReadableTable]:
    """A few models: one table, one row per quantity. Many: one row per model, in four tables or five. All fit 80 columns."""
    likelihood = {
        "bits/byte, honest": [f"[bold]{m.bits_per_byte}[/bold]{'' if m.converged else ' *'}" for m in models],
        "by": [model.method for model in models],
        "error of the estimate": [
            f"{m.estimator_error:.4f} ({m.effective_samples:.1f} eff. samples)" if m.has_latents else "0" for m in models
        ],
        "converged": [_verdict(m) for m in models],
        "difference, paired": [_signed(model.difference) for model in models],
    }
    latents = {
        "ELBO, bits/byte": [f"{model.elbo_bits_per_byte:.4f}" for model in models],
        "posterior cross-entropy, bits/byte": [f"{m.posterior_bits_per_byte:.4f}" if m.has_latents else "–" for m in models],
        "KL, bits/token": [f"{m.kl_bits_per_token:.4f}" if m.has_latents else "–" for m in models],
        "live units": ["–" if m.live_units is None else f"{m.live_units} of {m.units}" for m in models],
        "z used: another text's costs, bits/token": [_use(m) for m in models],
        "the tax of z, bits/byte": [_signed(m.difference) if place in taxed(models) else "–" for place, m in enumerate(models)],
    }
    latents = {label: cells for label, cells in latents.items() if label in _ALWAYS or set(cells) != {"–"}}
    cost = {
        "parameters": [f"{model.parameters:,}" for model in models],
        "operations per token, training": [f"{m.training_operations / 1e6:.1f}M" for m in models],
        "tokens/s, training": [_count(m, "tokens_per_second") for m in models],
        "tokens trained on": [_count(m, "tokens") for m in models],
    }
    names = [model.name for model in models]
    if len(models) > _SIDE_BY_SIDE:
        estimates = {label: likelihood.pop(label) for label in ("by", "error of the estimate", "converged")}
        likelihood["ELBO, bits/byte"] = latents.pop("ELBO, bits/byte")
        use = {label: latents.pop(label) for label in list(latents) if label not in _ALWAYS}
        groups = {title: likelihood, "estimates": estimates, "latents": latents, "use of z": use, "cost": cost}
        return [_model_rows(names, group, text) for text, group in groups.items() if group]
    table = ReadableTable(title=title, title_justify="left")
    table.add_column("")
    for name in names:
        table.add_column(escaped(name), justify="right")
    for label, cells in (likelihood | latents | cost).items():
        table.add_row(label, *cells)
    return [table]


def _use(model: ModelResult) -> str:
    """Whether the decoder uses z, and what another text's costs it."""
    if model.another_costs is None:
        return "–"
    return f"{'yes' if model.another_costs >= USED else '[red]no[/red]'}, {model.another_costs:+.4f}"


def _verdict(model: ModelResult) -> str:
    """Whether the likelihood is good to the comparison's tolerance, and what it is good to."""
    if not model.has_latents:
        return "exact"
    return f"{'yes' if model.converged else '[red]no[/red]'}, {model.good_to}"


def show_plans(plans: dict[str, Plan], *, title: str = "What measuring will take", console: Console) -> None:
    """What measuring will take, a row per model."""
    rows = {name: plan.lines() for name, plan in plans.items()}
    table = ReadableTable(title=f"{title} (a dry run: nothing is measured)", title_justify="left")
    table.add_column("model", no_wrap=True)
    labels = list(dict.fromkeys(label for cells in rows.values() for label in cells))
    for label in labels:
        table.add_column(label, justify="right")
    for name, cells in rows.items():
        table.add_row(escaped(name), *(cells.get(label, "–") for label in labels))
    console.print(table)


def _model_rows(names: list[str], columns: dict[str, list[str]], title: str) -> ReadableTable:
    table = ReadableTable(title=title, title_justify="left")
    table.add_column("model", no_wrap=True)
    for label in columns:
        table.add_column(label, justify="right")
    for number, name in enumerate(names):
        table.add_row(escaped(name), *(cells[number] for cells in columns.values()))
    return table


def _count(model: ModelResult, fact: str) -> str:
    """A number that the training record may have."""
    found = (model.training or {}).get(fact)
    return f"{found:,.0f}" if isinstance(found, int | float) else "–"


def _signed(estimate: Estimate | None) -> str:
    return "baseline" if estimate is None else f"{estimate.value:+.4f} ± {estimate.standard_error:.4f}"


def _tasks(models: list[ModelResult], scoring: str) -> ReadableTable:
    """A row per task and metric, a column per model; the other way round where there are many models."""
    keys = list(dict.fromkeys((result.task, result.metric) for model in models for result in model.tasks))
    found = {
        key: [next((r for r in m.tasks if (r.task, r.metric) == key), None) for m in models] for key in keys
    }
    firsts = {key: next(result for result in row if result is not None) for key, row in found.items()}
    chances = {key: "–" if first.chance is None else f"{first.chance:.2f}" for key, first in firsts.items()}
    title = f"lm-eval tasks ({scoring})"
    if len(models) > _SIDE_BY_SIDE:
        table = ReadableTable("model", title=title, title_justify="left")
        for task, metric in keys:
            table.add_column(f"{task}\n{metric}", justify="right")
        for number, model in enumerate(models):
            table.add_row(escaped(model.name), *(_result(found[key][number]) for key in keys))
        table.add_section()
        table.add_row("chance", *chances.values())
        table.add_row("items", *(str(first.items) for first in firsts.values()))
        return table
    table = ReadableTable(title=title, title_justify="left")
    table.add_column("task and metric")
    for column in (*(model.name for model in models), "chance", "items"):
        table.add_column(escaped(column), justify="right", no_wrap=True)
    for key in keys:
        cells = [_result(result) for result in found[key]]
        table.add_row(f"{key[0]}\n  {key[1]}", *cells, chances[key], str(firsts[key].items))
    return table


def _result(result: TaskResult | None) -> str:
    if result is None:
        return "–"
    return f"{result.value:.3f}" + ("" if result.standard_error is None else f" ± {result.standard_error:.3f}")
