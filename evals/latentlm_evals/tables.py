"""The terminal tables of a comparison."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from latentlm_evals.results import Comparison, Estimate, ModelResult


def show(comparison: Comparison, *, console: Console) -> None:
    """Print the main table, its notes, and the tasks."""
    held_out = comparison.held_out
    title = f"{held_out['documents']} held-out documents, {held_out['bytes']:,} bytes"
    console.print(_main(comparison.models, title))
    console.print(
        "[dim]bits/byte: honest likelihood of held-out documents (exact for vanilla, a lower bound on it for latent models): "
        f"{comparison.scored} ±: standard error clustered by document; difference paired with the first model, negative is "
        "better. The posterior cross-entropy is no likelihood: its latents have seen the targets.[/dim]"
    )
    if any(model.tasks for model in comparison.models):
        console.print(_tasks(comparison.models, comparison.task_scoring))


def _main(models: list[ModelResult], title: str) -> Table:
    """One row per quantity, one column per model: it stays readable in 80 columns."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for model in models:
        table.add_column(model.name, justify="right")
    latent = [model.has_latents for model in models]
    rows = {
        "parameters": [f"{model.parameters:,}" for model in models],
        "training tokens/s": [f"{m.training['tokens_per_second']:,.0f}" if m.training else "–" for m in models],
        "bits/byte, honest": [f"[bold]{model.bits_per_byte}[/bold]" for model in models],
        "  by": [model.method for model in models],
        "  error of the estimate": [
            f"{m.estimator_error:.4f} ({m.effective_samples:.1f} eff. samples)" if shown else "0"
            for m, shown in zip(models, latent, strict=True)
        ],
        "  difference, paired": [_signed(model.difference) for model in models],
        "ELBO, bits/byte": [f"{model.elbo_bits_per_byte:.4f}" for model in models],
        "posterior cross-entropy, bits/byte": [
            f"{m.posterior_bits_per_byte:.4f}" if shown else "–" for m, shown in zip(models, latent, strict=True)
        ],
        "KL, bits/token": [f"{m.kl_bits_per_token:.4f}" if shown else "–" for m, shown in zip(models, latent, strict=True)],
        "live bits": ["–" if model.live_bits is None else str(model.live_bits) for model in models],
    }
    for name, cells in rows.items():
        table.add_row(name, *cells)
    return table


def _signed(estimate: Estimate | None) -> str:
    return "baseline" if estimate is None else f"{estimate.value:+.4f} ± {estimate.standard_error:.4f}"


def _tasks(models: list[ModelResult], scoring: str) -> Table:
    table = Table(title=f"lm-eval tasks ({scoring})", title_justify="left")
    table.add_column("task and metric")
    for column in (*(model.name for model in models), "chance", "items"):
        table.add_column(column, justify="right", no_wrap=True)
    keys = list(dict.fromkeys((result.task, result.metric) for model in models for result in model.tasks))
    for task, metric in keys:
        found = [next((r for r in m.tasks if (r.task, r.metric) == (task, metric)), None) for m in models]
        first = next(result for result in found if result is not None)
        cells = [
            "–" if r is None else f"{r.value:.3f}" + ("" if r.standard_error is None else f" ± {r.standard_error:.3f}")
            for r in found
        ]
        table.add_row(f"{task}\n  {metric}", *cells, "–" if first.chance is None else f"{first.chance:.2f}", str(first.items))
    return table
