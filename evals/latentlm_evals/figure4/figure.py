"""Figure 4 of the Free Transformer's paper, drawn from our models: for each an independent group above two shared ones, on the
left with the prompt's z from the prior, as in the paper, on the right from the encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from latentlm_evals.figure4.arms import KINDS, kind_of
from latentlm_evals.figure4.experiment import Shown
from latentlm_evals.letter.groups import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LETTER, SPACE, NOISE, OTHER = "#1c3fb7", "#c9ced6", "#e8590c", "#c2255c"
_LINE, _GAP = 1.0, 0.9  # heights, in lines


_SOURCES = {"prior": "prompt's z: prior", "posterior": "prompt's z: encoder"}
_WORDS = (
    "Continuations of a letter, in groups of five: one group with z drawn for each text, then two whose texts share one z.\n"
    "Left: the prompt's z is drawn from the prior, as in the paper. Right: the encoder infers it from the prompt.\n"
    "Blue: the letter; orange: noise; red: what the data never holds."
)


def pictures(found: Sequence[Shown]) -> dict[str, Figure]:
    """A picture for each kind of table of which there are models."""
    made = {}
    for kind in KINDS:
        own = [one for one in found if kind_of(one.name) == kind]
        panels = {
            f"{one.label} bit; {_SOURCES[prefill]}": groups for one in own for prefill, groups in one.pictures.items()
        }
        if panels:
            made[kind] = draw(panels)
    return made


def draw(columns: Mapping[str, Mapping[str, Sequence[Group]]], *, width: int = 2) -> Figure:
    """A panel for each title, `width` of them in a row; in it the groups by their kind, one below the other."""
    from matplotlib.figure import Figure

    rows = -(-len(columns) // width)
    heading = 0.55
    groups = [[group for own in kinds.values() for group in own] for kinds in columns.values()]
    lines = max(sum(len(group.texts) * _LINE + _GAP for group in own) for own in groups)
    figure = Figure(figsize=(3.7 * width, (0.14 * lines + 0.55) * rows + heading), layout="constrained")
    figure.suptitle(_WORDS, x=0.01, ha="left", fontsize=8, color="#333", linespacing=1.4)
    axes = figure.subplots(rows, width, squeeze=False).flat
    for panel, (title, kinds) in zip(axes, columns.items(), strict=False):
        _panel(panel, title, kinds, lines)
    for panel in list(axes)[len(columns) :]:
        panel.set_axis_off()
    return figure


def _panel(axes: Axes, title: str, kinds: Mapping[str, Sequence[Group]], lines: float) -> None:
    """Characters on a grid: letters dark, noise orange, what should not be there red."""
    place = 0.0
    for kind, groups in kinds.items():
        for group in groups:
            axes.text(0, place + 0.3, kind, fontsize=6.5, color="#666", va="bottom")
            place += _GAP
            for text in group.printable:
                for colour, shown in _by_colour(group.letter, text).items():
                    axes.text(0, place, shown, fontsize=6, family="monospace", va="center", color=colour)
                place += _LINE
    axes.set_title(title, loc="left", fontsize=9.5, fontweight="bold")
    axes.set_xlim(0, 1)
    axes.set_ylim(lines, -0.6)
    axes.set_axis_off()


def _by_colour(letter: str, text: str) -> dict[str, str]:
    """The text once for each colour, blank where a character has another: all on top of each other they are the text."""
    known = {letter: LETTER, "_": SPACE, "!": NOISE}
    colours = [known.get(character, OTHER) for character in text]
    return {
        colour: "".join(character if own == colour else " " for character, own in zip(text, colours, strict=True))
        for colour in dict.fromkeys(colours)
    }
