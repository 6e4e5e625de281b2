"""The figure of `latentlm schedules plot`: one small panel per schedule, KL and information on the left axis, cross-entropy on
the right. All panels share their scales, so that curves compare across panels. SVG or PNG, by the file's ending."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from latentlm_evals.plots import COLOURS
from latentlm_evals.schedule_runs import Outcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_KL, _INFORMATION, _CROSS_ENTROPY = COLOURS[0], COLOURS[2], COLOURS[1]
_COLUMNS = 5
_FALLING = 0.1  # share of a run in which the cross-entropy falls from a random model's: it would flatten all that follows


def draw(outcomes: list[Outcome], *, title: str) -> Figure:
    """The figure."""
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(outcomes))
    rows = math.ceil(len(outcomes) / columns)
    figure = Figure(figsize=(max(6.4, 2.6 * columns), 2.4 * rows + 0.9), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    top, (low, high) = _limits(outcomes)
    handles: list[Any] = []
    for axes, outcome in zip(grid, outcomes, strict=False):
        other = axes.twinx()
        handles = _curves(axes, other, outcome)
        axes.set_ylim(0.0, top)
        other.set_ylim(low, high)
    for place, axes in enumerate(grid):
        if place >= len(outcomes):
            axes.set_axis_off()
            continue
        other = axes.get_figure().axes[len(grid) + place]
        last = place % columns == columns - 1 or place == len(outcomes) - 1
        _label(axes, other, left=place % columns == 0, right=last, below=place + columns >= len(outcomes))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    return figure


def _limits(outcomes: list[Outcome]) -> tuple[float, tuple[float, float]]:
    """Top of the left axis, and the range of the right one."""
    points = [point for outcome in outcomes for point in outcome.points]
    top = max(max(point.kl, point.information or 0.0) for point in points)
    last = max(point.step for point in points)
    late = [point.cross_entropy for point in points if point.step >= _FALLING * last]
    margin = 0.08 * (max(late) - min(late)) or 0.1
    return max(top, 0.1) * 1.08, (min(late) - margin, max(late) + margin)


def _curves(axes: Any, other: Any, outcome: Outcome) -> list[Any]:
    """The lines of a panel; `other` is its right axis."""
    steps = [point.step for point in outcome.points]
    lines = axes.plot(steps, [point.kl for point in outcome.points], color=_KL, lw=1.6, label="KL")
    if all(point.information is not None for point in outcome.points):
        known = [point.information for point in outcome.points]
        lines += axes.plot(steps, known, color=_INFORMATION, lw=1.3, ls="--", label="information about the text")
    values = [point.cross_entropy for point in outcome.points]
    lines += other.plot(steps, values, color=_CROSS_ENTROPY, lw=1.3, label="cross-entropy under the posterior (right axis)")
    axes.set_title(outcome.schedule, loc="left", fontsize=10, fontweight="bold")
    axes.set_xlim(0, steps[-1])
    axes.grid(alpha=0.25)
    axes.set_zorder(other.get_zorder() + 1)  # the KL is drawn over the cross-entropy
    axes.patch.set_visible(False)
    return list(lines)


def _label(axes: Any, other: Any, *, left: bool, right: bool, below: bool) -> None:
    """Labels at the outer edges of the grid only."""
    for side in (axes, other):
        side.tick_params(labelsize=8)
        side.spines["top"].set_visible(False)
    axes.tick_params(labelleft=left)
    other.tick_params(labelright=right, right=right)
    if left:
        axes.set_ylabel("bits per site", fontsize=8.5, color=_KL)
    if right:
        other.set_ylabel("bits per token", fontsize=8.5, color=_CROSS_ENTROPY)
    if below:
        axes.set_xlabel("step", fontsize=8.5)
