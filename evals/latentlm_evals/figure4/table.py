"""The experiment as a terminal shows it: the figure in characters, the table, the outcomes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.text import Text

from latentlm.cli.tables import ReadableTable
from latentlm.cli.text import escaped
from latentlm.likelihood.summary import in_words
from latentlm.training.data.synthetic.letter import LENGTH
from latentlm_evals.figure4.experiment import Shown
from latentlm_evals.letter.groups import Agreement, Group, Prefill
from latentlm_evals.letter.resampling import Interval

SOURCES: dict[Prefill, str] = {"prior": "prior", "posterior": "encoder"}
_GAP = "    "
_STYLES = {"_": "bright_black", "!": "yellow"}


def show(found: Sequence[Shown], *, console: Console) -> None:
    """Everything but the picture."""
    for one in found:
        panels = [_panel(one, prefill, kinds) for prefill, kinds in one.pictures.items()]
        if console.width >= len(panels) * LENGTH + (len(panels) - 1) * len(_GAP):
            panels = [[_beside(lines) for lines in zip(*panels, strict=True)]]
        for panel in panels:
            console.print(*panel, sep="\n", soft_wrap=True)
    console.print(_agreements(found))
    console.print(_likelihoods(found))
    for one in found:
        for outcome in one.outcome:
            console.print(_verdict(one, outcome))
    if any(one.outcome for one in found):
        console.print("[dim]In brackets: 95% over the groups of five. Undecided: other groups could have said otherwise.[/dim]")


def _verdict(one: Shown, outcome: dict[str, Any]) -> str:
    """An outcome in words, with its interval, and what further seeds show."""
    met = "[green]met[/green]" if outcome["met"] else "[red]not met[/red]"
    met += "" if outcome["decided"] else ", but undecided"
    said = escaped(f"{one.label}: {outcome['criterion']}: {outcome['value']:.2f} {bracketed(outcome['low'], outcome['high'])}")
    said += f", {met} (seed {one.judged[0]}, of {one.seeds})"
    others = [f"seed {other['seed']}: {other['value']:.2f}, {'met' if other['met'] else 'not met'}"
              for other in outcome.get("others", [])]  # fmt: skip
    return "; ".join([said, *others])


def bracketed(low: float, high: float) -> str:
    """An interval."""
    return f"[{low:.2f}, {high:.2f}]"


def _panel(one: Shown, prefill: Prefill, kinds: Mapping[str, Sequence[Group]]) -> list[Text]:
    """The groups of a model, a line each for what they are and for each text."""
    source = "" if one.budget is None else f"; prompt's z: {SOURCES[prefill]}"
    lines = [Text(f"{one.label}{source}", style="bold")]
    for kind, groups in kinds.items():
        for group in groups:
            lines += [Text(kind, style="italic"), *_lines(group)]
    return [*lines, Text("")]


def _beside(lines: Sequence[Text]) -> Text:
    """Lines of panels, side by side."""
    whole = Text()
    for number, line in enumerate(lines):
        whole.append(_GAP if number else "")
        whole.append_text(line)
        if number + 1 < len(lines):
            whole.append(" " * (LENGTH - len(line)))
    return whole


def _lines(group: Group) -> list[Text]:
    """The continuations; what should not be there in red."""
    found = []
    for text in group.printable:
        line = Text()
        for character in text:
            line.append(character, style="bold blue" if character == group.letter else _STYLES.get(character, "red"))
        found.append(line)
    return found


def _agreements(found: Sequence[Shown]) -> ReadableTable:
    """A row for each model and each source of the prompt's z."""
    table = _table("Groups of five: under one z / across groups, or with z drawn for each",
                   ["model", "prompt's z", "near", "spread", "masks", "valid", "noise"])  # fmt: skip
    for one in found:
        for prefill, drawn in one.generated.independent.items():
            source = "–" if one.budget is None else SOURCES[prefill]
            shared = one.intervals["shared"].get(prefill, {})
            table.add_row(one.label, source, *map(escaped, cells(drawn, one.generated.shared.get(prefill), shared)))
    return table


def cells(drawn: Agreement, same: Agreement | None, intervals: Mapping[str, Interval]) -> list[str]:
    """A row of the table, with the intervals of what is shared; without latents that has no value."""
    if same is None:
        return [f"– / {drawn.near_across:.2f}", f"– / {drawn.spread_across:.1f}", f"– / {drawn.masks:.2f}",
                f"– / {drawn.valid:.2f}", f"{drawn.noise:.3f}"]  # fmt: skip
    return [
        f"{same.near_within:.2f} {bracketed(*intervals['near_within'])} / {same.near_across:.2f}",
        f"{same.spread_within:.1f} / {same.spread_across:.1f}",
        f"{same.masks:.2f} {bracketed(*intervals['masks'])} / {drawn.masks:.2f}",
        f"{same.valid:.2f} / {drawn.valid:.2f}",
        f"{same.noise:.3f}",
    ]


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
