"""A probe at a glance: on the left where each text's z puts it along the probe's direction, coloured by its label; on the
right what the model writes, from the same random numbers, under z of a positive text and of a negative one."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np

from latentlm_evals.figures import svg
from latentlm_evals.probe.probing import ALL, Probed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POSITIVE, NEGATIVE, GREY = "#1c3fb7", "#e8590c", "#868e96"
_WIDTH, _LINES = 68, 2
_SHOWN = 3
"""Pairs of texts."""


def picture(found: Probed, model: str) -> str:
    """The picture as the text of an SVG file, the same for the same probe."""
    return svg(draw(found, model))


def draw(found: Probed, model: str) -> Figure:
    """Both panels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    _texts(left, found)
    _written(right, found)
    title = f"{model}: does its latent z know whether a text of {found.attribute} is positive, and write so?"
    figure.suptitle(printable(title), x=0.01, ha="left", fontsize=12, fontweight="bold")
    return figure


def printable(text: str, most: int = 400) -> str:
    """A text for matplotlib, on one line."""
    return _escaped(textwrap.shorten(_visible(text), most, placeholder=" ..."))


def _texts(axes: Axes, found: Probed) -> None:
    """A dot for each text. Ratings of two values are two bands, spread out so that dots do not hide each other."""
    scores, ratings = np.array(found.scores), np.array(found.ratings)
    bands = len(set(found.ratings)) == 2
    spread = np.random.default_rng(0).uniform(-0.3, 0.3, len(ratings)) * (abs(np.ptp(ratings)) if bands else 0.0)
    high = ratings > found.threshold
    reach = max(3.0, float(np.quantile(np.abs(scores), 0.99)) * 1.1)
    for rows, colour in ((high, POSITIVE), (~high, NEGATIVE)):
        axes.scatter(scores[rows].clip(-reach, reach), (ratings + spread)[rows], s=16, color=colour, alpha=0.6, lw=0)
    axes.axvline(0.0, color=GREY, lw=0.8)
    axes.set_xlim(-reach * 1.05, reach * 1.05)
    if bands:
        axes.set_yticks(sorted(set(found.ratings)), ["negative\ntexts", "positive\ntexts"], fontsize=9)
    else:
        axes.set_ylabel("rating of the text", fontsize=9)
        axes.axhline(found.threshold, color=GREY, lw=0.8)
    axes.set_xlabel("z says negative  ←   log odds, by a linear probe   →  z says positive", fontsize=9)
    z = found.known[ALL]
    axes.set_title(
        f"A dot is a text. Its z tells {z.accuracy.value:.0%} of {found.texts} labels\n", loc="left", fontsize=10.5,
        fontweight="bold",
    )  # fmt: skip
    axes.text(
        0, 1.02, f"the commoner label is {found.majority:.0%}; at least {max(0.0, z.information.value):.2f} bits are in z",
        transform=axes.transAxes, fontsize=9, color=GREY,
    )  # fmt: skip
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _written(axes: Axes, found: Probed) -> None:
    """Pairs of texts, one below the other."""
    swap = found.written.swaps[0]
    axes.set_title(
        f"z exchanged: {swap.flips.value:.0%} of {swap.pairs} pairs flip with it, {swap.other_way.value:.0%} the other way\n",
        loc="left", fontsize=10.5, fontweight="bold",
    )  # fmt: skip
    axes.text(
        0, 1.02, "what is written, each pair from the same random numbers; blue reads positive, orange negative", fontsize=9,
        color=GREY, transform=axes.transAxes,
    )  # fmt: skip
    place = 0.0
    for example in found.examples[:_SHOWN]:
        for side, colour in ((0, POSITIVE), (1, NEGATIVE)):
            axes.text(0.0, place, ("+", "–")[side], fontsize=11, va="top", color=colour, fontweight="bold")
            axes.text(0.03, place, f"under z of:  {printable(example.texts[side], 80)}", fontsize=8, va="top", color=GREY)
            place += 0.9
            lines = _wrapped(example.written[side])
            shown = {1: POSITIVE, -1: NEGATIVE, 0: "black"}[example.read[side]]
            axes.text(0.03, place, "\n".join(lines), fontsize=8.5, va="top", color=shown, family="monospace")
            place += 0.95 * len(lines) + 0.25
        place += 0.5
    axes.set_xlim(0, 1)
    axes.set_ylim(max(place, 1.0), -0.3)
    axes.set_axis_off()


def _wrapped(text: str) -> list[str]:
    """A few lines; escaped after they are cut, so that no sign is parted from its backslash."""
    lines = textwrap.wrap(_visible(text), _WIDTH, max_lines=_LINES, placeholder=" ...") or ["(nothing)"]
    return [_escaped(line) for line in lines]


def _visible(text: str) -> str:
    """On one line; a dot for what is no printable character."""
    return "".join(character if character.isprintable() else "·" for character in " ".join(text.split()))


def _escaped(text: str) -> str:
    """A dollar sign begins no formula."""
    return text.replace("$", r"\$")
