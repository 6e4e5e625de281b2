"""Paired differences of tasks in the terminal, and their cells in words, which the report page takes too."""

from __future__ import annotations

import math

from rich.console import Console

from latentlm.cli.tables import ReadableTable
from latentlm.cli.text import escaped
from latentlm_evals.results import TaskComparison, TaskDifference

_MANY = 10  # rows from which chance findings are worth a word


def show_tasks(found: TaskComparison, *, console: Console) -> None:
    """Print a table for every model but the first, and the notes."""
    first, *others = found.models if found.differences else [""]
    for name in others:
        title = f"{escaped(name)} minus {escaped(first)}, item by item"
        table = ReadableTable(title=title, title_justify="left")
        table.add_column("task and metric", overflow="fold")
        for column in ("from, to", "difference", "McNemar", "items", "seeds"):
            table.add_column(column, justify="right", no_wrap=True)
        for one in found.differences:
            if one.second == name:
                style = "bold" if one.verdict else None
                task = f"{escaped(one.name)}\n  {escaped(about(one))}"
                before, after, difference, interval, *rest = cells(one)
                table.add_row(task, f"{before}\n{after}", f"{difference}\n{interval}", *rest, style=style)
        console.print(table)
    console.print(f"[dim]{escaped(explained(found))}[/dim]")
    for note in found.notes:
        console.print(f"[yellow]{escaped(note)}[/yellow]")


def about(one: TaskDifference) -> str:
    """The metric, which way is better, and how many tasks are pooled."""
    arrow = {True: " ↑", False: " ↓", None: ""}[one.higher_is_better]
    pooled = f", {len(one.tasks)} tasks" if one.tasks else ""
    return (one.metric if one.filter == "none" else f"{one.metric},{one.filter}") + arrow + pooled


def cells(one: TaskDifference) -> tuple[str, ...]:
    """Both values, their difference, its interval, McNemar's p, items, runs."""
    interval = "–" if math.isnan(one.low) else f"{one.low:+.3f} {one.high:+.3f}"
    test = "–" if one.mcnemar is None else f"{one.mcnemar:.3f}" if one.mcnemar >= 0.001 else "<0.001"
    runs = str(one.runs[0]) if one.runs[0] == one.runs[1] else f"{one.runs[0]}, {one.runs[1]}"
    return f"{one.first_value:.3f}", f"{one.second_value:.3f}", f"{one.difference:+.3f}", interval, test, str(one.items), runs


def explained(found: TaskComparison) -> str:
    """What the numbers are, and how far they go."""
    several = any(max(one.runs) > 1 for one in found.differences)
    covers = "the choice of items and the seeds" if several else "the choice of items, not the seed (one run of each model)"
    text = (
        f"Differences are paired by item; the interval covers {covers}. McNemar: exact two-sided p, for metrics of 0 and 1 and "
        "one run of each model. Rows of a group pool its tasks as lm-eval does. Bold: zero is outside the interval, and "
        "the likelihoods are good to the tolerance."
    )
    count = len(found.differences)
    if count >= _MANY:
        text += f" Of {count} intervals at 95%, {count * 0.05:.1f} leave out zero by chance alone where nothing differs."
    return text
