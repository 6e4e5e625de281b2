"""What a probe found, in tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from latentlm_evals.probe.generated import Groups, Swap
from latentlm_evals.probe.intervals import Interval
from latentlm_evals.probe.probing import ALL, Probed


def show(found: Probed, *, console: Console) -> None:
    """Everything but the picture."""
    shows = "" if found.ceiling is None else f"; a text shows {found.ceiling:.2f} bits of it"
    console.print(escape(f"{found.attribute}: {found.texts} texts, {found.positive:.0%} positive{shows}"))
    console.print(_known(found))
    console.print(_swaps(found))
    console.print(_groups(found))
    console.print(f"Judge of what was written: {found.judge}, right about {_text(found.judge_accuracy)} of the rated texts.")


def _known(found: Probed) -> Table:
    """What features say of the label."""
    table = _table("What z knows: by a linear classifier, on texts that it has not seen",
                   ["asked", "numbers", "bits, at least", "the same, labels shuffled", "right"])  # fmt: skip
    for name, one in found.known.items():
        called = name if name != ALL or len(found.known) == 1 else "z, all of it"
        table.add_row(escape(called), str(one.features), _text(one.information), _text(one.shuffled), _text(one.accuracy))
    table.add_row("the commoner label", "–", "0", "–", f"{found.majority:.2f}")
    return table


def _swaps(found: Probed) -> Table:
    """What exchanging z does."""
    table = _table("What the decoder does with it: z of a positive text exchanged for z of a negative one",
                   ["exchanged", "pairs", "flips", "the other way", "texts with z's label", "neither"])  # fmt: skip
    for one in found.written.swaps:
        table.add_row(escape(one.name), *_swap(one))
    if found.baseline is not None:
        table.add_row("baseline, drawn twice", *_swap(found.baseline.swaps[0]))
    return table


def _swap(one: Swap) -> list[str]:
    return [str(one.pairs), _text(one.flips), _text(one.other_way), _text(one.follows), f"{one.undecided:.2f}"]


def _groups(found: Probed) -> Table:
    """What texts under one z agree in."""
    table = _table("Pairs of texts with one label", ["", "groups", "under one z", "under two", "neither"])
    table.add_row("z from the prior", *_group(found.written.groups))
    if found.baseline is not None:
        table.add_row("baseline, no z", *_group(found.baseline.groups))
    return table


def _group(one: Groups) -> list[str]:
    return [str(one.groups), _text(one.within), _text(one.across), f"{one.undecided:.2f}"]


def _text(one: Interval) -> str:
    return escape(f"{one.value:.2f} [{one.low:.2f}, {one.high:.2f}]")


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table
