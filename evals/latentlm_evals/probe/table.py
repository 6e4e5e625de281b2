"""What a probe found, in tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console

from latentlm.cli.tables import ReadableTable
from latentlm.cli.text import escaped
from latentlm_evals.intervals import Interval
from latentlm_evals.letter.groups import MEMBERS
from latentlm_evals.probe.generated import Groups, Swap
from latentlm_evals.probe.probing import ALL, Probed


def show(found: Probed, *, console: Console) -> None:
    """Everything but the picture."""
    shows = "" if found.ceiling is None else f"; a text shows {found.ceiling:.2f} bits of it"
    console.print(escaped(f"{found.attribute}: {found.texts} texts, {found.positive:.0%} positive{shows}"))
    console.print(_known(found))
    console.print(_swaps(found))
    console.print(_groups(found))
    console.print(
        f"Judge of what was written: {found.judge}. It is right about {_text(found.judge_accuracy)} of the rated texts, and "
        f'reads {found.judge_undecided:.2f} as neither ("none").'
    )


def _known(found: Probed) -> ReadableTable:
    """What features say of the label."""
    table = _table("Bits of the label that z has at least, by a linear classifier on unseen texts",
                   ["", "bits", "labels shuffled", "share right"])  # fmt: skip
    for name, one in found.known.items():
        called = "z, all of it" if name == ALL and len(found.written.swaps) > 1 else name
        table.add_row(escaped(called), _text(one.information), _text(one.shuffled), _text(one.accuracy))
    table.add_row("commoner label", "0", "", f"{found.majority:.2f}")
    return table


def _swaps(found: Probed) -> ReadableTable:
    """What exchanging z does."""
    pairs = found.written.swaps[0].pairs
    table = _table(f"What the decoder does: z of a positive text for z of a negative one, {pairs} pairs",
                   ["exchanged", "flips", "the other way", "z's own label", "none"])  # fmt: skip
    for one in found.written.swaps:
        table.add_row(escaped(one.name), *_swap(one))
    if found.baseline is not None:
        table.add_row("baseline, twice", *_swap(found.baseline.swaps[0]))
    return table


def _swap(one: Swap) -> list[str]:
    return [_text(one.flips), _text(one.other_way), _text(one.follows), f"{one.undecided:.2f}"]


def _groups(found: Probed) -> ReadableTable:
    """What texts under one z agree in."""
    table = _table(f"Pairs of texts with the same label, {found.written.groups.groups} groups of {MEMBERS}",
                   ["", "under one z", "under two", "more", "none"])  # fmt: skip
    table.add_row("this model", *_group(found.written.groups))
    if found.baseline is not None:
        table.add_row("baseline", *_group(found.baseline.groups))
    return table


def _group(one: Groups) -> list[str]:
    return [_text(one.within), _text(one.across), _text(one.more), f"{one.undecided:.2f}"]


def _text(one: Interval) -> str:
    value, low, high = (round(number, 2) + 0.0 for number in (one.value, one.low, one.high))  # no -0.00
    return escaped(f"{value:.2f} [{low:.2f} {high:.2f}]")


def _table(title: str, columns: Sequence[str]) -> ReadableTable:
    table = ReadableTable(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table
