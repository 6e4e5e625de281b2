"""The experiment as a terminal shows it: the figure in characters, the table, the outcomes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.text import Text

from latentlm.cli.tables import ReadableTable
from latentlm.cli.text import escaped
from latentlm.likelihood.summary import in_words
from latentlm_evals.figure4.experiment import Shown
from latentlm_evals.letter.groups import Agreement, Group

_STYLES = {"_": "bright_black", "!": "yellow"}


def show(found: Sequence[Shown], *, console: Console) -> None:
    """Everything but the picture."""
    for one in found:
        for kind, groups in one.pictures["prior"].items():
            console.print(Text(f"{one.label}: {kind}", style="bold"))
            for number, group in enumerate(groups):
                console.print(Text("\n") if number else "", _lines(group), end="", sep="")
    console.print(_agreements(found))
    console.print(_likelihoods(found))
    for one in found:
        for outcome in one.outcome:
            verdict = "[green]met[/green]" if outcome["met"] else "[red]not met[/red]"
            what = escaped(f"{one.label}: {outcome['criterion']}")
            console.print(f"{what}: {outcome['value']:.2f}, {verdict}")


def _lines(group: Group) -> Text:
    """The continuations, one below the other; what should not be there in red."""
    lines = Text()
    for text in group.printable:
        for character in text:
            lines.append(character, style="bold blue" if character == group.letter else _STYLES.get(character, "red"))
        lines.append("\n")
    return lines


def _agreements(found: Sequence[Shown]) -> ReadableTable:
    """A row for each model and each source of the prompt's z."""
    table = _table("Groups of five: under one z / across groups, or with z drawn for each",
                   ["model", "prompt's z", "near", "spread", "masks", "valid", "noise"])  # fmt: skip
    for one in found:
        for prefill, drawn in one.generated.independent.items():
            source = "–" if one.budget is None else "prior" if prefill == "prior" else "encoder"
            table.add_row(one.label, source, *cells(drawn, one.generated.shared.get(prefill)))
    return table


def cells(drawn: Agreement, same: Agreement | None) -> list[str]:
    """A row of the table; without latents what is shared has no value."""
    if same is None:
        return [f"– / {drawn.near_across:.2f}", f"– / {drawn.spread_across:.1f}", f"– / {drawn.masks:.2f}",
                f"– / {drawn.valid:.2f}", f"{drawn.noise:.3f}"]  # fmt: skip
    return [
        f"{same.near_within:.2f} / {same.near_across:.2f}", f"{same.spread_within:.1f} / {same.spread_across:.1f}",
        f"{same.masks:.2f} / {drawn.masks:.2f}", f"{same.valid:.2f} / {drawn.valid:.2f}", f"{same.noise:.3f}",
    ]  # fmt: skip


def _likelihoods(found: Sequence[Shown]) -> ReadableTable:
    """A row for each model and seed."""
    table = _table("Nats a character: honest, above the source's own density; and under z from elsewhere",
                   ["model, seed", "above exact", "good to", "KL, bits", "own z", "another's", "prior's"])  # fmt: skip
    for one in found:
        for row in one.likelihoods:
            table.add_row(f"{one.label}, {row['seed']}", *_likelihood(row))
    return table


def _likelihood(row: dict[str, Any]) -> list[str]:
    entropies = row["cross_entropy"]
    latent = "exact" not in entropies
    good_to = in_words(math.inf if row["good_to"] is None else row["good_to"])  # JSON, and so a card, has no infinity
    return [
        f"{row['excess_nats']:+.4f} ± {row['standard_error']:.4f}",
        "exact" if not latent else good_to if row["converged"] else f"[red]{good_to}, no[/red]",
        f"{row['kl_bits']:.3f}" if latent else "–",
        *(f"{entropies[name]:.4f}" if name in entropies else "–" for name in ("posterior", "shuffled", "prior")),
    ]


def _table(title: str, columns: list[str]) -> ReadableTable:
    table = ReadableTable(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table
