"""What `latentlm schedules` prints: tables for people on standard output, or JSON."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console

from latentlm.cli.output import emit
from latentlm.cli.tables import ReadableTable
from latentlm.training.evaluation import THRESHOLD_BITS
from latentlm_evals.schedule_catalog import Entry
from latentlm_evals.schedule_runs import Ending, Outcome

_NOTE = (
    "[dim]Held out. KL in bits per site; units: what the latent's units tell about the text, each by itself, and latent: what "
    "all of it tells, bits per site; then cross-entropy in bits per token under latents of the text itself (posterior: no "
    "likelihood, they have seen the targets) and of another text (shuffled); bound: posterior plus KL. The JSON has more.[/dim]"
)


def show_entries(entries: list[Entry], *, as_json: bool) -> None:
    """The list of schedules."""
    if as_json:
        emit([asdict(entry) for entry in entries])
        return
    console = Console()
    table = ReadableTable("schedule", "what it does", "formula (nats per target token)", "source", show_lines=True)
    for entry in entries:
        state = " (a state)" if entry.has_state else ""
        table.add_row(entry.name, entry.summary + state, entry.formula or "–", entry.source or "–")
    console.print(table, markup=False)


def show_endings(outcomes: list[Outcome], result: dict[str, Any], *, as_json: bool) -> None:
    """Where each run of a plot ended."""
    if as_json:
        emit(result)
        return
    console = Console()
    console.print(_table([[outcome] for outcome in outcomes]))
    console.print(_NOTE)


def show_revival(collapsed: list[Outcome], outcomes: list[Outcome], result: dict[str, Any], *, as_json: bool) -> None:
    """The collapsed models, and where each schedule took them; mean over seeds, with the range where there are several."""
    if as_json:
        emit(result)
        return
    console = Console()
    names = list(dict.fromkeys(outcome.schedule for outcome in outcomes))
    groups = [collapsed, *([o for o in outcomes if o.schedule == name] for name in names)]
    console.print(_table(groups, verdict=True))
    console.print(_NOTE)
    for outcome in collapsed:
        if alive(outcome):
            console.print(
                f"[yellow]seed {outcome.seed} had not collapsed before it was continued: raise --collapse-weight or "
                "--collapse-steps.[/yellow]"
            )


def alive(outcome: Outcome) -> bool:
    """The latent tells about the text, by the threshold of the training's watch over collapse."""
    ending = _ending(outcome)
    told = ending.mutual_information if ending.information is None else ending.information
    return (ending.kl if told is None else told) >= THRESHOLD_BITS


def _table(groups: list[list[Outcome]], *, verdict: bool = False) -> ReadableTable:
    """A row per group of outcomes, which differ in their seed."""
    table = ReadableTable(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))  # readable in 80 columns
    table.add_column("schedule", no_wrap=True)
    heads = ["KL", "units", "latent", "posterior", "shuffled", "bound", *(["alive"] if verdict else [])]
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for group in groups:
        cells = [
            _spread(group, lambda ending: ending.kl),
            _spread(group, lambda ending: ending.information),
            _spread(group, lambda ending: ending.mutual_information),
            *(_spread(group, _source(name)) for name in ("posterior", "shuffled")),
            _spread(group, lambda ending: ending.bound),
        ]
        if verdict:
            count = sum(alive(outcome) for outcome in group)
            cells.append("" if group[0].schedule == "collapsed" else f"{count} of {len(group)}")
        table.add_row(group[0].schedule, *cells)
    return table


def _source(name: str) -> Callable[[Ending], float]:
    return lambda ending: ending.cross_entropy[name]


def _spread(group: list[Outcome], value: Callable[[Ending], float | None]) -> str:
    """Mean over the seeds, and below it half their range where there are several."""
    values = [found for outcome in group if (found := value(_ending(outcome))) is not None]
    if not values:
        return "–"
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean}\n±{(max(values) - min(values)) / 2:.3f}".replace("±0.", "±.")


def _ending(outcome: Outcome) -> Ending:
    assert outcome.ending is not None, "the run has ended"
    return outcome.ending
