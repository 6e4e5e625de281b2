"""The experiment as a terminal shows it: the cells, then every latent decoder against every plain one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console

from latentlm.cli.tables import ReadableTable
from latentlm_evals.diversity.experiment import Cell, Comparison, Found, Work
from latentlm_evals.diversity.measures import COUNTED, at, counts_of
from latentlm_evals.intervals import Interval


def show(found: Found, *, console: Console) -> None:
    """A table for each latent decoder, with the plain ones at its pass@1 below it, one for the plain ones as they are; the
    comparison, and what it says."""
    settings = found.settings
    console.print(
        f"{found.task}: {settings.prompts} prompts with {found.right_answers:.3g} right answers each, {settings.samples} "
        "samples of each prompt; means ± half of the 95% interval over prompts"
    )
    for name in dict.fromkeys(cell.model for cell in found.cells if cell.latents):
        own = [cell for cell in found.cells if name in (cell.model, cell.matched_to)]
        console.print(_cells(found, name, own))
    if plain := [cell for cell in found.cells if cell.latents is None and cell.matched_to is None]:
        console.print(_cells(found, "without latents", plain))
    if found.comparisons:
        console.print(_comparisons(found))
    else:
        missing = "without latents" if any(cell.latents for cell in found.cells) else "with latents"
        console.print(f"No comparison at equal pass@1: it takes a model {missing} too.")
    for sentence in (*dead(found), *map(verdict, found.comparisons)):
        console.print(sentence)


def _cells(found: Found, title: str, cells: Sequence[Cell]) -> ReadableTable:
    """A row for each way of decoding; last, what answers of the data's own distribution have."""
    passes = [at(k) for k in _shown(found.settings.samples)]
    table = _table(title, ["decoding", "z", *passes, "distinct", "right", "coverage", "entropy, bits"], left=2)
    for cell in cells:
        table.add_row(_decoding(cell), cell.latents or "–", *_numbers(cell.measures, passes))
    table.add_row("the data itself", "", *_numbers(found.data, passes), style="dim")
    return table


def _decoding(cell: Cell) -> str:
    """How a cell's tokens were drawn, in words."""
    how = "greedy" if cell.temperature == 0 else f"temperature {cell.temperature:.3g}"
    if cell.latents is not None:
        return how
    return f"{cell.model}, {how}" + (" (for equal pass@1)" if cell.matched_to else "")


def _numbers(measures: dict[str, Interval], passes: Sequence[str]) -> list[str]:
    return [_around(measures[name], digits=1 if name in ("distinct", "valid") else 2) for name in (*passes, *COUNTED)]


def _comparisons(found: Found) -> ReadableTable:
    """A row for each pair: differences with their intervals."""
    ks = counts_of(found.settings.samples)
    table = _table(
        "Latent-only (greedy, z fresh) minus a plain decoder at equal pass@1 [95% interval, paired by prompt]",
        ["pair", *map(at, ks), "right", "coverage"],
    )
    for one in found.comparisons:
        cells = [_interval(one.differences[name]) for name in (*map(at, ks), "valid", "coverage")]
        table.add_row(f"{one.model}\n– {one.baseline}", *cells)
    return table


def dead(found: Found) -> list[str]:
    """A sentence for each latent decoder whose z changes no greedy answer."""
    return [
        f"{cell.model}: greedy answers are the same under every z, so nothing here is the latents' doing."
        for cell in found.cells
        if cell.latents == "fresh" and cell.temperature == 0 and cell.measures["distinct"].value == 1
    ]


def verdict(one: Comparison) -> str:
    """Whether pass@1 is equal, and whose further samples are then worth more, in a sentence."""
    match = one.match
    how = "greedy" if match.temperature == 0 else f"at temperature {match.temperature:.3g}"
    if match.goal == 0:
        return f"{one.model} has no right latent-only answer to a prompt for calibration: there is no pass@1 to make equal."
    if not match.reached:
        return (
            f"{one.baseline} has no temperature with {one.model}'s latent-only pass@1 of {match.goal:.3f}: the nearest is "
            f"{match.found:.3f}, {how}. Differences are not at equal pass@1."
        )
    first, last = one.differences[at(1)], list(one.differences)[-len(COUNTED) - 1]
    if not first.low <= 0 <= first.high:
        return (
            f"{one.model} against {one.baseline} {how}: pass@1 was made equal on the prompts for calibration, but differs on "
            "those measured: raise --calibration and --prompts."
        )
    return (
        f"{one.model} latent-only against {one.baseline} {how}, at equal pass@1: {last} is {_told(one.differences[last], 3)}, "
        f"the number of different right answers {_told(one.differences['valid'], 1)}."
    )


def _told(one: Interval, digits: int) -> str:
    """A difference, where its interval leaves out zero."""
    if one.low <= 0 <= one.high:
        return "not told apart"
    return f"{'higher' if one.value > 0 else 'lower'} by {abs(one.value):.{digits}f}"


def show_work(work: Sequence[Work], *, console: Console) -> None:
    """What `plan` found."""
    table = _table("What it will take, at most", ["model", "continuations", "minutes"])
    for one in work:
        table.add_row(one.model, f"{one.continuations:,}", f"{one.seconds / 60:.1f}")
    console.print(table)


def _shown(samples: int) -> list[int]:
    """The k of the first table: the first, a middle and the last."""
    ks = counts_of(samples)
    return sorted({ks[0], ks[len(ks) // 2], ks[-1]})


def _around(one: Interval, *, digits: int) -> str:
    return "–" if math.isnan(one.value) else f"{one.value:.{digits}f} ± {(one.high - one.low) / 2:.{digits}f}"


def _interval(one: Interval) -> str:
    return "–" if math.isnan(one.value) else f"{one.value:+.3f}\n[{one.low:+.2f}, {one.high:+.2f}]"


def _table(title: str, columns: list[str], *, left: int = 1) -> ReadableTable:
    """Columns of words, then those of numbers."""
    table = ReadableTable(names=left, title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < left else "right")
    return table
