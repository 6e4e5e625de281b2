"""The experiment as a terminal shows it: the cells, then every latent decoder against every plain one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from latentlm_evals.diversity.experiment import Cell, Comparison, Found, Work
from latentlm_evals.diversity.measures import COUNTED, Estimate, at, counts_of


def show(found: Found, *, console: Console) -> None:
    """Both tables and what they say."""
    console.print(_cells(found))
    if found.comparisons:
        console.print(_comparisons(found))
    for one in found.comparisons:
        console.print(verdict(one))
    if not found.comparisons:
        missing = "without latents" if any(cell.latents for cell in found.cells) else "with latents"
        console.print(f"No comparison at equal pass@1: it takes a model {missing} too.")


def _cells(found: Found) -> Table:
    """A row for each model and way of decoding."""
    settings = found.settings
    table = _table(
        f"{found.task}: {settings.prompts} prompts with {found.right_answers:.3g} right answers each, {settings.samples} "
        "samples of each; mean ± half of the 95% interval over prompts",
        ["model", "decoding", "z", *map(at, _shown(settings.samples)), "distinct", "right", "coverage", "entropy, bits"],
    )
    names = [*map(at, _shown(settings.samples)), *COUNTED]
    for cell in found.cells:
        table.add_row(cell.model, decoding(cell), cell.latents or "–", *(_around(cell.measures[name]) for name in names))
    table.add_row("the data itself", "", "", *(_around(found.data[name]) for name in names), style="dim")
    return table


def decoding(cell: Cell) -> str:
    """How a cell's tokens were drawn, in words."""
    how = "greedy" if cell.temperature == 0 else f"temperature {cell.temperature:.3g}"
    return how if cell.matched_to is None else f"{how}, for {cell.matched_to}"


def _comparisons(found: Found) -> Table:
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


def verdict(one: Comparison) -> str:
    """Whether pass@1 is equal, and what pass@k then says, in a sentence."""
    match, last = one.match, list(one.differences)[-len(COUNTED) - 1]
    how = "greedy" if match.temperature == 0 else f"at temperature {match.temperature:.3g}"
    if not match.reached:
        return (
            f"{one.baseline} has no temperature with {one.model}'s latent-only pass@1 of {match.goal:.3f}: the nearest is "
            f"{match.found:.3f}, {how}. Differences are not at equal pass@1."
        )
    first, gain = one.differences[at(1)], one.differences[last]
    text = f"{one.baseline} {how} against {one.model}: "
    if not first.low <= 0 <= first.high:
        return text + "pass@1 was made equal on the other prompts, but is not on those measured: take more of --calibration."
    if gain.low <= 0 <= gain.high:
        return text + f"at equal pass@1 no difference in {last} can be told."
    return text + f"at equal pass@1 latent-only {last} is {'higher' if gain.value > 0 else 'lower'}."


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


def _around(one: Estimate) -> str:
    return "–" if math.isnan(one.value) else f"{one.value:.2f} ± {(one.high - one.low) / 2:.2f}"


def _interval(one: Estimate) -> str:
    return "–" if math.isnan(one.value) else f"{one.value:+.3f}\n[{one.low:+.2f}, {one.high:+.2f}]"


def _table(title: str, columns: list[str]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table
